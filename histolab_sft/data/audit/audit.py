"""Audit the splits before training: copies and groups in more than one split, empty classes, shortcuts.

A refusal is a finding that makes a score on a held-out split meaningless, or training impossible. A warning is one
that a reader of the score has to know, or that may also be found in a sound data set.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import SPLITS
from histolab_sft.data.audit import audit_checks
from histolab_sft.data.audit.copies import join_inspected
from histolab_sft.data.audit.related import describe_siblings
from histolab_sft.data.formats.listing import format_kinds
from histolab_sft.errors import say_count
from histolab_sft.files import unfinished_folder

ROW_COLUMNS = ("path", "row", "label", "dataset", "cohort", "split", "group")
AUDIT_NAME, COPIES_NAME = "audit.json", "copies.parquet"


def audit_patches(
    rows: pd.DataFrame,
    inspected: pd.DataFrame,
    near: pd.DataFrame,
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> dict:
    """Return all that is wrong, or worth knowing, about the splits of a recipe.

    Args:
        rows: One row a patch: `path`, `row`, `label` (class name; null for tasks without classes), `dataset`, `cohort`
            (within which `group` names the same slide or patient; null if unknown), `split` (train, validation or
            test); `rendering` where there is one.
        inspected: What `check_images` returns for these patches, in any order.
        near: What `find_related` returns for them.
        class_names: The classes that each data set should have, to notice those without any patch.

    Returns:
        `patches` (count), `counts` (data set, split, class), `images` (formats, sizes and modes for each data set and
        split, and for each class), `refusals` and `warnings` (counts) and `findings`: dictionaries with `check`,
        `level` (refusal or warning), `count`, `message` and at most 50 `examples`, each a list of patches.

    Raises:
        ValueError: A column is missing, a split is unknown, or `inspected` lacks a patch.
    """
    table = _join(rows, inspected)
    usable = table[table["verdict"] != "refused"]
    findings = [
        *audit_checks.check_verdicts(table),
        *audit_checks.check_copies(usable, near),
        *audit_checks.check_near_copies(usable, near),
        *audit_checks.check_groups(table),
        *audit_checks.check_classes(table, class_names or {}),
        *audit_checks.check_shortcuts(usable),
    ]
    images = {
        dataset: {column: _count_properties(patches, column) for column in ("split", "label")}
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


def explain_refusal(
    audit: dict, inspected: pd.DataFrame, histo_args: HistoArguments, folder: str | Path
) -> str | None:
    """Return why training and scoring are refused on these data, and what to do; None if they aren't."""
    refused = inspected.loc[inspected["verdict"] == "refused"]
    if len(refused) and histo_args.refused_images == "stop":
        listed = "\n".join(f"  {row.path}: {row.reason}" for row in refused.itertuples())
        return (
            f"{say_count(len(refused), 'picture')} can't be used:\n{listed}\nreplace or remove them, or leave them "
            "out by refused_images: quarantine"
        )
    if audit["refusals"] and histo_args.leaks == "stop":
        return (
            f"the audit of the splits refuses for {say_count(audit['refusals'], 'reason')} (see "
            f"{Path(folder, AUDIT_NAME)}); mend the data, or take leaking patches out of train by leaks: drop"
        )
    return None


def write_audit(audit: dict, copies: pd.DataFrame, folder: str | Path) -> None:
    """Write `audit.json`, with sorted keys, and `copies.parquet`, the copies that it counts (`list_copies`).

    Each is written in one step: a reader never sees half of it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(folder) as unfinished:
        Path(unfinished, AUDIT_NAME).write_text(json.dumps(audit, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        copies.to_parquet(Path(unfinished, COPIES_NAME), index=False)
        for name in (COPIES_NAME, AUDIT_NAME):
            os.replace(Path(unfinished, name), folder / name)


def format_audit(audit: dict, examples: int = 3) -> str:
    """Return the audit as a short text for the screen, refusals first, with a few examples of each finding."""
    lines = [f"{'data set':<16}{'split':<12}{'patches':>9}  classes"]
    for dataset, splits in audit["counts"].items():
        for split, counts in splits.items():
            classes = ", ".join(f"{name} {count}" for name, count in counts.items())
            lines.append(f"{dataset:<16}{split:<12}{sum(counts.values()):>9}  {classes}")
    lines += describe_dropped(audit) + describe_unread(audit) + describe_siblings(audit["siblings"])
    lines.append(f"{say_count(audit['refusals'], 'refusal')}, {say_count(audit['warnings'], 'warning')}")
    for finding in sorted(audit["findings"], key=lambda finding: finding["level"]):
        lines.append(f"{finding['level'].upper()} {finding['check']}: {finding['message']}")
        for example in finding["examples"][:examples]:
            lines.append("    " + " = ".join(f"{patch['patch']} ({patch['split']})" for patch in example))
    return "\n".join(lines)


def describe_dropped(audit: dict, dataset: str | None = None) -> list[str]:
    """Return one line for each key of the recipe and split (of one data set) that says how many rows were left out."""
    entries = [entry for entry in audit["dropped"] if dataset in (None, entry["dataset"])]
    lines = []
    for key, name, split in dict.fromkeys((entry["key"], entry["dataset"], entry["split"]) for entry in entries):
        part = [entry for entry in entries if (entry["key"], entry["dataset"], entry["split"]) == (key, name, split)]
        sums = [{}, {}]
        for entry in part:
            for counts, kind in zip(sums, (entry["label"] or audit_checks.NO_CLASS, entry["reason"]), strict=True):
                counts[kind] = counts.get(kind, 0) + entry["rows"]
        classes, reasons = (", ".join(f"{kind} {count}" for kind, count in counts.items()) for counts in sums)
        where = f"{name}'s {split} split" if split else name
        total = say_count(sum(entry["rows"] for entry in part), "row")
        lines.append(f"{key} left out {total} of {where} ({classes}; {reasons})")
    return lines


def describe_unread(audit: dict, dataset: str | None = None) -> list[str]:
    """Return one line for each data set (or one of them) that says which files below its source weren't read."""
    return [
        f"{say_count(sum(kinds.values()), 'file')} of {name} not read: {format_kinds(kinds)}"
        for name, kinds in audit["not_read"].items()
        if kinds and dataset in (None, name)
    ]


def _join(rows: pd.DataFrame, inspected: pd.DataFrame) -> pd.DataFrame:
    unknown = sorted(set(rows["split"]) - set(SPLITS)) if "split" in rows.columns else []
    if unknown:
        raise ValueError(f"rows have splits {unknown}; expected {SPLITS}")
    table = join_inspected(rows, inspected, ROW_COLUMNS)
    table["size"] = table["width"].astype("string").str.cat(table["height"].astype("string"), sep=" x ")
    return table


def _count_classes(patches: pd.DataFrame) -> dict[str, dict[str, int]]:
    present = [split for split in SPLITS if split in set(patches["split"])]
    labels = patches["label"].fillna(audit_checks.NO_CLASS)
    return {split: labels[patches["split"] == split].value_counts().sort_index().to_dict() for split in present}


def _count_properties(patches: pd.DataFrame, by: str) -> dict[str, dict[str, dict[str, int]]]:
    """Return the ten commonest formats, sizes and modes for each value of the column `by`."""
    columns = {"formats": "format", "sizes": "size", "modes": "mode"}
    return {
        name: {title: part[column].value_counts().head(10).to_dict() for title, column in columns.items()}
        for name, part in patches.groupby(by)
    }
