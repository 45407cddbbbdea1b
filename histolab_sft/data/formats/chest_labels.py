"""What the readers of labelled chest X-rays share: the labels that are asked for, and what an uncertain one means."""

import logging
from collections.abc import Mapping, Sequence

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.tasks.multilabel import CHEST_QUESTION

logger = logging.getLogger(__name__)

# The observations of Irvin et al. 2019 (CheXpert), in the order of its files.
OBSERVATIONS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
# `uncertain` -> what -1 counts as; None: the label isn't asked for where it is uncertain.
POLICIES = {"ignore": None, "zeros": False, "ones": True}
_CELLS = {"": 0, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": -1, "-1.0": -1}
VIEWS = ("all", "frontal")


def choose_labels(published: Sequence[str], config: DatasetConfig) -> dict[str, str]:
    """Return the labels that are asked for, as published -> the words for them: those of `class_names`, or all.

    Raises:
        ValueError: `class_names` has a label that the data set doesn't.
    """
    if config.class_names is None:
        return {label: label.replace("_", " ") for label in published}
    strange = sorted(set(config.class_names) - set(published))
    if strange or not config.class_names:
        raise ValueError(
            f"data set {config.name!r}: class_names has {strange or 'no label'}, expected some of "
            f"{', '.join(published)}; correct or remove it"
        )
    return dict(config.class_names)


def check_choice(key: str, value: object, choices: Sequence[str], config: DatasetConfig) -> None:
    """Raise ValueError where the data set's `key` isn't one of `choices`."""
    if value not in choices:
        raise ValueError(
            f"data set {config.name!r}: {key} is {value!r}, expected one of {', '.join(choices)}; "
            + ("add it, as the answers depend on it" if value is None else "correct it")
        )


def read_labels(names: Mapping[str, str], cells: Mapping[str, str], uncertain: str) -> tuple[dict, list[str], int]:
    """Return `ask` and `answer` of a `multilabel` row, and how many of its labels are uncertain.

    Args:
        names: From `choose_labels`.
        cells: Label -> what CheXpert's labeller wrote: `1` present, `0` absent, `-1` uncertain, each also with a
            decimal, or nothing where the report doesn't mention it, which counts as absent.
        uncertain: A key of `POLICIES`.

    Raises:
        ValueError: A cell holds anything else; the message begins with its column.
    """
    found = {}
    for label in names:
        if cells[label].strip() not in _CELLS:
            raise ValueError(f"column {label!r}: {cells[label]!r}, expected 1, 0, -1 or nothing")
        found[label] = _CELLS[cells[label].strip()]
    read = {label: POLICIES[uncertain] if value < 0 else value > 0 for label, value in found.items()}
    vocabulary = [words for label, words in names.items() if read[label] is not None]
    ask = {"question": CHEST_QUESTION, "vocabulary": vocabulary}
    return ask, [words for label, words in names.items() if read[label]], sum(value < 0 for value in found.values())


def log_uncertain(count: int, total: int, uncertain: str, config: DatasetConfig) -> None:
    """Log how many labels are uncertain, and what becomes of them."""
    meaning = {None: "aren't asked for", False: "count as absent", True: "count as present"}[POLICIES[uncertain]]
    logger.info("data set %r: %d of %d labels are uncertain and %s", config.name, count, total, meaning)
