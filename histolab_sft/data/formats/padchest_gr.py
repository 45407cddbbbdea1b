"""Read PadChest-GR: chest X-rays with a box for each finding of the report (grounded_reports_20240819.json)."""

import json
import logging
from collections import defaultdict
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats import padchest
from histolab_sft.data.formats.rows import build_table, check_columns, check_pictures, find_file
from histolab_sft.data.pictures.decoding import read_size
from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks.boxes import LOCATE_QUESTION
from histolab_sft.tasks.boxes import NAME as BOXES
from histolab_sft.tasks.parsing.box_geometry import Size, clip_boxes
from histolab_sft.tasks.report import NAME as REPORT
from histolab_sft.tasks.report import NO_FINDING, NORMAL, format_sections

logger = logging.getLogger(__name__)

# Where people unpack PadChest_GR.zip.001 to .037, seen from the JSON file.
IMAGE_FOLDERS = ("Padchest_GR_files/PadChest_GR", "PadChest_GR", "Padchest_GR_files")
MASTER_COLUMNS = ("ImageID", "PatientID", "split")
# Fractions a little outside of 0 to 1 are clipped; twice the picture's side isn't a fraction of it.
MAX_OVERHANG = 1


def read_padchest_gr(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """Return one row a study: `boxes`, or a sectioned `report` where the data set's `task` is that.

    `source` is the folder with the JSON file and `master_table.csv` (split and patient), or the JSON file. Only the
    first reader's `boxes` are taken: `extra_boxes` are another reader's of the same findings. A study without an
    abnormal finding has an empty list; one whose abnormal findings have no box at all is left out, as an empty list
    would say that there is nothing.

    Raises:
        FileNotFoundError: A table, or a picture that the JSON file names, isn't there.
        ValueError: The task is another, or the JSON file isn't what was published.
    """
    task = config.task or BOXES
    if task not in (BOXES, REPORT):
        raise ValueError(f"data set {config.name!r}: task {task!r}, expected 'boxes' or 'report'; correct it")
    path = find_file(source, "grounded_reports*.json", config)
    studies = _read_studies(path, config)
    master = _read_master(path.parent, config)
    read_rest = _read_boxes if task == BOXES else _read_report
    pictures = next((p for p in (path.parent / name for name in IMAGE_FOLDERS) if p.is_dir()), path.parent)
    rows, left_out = [], defaultdict(list)
    for name, study in studies.items():
        facts = master.get(name)
        reason = _find_flaw(study, name, task) if facts else "no row in master_table.csv"
        if reason:
            left_out[reason].append(name)
            continue
        rows.append(
            {
                "images": [str(pictures / name)],
                "split": facts["split"],
                "group": facts["PatientID"],
                "id": f"{config.name}/{name}",
                "task": task,
                "study": study,
                "projection": facts["Projection"],
                "inverted": facts[padchest.PHOTOMETRIC] == "MONOCHROME1",
            }
        )
    check_pictures((row["images"][0] for row in rows), config)
    table = build_table([row | read_rest(row) for row in rows], config, left_out)
    if task == BOXES:
        listed = sum(len(finding["boxes"]) for row in rows for finding in _abnormal(row["study"]))
        dropped = listed - table["answer"].map(len).sum()
        logger.info("data set %r: %d of %d boxes dropped, without area in their picture", config.name, dropped, listed)
    return table


def _read_boxes(row: dict) -> dict:
    size = read_size(row["images"][0])
    answer = [list(box) for finding in _abnormal(row["study"]) for box in read_boxes(finding, size, row["id"])]
    return {"ask": {"question": LOCATE_QUESTION, "size": list(size), "label_aware": True}, "answer": answer}


def _read_report(row: dict) -> dict:
    findings = [
        (label, [" ".join(location.split()).removeprefix("loc ") for location in finding["locations"]])
        for finding in _abnormal(row["study"])
        for label in finding["labels"]
    ]
    return {
        "ask": {"style": "sectioned", "projection": row["projection"]},
        "answer": format_sections(findings or [(NORMAL, [])]),
    }


def read_boxes(finding: dict, size: Size, name: str) -> list[Box]:
    """Return the boxes of one finding in pixels of a picture of `size`, labelled with the finding's labels.

    In the file they are [x1, y1, x2, y2] in fractions of the width and height. What stands out of the picture is cut
    off, and a box without area in it is dropped.

    Raises:
        ValueError: A box of the study `name` isn't four fractions.
    """
    label = ", ".join(finding["labels"]) or None
    boxes = []
    for box in finding["boxes"]:
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(n, int | float) for n in box)
        if not numbers or not all(-MAX_OVERHANG <= n <= 1 + MAX_OVERHANG for n in box):
            raise ValueError(
                f"{name}: box {box}, expected [x1, y1, x2, y2] in fractions of the picture; correct the JSON file"
            )
        boxes.append(Box(box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1], label))
    return clip_boxes(boxes, size)


def _find_flaw(study: dict, name: str, task: str) -> str | None:
    """Return why nothing can be learnt from a study, None where something can."""
    abnormal = _abnormal(study)
    if not study["findings"]:
        return "no sentence"
    if task == BOXES and abnormal and not any(read_boxes(finding, (1, 1), name) for finding in abnormal):
        return "abnormal findings of which none has a box"
    if task == REPORT and not all(set(finding["labels"]) - NO_FINDING for finding in abnormal):
        return "an abnormal finding without a label"
    return None


def _abnormal(study: dict) -> list[dict]:
    return [finding for finding in study["findings"] if finding["abnormal"]]


def _read_studies(path: Path, config: DatasetConfig) -> dict[str, dict]:
    """Return picture -> study; lists that are null or absent in the file are empty."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        studies = {}
        for study in listed:
            findings = [
                {
                    "abnormal": finding["abnormal"],
                    "boxes": finding.get("boxes") or [],
                    "labels": [" ".join(label.split()) for label in finding.get("labels") or []],
                    "locations": finding.get("locations") or [],
                }
                for finding in study["findings"]
            ]
            studies.setdefault(study["ImageID"], {"findings": findings})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"data set {config.name!r}: {path} gives {type(error).__name__} ({error}), expected a list of studies "
            "with ImageID and findings, each with abnormal; download it again"
        ) from error
    if len(studies) < len(listed):
        logger.warning("data set %r: %d studies repeat a picture", config.name, len(listed) - len(studies))
    return studies


def _read_master(folder: Path, config: DatasetConfig) -> dict[str, dict]:
    """Return picture -> PatientID, split, Projection and photometric interpretation.

    The last two stand in PadChest's own table: unknown where neither that nor columns of these names are here.
    """
    path = find_file(folder, "master_table.csv*", config)
    shared = ("Projection", padchest.PHOTOMETRIC)
    master = padchest.read_columns(path, (*MASTER_COLUMNS, *shared))
    check_columns(master.columns, MASTER_COLUMNS, path, config)
    absent = [column for column in shared if column not in master]
    tables = sorted(folder.glob(padchest.PATTERN))
    if absent and tables:
        facts = padchest.read_columns(tables[0], ("ImageID", *absent)).drop_duplicates("ImageID")
        master = master.merge(facts, how="left", on="ImageID")
    master = master.reindex(columns=[*MASTER_COLUMNS, *shared])
    # One row a label: a picture stands in as many as it has.
    master = master.drop_duplicates("ImageID").fillna(dict.fromkeys(shared, ""))
    master["Projection"] = master["Projection"].map(padchest.read_projection)
    return master.set_index("ImageID").to_dict("index")
