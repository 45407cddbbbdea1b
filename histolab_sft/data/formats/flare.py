"""Read FLARE 2025/2026 task 5 (MLLM 2D): question files of many data sets and tasks under folders of splits.

    <split>/<category>/<data set>/*.json       questions
    <split>/<category>/<data set>/images*/     pictures

The task is each row's own, never the data set's. Ids are those of the organisers' prediction files.
"""

import logging
import os
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.flare_answers import TASKS, collect_known, find_kind, is_hidden, read_answer
from histolab_sft.data.formats.rows import build_table, check_pictures, find_group, refuse_problems
from histolab_sft.data.formats.tables import read_json
from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES
from histolab_sft.data.pictures.decoding import read_size
from histolab_sft.errors import say_count
from histolab_sft.tasks.boxes import NAME as BOXES

logger = logging.getLogger(__name__)

# Name of a folder (with `-` for `_`) -> name of its split. Copies of the data name the folders in several ways.
SPLIT_FOLDERS = {
    "training": "training",
    "train": "training",
    "validation-public": "validation-public",
    "validation": "validation-public",
    "val": "validation-public",
    "validation-hidden": "validation-hidden",
    "testing": "testing",
    "test": "testing",
}
LIST_KEYS = ("questions", "data", "annotations", "items")
NO_QUESTIONS = "predictions.json"  # what a submission is called
_ID_SPLITS = {"training": "train", "validation-public": "validation", "validation-hidden": "validation_hidden"}
_ID_TASKS = {
    "classification": "disease_diagnosis_classification",
    "multilabel": "multi_label_classification",
    "instance detection": "detection",
    "counting": "cell_counting",
    "report": "report_generation",
}
_WITH_ANSWERS = re.compile(r"_withGT$", re.IGNORECASE)
# The view, frame or picture within a case: NeoJaundice_00672-1, IUGC_00445-53, IU-XRay_CXR3030_IM-1405-0.
_VIEW = re.compile(r"_IM-[0-9-]+$|-[0-9]+$")


class FlareRecord(NamedTuple):
    """One question as it stands in its file."""

    file: Path
    index: int
    split: str
    values: dict
    kind: str  # a key of `flare_answers.TASKS`
    images: list[str]

    @property
    def dataset(self) -> str:
        return self.file.parent.name

    @property
    def id(self) -> str:
        """`{split}:{data set}:{file}:{case}:{task}:{index}`; a file with answers has the id of the one without."""
        split, task = _ID_SPLITS.get(self.split, self.split), _ID_TASKS.get(self.kind, self.kind)
        case = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(self.images[0]).stem).strip("_")
        return f"{split}:{self.dataset}:{_WITH_ANSWERS.sub('', self.file.stem)}:{case}:{task}:{self.index}"


def read_flare(source: Path, config: DatasetConfig, subset: str | None = None) -> pd.DataFrame:
    """Return one row a question.

    `split` is `training`, `validation-public`, `validation-hidden` or `testing`, whatever the copy calls its folders.
    The group is the case: the first picture's name without the number of the view, unless the recipe has `group_by`.
    An answer is None where the split hides it. A question that lists no options (or labels) gets those that occur as
    answers in its data set.

    Args:
        subset (`str`, *optional*): Name of the one data set to read (the folder of its questions).

    Raises:
        FileNotFoundError: Pictures are missing.
        ValueError: Questions can't be understood; names file and position of the first ones and what was found.
    """
    records = [record for record in list_flare(source, config) if subset in (None, record.dataset)]
    by_dataset = defaultdict(list)
    for record in records:
        by_dataset[record.dataset].append((record.kind, record.values))
    known = {dataset: collect_known(answered) for dataset, answered in by_dataset.items()}
    answered_files = {record.file for record in records if not is_hidden(record.values.get("Answer"))}
    check_pictures((path for record in records for path in record.images), config)
    rows, problems, guessed = [], [], 0
    for record in records:
        guessed += is_hidden(record.values.get("TaskType"))
        try:
            size = read_size(record.images[0]) if TASKS[record.kind] == BOXES else None
            if size and len(record.images) > 1:
                raise ValueError(f"boxes on {len(record.images)} pictures, expected one picture")
            ask, answer = read_answer(record.values, record.kind, known[record.dataset], size)
            if answer is None and not (_may_hide(record) and record.file not in answered_files):
                raise ValueError(f"no Answer, expected one in the split {record.split!r}")
            group = find_group(os.path.relpath(record.images[0], source), config) or _VIEW.sub(
                "", Path(record.images[0]).stem
            )
        except ValueError as error:
            problems.append(f"{record.file}[{record.index}]: {error}")
            continue
        row = {"images": record.images, "split": record.split, "group": group, "id": record.id}
        rows.append(row | {"task": TASKS[record.kind], "ask": ask, "answer": answer})
    refuse_problems(problems, source, config)
    if guessed:
        logger.warning(
            "data set %r: %s without TaskType; question and answer tell it",
            config.name,
            say_count(guessed, "question"),
        )
    return build_table(rows, config)


