"""Run the recipes' own scripts as each hardware profile has them, under a cap of that card's memory:

    python -m benchmarks.gpu_profiles

MedGemma-4B's exact sizes, random weights. Beside the profiles one step under ZeRO-2 and one under FSDP2, each with one
process. Adds `results/<device>-profiles.json` and `.md`.
"""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import pandas as pd
import torch
import yaml

from benchmarks.bench_gpu import RESULTS, free_memory, write_model
from benchmarks.miniature import CLASS_NAMES, TINY, paint_rows
from benchmarks.tables import describe_machine, format_table
from histolab_sft.arguments import parse_recipe_elsewhere
from histolab_sft.hardware import CPU, CUDA_CONTEXT, GIB, USABLE_GIB
from histolab_sft.models.geometry import IMAGE_TOKENS, VISION_SIZES
from histolab_sft.models.memory import SCORING, TRAINING, compute_peak, plan_memory
from histolab_sft.models.plan import build_planned_model, build_setup
from histolab_sft.phase_config import list_trained_parts

PROFILES = ("gpu_4gb", "gpu_16gb_turing", "gpu_16gb", "gpu_24gb")
# Launch file -> what of the recipe it needs changed: FSDP2 can't shard 4-bit weights.
STRATEGIES = {"deepspeed_zero2": [], "fsdp2": ["--load_in_4bit", "false", "--use_bnb_nested_quant", "false"]}
PATCHES = {"train": 64, "validation": 8, "test": 8}
TOKENS = 310
STEPS = 3
LIMIT = 900  # seconds for one run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a toy model on a processor: no result, only proof")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--run", metavar="PROFILE", help="train and score as this profile, and print what it took")
    parser.add_argument("--recipe", help="of --run")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run_profile(options.run, options.recipe)))
        return
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device found, expected one; run this on a machine with a GPU, or try --tiny")
    name = "no GPU" if options.tiny else torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(Path(folder), options.tiny)
        results = {
            "machine": describe_machine(*os.getloadavg()[:2]) | {"device": name, "tiny": options.tiny},
            "profiles": {profile: start_profile(profile, recipe) for profile in ([CPU] if options.tiny else PROFILES)},
            "strategies": {} if options.tiny else {strategy: start_step(strategy, recipe) for strategy in STRATEGIES},
        }
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / (re.sub(r"\W+", "-", name.lower()).strip("-") + "-profiles")
    stem.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    stem.with_suffix(".md").write_text(table := format_results(results))
    print(table)


