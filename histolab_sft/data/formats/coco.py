"""Read COCO detection: `{images: [...], annotations: [{image_id, category_id, bbox}], categories: [...]}`."""

import logging
import math
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.rows import build_table, check_pictures, find_group, refuse_problems
from histolab_sft.data.formats.tables import read_json
from histolab_sft.data.formats.words import split_of
from histolab_sft.data.pictures.decoding import read_size
from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks.boxes import LOCATE_QUESTION
from histolab_sft.tasks.boxes import NAME as BOXES
from histolab_sft.tasks.masks import NAME as MASKS
from histolab_sft.tasks.masks import OUTLINE_QUESTION
from histolab_sft.tasks.parsing.box_geometry import clip_boxes

logger = logging.getLogger(__name__)


def read_coco(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """Return one `boxes` row a picture, with every box as `[x1, y1, x2, y2, name of its category]`.

    With `task: masks` the answers are the polygons of `segmentation`, `[[x1, y1, x2, y2, ...], name]`, one each where
    a thing is in several parts. A picture without boxes has an empty list; a file without `annotations` hides them,
    and its answers are None. Boxes around a crowd (`iscrowd`) are left out and counted. The split is a word of the
    path (`instances_val.json`, `valid/_annotations.coco.json`). Pictures lie beside the file, in `images` there, in
    the folder above or its `images`, or in folders of these named after the split.

    Args:
        source (`Path`): One file, or a folder below which every `.json` is one.

    Raises:
        FileNotFoundError: Pictures are missing.
        ValueError: Entries can't be understood; names file and position of the first ones and what was found.
    """
    root = source.parent if source.is_file() else source
    files = [source] if source.is_file() else sorted(source.rglob("*.json"))
    rows, problems, crowds = [], [], 0
    task, question = (MASKS, OUTLINE_QUESTION) if config.task == MASKS else (BOXES, LOCATE_QUESTION)
    for file in files:
        data = read_json(file)
        if not isinstance(data, dict) or not isinstance(data.get("images"), list):
            raise ValueError(f"{file} holds no list `images`, expected COCO's; move files of another kind elsewhere")
        split = _find_split(file.relative_to(root), config)
        pictures = _find_pictures(data["images"], file, split, problems)
        check_pictures((path for path, _ in pictures.values()), config)
        boxes, outlines, skipped = _read_annotations(data, pictures, file, problems, task)
        crowds += skipped
        for number, (path, entry) in pictures.items():
            try:
                size = _check_size(entry, read_size(path))
                group = find_group(os.path.relpath(path, root), config, entry)
            except ValueError as error:
                problems.append(f"{file}, image {number}: {error}")
                continue
            row = {"images": [path], "split": split, "group": group, "task": task}
            row["id"] = f"{config.name}/{file.relative_to(root).as_posix()}/{entry['file_name']}"
            row["ask"] = {"question": question, "size": list(size), "label_aware": True}
            inside = [clip_boxes([box], size) for box in boxes[number]]
            if not all(inside):
                outside = boxes[number][inside.index([])]
                problems.append(
                    f"{file}, image {number}: {outside}, expected a box inside {size[0]} x {size[1]} pixels"
                )
            things = outlines[number] if task == MASKS else [list(box) for part in inside for box in part]
            row["answer"] = things if "annotations" in data else None
            rows.append(row)
    refuse_problems(problems, source, config)
    if crowds:
        logger.warning("data set %r: %d boxes around crowds left out", config.name, crowds)
    return build_table(rows, config)


def _find_split(path: Path, config: DatasetConfig) -> str:
    """Return the word for a split that is nearest to the end of a path such as `annotations/instances_val.json`."""
    words = [*path.parts[:-1], path.stem, *re.split(r"[_.-]", path.stem)]
    return next((word for word in reversed(words) if split_of(word, config)), "")


def _find_pictures(entries: list, file: Path, split: str, problems: list[str]) -> dict[object, tuple[str, dict]]:
    """Return image id -> (path, entry); of a picture that isn't there, the first of the paths that were tried."""
    bases = [file.parent, file.parent / "images", file.parent.parent, file.parent.parent / "images"]
    folders = [*bases, *(base / split for base in bases if split)]
    shaped = [isinstance(e, dict) and "id" in e and isinstance(e.get("file_name"), str) for e in entries]
    problems += [
        f"{file}, images[{index}]: {entries[index]!r:.80}, expected an object with id and file_name"
        for index, fits in enumerate(shaped)
        if not fits
    ]
    entries = [entry for entry, fits in zip(entries, shaped, strict=True) if fits]
    counts = Counter(entry["id"] for entry in entries)
    problems += [f"{file}: {n} images with the id {number}, expected one" for number, n in counts.items() if n > 1]
    pictures = {}
    for entry in entries:
        paths = [folder / entry["file_name"] for folder in folders]
        pictures[entry["id"]] = str(next((path for path in paths if path.is_file()), paths[0])), entry
    return pictures


def _check_size(entry: dict, size: tuple[int, int]) -> tuple[int, int]:
    """Return the size in the picture's header; boxes drawn on a picture of another size would be in wrong places."""
    stated = entry.get("width", size[0]), entry.get("height", size[1])
    if stated != size:
        raise ValueError(f"{stated[0]} x {stated[1]} pixels, the picture has {size[0]} x {size[1]}, expected the same")
    return size


def _read_annotations(
    data: dict, pictures: dict[object, tuple[str, dict]], file: Path, problems: list[str], task: str
) -> tuple[dict[object, list[Box]], dict[object, list[list]], int]:
    """Return image id -> boxes, and -> outlines, both in pixels, and how many boxes around crowds were left out."""
    names = {entry.get("id"): entry.get("name") for entry in _list_dicts(data, "categories", file)}
    boxes, outlines, crowds = defaultdict(list), defaultdict(list), 0
    for index, entry in enumerate(_list_dicts(data, "annotations", file)):
        if entry.get("iscrowd"):
            crowds += 1
            continue
        bbox, category, number = entry.get("bbox"), entry.get("category_id"), entry.get("image_id")
        if not _is_box(bbox) or not isinstance(names.get(category), str) or number not in pictures:
            problems.append(
                f"{file}, annotations[{index}]: bbox {bbox!r:.60}, category {category!r}, image {number!r}, expected "
                "[x, y, width, height] above 0 and ids of `categories` and `images`"
            )
            continue
        x, y, width, height = bbox
        boxes[number].append(Box(x, y, x + width, y + height, names[category]))
        parts = entry.get("segmentation")
        if task == MASKS and not (isinstance(parts, list) and parts and all(map(_is_polygon, parts))):
            problems.append(
                f"{file}, annotations[{index}]: segmentation {parts!r:.60}, expected a list of polygons [x1, y1, x2, "
                "y2, ...] of three points or more; export masks as polygons, not run-length encoded"
            )
            continue
        outlines[number] += [[points, names[category]] for points in parts] if task == MASKS else []
    return boxes, outlines, crowds


def _list_dicts(data: dict, key: str, file: Path) -> list[dict]:
    entries = data.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{file} has {key} {entries!r:.80}, expected a list of objects; correct the file")
    return entries


def _is_box(value: object) -> bool:
    return _are_numbers(value) and len(value) == 4 and min(value[2:]) > 0


def _is_polygon(value: object) -> bool:
    return _are_numbers(value) and len(value) >= 6 and len(value) % 2 == 0


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in value
    )
