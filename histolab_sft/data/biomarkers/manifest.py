"""Write what a preparation found: the manifest of records, and the summary of how it came about."""

import hashlib
import json
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import SPLITS
from histolab_sft.files import replacing
from histolab_sft.metrics.biomarkers import FEW, UNKNOWN
from histolab_sft.tasks.biomarkers import FIELDS


def write_manifest(
    path: Path, cohort: pd.DataFrame, split: pd.Series, labels: pd.DataFrame, chosen: pd.DataFrame
) -> None:
    """Write a line for each patient: `patient`, `images`, `split`, `cancer_type` and `record` with the eight fields.

    Args:
        path: Gets the file through a rename; images are named relative to its folder.
        cohort: Column `cancer_type`, indexed by patient.
        split, labels: Same index.
        chosen: Columns `patient` and `image`, in the order of the images.
    """
    images = chosen.groupby("patient", sort=True)["image"].apply(list)
    names = [field["name"] for field in FIELDS]
    lines = []
    for patient in cohort.index:
        record = labels.loc[patient, names].to_dict()
        record = {name: value if isinstance(value, str) else round(float(value), 6) for name, value in record.items()}
        row = {"patient": patient, "images": images[patient], "split": split[patient]}
        row |= {"cancer_type": cohort.at[patient, "cancer_type"], "record": record}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    with replacing(path) as unfinished:
        unfinished.write_text("".join(lines), encoding="utf-8")


def find_rare_values(labels: pd.DataFrame, split: pd.Series) -> list[str]:
    """Return a warning for each value of a field that fewer than three patients of a split have, or none at all."""
    warnings = []
    for name in SPLITS:
        for field in FIELDS:
            values = labels.loc[split == name, field["name"]]
            known = values[values != UNKNOWN]
            for value in field.get("values", []):
                count = int((known == value).sum())
                if count < FEW:
                    consequence = "it can't be learnt" if name == "train" else "no score can speak of it"
                    found = f"{count} of {len(known)} patients have {field['name']} {value}"
                    warnings.append(f"{name}: {found}; {consequence}")
    return warnings


def describe_labels(labels: pd.DataFrame) -> dict[str, dict]:
    """Return how often each value of each field stands in `labels`, and of numbers the mean and the range."""
    described = {}
    for field in FIELDS:
        values = labels[field["name"]]
        if "values" in field:
            counts = {value: int((values == value).sum()) for value in [*field["values"], UNKNOWN]}
            described[field["name"]] = counts
        else:
            numbers = {"mean": values.mean(), "lowest": values.min(), "highest": values.max()}
            described[field["name"]] = {name: round(float(number), 4) for name, number in numbers.items()}
    return described


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
