"""Read ChestX-ray14 (Wang et al. 2017) as published by the NIH: one table of labels, two lists, twelve archives.

    Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv), train_val_list.txt, test_list.txt
    images_001/images/00000001_000.png ... images_012/images/

A picture's name begins with the number of its patient.
"""

import re
from pathlib import Path

import pandas as pd

from histolab_sft.data.records.chest_labels import choose_labels
from histolab_sft.data.records.rows import build_table, check_columns, find_file
from histolab_sft.data.records.table import refuse_records
from histolab_sft.data.tables import read_table, read_text
from histolab_sft.dataset_config import DatasetConfig
from histolab_sft.tasks.multilabel import CHEST_QUESTION

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
NO_FINDING = "No Finding"
TABLE = "Data_Entry_2017*.csv"
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
_NAME = re.compile(r"(\d+)_\d+\.png")


def read_chestxray14(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """Return one `multilabel` row a picture; the patient is the group.

    `split` is `train` or `test`, as the official lists have it; validation is dealt out of train, by patient. The
    labels asked for are the 14 findings, or those of `class_names`; a picture with none of them is answered so.
    Pictures may lie anywhere below `source`. Those of neither list are left out and counted.

    Raises:
        FileNotFoundError: The table, a list, or a picture that they name isn't there.
        ValueError: Rows or lists can't be understood; names file, line and column of the first ones and what was
            found.
    """
    if config.task not in (None, "multilabel"):
        raise ValueError(
            f"data set {config.name!r}: task {config.task!r}, expected 'multilabel'; ChestX-ray14's labels are of "
            "whole pictures, so take the task out"
        )
    names = choose_labels(LABELS, config)
    path = find_file(source, TABLE, config)
    folder = path.parent
    table = read_table(path)
    check_columns(table.columns, COLUMNS, path, config)
    problems = []
    splits = _read_lists(folder, set(table["Image Index"]), path.name, config, problems)
    files = {file.name: str(file) for file in sorted(folder.rglob("*.png"), reverse=True)}
    rows, left_out = [], {}
    for line, row in enumerate(table.to_dict("records"), 2):
        name = row["Image Index"]
        try:
            patient, labels = _read_patient(name, row["Patient ID"]), _read_labels(row["Finding Labels"])
        except ValueError as error:
            problems.append(f"{path}, line {line}, {error}")
            continue
        if name not in splits:
            left_out.setdefault("their picture in neither list", []).append(name)
            continue
        rows.append(
            {
                "images": [files.get(name, str(folder / "images" / name))],
                "split": splits[name],
                "group": patient,
                "id": f"{config.name}/{name}",
                "task": "multilabel",
                "ask": {"question": CHEST_QUESTION, "vocabulary": list(names.values())},
                "answer": [words for label, words in names.items() if label in labels],
            }
        )
    refuse_records(problems, source, config)
    return build_table(rows, left_out, config)


def _read_lists(
    folder: Path, known: set[str], table: str, config: DatasetConfig, problems: list[str]
) -> dict[str, str]:
    """Return picture -> split."""
    splits = {}
    for split, name in LISTS.items():
        path = find_file(folder, name, config)
        for line, picture in enumerate(read_text(path).splitlines(), 1):
            picture = picture.strip()
            if picture and picture not in known:
                problems.append(f"{path}, line {line}: {picture!r:.60}, expected a picture of {table}")
            elif splits.get(picture, split) != split:
                problems.append(
                    f"{path}, line {line}: {picture!r} is in {LISTS[splits[picture]]} too, expected in one"
                )
            elif picture:
                splits[picture] = split
    return splits


def _read_patient(name: str, column: str) -> str:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"column 'Image Index': {name!r:.60}, expected a name such as 00000001_000.png")
    if not column.strip().isdecimal() or int(column) != int(match[1]):
        raise ValueError(f"column 'Patient ID': {column!r:.20}, expected {int(match[1])} as in the name {name}")
    return match[1]


def _read_labels(cell: str) -> set[str]:
    labels = {label.strip() for label in cell.split("|")}
    strange = sorted(labels - {*LABELS, NO_FINDING})
    if strange or (NO_FINDING in labels and len(labels) > 1):
        raise ValueError(
            f"column 'Finding Labels': {cell!r:.80}, expected {NO_FINDING!r} alone or labels with | between them, of "
            f"{', '.join(LABELS)}"
        )
    return labels - {NO_FINDING}
