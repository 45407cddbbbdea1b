"""Read the manifest that `recipes/prepare_biomarkers.py` writes: one question a patient, with several images."""

import json
import re
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.biomarkers.label_rules import refuse_leak
from histolab_sft.data.formats.rows import build_table, find_file
from histolab_sft.tasks.biomarkers import NAME as BIOMARKERS
from histolab_sft.tasks.biomarkers import QUESTIONS

KEYS = ("patient", "images", "split", "cancer_type", "record")


def read_biomarkers(source: Path, config: DatasetConfig, style: str = "training") -> pd.DataFrame:
    """Return one `biomarkers` row a patient, who is its group.

    Where `fitted.json` lies beside the manifest, its statistics must not have been fitted on a held-out patient.

    Args:
        source: The manifest (JSON lines), or the folder with `manifest.jsonl`.
        style: Key of `tasks.biomarkers.QUESTIONS`, which the data set's `instruction` replaces.

    Raises:
        FileNotFoundError: The manifest or an image isn't there.
        ValueError: A line lacks a key, a patient stands in two, or the labels were fitted on a held-out patient.
    """
    path = find_file(source, "manifest.jsonl", config)
    question = QUESTIONS[style] if config.instruction is None else config.instruction
    wanted = sorted(set(re.findall(r"\{([a-z_]+)\}", question)) & {"cancer_type"})
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            record = _read_line(line, f"data set {config.name!r}: {path}, line {number}")
            rows.append(
                {
                    "images": [str(path.parent / image) for image in record["images"]],
                    "split": record["split"],
                    "group": record["patient"],
                    "id": f"{config.name}/{record['patient']}",
                    "task": BIOMARKERS,
                    "ask": {"style": style, "values": {name: record[name] for name in wanted}},
                    "answer": record["record"],
                }
            )
    fitted = path.with_name("fitted.json")
    if fitted.exists():
        statistics = json.loads(fitted.read_text(encoding="utf-8"))
        held_out = [row["group"] for row in rows if row["split"] != "train"]
        for name in ("signatures", "label_rules"):
            refuse_leak(statistics[name], held_out)
    return build_table(rows, config)


def _read_line(line: str, where: str) -> dict:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: {error}, expected a JSON object a line; prepare the data again") from error
    if not isinstance(record, dict) or not set(KEYS) <= set(record) or not record["images"]:
        raise ValueError(f"{where}: {line[:60]!r}, expected {', '.join(KEYS)} and one image or more; correct the line")
    return record
