"""Look at a folder or table of patches whose recipe isn't written yet: its classes, splits, groups, open questions."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import SPLITS, DatasetConfig
from histolab_sft.data.data_sets import load_source
from histolab_sft.data.formats.listing import is_picture, list_some, list_visible
from histolab_sft.data.formats.words import SPLIT_NAMES
from histolab_sft.errors import is_for_user

# Readers need class names. To find those of tables, any number may be one: positions are named by themselves.
ANY_NUMBER = {str(number): str(number) for number in range(256)}
LABEL_COLUMNS = ("label", "labels", "class", "target", "diagnosis", "y")
IMAGE_COLUMNS = (None, "images", "img", "filename", "file", "x")
SPLIT_WORDS = {word for words in SPLIT_NAMES.values() for word in words}
MOST_CLASSES = 100
NUMBERED = re.compile(r"[A-Za-z]{0,8}[-_ ]?\d+")


@dataclass
class Survey:
    """What a source holds.

    `keys` are those of its entry in `datasets` without name and source; `patches` is what `load_source` gives with
    them, None where it can't be read until a question is answered; `questions` are sentences for the user. With
    `splits_unclear` the data have splits that nothing explains, and `patches` doesn't hold them.
    """

    keys: dict
    patches: pd.DataFrame | None
    questions: list[str] = field(default_factory=list)
    splits_unclear: bool = False


def survey_source(source: str) -> Survey:
    """Find the keys with which the readers of this project take a source.

    Raises:
        FileNotFoundError: It isn't there.
        ValueError: No class can be found in it; the message is that of the reader.
    """
    if not Path(source).exists():
        raise FileNotFoundError(f"{source} isn't there, expected a folder or table of patches; correct --from")
    complaint = open_survey = None
    for keys, questions in _list_candidates(Path(source)):
        survey, problem = _try_keys(source, keys, questions)
        if survey is not None and survey.patches is not None:
            return survey
        # Folders say the classes also where the reader stops at something else, such as a split that isn't named.
        complaint, open_survey = problem, survey or open_survey
    if open_survey is not None:
        return open_survey
    raise ValueError(f"no classes found in {source}, expected a folder or column for them: {complaint}")


def _try_keys(source: str, keys: dict, questions: list[str]) -> tuple[Survey | None, str]:
    """Return what the readers find with these keys, and what they complain about."""
    complaint = ""
    for anew in (False, True):
        try:
            patches = load_source(DatasetConfig(name="data", source=source, **keys), anew=anew)
        except (ValueError, FileNotFoundError) as error:
            if not is_for_user(error):
                raise
            complaint = complaint or str(error).removeprefix("data set 'data': ")
            continue
        labels = sorted(patches["label"].dropna().unique(), key=_natural)
        if not 2 <= len(labels) <= min(MOST_CLASSES, len(patches) / 2):
            return None, f"{len(labels)} labels on {len(patches)} patches ({list_some(labels)})"
        asked = [*questions, *([complaint] if complaint else [])]
        return Survey(keys | {"class_names": {label: label for label in labels}}, patches, asked, anew), complaint
    found = keys["class_names"] is not ANY_NUMBER
    return (Survey(keys, None, [*questions, complaint]) if found else None), complaint


def _list_candidates(source: Path) -> Iterator[tuple[dict, list[str]]]:
    """Yield keys to try, with what to ask if they fit: first what tables say, then what folders do."""
    yield {"class_names": ANY_NUMBER}, []
    for labels in LABEL_COLUMNS:
        for images in IMAGE_COLUMNS:
            keys = {"class_names": ANY_NUMBER, "label_column": labels} | ({"image_column": images} if images else {})
            if source.is_file() and (labels, images) != (LABEL_COLUMNS[0], None):
                yield keys, [f"Labels are taken from {labels!r}. Is that the class?"]
    if source.is_dir():
        yield from _list_folder_candidates(source)


def _list_folder_candidates(source: Path) -> Iterator[tuple[dict, list[str]]]:
    paths = [name.split("/")[:-1] for name in list_visible(source) if is_picture(name)]
    for depth in range(max(map(len, paths), default=0)):
        below = defaultdict(set)
        for parts in paths:
            if len(parts) > depth and parts[depth].lower() not in SPLIT_WORDS:
                below[parts[depth]].update(parts[depth + 1 : depth + 2])
        inner = {name for name in set().union(*below.values()) if name.lower() not in SPLIT_WORDS}
        if len(below) > 1 and len(set.intersection(*below.values()) & inner) > 1:
            tops, first, second = list_some(sorted(below)), *sorted(below)[:2]
            question = (
                f"The folders {tops} each hold {list_some(sorted(inner))}, which are taken for the classes. Are "
                f"{tops} splits? Then write splits: {{train: {first}, test: {second}}} (which is which?) in the place "
                f"of label_by. Patients or slides? Then add group_by: '^{'[^/]+/' * depth}([^/]+)/'."
            )
            yield _name_classes(inner) | {"label_by": f"^{'[^/]+/' * (depth + 1)}([^/]+)/"}, [question]
        if len(below) > 1:
            question = (
                f"The folders {list_some(sorted(below))} are taken for classes, and look like patients or slides. "
                "If they are, tell the class by label_by and the patient by group_by."
            )
            yield _name_classes(below), [question] if all(map(NUMBERED.fullmatch, below)) else []


def _name_classes(names) -> dict:
    return {"class_names": {name: name for name in sorted(names, key=_natural)}}


def _natural(word: str) -> list:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", word) if part]


def count_splits(patches: pd.DataFrame) -> dict[str, int]:
    """Return how many patches each split of the data has, without those that the data don't name."""
    counts = patches["split"].value_counts()
    return {split: int(counts[split]) for split in SPLITS if split in counts}
