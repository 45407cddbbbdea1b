"""Run the recipes' own scripts as one hardware profile has them, under a cap of that card's memory:

    python -m benchmarks.gpu_profiles gpu_16gb

MedGemma-4B's exact sizes, random weights; prints the planned and the measured peaks. `bench_gpu` runs all profiles so,
and one step under each strategy, each in a process of its own that starts with an empty card.
"""

import argparse
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # before the libraries are loaded, which read them; not where one is only imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")

import torch

from benchmarks.gpu_recipe import free_memory, measure_peaks, write_recipe
from histolab_sft.config.arguments import parse_recipe
from histolab_sft.config.hardware import CPU, CUDA_CONTEXT, GIB, USABLE_GIB
from histolab_sft.data.rows import load_audited_patches
from histolab_sft.memory.fit import fit_to_hardware, plan_fitted
from histolab_sft.memory.peak import SCORING, TRAINING, compute_peak
from histolab_sft.models.load import load_base_processor

PROFILES = tuple(USABLE_GIB)
# Launch file -> what of the recipe it needs changed: FSDP2 can't shard 4-bit weights, nor ZeRO-3.
WHOLE = ["--load_in_4bit", "false", "--use_bnb_nested_quant", "false"]
STRATEGIES = {"fsdp2": WHOLE, "deepspeed_zero2": [], "deepspeed_zero3": WHOLE}
EARLIER = ("gpu_4gb", "gpu_16gb_turing", "gpu_16gb", "gpu_24gb")
PATCHES = {"train": 64, "validation": 8, "test": 32}
# Two optimiser steps: state and gradients of the one before are there in the second.
SHORT = ["--max_steps", "2", "--max_samples", "64"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", choices=[CPU, *PROFILES])
    parser.add_argument("--recipe", type=Path, help="of `gpu_recipe.write_recipe`; written anew if omitted")
    options = parser.parse_args()
    if options.profile != CPU and not torch.cuda.is_available():
        raise SystemExit("no CUDA device found, expected one; run this on a machine with a GPU, or try cpu")
    with tempfile.TemporaryDirectory() as folder:
        recipe = options.recipe or write_recipe(Path(folder), options.profile == CPU, PATCHES)
        print(json.dumps(run_profile(options.profile, recipe)))


def start_profile(profile: str, recipe: Path, limit: float) -> dict:
    """Return what `run_profile` finds in a process of its own, or why it ended."""
    command = [sys.executable, "-m", "benchmarks.gpu_profiles", profile, "--recipe", str(recipe)]
    environment = {"XDG_CACHE_HOME": str(recipe.parent / f"cache-{profile}"), "OMP_NUM_THREADS": "4"}
    if profile in EARLIER:
        # What cuBLAS takes there of itself; on Hopper it takes four times as much.
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:2:16:8"
    return run_process(command, environment, limit) or {"error": "nothing was printed"}


def run_profile(profile: str, recipe: Path) -> dict:
    """Train and score in this process, capped at the card's memory, and return planned and measured peaks in GiB."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    flags = ["--config", str(recipe), "--hardware", profile, "--output_dir", f"{recipe.parent}/out-{profile}", *SHORT]
    if profile == "gpu_4gb":
        flags += ["--vision_cache", f"{recipe.parent}/features-{profile}"]
    on_gpu = profile != CPU
    if on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        cap = min(1.0, (USABLE_GIB[profile] * GIB - CUDA_CONTEXT) / total)
        torch.cuda.set_per_process_memory_fraction(cap)
    found = {"profile": profile, "card_gib": USABLE_GIB.get(profile)} | plan_peaks(flags, on_gpu)
    for script, moment in (("recipes/sft.py", "training"), ("recipes/evaluate.py", "scoring")):
        free_memory()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        run_script(script, flags)
        found[moment] |= measure_peaks()
    return found


def plan_peaks(flags: list[str], on_gpu: bool) -> dict:
    """Return the plan's peaks in GiB for what will run, less the CUDA context, which no allocator counts."""
    histo_args, training_args, model_args = parse_recipe(flags)
    rows = load_audited_patches(histo_args, training_args.output_dir)["train"]
    processor = load_base_processor(model_args)
    fit_to_hardware(rows, processor, histo_args, training_args, model_args)
    setup, planned = plan_fitted(rows, processor, histo_args, training_args, model_args)
    context = CUDA_CONTEXT if on_gpu else 0
    return {
        "batch": setup.batch_size,
        "accumulation": setup.accumulation,
        "checkpointing": setup.checkpointing,
        "tokens": setup.tokens,
    } | {
        name: {"planned_gib": (compute_peak(planned, moments) - context) / GIB}
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


def start_strategy(strategy: str, recipe: Path, limit: float) -> dict:
    """Train a step, go on from its checkpoint for another, and score: one process under a launch file of ours."""
    folder = f"{recipe.parent}/{strategy}"
    flags = ["--config", str(recipe), "--hardware", "gpu_24gb", "--output_dir", folder, *STRATEGIES[strategy]]
    flags += ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2", "--max_samples", "64"]
    port = 29500 + list(STRATEGIES).index(strategy)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--main_process_port"]
    launch += [str(port), "--config_file", f"accelerate_configs/{strategy}.yaml", "recipes/sft.py", *flags]
    train = [*launch, "--save_strategy", "steps", "--save_steps", "1", "--vision_cache", "off"]
    environment = {"XDG_CACHE_HOME": str(recipe.parent / f"cache-{strategy}")}
    ran, start = [], time.monotonic()
    for stage, command in {
        "trained": [*train, "--max_steps", "1"],
        "resumed": [*train, "--max_steps", "2", "--resume_from_checkpoint", "auto"],
        "scored": [sys.executable, "recipes/evaluate.py", *flags],
    }.items():
        found = run_process(command, environment, limit - (time.monotonic() - start))
        if "error" in found:
            return {"ran": ran, "error": f"not {stage}: {found['error']}", "tail": found.get("tail")}
        ran.append(stage)
    return {"ran": ran}


def check_placement(recipe: Path, limit: float) -> dict:
    """Train a step in one process that sees two devices: it must take one and copy no model to the other."""
    if torch.cuda.device_count() < 2:
        return {"skipped": f"{torch.cuda.device_count()} device here, two needed"}
    command = [sys.executable, "recipes/sft.py", "--config", str(recipe), "--hardware", "gpu_24gb", "--max_steps", "1"]
    command += ["--output_dir", f"{recipe.parent}/placement"]
    found = run_process(command, {"CUDA_VISIBLE_DEVICES": "0,1"}, limit)
    return found if "error" in found else {"ran": ["trained"]}


def run_process(command: list[str], environment: dict[str, str], limit: float) -> dict:
    """Run a command and return the JSON that it printed last, if it did; or its last words where it failed."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )
    try:
        printed, complaints = process.communicate(timeout=max(1, limit))
    except subprocess.TimeoutExpired:
        # A launcher's own processes hold the card too.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"error": f"not at its end after {limit:.0f} s"}
    if process.returncode:
        said = [line for line in complaints.strip().splitlines() if line.strip()]
        # What the project says itself comes before what a launcher makes of it.
        errors = [line for line in said if line.startswith("error:")] or [line for line in said if "Error" in line]
        return {"error": (errors or said or ["no word"])[-1][:500], "tail": said[-15:]}
    lines = printed.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


if __name__ == "__main__":
    main()
