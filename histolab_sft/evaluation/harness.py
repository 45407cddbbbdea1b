"""Score two systems, the base model and the fine-tuned one, with one prompt, one decoding and one parser."""

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from histolab_sft.arguments import DatasetConfig, HistoArguments
from histolab_sft.metrics.classification import compute_classification
from histolab_sft.models.generate import generate_answers
from histolab_sft.tasks import classification

logger = logging.getLogger(__name__)

SYSTEMS = ("baseline", "finetuned")
SHOWN = ("balanced_accuracy", "accuracy", "macro_f1", "unparsed_rate")


def predict(model, processor, patches: Dataset, histo_args: HistoArguments, batch_size: int) -> pd.DataFrame:
    """Return one row a patch: `id, dataset, group, label, answer, truncated, prediction`.

    `answer` is what the model wrote (greedy, at most `max_new_tokens`), `prediction` the class name in it or
    `unparsed`, `truncated` whether it was cut off before its end of turn.
    """
    options = {config.name: list(config.class_names.values()) for config in histo_args.datasets}
    table = patches.with_format(None).select_columns(["id", "dataset", "group", "label"]).to_pandas()
    questions = [prompt[0]["content"] for prompt in patches.with_format(None)["prompt"]]
    answers = generate_answers(
        model, processor, patches["image"], questions, histo_args.max_new_tokens, batch_size=batch_size
    )
    table["answer"] = [text for text, _ in answers]
    table["truncated"] = [truncated for _, truncated in answers]
    table["prediction"] = [
        classification.parse(answer, options[name])
        for answer, name in zip(table["answer"], table["dataset"], strict=True)
    ]
    return table


def score(predictions: dict[str, pd.DataFrame], datasets: list[DatasetConfig]) -> dict:
    """Return the results of both systems in the layout of `results.json`.

    Args:
        predictions (`dict`): System (`baseline`, `finetuned`) -> table from `predict`, over the same patches.
    """
    if not predictions["baseline"]["id"].equals(predictions["finetuned"]["id"]):
        raise ValueError("the two systems were scored on different patches; score both again")
    results = {"datasets": {}, "overall": {}}
    for config in datasets:
        classes = list(config.class_names.values())
        tables = {system: table[table["dataset"] == config.name] for system, table in predictions.items()}
        results["datasets"][config.name] = {
            "n": len(tables["baseline"]),
            "n_groups": _count_groups(tables["baseline"]),
        }
        for system, table in tables.items():
            scores = compute_classification(table["label"].to_numpy(), table["prediction"].to_numpy(), classes)
            scores["truncated_rate"] = float(table["truncated"].mean())
            results["datasets"][config.name][system] = {
                name: {"value": value} if isinstance(value, float) else value for name, value in scores.items()
            }
    for system in SYSTEMS:
        results["overall"][system] = {
            name: {"value": float(np.mean([entry[system][name]["value"] for entry in results["datasets"].values()]))}
            for name in SHOWN
        }
    for entry in [*results["datasets"].values(), results["overall"]]:
        entry["difference"] = {
            name: {"value": entry["finetuned"][name]["value"] - entry["baseline"][name]["value"]} for name in SHOWN
        }
    return results


def write_results(results: dict, predictions: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write `results.json` and `predictions.parquet` (ids as hashes: file names can name a patient) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.concat([table.assign(system=system) for system, table in predictions.items()], ignore_index=True)
    for column in ("id", "group"):
        table[column] = [value and hashlib.sha256(value.encode()).hexdigest()[:16] for value in table[column]]
    table.to_parquet(folder / "predictions.parquet", index=False)
    temporary = folder / "results.json.tmp"
    temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "results.json")
    logger.info("results written to %s", folder)


def format_table(results: dict) -> str:
    """Return the scores of both systems on every data set, and overall, as a table for the screen."""
    lines = [
        f"{'balanced accuracy':<20}{'patches':>9}{'baseline':>11}{'finetuned':>11}{'difference':>12}{'unparsed':>10}"
    ]
    entries = [*results["datasets"].items(), ("overall", results["overall"])]
    for name, entry in entries:
        values = [entry[system]["balanced_accuracy"]["value"] for system in (*SYSTEMS, "difference")]
        unparsed = entry["finetuned"]["unparsed_rate"]["value"]
        lines.append(
            f"{name:<20}{entry.get('n', ''):>9}{values[0]:>11.3f}{values[1]:>11.3f}{values[2]:>+12.3f}{unparsed:>10.3f}"
        )
    return "\n".join(lines)


def _count_groups(table: pd.DataFrame) -> int | None:
    return int(table["group"].nunique()) or None
