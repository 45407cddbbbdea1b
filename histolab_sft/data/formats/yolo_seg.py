"""Read YOLO segmentation: one `.txt` a picture, each line `class x1 y1 ... xn yn`, in fractions of its sides."""

import logging
from pathlib import Path

import pandas as pd
import yaml

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.rows import build_table, find_group, refuse_problems
from histolab_sft.data.formats.words import split_of
from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES
from histolab_sft.data.pictures.decoding import read_size
from histolab_sft.tasks.boxes import LOCATE_QUESTION
from histolab_sft.tasks.boxes import NAME as BOXES
from histolab_sft.tasks.masks import NAME as MASKS
from histolab_sft.tasks.masks import OUTLINE_QUESTION
from histolab_sft.tasks.parsing.box_codecs import read_outlines, read_polygons

logger = logging.getLogger(__name__)

NAMES_FILES = ("data.yaml", "data.yml", "classes.txt")


def read_yolo_seg(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """Return one `boxes` row a picture, with the box around each polygon as `[x1, y1, x2, y2, class]` in pixels.

    With `task: masks` the answers are the polygons themselves, `[[x1, y1, x2, y2, ...], class]`.

    `images/train/a.png` goes with `labels/train/a.txt`, `train/images/a.png` with `train/labels/a.txt`, and a picture
    outside of any `images` with the `.txt` beside it. Without its `.txt` a picture shows none of the classes (YOLO's
    own rule); where the folder of its labels is missing, or holds none at all, its answer is None. Class names stand
    in `data.yaml` (`names`) or `classes.txt`. The split is a folder's name.

    Raises:
        FileNotFoundError: There are no class names, or labels without their picture.
        ValueError: Labels can't be understood; names the first files and what was found.
    """
    names = _read_names(source, config)
    task, question = (MASKS, OUTLINE_QUESTION) if config.task == MASKS else (BOXES, LOCATE_QUESTION)
    pictures = sorted(
        path
        for path in source.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    labels = {picture: source / _labels_of(picture.relative_to(source)) for picture in pictures}
    written = {path for path in source.rglob("*.txt") if path.name not in (*NAMES_FILES, "README.txt")}
    written = {path for path in written if path.parent in {label.parent for label in labels.values()}}
    lonely = sorted(written - set(labels.values()))
    if lonely:
        raise FileNotFoundError(
            f"data set {config.name!r}: {len(lonely)} files of labels have no picture, such as {lonely[0]}; add the "
            "pictures or take the labels out"
        )
    labelled = {path.parent for path in written}
    rows, problems, empty = [], [], 0
    for picture, label in labels.items():
        name = picture.relative_to(source)
        try:
            size = read_size(str(picture))
            group = find_group(name.as_posix(), config)
            things = _read_label(label, size, names, task) if label in written else []
            things = things if label.parent in labelled else None
        except ValueError as error:
            problems.append(f"{label}: {error}")
            continue
        empty += label not in written and things is not None
        split = next((part for part in reversed(name.parts[:-1]) if split_of(part, config)), "")
        row = {"images": [str(picture)], "split": split, "group": group, "id": f"{config.name}/{name.as_posix()}"}
        ask = {"question": question, "size": list(size), "label_aware": True}
        rows.append(row | {"task": task, "ask": ask, "answer": things})
    refuse_problems(problems, source, config)
    if empty:
        logger.info("data set %r: %d pictures without a file of labels show none", config.name, empty)
    return build_table(rows, config)


def _labels_of(picture: Path) -> Path:
    """Return where the labels of a picture lie: the last folder `images` on its path is `labels` there."""
    parts = list(picture.with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _read_names(source: Path, config: DatasetConfig) -> list[str]:
    """Return class names in the order of their numbers."""
    file = next((source / name for name in NAMES_FILES if (source / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"data set {config.name!r}: no {' or '.join(NAMES_FILES)} in {source}, expected the names of the classes; "
            "add one with a class a line as classes.txt"
        )
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".txt":
        return [line.strip() for line in text.strip().splitlines()]
    content = yaml.safe_load(text)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{file} has names {names!r:.80}, expected a list, or a mapping from 0 up; complete it")
    return [str(name) for name in names]


def _read_label(file: Path, size: tuple[int, int], names: list[str], task: str) -> list[list]:
    """Return the boxes or outlines of one picture."""
    text = file.read_text(encoding="utf-8-sig")
    boxes = read_polygons(text, size)
    for number, line in enumerate(text.splitlines(), start=1):
        label, *numbers = line.split() or ["0"]
        if not label.isdigit() or int(label) >= len(names):
            raise ValueError(f"line {number}: class {label!r}, expected 0 to {len(names) - 1}")
        if any(float(word) > 1.001 for word in numbers):  # what rounding can add
            raise ValueError(f"line {number}: {line[:60]!r}, expected points from 0 to 1, not pixels")
    lines = sum(bool(line.strip()) for line in text.splitlines())
    if len(boxes) < lines:
        raise ValueError(f"{lines - len(boxes)} of {lines} polygons have no area, expected three points or more apart")
    if task == MASKS:
        return [[points, names[int(label)]] for points, label in read_outlines(text, size)]
    return [[*box[:4], names[int(box.label)]] for box in boxes]
