"""Read labels, groups and splits from the cells of a table, and tell which values mean that there is none."""

import logging
import re

import pandas as pd

from histolab_sft.config.class_names import compose
from histolab_sft.config.dataset import SPLITS, DatasetConfig
from histolab_sft.errors import say_count

logger = logging.getLogger(__name__)

# Columns that hold the patient or slide where the recipe has no group_by.
GROUP_COLUMNS = ("group", "patient_id", "slide_id", "wsi")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "validate", "dev"),
    "test": ("test", "testing"),
}
# Columns that are likely to hold a split where none is named `split_column`.
SPLIT_COLUMNS = ("split", "splits", "fold", "folds", "kfold", "partition", "data_split", "dataset_split")
# How libraries write a missing value; -1 is the label of unlabelled rows in the library `datasets`.
NOTHING = ("nan", "none", "null", "na", "n/a", "<na>", "nat", "-1")
NOBODY = (*NOTHING, "unknown", "?", "-")


def read_word(value: object) -> str | None:
    """Return the text of a table's cell in one Unicode form, without blanks at its ends; None for one that is empty.

    Whole numbers have no decimals, also where a gap in their column has made floats of them.
    """
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return compose(str(value)).strip() or None


def read_label(value: object, config: DatasetConfig) -> str | None:
    """Return the label in a cell; None for an unlabelled row: empty, or a word for nothing that is no class."""
    word = read_word(value)
    if word is None or word in config.class_names:
        return word
    if str(value) in config.class_names:
        return str(value)
    return None if word.lower() in NOTHING else word


def read_group(value: object) -> str | None:
    """Return the patient or slide in a cell, None for one that isn't known."""
    word = read_word(value)
    return None if word is None or word.lower() in NOBODY else word


def split_of(name: object, config: DatasetConfig) -> str:
    """Return `train`, `validation` or `test` for the data's own name of a split, else an empty string."""
    word = read_word(name) or ""
    if isinstance(config.splits, dict):
        return next((split for split in SPLITS if word in list_own_words(split, config)), "")
    return next((split for split, names in SPLIT_NAMES.items() if word.lower() in names), "")


def words_of_files(words: list[str], config: DatasetConfig) -> list[str]:
    """Return the words if `splits` is given or one of them is known as a split, else an empty text for each."""
    known = isinstance(config.splits, dict) or any(split_of(word, config) for word in words)
    return words if known else [""] * len(words)


def list_own_words(split: str, config: DatasetConfig) -> list[str]:
    """Return the data's words for a split that the recipe's `splits` names."""
    own = config.splits.get(split, [])
    return [own] if isinstance(own, str) else own


def find_split_column(table: pd.DataFrame, config: DatasetConfig) -> str | None:
    """Return the column of splits: `split_column`, one with a usual name, or one that holds only names of splits.

    Raises:
        ValueError: The recipe names a column that isn't there.
    """
    if config.split_column in table.columns:
        return config.split_column
    if config.split_column != DatasetConfig.split_column:
        raise ValueError(
            f"data set {config.name!r}: split_column is {config.split_column!r}, expected one of "
            f"{sorted(map(str, table.columns))}; correct or remove it"
        )
    known = {name for names in SPLIT_NAMES.values() for name in names}
    for column in table.columns:
        if str(column).lower() in SPLIT_COLUMNS:
            return column
        values = table[column].dropna().drop_duplicates().head(len(known) + 1)
        if len(values) > 1 and {str(value).lower() for value in values} <= known:
            return column
    return None


def map_splits(own: pd.Series, config: DatasetConfig, what: str = "patch") -> pd.Series:
    """Return `train`, `validation` or `test` for the data's own names, empty where the data have none.

    Rows whose name isn't in the recipe's mapping `splits` have None: they are left out.

    Raises:
        ValueError: The data have a name of a split that isn't known, or `splits` has one that the data lack; the
            message suggests a mapping.
    """
    words = own.map(lambda value: read_word(value) or "")
    counts = words[words != ""].value_counts(sort=False)
    counts = {word: int(counts[word]) for word in sorted(counts.index, key=_natural)}
    splits = words.map(lambda word: split_of(word, config))
    found = ", ".join(f"{word!r} ({say_count(count, what)})" for word, count in list(counts.items())[:20])
    found += f" and {len(counts) - 20} more" if len(counts) > 20 else ""
    if isinstance(config.splits, dict):
        named = [word for split in config.splits for word in list_own_words(split, config)]
        absent = [word for word in named if word not in counts]
        if absent:
            raise ValueError(
                f"data set {config.name!r}: splits names {', '.join(map(repr, absent))}, which the data don't have; "
                f"they have {found or 'no splits'}; correct `splits`" + ("" if counts else " or remove it")
            )
        return splits.where((splits != "") | (words == ""), None)
    strange = [word for word in counts if not split_of(word, config)]
    if strange:
        raise ValueError(
            f"data set {config.name!r}: the data bring splits that could not be understood: {found}; say which is "
            f"which, such as {suggest_block(list(counts), config)}; what `splits` doesn't name is left out. Or set "
            "split_protocol: seed to deal all anew"
        )
    return splits


