"""What a benchmark says: the machine it ran on, and its results as tables in Markdown."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


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


def format_results(results: dict, bars: dict[str, float]) -> str:
    """Return the results of `bench.py` as tables in Markdown; `bars` are the least ratios that are claimed."""
    machine = results["machine"]
    parts = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} thread, load {machine['load'][0]} "
        f"before and {machine['load'][1]} after; torch {machine['torch']}, transformers {machine['transformers']}, "
        f"trl {machine['trl']}. Medians of arms that take turns.",
        format_table(
            ("times as fast, unless said", "found", "wanted", ""),
            [
                (name, f"{found:.2f}", f"{bars[name]:.1f}", "" if found >= bars[name] else "missed")
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
        "Pictures of another resolution, the first model and its own resolution first, s:",
        format_table(
            ("resolution", "a step from pixels", "a step with cached features", "encoding"),
            [
                (
                    name,
                    *(f"{arms[arm]['step_s']:.3f}" for arm in ("uncached", "cached")),
                    f"{arms['cached']['encoding_s']:.2f}",
                )
                for name, arms in results["resolution"].items()
            ],
        ),
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
        "Growth with the rows of a data set that is listed, looked at picture by picture, and split:",
        format_table(
            ("layout", "rows", "s", "peak MiB", "bytes written"),
            [
                (layout, count, f"{case['seconds']:.2f}", f"{case['peak_mib']:.0f}", case["bytes_written"])
                for layout, cases in results["rows"].items()
                for count, case in cases.items()
            ],
        ),
        "Reading, patches of 224 pixels a second, at MedGemma-4B's sizes:",
        format_table(
            ("workers", "decoded", "and scaled to 896 pixels", "features in their place"),
            [(workers, *(f"{rate:.0f}" for rate in rates.values())) for workers, rates in results["loader"].items()],
        ),
        f"One worker prepares {results['preparing']['as floats']:.0f} pictures a second as floats and "
        f"{results['preparing']['as bytes']:.0f} as bytes. Encoding on two cores: "
        f"{results['encoding']['patches_per_s']:.1f} patches a second, both busy "
        f"{100 * results['encoding']['busy']:.0f}% of the time.",
    ]
    return "\n\n".join(parts) + "\n"


def format_table(header: tuple, rows: list[tuple]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
