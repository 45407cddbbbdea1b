"""An estimate of the carbon that training gave off, where the run recorded its hardware and time."""

from datetime import datetime

# Board power in watts by NVIDIA's data sheets, under the names that torch.cuda.get_device_name gives.
BOARD_POWER = {
    "Tesla T4": 70,
    "NVIDIA L4": 72,
    "Tesla V100-SXM2-16GB": 300,
    "NVIDIA A100-SXM4-40GB": 400,
    "NVIDIA A100-SXM4-80GB": 400,
    "NVIDIA A100 80GB PCIe": 300,
    "NVIDIA H100 80GB HBM3": 700,
    "NVIDIA H100 PCIe": 350,
    "NVIDIA H200": 700,
    "NVIDIA GeForce RTX 3090": 350,
    "NVIDIA GeForce RTX 4090": 450,
}
WORLD_AVERAGE = 0.475  # kg CO2 a kWh: IEA, Global Energy & CO2 Status Report 2019


def estimate_carbon(run: dict) -> str:
    """Return a sentence with energy and carbon of the training run, or with what is missing for one.

    Energy is hours times devices times board power, carbon is energy times the world's average grid (Lacoste et al.
    2019, arXiv 1910.09700, without their correction for the data centre).

    Args:
        run (`dict`): `run.json`; needed are `start` and `end` in ISO 8601, and `hardware` with `device` (the name that
            torch gives) and `count`.
    """
    hardware = run.get("hardware")
    if not isinstance(hardware, dict) or not {"device", "count"} <= set(hardware) or not {"start", "end"} <= set(run):
        return "Carbon: not estimated, the run recorded no hardware or no time."
    device, count = hardware["device"], hardware["count"]
    if device not in BOARD_POWER:
        return f"Carbon: not estimated, the power of the device ({device}) isn't known."
    hours = (datetime.fromisoformat(run["end"]) - datetime.fromisoformat(run["start"])).total_seconds() / 3600
    energy = hours * count * BOARD_POWER[device] / 1000
    return (
        f"Carbon of training: about {energy * WORLD_AVERAGE:.2f} kg CO2, from {hours:.2f} h x {count} x "
        f"{BOARD_POWER[device]} W (board power, {device}) = {energy:.2f} kWh, x {WORLD_AVERAGE} kg a kWh "
        "(world average, IEA 2019). Method: Lacoste et al. 2019 (arXiv 1910.09700). Host, cooling and other runs "
        "aren't counted."
    )
