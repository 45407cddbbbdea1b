"""Audit the splits before training: copies and groups that stand on both sides, empty classes, cheap shortcuts.

A refusal is what makes a score on a held-out split meaningless, or training impossible. A warning is what a reader of
the score has to know, or what can't be told apart with certainty from an honest data set.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from histolab_sft.data import checks
from histolab_sft.data.containers import name_patch
from histolab_sft.dataset_config import SPLITS
from histolab_sft.errors import say_count

ROW_COLUMNS = ("path", "row", "label", "dataset", "cohort", "split", "group")
PICTURE = ["path", "row", "rendering"]


def audit_patches(
    rows: pd.DataFrame, intake: pd.DataFrame, class_names: Mapping[str, Sequence[str]] | None = None
) -> dict:
    """Return all that is wrong, or worth knowing, about the splits of a recipe.

    Args:
        rows: One row a patch: `path`, `row`, `label` (class name; null for tasks without classes), `dataset`, `cohort`
            (within which `group` names the same slide or patient; null if unknown), `split` (train, validation or
            test); `rendering` where there is one.
        intake: What `check_images` says of the same patches, in any order.
        class_names: The classes that each data set should have, to notice those without any patch.

    Returns:
        `patches` (count), `counts` (data set, split, class), `images` (formats, sizes and modes for each data set and
        split, and for each class), `refusals` and `warnings` (counts) and `findings`: dictionaries with `check`,
        `level` (refusal or warning), `count`, `message` and at most 50 `examples`, each a list of patches.

    Raises:
        ValueError: A column is missing, a split is unknown, or `intake` lacks a patch.
    """
    table = _join(rows, intake)
    usable = table[table["verdict"] != "refused"]
    findings = [
        *checks.check_verdicts(table),
        *checks.check_copies(usable),
        *checks.check_near_copies(usable),
        *checks.check_groups(table),
        *checks.check_classes(table, class_names or {}),
        *checks.check_shortcuts(usable),
    ]
    images = {
        dataset: {place: _count_properties(patches, place) for place in ("split", "label")}
        for dataset, patches in usable.groupby("dataset")
    }
    counts = {dataset: _count_classes(patches) for dataset, patches in table.groupby("dataset")}
    levels = [finding["level"] for finding in findings]
    return {
        "patches": len(table),
        "counts": counts,
        "images": images,
        "findings": findings,
        "refusals": levels.count("refusal"),
        "warnings": levels.count("warning"),
    }


def leaking_rows(rows: pd.DataFrame, intake: pd.DataFrame) -> list[int]:
    """Return the positions of rows to drop so that no picture and no group crosses splits.

    Evaluation splits stay whole: what is also in test leaves train and validation, what is also in validation leaves
    train. Near-duplicates stay; whether they are the same tissue is for a person to judge.
    """
    table = _join(rows, intake)
    rank = table["split"].map(SPLITS.index)
    pictures = table["pixel_sha256"].where(table["contrast"] > 0)
    groups = table["cohort"].astype(str).str.cat(table["group"].astype("string"), sep="\n")
    leaks = pd.Series(False, index=table.index)
    for key in (pictures, groups):  # rows without a key are in no group, and compare as not leaking
        leaks |= rank < rank.groupby(key).transform("max")
    return table.index[leaks].tolist()


def write_audit(audit: dict, path: str | Path) -> None:
    """Write the audit as JSON with sorted keys, in one step: a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder, path.name)
        unfinished.write_text(json.dumps(audit, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(unfinished, path)


def format_audit(audit: dict, examples: int = 3) -> str:
    """Return the audit as a short text for the screen, refusals first, with a few examples of each finding."""
    lines = [f"{'data set':<16}{'split':<12}{'patches':>9}  classes"]
    for dataset, splits in audit["counts"].items():
        for split, counts in splits.items():
            classes = ", ".join(f"{name} {count}" for name, count in counts.items())
            lines.append(f"{dataset:<16}{split:<12}{sum(counts.values()):>9}  {classes}")
    lines.append(f"{say_count(audit['refusals'], 'refusal')}, {say_count(audit['warnings'], 'warning')}")
    for finding in sorted(audit["findings"], key=lambda finding: finding["level"]):
        lines.append(f"{finding['level'].upper()} {finding['check']}: {finding['message']}")
        for example in finding["examples"][:examples]:
            lines.append("    " + " = ".join(f"{patch['patch']} ({patch['split']})" for patch in example))
    return "\n".join(lines)


def _join(rows: pd.DataFrame, intake: pd.DataFrame) -> pd.DataFrame:
    missing = [column for column in ROW_COLUMNS if column not in rows.columns]
    unknown = sorted(set(rows["split"]) - set(SPLITS)) if "split" in rows.columns else []
    if missing or unknown:
        raise ValueError(f"rows lack {missing} and have splits {unknown}; expected {ROW_COLUMNS} and {SPLITS}")
    rows, intake = (
        table.reindex(columns=[*dict.fromkeys((*columns, *PICTURE))], fill_value="")
        for table, columns in ((rows, ROW_COLUMNS), (intake, intake.columns))
    )
    table = rows.merge(intake.drop_duplicates(PICTURE), on=PICTURE, how="left")
    if table["verdict"].isna().any():
        gone = table.loc[table["verdict"].isna(), "path"]
        raise ValueError(f"{len(gone)} patches such as {gone.iloc[0]} aren't in the intake table; check them first")
    # Two data sets may show one file in different ways; it is the same picture all the same.
    table["pixel_sha256"] = table.groupby("file_sha256")["pixel_sha256"].transform("first")
    table["size"] = table["width"].astype("string").str.cat(table["height"].astype("string"), sep=" x ")
    table["patch"] = [name_patch(path, row) for path, row in zip(table["path"], table["row"], strict=True)]
    return table


def _count_classes(patches: pd.DataFrame) -> dict[str, dict[str, int]]:
    present = [split for split in SPLITS if split in set(patches["split"])]
    labels = patches["label"].fillna(checks.NO_CLASS)
    return {split: labels[patches["split"] == split].value_counts().sort_index().to_dict() for split in present}


def _count_properties(patches: pd.DataFrame, place: str) -> dict[str, dict[str, dict[str, int]]]:
    """Return the ten commonest formats, sizes and modes for each value of a column."""
    columns = {"formats": "format", "sizes": "size", "modes": "mode"}
    return {
        name: {title: part[column].value_counts().head(10).to_dict() for title, column in columns.items()}
        for name, part in patches.groupby(place)
    }
