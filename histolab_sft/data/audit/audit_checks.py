"""The checks of the audit: each takes a table of patches and returns findings, worst first.

The table has one row a patch: the columns of its row, those of `check_images`, its name `patch` and its `size`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency

from histolab_sft.data.audit.copies import NEAR, locate_pairs
from histolab_sft.data.pictures.decoding import UNWINDOWED

MAX_EXAMPLES = 50
MIN_SIDE = 16  # pixels
NEARLY_ALL = 0.98  # share of background
NEARLY_BLACK = 256 // 16  # of 8 bits: what 12 bits of 16 come to
IMBALANCE = 5  # largest class to smallest: beyond it, plain accuracy says little
ASSOCIATION = 0.3  # Cramer's V of a technical property with label or split
NO_CLASS = "(no class)"


def check_verdicts(table: pd.DataFrame) -> list[dict]:
    """Pictures that are refused, converted, nearly black for want of a window, tiny or empty."""
    refused = table[table["verdict"] == "refused"]
    converted = table[table["verdict"] == "converted"]
    tiny = table[(table["width"] < MIN_SIDE) | (table["height"] < MIN_SIDE)]
    empty = table[table["background_fraction"] >= NEARLY_ALL]
    shown = zip(converted["conversions"], converted["thumbnail"], strict=True)
    black = [UNWINDOWED in words and max(thumbnail) < NEARLY_BLACK for words, thumbnail in shown]
    dark = converted[np.array(black, dtype=bool)]
    reasons = _list_counts(refused["reason"])
    steps = _list_counts(converted["conversions"])
    where = _list_counts(empty["dataset"] + " " + empty["label"].fillna(NO_CLASS))
    return [
        # A refusal: training without them would silently change the data set and the shares of the classes.
        *_find("refused_images", "refusal", f"pictures can't be used ({reasons}); mend or remove them", refused),
        *_find("converted_images", "warning", f"pictures aren't stored as 8-bit RGB ({steps})", converted),
        *_find(
            "dark_16_bit_images",
            "warning",
            "16-bit pictures use a sixteenth of their range and come out nearly black; set the data set's "
            "intensity_window, or scale them",
            dark,
        ),
        *_find("tiny_images", "warning", f"pictures have a side under {MIN_SIDE} pixels; are they patches?", tiny),
        # No refusal: background is a class of its own in some data sets, and fat is nearly white.
        *_find("background", "warning", f"pictures are at least {NEARLY_ALL:.0%} white or black ({where})", empty),
    ]


def check_copies(table: pd.DataFrame, near: pd.DataFrame) -> list[dict]:
    """Pictures with equal decoded pixels, which covers equal files; where labels differ, near copies as well."""
    copied = table.duplicated("pixel_sha256", keep=False)
    # Blank patches of two slides are equal without being the same tissue.
    blank = table[copied & (table["contrast"] == 0)]
    copies = table[copied & (table["contrast"] > 0)]
    splits = copies.groupby("pixel_sha256")["split"].transform("nunique")
    labels = copies.groupby(["pixel_sha256", "dataset"])["label"].transform("nunique")
    across, within, disputed = copies[splits > 1], copies[splits == 1], copies[labels > 1]
    same_file = across[across.duplicated(["pixel_sha256", "file_sha256"], keep=False)]["pixel_sha256"].nunique()
    disputed_across = copies[(labels > 1) & (splits > 1)]["pixel_sha256"].nunique()
    first, second = locate_pairs(table, near)
    differ = (first["dataset"] == second["dataset"]) & (first["label"].fillna("") != second["label"].fillna(""))
    first, second = first[differ], second[differ]
    near_across = (first["split"] != second["split"]).sum()
    examples = [part for _, part in disputed.groupby("pixel_sha256", sort=False)]
    examples += [pd.concat([first.loc[[at]], second.loc[[at]]]) for at in first.index[:MAX_EXAMPLES]]
    surplus = len(within) - within["pixel_sha256"].nunique()
    return [
        # A refusal: the model would be scored on pictures that it was trained or chosen on.
        *_find(
            "copies_across_splits",
            "refusal",
            f"pictures stand in more than one split ({same_file} of them as equal files, others with equal pixels), "
            "expected none; drop the copies outside the evaluation splits",
            across,
            "pixel_sha256",
        ),
        # Warnings: a copy inside one split counts twice, and one with two labels is wrong once, but scores stay valid.
        *_note(
            "conflicting_labels",
            "warning",
            disputed["pixel_sha256"].nunique() + len(first),
            f"pictures or near copies carry more than one label ({disputed_across + near_across} of them across "
            f"splits, {len(first)} as near copies); correct or drop them",
            examples[:MAX_EXAMPLES],
        ),
        *_find(
            "copies_within_split",
            "warning",
            f"pictures are repeated inside one split ({surplus} surplus copies); each copy weighs once more",
            within,
            "pixel_sha256",
        ),
        *_find("blank_copies", "warning", "pictures of one even colour equal another; they show no tissue", blank),
    ]


def check_near_copies(table: pd.DataFrame, near: pd.DataFrame) -> list[dict]:
    """Pictures that show the same after compression, scaling, turning by right angles or mirroring, and siblings."""
    first, second = locate_pairs(table, near)
    # Warnings: two empty fields can look alike, and which of two near copies to keep is for a person to judge.
    findings = []
    crossing, near_copy = first["split"] != second["split"], first["kind"] == NEAR
    across, within = (
        ("different splits", "look at them, or take them out by leaks: drop"),
        ("one split", "look at them"),
    )
    same = "show the same but for compression, scale, turning or mirroring"
    cut = "are parts of one picture, turned, mirrored, scaled or cropped"
    for check, (place, cure), what, chosen in (
        ("near_copies_across_splits", across, same, crossing & near_copy),
        ("near_copies_within_split", within, same, ~crossing & near_copy),
        ("siblings_across_splits", across, cut, crossing & ~near_copy),
        ("siblings_within_split", within, cut, ~crossing & ~near_copy),
    ):
        shown = chosen.index[chosen][:MAX_EXAMPLES]
        examples = [pd.concat([first.loc[[at]], second.loc[[at]]]) for at in shown]
        findings += _note(check, "warning", chosen.sum(), f"pairs of pictures in {place} {what}; {cure}", examples)
    return findings


def check_groups(table: pd.DataFrame) -> list[dict]:
    """Slides or patients with patches in more than one split."""
    known, unknown = table[table["group"].notna()], table[table["group"].isna()]
    # One patch of each split stands for the group.
    ends = known.drop_duplicates(["cohort", "group", "split"])
    ends = ends[ends.duplicated(["cohort", "group"], keep=False)]
    return [
        # A refusal: patches of one slide share stain, scanner and patient, which a model learns instead of the tissue.
        *_find(
            "groups_across_splits",
            "refusal",
            "slides or patients have patches in more than one split, expected none; let group_by decide the splits",
            ends,
            ["cohort", "group"],
        ),
        *_find(
            "no_group",
            "warning",
            f"patches have no known slide or patient ({_list_counts(unknown['dataset'])}): each counts as one of its "
            "own, and leaks through them can't be seen; set group_by if the data tell",
            unknown,
        ),
    ]


def check_classes(table: pd.DataFrame, class_names: Mapping[str, Sequence[str]]) -> list[dict]:
    """Splits and classes without patches, and classes of very different sizes."""
    findings, present = [], set(table["split"])
    # Without train there is nothing to learn; without test there is nothing to report, but one may want only to train.
    if "train" not in present:
        findings += _note("empty_split", "refusal", 1, "split is empty: train; there is nothing to learn from")
    if "test" not in present:
        findings += _note("empty_split", "warning", 1, "split is empty: test; there will be nothing to report")
    for dataset, patches in table.groupby("dataset"):
        counts = pd.crosstab(patches["label"], patches["split"])
        counts = counts.reindex(counts.index.union(list(class_names.get(dataset, []))), fill_value=0)
        # A class that is scored but not learnt lowers the score; one that is learnt but not scored does no harm.
        # A data set without any train split is only scored.
        if "train" in counts:
            lost = counts.index[counts["train"] == 0].tolist()
            message = f"classes of {dataset} have no patch in train: {lost}; correct class_names or the splits"
            findings += _note("empty_class", "refusal", len(lost), message)
        if {"train", "test"} <= set(counts):
            lost = counts.index[(counts["train"] > 0) & (counts["test"] == 0)].tolist()
            message = f"classes of {dataset} have no patch in test: {lost}; nothing will be known of them"
            findings += _note("unscored_class", "warning", len(lost), message)
        for split, column in counts.items():
            column = column[column > 0]
            if len(column) > 1 and column.max() > IMBALANCE * column.min():
                message = (
                    f"split of {dataset} is out of balance: {split} has {column.max()} of {column.idxmax()} and "
                    f"{column.min()} of {column.idxmin()}; read the balanced accuracy"
                )
                findings += _note("class_imbalance", "warning", 1, message)
    return findings


def check_shortcuts(table: pd.DataFrame) -> list[dict]:
    """Formats, sizes or modes from which the label or the split could be guessed without seeing any tissue."""
    findings = []
    for dataset, patches in table.groupby("dataset"):
        for target in ("label", "split"):
            for column in ("format", "size", "mode"):
                strength = compute_association(patches[column], patches[target])
                if strength >= ASSOCIATION:
                    message = (
                        f"property of the files of {dataset} goes with the {target}: {column}, Cramer's V "
                        f"{strength:.2f}, expected about 0; a model may read it instead of the tissue: store all alike"
                    )
                    findings += _note(f"{column}_predicts_{target}", "warning", 1, message)
    return findings


def compute_association(first: pd.Series, second: pd.Series) -> float:
    """Return Cramer's V of two categories, 0 to 1, corrected for chance.

    W. Bergsma, A bias-correction for Cramer's V and Tschuprow's T, J. Korean Stat. Soc. 42 (2013) 323-328.
    """
    counts = pd.crosstab(first, second)
    n, (rows, columns) = counts.to_numpy().sum(), counts.shape
    if min(rows, columns) < 2:
        return 0.0
    surplus = chi2_contingency(counts, correction=False).statistic / n - (rows - 1) * (columns - 1) / (n - 1)
    sides = [side - (side - 1) ** 2 / (n - 1) for side in (rows, columns)]
    return float(np.sqrt(max(surplus, 0) / (min(sides) - 1))) if min(sides) > 1 else 0.0


def _find(
    check: str, level: str, message: str, patches: pd.DataFrame, key: str | list[str] | None = None
) -> list[dict]:
    """Return a finding about patches, each an example by itself, or about groups of them with the same key."""
    if key is None:
        examples = [patches.iloc[[position]] for position in range(min(len(patches), MAX_EXAMPLES))]
        return _note(check, level, len(patches), message, examples)
    numbers = patches.groupby(key, sort=False).ngroup()
    examples = [group for _, group in patches[numbers < MAX_EXAMPLES].groupby(key, sort=False)]
    return _note(check, level, numbers.nunique(), message, examples)


def _note(check: str, level: str, count: int, message: str, examples: Sequence[pd.DataFrame] = ()) -> list[dict]:
    """Return a list with one finding, or an empty one if nothing was counted."""
    if count == 0:
        return []
    named = []
    for part in examples:
        part = part[["patch", "dataset", "split", "label"]].astype(object)
        named.append(part.where(part.notna(), None).to_dict("records"))  # JSON has no NaN
    return [{"check": check, "level": level, "count": int(count), "message": f"{count} {message}", "examples": named}]


def _list_counts(values: pd.Series) -> str:
    counts = values.value_counts()
    listed = ", ".join(f"{name}: {count}" for name, count in counts.head(5).items())
    return listed + (f", and {len(counts) - 5} more" if len(counts) > 5 else "")
