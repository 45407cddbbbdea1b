"""Compare this project with plain TRL on one machine, side by side, in minutes on a processor:

    python -m benchmarks.bench

All arms take turns on one thread, and medians are shown: what else the machine does meanwhile hits them alike.
"""

import argparse
import json
import logging
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import transformers

from benchmarks.growth import measure_apart, measure_loader, measure_rows
from benchmarks.miniature import EIGHTH, QUARTER, TINY, Miniature, measure_proportions, paint_rows, write_miniature
from benchmarks.scoring_arms import count_answer_tokens, load_systems, score_systems
from benchmarks.training_arms import ARMS, WITH_CHECKPOINTING, build_trainer, run_arm, train_apart

RESULTS = Path(__file__).parent / "results"
SCORING = ("generation", "generation one at a time", "likelihood", "likelihood, cold cache", "likelihood, warm cache")
WRITING_LIMIT = 64  # tokens, the recipes' default: a base model often reaches it
# What is claimed: (numerator, denominator) of `results["ratios"]` and the least that it may be.
BARS = {
    "a step, uncached": 2.0,
    "a step, cached": 6.0,
    "3 epochs, cached": 3.5,
    "1 epoch, cached": 1.8,
    "scoring, warm cache": 5.0,
    "scoring, cold cache": 1.5,
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
    table = format_results(results)
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
        "scoring": score_in_turn(models["first"], rows.select(range(4 * batch)), rounds),
        "batch": {
            name: {
                size: measure_apart(train_apart, name, models["first"], rows.select(range(2 * size)), size)
                for size in (1, 2, 4)
            }
            for name in ARMS
        },
        "rows": {
            layout: {count: measure_rows(layout, count) for count in ((100, 200) if tiny else (1000, 10_000, 100_000))}
            for layout in ("folders", "hdf5")
        },
        "loader": {workers: measure_loader(rows, workers, 0.1 if tiny else 3.0) for workers in (0, 2)},
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
    limit = results["scoring"]["limit_tokens"]
    plain, cached = arms["TRL"], arms["cached"]
    return {
        "a step, uncached": plain["step_s"] / arms["uncached"]["step_s"],
        "a step, cached": plain["step_s"] / cached["step_s"],
        "3 epochs, cached": plain["epochs_s"][-1] / cached["epochs_s"][-1],
        "1 epoch, cached": plain["epochs_s"][0] / cached["epochs_s"][0],
        "scoring, warm cache": list(scores["likelihood, warm cache"].values())[0] / scores["generation"][limit],
        "scoring, cold cache": list(scores["likelihood, cold cache"].values())[0] / scores["generation"][limit],
    }


def describe_machine(load_before: float, load_after: float) -> dict:
    """Return what the numbers hang on; load averages of a minute, at the start and the end."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    return {
        "processor": ", ".join(sorted(models)) or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(load_before, 2), round(load_after, 2)],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }


def format_results(results: dict) -> str:
    """Return the results as tables in Markdown."""
    machine = results["machine"]
    parts = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} thread, load {machine['load'][0]} "
        f"before and {machine['load'][1]} after; torch {machine['torch']}, transformers {machine['transformers']}, "
        f"trl {machine['trl']}. Medians of arms that take turns.",
        format_table(
            ("times as fast", "found", "wanted", ""),
            [
                (name, f"{found:.1f}", f"{BARS[name]:.1f}", "" if found >= BARS[name] else "missed")
                for name, found in results["ratios"].items()
            ],
        ),
    ]
    for part in ("training", "training at another size"):
        training = results[part]
        plain = training["arms"]["TRL"]
        proportions = training["proportions"]
        epochs = len(plain["epochs_s"])
        parts += [
            f"Training, MedGemma-4B at {training['size']} of its width, {proportions['tokens']} tokens; tower over "
            f"language model {proportions['tower_over_language']:.2f}; {training['rows']} patches, batch "
            f"{training['batch_size']}:",
            format_table(
                ("arm", "s a step", "TRL / arm", "encoding s", *(f"s to epoch {n + 1}" for n in range(epochs))),
                [
                    (
                        name,
                        f"{arm['step_s']:.3f}",
                        f"{plain['step_s'] / arm['step_s']:.2f}",
                        f"{arm['encoding_s']:.2f}",
                        *(f"{seconds:.2f}" for seconds in arm["epochs_s"]),
                        *[""] * (epochs - len(arm["epochs_s"])),
                    )
                    for name, arm in training["arms"].items()
                ],
            ),
        ]
    scoring = results["scoring"]
    parts += [
        f"Scoring both systems on {scoring['patches']} patches of 9 classes, patches a second and system:",
        format_table(
            ("arm", *(f"{limit} tokens an answer" for limit in (scoring["answer_tokens"], scoring["limit_tokens"]))),
            [
                (arm, *(f"{rate:.2f}" for rate in rates.values()), *[""] * (2 - len(rates)))
                for arm, rates in scoring["patches_per_s"].items()
            ],
        ),
        "Growth with the batch, in a process of its own (MiB above its start):",
        format_table(
            ("arm", "batch", "s a patch", "peak MiB"),
            [
                (name, size, f"{case['step_s'] / int(size):.3f}", f"{case['peak_mib']:.0f}")
                for name, cases in results["batch"].items()
                for size, case in cases.items()
            ],
        ),
        "Growth with the rows of a data set that is listed and split:",
        format_table(
            ("layout", "rows", "s", "peak MiB"),
            [
                (layout, count, f"{case['seconds']:.2f}", f"{case['peak_mib']:.0f}")
                for layout, cases in results["rows"].items()
                for count, case in cases.items()
            ],
        ),
        "Reading, patches of 224 pixels a second, at MedGemma-4B's sizes:",
        format_table(
            ("workers", "decoded", "and scaled to 896 pixels", "features in their place"),
            [(workers, *(f"{rate:.0f}" for rate in rates.values())) for workers, rates in results["loader"].items()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def format_table(header: tuple, rows: list[tuple]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    main()
