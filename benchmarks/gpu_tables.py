"""The results of `bench_gpu` as tables in Markdown."""

from benchmarks.tables import format_table

REFERENCE = "TRL's default, bfloat16, batch 8"


def format_results(results: dict) -> str:
    """Return one table a kind of result, and what was not measured."""
    machine, arms = results["machine"], results["arms"]
    commit = f", commit {machine['commit']}" if machine.get("commit") else ""
    parts = [
        f"{machine['device']}, {machine['date']}{commit}; torch {machine['torch']}, transformers "
        f"{machine['transformers']}, trl {machine['trl']}, peft {machine['peft']}"
        + ("; toy sizes: no result" if machine["tiny"] else "; MedGemma-4B's sizes, random weights")
    ]
    tables = {
        "Training": _list_training(arms),
        "Passes over patches": _list_passes(arms),
        "One training step": _list_steps(arms),
        "Peak memory in GiB, the CUDA context not counted": list_peaks(arms),
        "Strategies": _list_strategies(arms),
        "Not measured": [
            (name, arm.get("error") or arm["skipped"]) for name, arm in arms.items() if {"error", "skipped"} & set(arm)
        ],
    }
    headers = {
        "Training": ("arm", "s a step", "samples a second", "times TRL's default", "peak GiB", "first step, s"),
        "Passes over patches": ("pass", "patches a second"),
        "One training step": ("step", "s", "the card computes, s", "it waits", "launches"),
        "Peak memory in GiB, the CUDA context not counted": (
            "profile", "batch", "moment", "planned", "allocated", "of the plan", "reserved",
        ),
        "Strategies": ("one process under", "did"),
        "Not measured": ("arm", "why"),
    }  # fmt: skip
    for title, rows in tables.items():
        if rows:
            parts.append(f"{title}:\n\n{format_table(headers[title], rows)}")
    for name, arm in arms.items():
        if arm.get("top_kernels_ms"):
            kernels = [(f"`{kernel}`", f"{ms:.2f}") for kernel, ms in arm["top_kernels_ms"].items()]
            parts.append(f"Kernels of {name}:\n\n{format_table(('kernel', 'ms a step'), kernels)}")
    return "\n\n".join(parts) + "\n"


def list_peaks(arms: dict) -> list[tuple]:
    """Return one row for each profile and moment whose peak was planned and measured."""
    rows = []
    for arm in arms.values():
        for moment in ("training", "scoring"):
            peaks = arm.get(moment, {})
            if "planned_gib" in peaks:
                planned, found = peaks["planned_gib"], peaks.get("peak_allocated_gib")
                share = [f"{found:.2f}", f"{found / planned:.0%}"] if found else ["", ""]
                reserved = f"{peaks['peak_reserved_gib']:.2f}" if found else ""
                rows.append((arm["profile"], arm["batch"], moment, f"{planned:.2f}", *share, reserved))
    return rows


def _list_training(arms: dict) -> list[tuple]:
    plain = arms.get(REFERENCE, {}).get("samples_per_s")
    return [
        (
            name,
            f"{arm['step_s']:.3f}",
            f"{arm['samples_per_s']:.1f}",
            f"{arm['samples_per_s'] / plain:.1f}" if plain else "",
            f"{arm['peak_allocated_gib']:.1f}" if "peak_allocated_gib" in arm else "",
            f"{arm['first_step_s']:.1f}" if "first_step_s" in arm else "",
        )
        for name, arm in arms.items()
        if "samples_per_s" in arm
    ]


def _list_passes(arms: dict) -> list[tuple]:
    return [(name, f"{arm['patches_per_s']:.1f}") for name, arm in arms.items() if "patches_per_s" in arm]


def _list_steps(arms: dict) -> list[tuple]:
    return [
        (
            name,
            f"{arm['step_s']:.3f}",
            f"{arm['card_computes_s']:.3f}",
            "" if arm["card_waits_share"] is None else f"{arm['card_waits_share']:.0%}",
            f"{arm['launches_a_step']:,.0f}",
        )
        for name, arm in arms.items()
        if "launches_a_step" in arm
    ]


def _list_strategies(arms: dict) -> list[tuple]:
    return [(name, ", ".join(arm["ran"])) for name, arm in arms.items() if arm.get("ran")]
