"""Read ChestX-ray14 (Wang et al. 2017) as published by the NIH: one table of labels, two lists, twelve archives.

    Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv), train_val_list.txt, test_list.txt
    images_001/images/00000001_000.png ... images_012/images/
    BBox_List_2017.csv                                          boxes around some findings of some pictures

A picture's name begins with the number of its patient.
"""

import math
import re
from collections import defaultdict
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.chest_labels import check_choice, choose_labels
from histolab_sft.data.formats.rows import build_table, check_columns, check_pictures, find_file, refuse_problems
from histolab_sft.data.formats.tables import read_table, read_text
from histolab_sft.data.pictures.decoding import read_size
from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks.boxes import LOCATE_QUESTION
from histolab_sft.tasks.boxes import NAME as BOXES
from histolab_sft.tasks.multilabel import CHEST_QUESTION
from histolab_sft.tasks.multilabel import NAME as MULTILABEL
from histolab_sft.tasks.parsing.box_geometry import clip_boxes

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
NO_FINDING = "No Finding"
TABLE = "Data_Entry_2017*.csv"
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
BOX_FILE = "BBox_List_2017.csv"
# The header `Bbox [x,y,w,h]` is one title with commas in it, so it is read as four columns.
BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
BOX_SIZE = (1024, 1024)  # of the published pictures, in whose pixels boxes are
OTHER_WORDS = {"Infiltrate": "Infiltration"}  # in the list of boxes
_NAME = re.compile(r"(\d+)_\d+\.png")


def read_chestxray14(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """Return one `multilabel` row a picture, or with `task: boxes` one for each with boxes; the patient is the group.

    `split` is `train` or `test`, as in the official lists; validation patients are drawn from train later. The labels
    asked for are the 14 findings, or those of `class_names`; a picture without any of them has an empty answer. With
    `task: boxes` the answers are the boxes around these findings; the published list has boxes for some findings only.
    Pictures may lie anywhere below `source`. Those of neither list are left out and counted.

    Raises:
        FileNotFoundError: The table, a list, or a picture that they name isn't there.
        ValueError: Rows or lists can't be understood; names file, line and column of the first ones and what was
            found.
    """
    task = config.task or MULTILABEL
    check_choice("task", task, (MULTILABEL, BOXES), config)
    names = choose_labels(LABELS, config)
    path = find_file(source, TABLE, config)
    folder = path.parent
    table = read_table(path)
    check_columns(table.columns, COLUMNS, path, config)
    problems = []
    splits = _read_lists(folder, set(table["Image Index"]), path.name, config, problems)
    files = {file.name: str(file) for file in sorted(folder.rglob("*.png"), reverse=True)}
    boxes = _read_boxes(folder, names, config, problems) if task == BOXES else {}
    rows, left_out = [], defaultdict(list)
    for line, row in enumerate(table.to_dict("records"), 2):
        name = row["Image Index"]
        try:
            patient, labels = _read_patient(name, row["Patient ID"]), _read_labels(row["Finding Labels"])
        except ValueError as error:
            problems.append(f"{path}, line {line}, {error}")
            continue
        if task == BOXES and name not in boxes:
            continue
        reason = None if name in splits else "their picture in neither list"
        if task == BOXES and not boxes[name]:
            reason = "boxes around other findings alone"
        if reason:
            left_out[reason].append(name)
            continue
        rows.append(
            {
                "images": [files.get(name, str(folder / "images" / name))],
                "split": splits[name],
                "group": patient,
                "id": f"{config.name}/{name}",
                "task": task,
                "ask": {"question": CHEST_QUESTION, "vocabulary": list(names.values())},
                "answer": [words for label, words in names.items() if label in labels],
            }
        )
    refuse_problems(problems, source, config)
    if task == BOXES:
        check_pictures((row["images"][0] for row in rows), config)
        _turn_into_boxes(rows, boxes, problems)
        refuse_problems(problems, source, config)
    return build_table(rows, config, left_out)


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


def _read_boxes(folder: Path, names: dict[str, str], config: DatasetConfig, problems: list[str]) -> dict[str, list]:
    """Return picture -> boxes around the findings of `names`, in pixels."""
    path = find_file(folder, BOX_FILE, config)
    table = read_table(path)
    check_columns(table.columns, BOX_COLUMNS, path, config)
    boxes = defaultdict(list)
    for line, cells in enumerate(zip(*(table[column] for column in BOX_COLUMNS), strict=True), 2):
        picture, label, *numbers = (cell.strip() for cell in cells)
        label = OTHER_WORDS.get(label, label)
        if label not in LABELS:
            problems.append(f"{path}, line {line}, column 'Finding Label': {label!r:.60}, expected one of {LABELS}")
            continue
        try:
            x, y, width, height = map(float, numbers)
        except ValueError:
            x = y = width = height = math.nan
        found = clip_boxes([Box(x, y, x + width, y + height)], BOX_SIZE) if width > 0 and height > 0 else []
        if not found or not all(map(math.isfinite, found[0][:4])):
            problems.append(
                f"{path}, line {line}, column 'Bbox [x': {numbers}, expected x, y, w, h inside 1024 x 1024"
            )
        else:
            boxes[picture] += [[*found[0][:4], names[label]]] if label in names else []
    return boxes


def _turn_into_boxes(rows: list[dict], boxes: dict[str, list], problems: list[str]) -> None:
    """Give rows of labels the question and the answer of boxes, in place."""
    for row in rows:
        [path] = row["images"]
        if (size := read_size(path)) != BOX_SIZE:
            problems.append(
                f"{path}: {size[0]} x {size[1]} pixels, expected 1024 x 1024, as boxes are in pixels of these"
            )
        row["ask"] = {"question": LOCATE_QUESTION, "size": list(BOX_SIZE), "label_aware": True}
        row["answer"] = boxes[Path(path).name]


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
