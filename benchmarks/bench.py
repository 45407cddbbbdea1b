"""Compare this project with plain TRL on one machine, side by side, in minutes on a processor:

    python -m benchmarks.bench

All arms take turns on one thread, and medians are shown: what else the machine does meanwhile hits them alike.
"""

import argparse
import json
import logging
import os
import tempfile
from pathlib import Path
from statistics import median

if __name__ == "__main__":  # before the libraries are loaded, which read them; not where one is only imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import transformers

from benchmarks.growth import measure_apart, measure_rows
from benchmarks.miniature import EIGHTH, QUARTER, TINY, Miniature, measure_proportions, paint_rows, write_miniature
from benchmarks.reading import measure_encoding, measure_loader, measure_preparing
from benchmarks.scoring_arms import count_answer_tokens, load_systems, score_systems
from benchmarks.tables import describe_machine, format_results
from benchmarks.training_arms import ARMS, WITH_CHECKPOINTING, build_trainer, run_arm, train_apart
from histolab_sft.models.resolution import Resolution

RESULTS = Path(__file__).parent / "results"
SCORING = ("generation", "generation one at a time", "likelihood", "likelihood, cold cache", "likelihood, warm cache")
WRITING_LIMIT = 64  # tokens, the recipes' default: a base model often reaches it
CORES = 2
# The own resolution of the first model, and others, at full and at toy size. To 448 pixels and 64 tokens, 224 and
# 64 are what 448 and 256 are to MedGemma's 896 and 256, and 224 and 16 what 448 and 64 are.
RESOLUTIONS = {
    False: (Resolution(448, 64), [Resolution(224, 64), Resolution(224, 16)]),
    True: (Resolution(56, 4), [Resolution(28, 4), Resolution(28, 1)]),
}
# What is claimed: a name of `results["ratios"]` and the least that it may be.
BARS = {
    "a step, uncached": 2.0,
    "a step, cached": 6.0,
    "3 epochs, cached": 3.5,
    "1 epoch, cached": 1.8,
    "scoring / generation of an answer": 1.0,
    "scoring, warm cache / generation of an answer": 5.0,
    "scoring, warm cache / generation to the limit": 5.0,
    "scoring, cold cache / generation of an answer": 1.5,
    "pictures as bytes / as floats, one worker": 3.5,
    "patches read and scaled a second, two workers": 150,
    "share of two cores that encoding keeps busy": 0.9,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="run every part once at toy size: no result, only proof")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for cpu.json and cpu.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("histolab_sft").setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        results = run_all(Path(folder), options.tiny)
    results = {"machine": describe_machine(load, os.getloadavg()[0]), **results}
    results["ratios"] = compute_ratios(results)
    options.output.mkdir(parents=True, exist_ok=True)
    options.output.joinpath("cpu.json").write_text(json.dumps(results, indent=2) + "\n")
    table = format_results(results, BARS)
    options.output.joinpath("cpu.md").write_text(table)
    print(table)


def run_all(folder: Path, tiny: bool) -> dict:
    """Run every part in turn and return the results by name."""
    rounds, first, second = (1, TINY, TINY) if tiny else (3, QUARTER, EIGHTH)
    batch, large_batch = (2, 4) if tiny else (2, 8)
    models = {"first": write_miniature(first, folder / "first"), "second": write_miniature(second, folder / "second")}
    rows = paint_rows(64, folder / "rows")
    return {
        "training": train_in_turn(first, models["first"], rows.select(range(4 * batch)), rounds, 3, batch),
        "training at another size": train_in_turn(
            second, models["second"], rows.select(range(2 * large_batch)), rounds, 1, large_batch
        ),
        "resolution": train_at_resolutions(
            *RESOLUTIONS[tiny], models["first"], rows.select(range(4 * batch)), rounds, batch
        ),
        # Of arms that are nearly as fast as one another; three rounds would leave 4 % to chance.
        "scoring": score_in_turn(models["first"], rows.select(range(4 * batch)), 2 * rounds),
        "batch": {
            name: {
                size: measure_apart(train_apart, name, models["first"], rows.select(range(2 * size)), size)
                for size in ((1,) if tiny else (1, 2, 4))
            }
            for name in ARMS
        },
        "rows": {
            layout: {count: measure_rows(layout, count) for count in ((100, 200) if tiny else (1000, 10_000, 100_000))}
            for layout in ("folders", "hdf5")
        },
        "loader": {workers: measure_loader(rows, workers, 0.1 if tiny else 3.0) for workers in (0, 2)},
        "preparing": measure_preparing(rows.select(range(4 if tiny else 32)), rounds, 0.1 if tiny else 3.0),
        "encoding": measure_apart(measure_encoding, models["first"], rows, CORES),
    }