def suggest_block(words: list[str], config: DatasetConfig) -> str:
    """Return a mapping `splits` in YAML that gives every name a split, for a person to correct."""
    block = {split: [word for word in words if split_of(word, config) == split] for split in SPLITS}
    strange = [word for word in words if not split_of(word, config)]
    free = [split for split in ("test", "validation") if not block[split]]
    for split in free[: max(len(strange) - (not block["train"]), 0)]:
        block[split] = [strange.pop()]
    block["train"] += strange
    return f"splits: {{{', '.join(f'{split}: {_as_yaml(own)}' for split, own in block.items() if own)}}}"


def leave_out(patches: pd.DataFrame, config: DatasetConfig, unlabelled: str) -> tuple[pd.DataFrame, list[dict]]:
    """Return the rows of a split that `splits` doesn't pass over, and counts of the others.

    Where rows have options to choose from, those without a label aren't among them either.

    Args:
        unlabelled (`str`): `stop`, or `drop` to leave rows without a label out.

    Returns:
        The rows, and for each kind that is left out `dataset, split, label, key, reason, rows` as in `audit.json`.

    Raises:
        ValueError: Rows have no label, and `unlabelled` is `stop`, or none has one.
    """
    passed_over, entries = patches["split"].isna(), []
    if passed_over.any():
        entries.append({"key": "splits", "reason": "of a split that `splits` doesn't name", "split": None})
        entries[0]["rows"] = int(passed_over.sum())
    patches = patches[~passed_over]
    blank = patches["label"].isna() & (config.options is not None)
    counts = patches.loc[blank, "split"].value_counts()
    counts = {split: int(counts[split]) for split in ("", *SPLITS) if split in counts}
    told = ", ".join(say_count(count, "row") + f" of {split}" * bool(split) for split, count in counts.items())
    if blank.any() and (unlabelled == "stop" or blank.all()):
        raise ValueError(
            f"data set {config.name!r}: {told} {'has' if sum(counts.values()) == 1 else 'have'} no label, expected "
            "one for each; label them, or leave them out by unlabelled: drop"
        )
    entries += [
        {"key": "unlabelled: drop", "reason": "without a label", "split": split or None, "rows": count}
        for split, count in counts.items()
    ]
    for split in SPLITS:
        if split in counts and not (patches["split"] == split)[~blank].any():
            logger.warning(
                "data set %r: no row of %s has a label; what is left brings no %s", config.name, split, split
            )
    return patches[~blank].reset_index(drop=True), [{"dataset": config.name, "label": None} | e for e in entries]


def question_groups(patches: pd.DataFrame, config: DatasetConfig) -> None:
    """Refuse groups that can't be patients or slides: the classes, or one for all patches; warn of one for each patch.

    Raises:
        ValueError: `group_by`, or the column that is taken without it, gives the classes or a single group.
    """
    known = patches[patches["group"].notna()]
    groups, pairs = known["group"].nunique(), known[["group", "label"]].dropna().drop_duplicates()
    source = f"group_by {config.group_by!r}" if config.group_by else f"the column of {', '.join(GROUP_COLUMNS)}"
    if len(known) < 2 or not groups:
        return
    if groups > 1 and len(pairs) == groups == known["label"].nunique() and _name_alike(pairs):
        raise ValueError(
            f"data set {config.name!r}: {source} gives the class of each patch ({', '.join(pairs['group'][:3])}), "
            "expected its patient or slide; correct it"
        )
    if groups == 1 and len(known) == len(patches):
        found = f"one patient or slide, {known['group'].iloc[0]!r}, for all {len(known)} patches"
        if config.group_by:
            raise ValueError(f"data set {config.name!r}: {source} gives {found}, expected several; correct it")
        logger.warning("data set %r: %s gives %s", config.name, source, found)
    elif groups == len(known):
        logger.warning(
            "data set %r: %s gives each of %d patches a patient or slide of its own; is it the patch's own name?",
            *(config.name, source, len(known)),
        )


def _name_alike(pairs: pd.DataFrame) -> bool:
    """Whether groups are named as the labels are, or in part so: `Tumor` and `tumor_`, not `P1`."""
    plain = pairs.map(lambda word: re.sub(r"\W|_", "", word).casefold())
    return all(group in label or label in group for group, label in plain.itertuples(index=False))


def _natural(word: str) -> list:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", word) if part]


def _as_yaml(words: list[str]) -> str:
    quoted = [word if re.fullmatch(r"\w[\w.-]*", word) else f"'{word}'" for word in words]
    return quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"