def write_recipe(folder: Path, tiny: bool) -> Path:
    """Write patches, a base model with random weights and a recipe on both, and return the recipe."""
    sizes = (TINY.side, TINY.tokens) if tiny else (VISION_SIZES["image_size"], IMAGE_TOKENS)
    model_args = write_model(folder / "model", *sizes, tiny)
    splits = [split for split, count in PATCHES.items() for _ in range(count)]
    rows = paint_rows(len(splits), folder / "patches").with_format(None)
    pd.DataFrame({"path": rows["image"], "label": rows["label"], "split": splits}).to_csv(folder / "patches.csv")
    recipe = {
        "model_name_or_path": model_args.model_name_or_path,
        "use_peft": True,
        "lora_target_modules": model_args.lora_target_modules,
        "datasets": [
            {"name": "crc", "source": str(folder / "patches.csv"), "class_names": {name: name for name in CLASS_NAMES}}
        ],
        "output_dir": str(folder / "out"),
        "max_length": None,
        "max_steps": STEPS,
        "save_strategy": "no",
        "report_to": "none",
        "generate_answers": False,
        "sensitivity": "none",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def start_profile(profile: str, recipe: Path) -> dict:
    """Return what `run_profile` finds in a process of its own, which starts with an empty card; or why it ended."""
    command = [sys.executable, "-m", "benchmarks.gpu_profiles", "--run", profile, "--recipe", str(recipe)]
    environment = os.environ | {"XDG_CACHE_HOME": str(recipe.parent / f"cache-{profile}")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment)
    if done.returncode:
        return {"fits": False, "error": done.stderr.strip().splitlines()[-1]}
    return {"fits": True} | json.loads(done.stdout.splitlines()[-1])


def run_profile(profile: str, recipe: str) -> dict:
    """Train and score in this process, capped at the card's memory, and return planned and measured peaks in GiB."""
    output_dir = f"{Path(recipe).parent}/out-{profile}"
    flags = ["--config", recipe, "--hardware", profile, "--output_dir", output_dir]
    if profile == "gpu_4gb":
        flags += ["--vision_cache", f"{Path(recipe).parent}/features"]
    on_gpu = profile != CPU
    if on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((USABLE_GIB[profile] * GIB - CUDA_CONTEXT) / total)
    found = {"planned_gib": plan_peaks(flags, on_gpu)}
    for script, moment in (("recipes/sft.py", "training"), ("recipes/evaluate.py", "scoring")):
        free_memory()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        run_script(script, flags)
        if on_gpu:
            found[moment] = {
                "peak_allocated_gib": torch.cuda.max_memory_allocated() / GIB,
                "peak_reserved_gib": torch.cuda.max_memory_reserved() / GIB,
            }
    return found


def plan_peaks(flags: list[str], on_gpu: bool) -> dict[str, float]:
    """Return the memory plan's peaks in GiB, less the CUDA context, which the allocator's own numbers leave out."""
    histo_args, training_args, model_args = parse_recipe_elsewhere(flags)[0]
    model, _ = build_planned_model(model_args, histo_args.lora_scope, list_trained_parts(histo_args))
    keys = vars(model_args) | vars(training_args) | vars(histo_args) | {"tokens": TOKENS, "labelled": 8}
    rows = plan_memory(model, build_setup(model, keys, on_gpu, bfloat16_kernels=True))
    context = CUDA_CONTEXT if on_gpu else 0
    return {
        name: (compute_peak(rows, moments) - context) / GIB
        for name, moments in (("training", TRAINING), ("scoring", SCORING))
    }


def run_script(script: str, flags: list[str]) -> None:
    """Run a recipe's script as its own command would, in this process, whose memory is capped and counted."""
    sys.argv = [script, *flags]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def start_step(strategy: str, recipe: Path) -> dict:
    """Return whether one step of one process runs under a strategy, and what was said last if it doesn't."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [f"accelerate_configs/{strategy}.yaml", "--num_processes", "1", "recipes/sft.py", "--config"]
    command += [str(recipe), "--hardware", "gpu_24gb", "--max_steps", "1", "--vision_cache", "off"]
    command += ["--output_dir", f"{recipe.parent}/{strategy}", *STRATEGIES[strategy]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    ran = done.returncode == 0 and Path(recipe.parent, strategy, "adapter_model.safetensors").is_file()
    return {"ran": ran} if ran else {"ran": False, "error": done.stderr.strip().splitlines()[-1]}


def format_results(results: dict) -> str:
    """Return the results as tables in Markdown."""
    machine, lines = results["machine"], []
    for profile, run in results["profiles"].items():
        if not run["fits"]:
            lines.append((profile, "", "does not fit", run["error"], "", ""))
            continue
        for moment, planned in run["planned_gib"].items():
            measured = run.get(moment)
            peaks = [f"{value:.2f}" for value in measured.values()] if measured else ["", ""]
            cap = f"{USABLE_GIB[profile]:.2f}" if profile in USABLE_GIB else ""
            lines.append((profile, cap, moment, f"{planned:.2f}", *peaks))
    strategies = [(name, "ran" if run["ran"] else run["error"]) for name, run in results["strategies"].items()]
    parts = [
        f"{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}"
        + (", toy sizes: no result" if machine["tiny"] else "")
        + "; GiB beside the CUDA context",
        format_table(("profile", "card", "moment", "planned", "allocated", "reserved"), lines),
        format_table(("one step under", ""), strategies),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