def train_in_turn(miniature: Miniature, model: Path, rows, rounds: int, epochs: int, batch_size: int) -> dict:
    """Train every arm `rounds` times, in turn; steps with checkpointing are measured over one epoch."""
    runs = {name: [] for name in ARMS | WITH_CHECKPOINTING}
    for _ in range(rounds):
        for name, arm in ARMS.items():
            runs[name].append(run_arm(arm, model, rows, epochs, batch_size))
        for name, arm in WITH_CHECKPOINTING.items():
            runs[name].append(run_arm(arm, model, rows, 1, batch_size))
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(*ARMS["uncached"][:1], model, rows, folder, False, 1, batch_size)
        length = trainer.data_collator([rows[0]])["input_ids"].shape[1]
    return {
        "size": miniature.name,
        "proportions": measure_proportions(miniature, length),
        "rows": len(rows),
        "batch_size": batch_size,
        "arms": {
            name: {
                "step_s": median(step for run in part for step in run["steps"]),
                "epochs_s": [median(times) for times in zip(*(run["epochs"] for run in part), strict=True)],
                "encoding_s": median(run["encoding"] for run in part),
            }
            for name, part in runs.items()
        },
    }


def train_at_resolutions(
    own: Resolution, others: list[Resolution], model: Path, rows, rounds: int, batch_size: int
) -> dict:
    """Train with pictures of each resolution, in turn, and return seconds a step and of encoding."""
    arms = {name: ARMS[name] for name in ("uncached", "cached")}
    runs = {(resolution, name): [] for resolution in (own, *others) for name in arms}
    for _ in range(rounds):
        for resolution, name in runs:
            asked = None if resolution == own else resolution
            runs[resolution, name].append(run_arm(arms[name], model, rows, 1, batch_size, asked))
    return {
        str(resolution): {
            name: {
                "step_s": median(step for run in runs[resolution, name] for step in run["steps"]),
                "encoding_s": median(run["encoding"] for run in runs[resolution, name]),
            }
            for name in arms
        }
        for resolution in (own, *others)
    }


def score_in_turn(folder: Path, rows, rounds: int) -> dict:
    """Score both systems `rounds` times with every arm, in turn, and return patches a second and system."""
    model, processor = load_systems(folder)
    short = count_answer_tokens(processor)
    seconds = {(arm, limit): [] for arm in SCORING for limit in (short, WRITING_LIMIT)}
    for _ in range(rounds):
        for arm, limit in seconds:
            if arm.startswith("generation") or limit == short:
                seconds[arm, limit].append(score_systems(arm, model, processor, rows, len(rows), limit))
    return {
        "patches": len(rows),
        "answer_tokens": short,
        "limit_tokens": WRITING_LIMIT,
        "patches_per_s": {
            arm: {
                limit: 2 * len(rows) / median(seconds[arm, limit])
                for limit in (short, WRITING_LIMIT)
                if seconds[arm, limit]
            }
            for arm in SCORING
        },
    }


def compute_ratios(results: dict) -> dict[str, float]:
    """Return how many times as fast as plain TRL, and as batched generation, this project is (see `BARS`)."""
    arms, scores = results["training"]["arms"], results["scoring"]["patches_per_s"]
    short, long = scores["generation"].values()
    rates = {arm: next(iter(scores[arm].values())) for arm in SCORING}
    plain, cached, prepared = arms["TRL"], arms["cached"], results["preparing"]
    return {
        "a step, uncached": plain["step_s"] / arms["uncached"]["step_s"],
        "a step, cached": plain["step_s"] / cached["step_s"],
        "3 epochs, cached": plain["epochs_s"][-1] / cached["epochs_s"][-1],
        "1 epoch, cached": plain["epochs_s"][0] / cached["epochs_s"][0],
        "scoring / generation of an answer": rates["likelihood"] / short,
        "scoring, warm cache / generation of an answer": rates["likelihood, warm cache"] / short,
        "scoring, warm cache / generation to the limit": rates["likelihood, warm cache"] / long,
        "scoring, cold cache / generation of an answer": rates["likelihood, cold cache"] / short,
        "pictures as bytes / as floats, one worker": prepared["as bytes"] / prepared["as floats"],
        "patches read and scaled a second, two workers": results["loader"][CORES]["scaled"],
        "share of two cores that encoding keeps busy": results["encoding"]["busy"],
    }


if __name__ == "__main__":
    main()
