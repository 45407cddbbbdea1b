"""Measure training and scoring on a GPU, with MedGemma-4B's exact sizes and random weights, so nothing is downloaded:

    python -m benchmarks.bench_gpu

What says most comes first, and the results, `results/gpu-<device>.json` and `.md`, are written after every arm. What
there was no time for is named there; `--only` runs arms by name and keeps what the file has of the others.
"""

import argparse
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # before the libraries are loaded, which read them; not where one is only imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")

import torch

from benchmarks.gpu_arms import (
    Session,
    measure_encoding,
    profile_step,
    score,
    train,
    train_as_trl,
    train_deterministic,
)
from benchmarks.gpu_profiles import PROFILES, STRATEGIES, check_placement, start_profile, start_strategy
from benchmarks.gpu_recipe import write_recipe
from benchmarks.gpu_tables import format_results
from benchmarks.tables import describe_machine
from histolab_sft.config.hardware import CPU, GIB
from histolab_sft.provenance import find_commit
from histolab_sft.training.out_of_memory import OutOfMemoryError

RESULTS = Path(__file__).parent / "results"
BUDGET = 420  # seconds
PATCHES = {"train": 512, "validation": 8, "test": 8}
ALL_AT_ONCE = 130 * GIB  # what all profiles and strategies take together
OUT_OF_MEMORY = (torch.OutOfMemoryError, OutOfMemoryError)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a toy model on any machine: no result, only proof")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all arms; no arm begins too late")
    parser.add_argument("--only", default="", metavar="PATTERN", help="arms whose names have this regular expression")
    parser.add_argument("--commit", default=find_commit(), help="of the code, where its checkout isn't at hand")
    options = parser.parse_args()
    end = time.monotonic() + options.budget
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device found, expected one; run this on a machine with a GPU, or try --tiny")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name = "no GPU" if options.tiny else torch.cuda.get_device_name()
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / ("gpu-" + re.sub(r"\W+", "-", name.lower()).strip("-"))
    with tempfile.TemporaryDirectory() as folder:
        # Answers and compiled kernels of an earlier run would be found again.
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        patches = dict.fromkeys(PATCHES, 9) if options.tiny else PATCHES
        recipe = write_recipe(Path(folder), options.tiny, patches)
        session = Session(recipe, options.tiny, end)
        arms = {arm: how for arm, how in list_arms(session, options.tiny).items() if re.search(options.only, arm)}
        results = read_earlier(stem.with_suffix(".json")) if options.only else {"arms": {}}
        results["machine"] = describe_machine(*os.getloadavg()[:2]) | {
            "device": name,
            "tiny": options.tiny,
            "date": datetime.now(UTC).date().isoformat(),
            "commit": options.commit,
        }
        for arm, (least, measure) in arms.items():
            results["arms"] |= run_arm(arm, least, measure, session)
            stem.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
            stem.with_suffix(".md").write_text(format_results(results))
    print(format_results(results))