def list_flare(source: Path, config: DatasetConfig) -> list[FlareRecord]:
    """Return the questions of all splits in the order of their files' paths and of the rows in them.

    Where a file has a copy with answers (`_withGT`), only that one is listed.

    Raises:
        ValueError: A file holds no list of questions, a question names no picture or is of no known kind.
    """
    records, problems = [], []
    for file, split in _list_files(source).items():
        values = _load_questions(file)
        copy = file.with_name(f"{_WITH_ANSWERS.sub('', file.stem)}{file.suffix}")
        if copy != file and copy.is_file() and len(_load_questions(copy)) != len(values):
            raise ValueError(
                f"{file} has {len(values)} questions and {copy.name} {len(_load_questions(copy))}, expected the same "
                "ones; download both again"
            )
        find_picture = _index_pictures(file.parent)
        for index, entry in enumerate(values):
            try:
                if not isinstance(entry, dict):
                    raise ValueError(f"{entry!r:.80}, expected an object with Question and ImageName")
                images = [find_picture(name) for name in _image_names(entry)]
                records.append(FlareRecord(file, index, split, entry, find_kind(entry), images))
            except ValueError as error:
                problems.append(f"{file}[{index}]: {error}")
    refuse_problems(problems, source, config)
    return records


def _list_files(source: Path) -> dict[Path, str]:
    """Return file of questions -> split, the folder nearest to it that is named after one."""
    files = {}
    for path in sorted(source.rglob("*.[jJ][sS][oO][nN]")):
        folders = [SPLIT_FOLDERS.get(part.lower().replace("_", "-")) for part in path.relative_to(source).parts[:-1]]
        named = [split for split in folders if split]
        if named and not path.name.startswith(".") and path.name != NO_QUESTIONS:
            files[path] = named[-1]
    doubled = {
        path.with_name(f"{_WITH_ANSWERS.sub('', path.stem)}{path.suffix}")
        for path in files
        if _WITH_ANSWERS.search(path.stem)
    }
    return {path: split for path, split in files.items() if path not in doubled}


def _load_questions(file: Path) -> list:
    found = read_json(file)
    if isinstance(found, dict):
        found = next((found[key] for key in LIST_KEYS if isinstance(found.get(key), list)), found)
    if not isinstance(found, list):
        raise ValueError(
            f"{file} holds {type(found).__name__} {str(found)[:60]!r}, expected a list of questions or one under "
            f"{', '.join(LIST_KEYS)}; move files that hold none elsewhere"
        )
    return found


def _image_names(values: dict) -> list[str]:
    names = values.get("ImageName")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"ImageName {values.get('ImageName')!r}, expected a file name or a list of them")
    return [name.strip().replace("\\", "/") for name in names]


def _index_pictures(folder: Path):
    """Return a function that finds a picture of a data set by its name, wherever its archive was unpacked to."""
    paths = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            paths.setdefault(path.name, path)

    def find(name: str) -> str:
        relative = PurePosixPath(name)
        inside = not relative.is_absolute() and ".." not in relative.parts
        exact = folder / (relative if inside else relative.name)
        return str(exact if exact.is_file() else paths.get(relative.name, exact))

    return find


def _may_hide(record: FlareRecord) -> bool:
    hides = record.split in ("validation-hidden", "testing")
    return hides and not _WITH_ANSWERS.search(record.file.stem)