def read_earlier(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {"arms": {}}


def run_arm(arm: str, least: float, measure: Callable, session: Session) -> dict[str, dict]:
    """Return what an arm finds, by name, or why it found nothing; an arm that fails costs no other one.

    Args:
        least (`float`): Seconds that must be left for it to begin.
        measure: Without arguments; several processes at once give several results.
    """
    start = time.monotonic()
    if session.seconds_left() < least:
        return {arm: {"skipped": f"{max(0, session.seconds_left()):.0f} s left, about {least:.0f} needed"}}
    try:
        found = measure()
    except OUT_OF_MEMORY as error:
        found = {"fits": False, "error": str(error)}
    except Exception as error:  # whatever an arm meets on a machine nobody has tried is a result, and not the last one
        found = {"error": f"{type(error).__name__}: {error}"}
    if "error" in found:
        logging.error("%s: %s", arm, found["error"])
        # The failed step's tensors hang on the trainer.
        session.release()
    several = found.pop("several", None)
    took = {"took_s": round(time.monotonic() - start, 1)}
    return {name: part | took for name, part in several.items()} if several else {arm: found | took}


def list_arms(session: Session, tiny: bool) -> dict[str, tuple[float, Callable]]:
    """Return name -> (least seconds, what to call), what says most first.

    Neighbours share a loaded model. Profiles and strategies have processes of their own, and run side by side: their
    memory is counted a process, and nothing of them is timed.
    """
    small, middle, large, largest = (1, 2, 2, 2) if tiny else (8, 16, 32, 64)
    whole = "bfloat16"
    arms = {
        f"TRL's default, {whole}, batch {small}": (30, train_as_trl, whole, small),
        f"TRL's default, {whole}, batch {large}": (30, train_as_trl, whole, large),
        f"encoding, {whole}": (40, measure_encoding, whole),
        f"encoding, {whole}, compiled": (40, measure_encoding, whole, "on"),
        f"cached, {whole}, compiled, batch {large}": (40, train, whole, large),
        f"cached, {whole}, compiled, batch {small}": (30, train, whole, small),
        f"from pixels, {whole}, compiled, batch {large}": (30, train, whole, large, False),
        f"likelihood of nine classes, {whole}": (40, score, whole),
    }
    arms |= {f"processes, {number}": (70, run_side_by_side, wave) for number, wave in enumerate(plan_waves(tiny), 1)}
    arms |= {
        f"one step, {whole}, compiled, batch {large}": (25, profile_step, whole, large),
        f"cached, {whole}, eager, batch {large}": (12, train, whole, large, True, False),
        f"cached, {whole}, eager, batch {small}": (10, train, whole, small, True, False),
        f"one step, {whole}, eager, batch {small}": (12, profile_step, whole, small, False),
        f"cached, {whole}, deterministic, batch {large}": (12, train_deterministic, whole, large),
        f"encoding, {whole} at 448 and 64": (40, measure_encoding, f"{whole} at 448 and 64"),
        f"cached, {whole} at 448 and 64, compiled, batch {large}": (35, train, f"{whole} at 448 and 64", large),
        f"from pixels, {whole} at 448 and 64, compiled, batch {large}": (
            *(20, train, f"{whole} at 448 and 64", large),
            False,
        ),
        f"likelihood of nine classes, {whole} at 448 and 64": (40, score, f"{whole} at 448 and 64"),
        f"from pixels, {whole} at 448 and 256, compiled, batch {large}": (
            *(40, train, f"{whole} at 448 and 256", large),
            False,
        ),
        f"cached, NF4, compiled, batch {large}": (60, train, "NF4", large),
        f"cached, NF4, compiled, batch {small}": (30, train, "NF4", small),
        f"cached, NF4, eager, batch {small}": (15, train, "NF4", small, True, False),
        f"generation, {whole}": (40, score, whole, True),
        f"TRL's default, NF4, batch {small}": (35, train_as_trl, "NF4", small),
        f"cached, {whole}, compiled, batch {largest}": (40, train, whole, largest),
        f"TRL's default, {whole}, batch {middle}": (40, train_as_trl, whole, middle),
    }
    return {name: (least, partial(measure, session, *asked)) for name, (least, measure, *asked) in arms.items()}


def plan_waves(tiny: bool) -> list[dict[str, Callable]]:
    """Return which processes run side by side: as many as the card has memory for."""
    if tiny:
        # Neither a card's cap nor FSDP is there without a GPU.
        return [{"profile cpu": partial(start_profile, CPU)}]
    profiles = {name: {f"profile {name}": partial(start_profile, name)} for name in PROFILES}
    first = profiles["gpu_80gb"] | profiles["gpu_16gb"] | profiles["gpu_4gb"]
    second = profiles["gpu_24gb"] | profiles["gpu_16gb_turing"] | {"two devices, one process": check_placement}
    second |= {f"one step under {name}": partial(start_strategy, name) for name in STRATEGIES}
    total = torch.cuda.get_device_properties(0).total_memory
    return [first | second] if total >= ALL_AT_ONCE else [first, second]


def run_side_by_side(session: Session, starts: dict[str, Callable]) -> dict:
    """Run processes at the same time, with nothing else on the card, and return what each finds."""
    session.release()
    with ThreadPoolExecutor() as pool:
        running = {name: pool.submit(start, session.recipe, session.seconds_left()) for name, start in starts.items()}
        return {"several": {name: future.result() for name, future in running.items()}}


if __name__ == "__main__":
    main()
