"""Divide the patches of one data set into train, validation and test: balanced by class, whole groups only."""

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, train_test_split

from histolab_sft.config.dataset import SPLITS


def split_patches(
    patches: pd.DataFrame,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 42,
    settled: pd.Series | None = None,
) -> pd.DataFrame:
    """Fill the column `split`, keeping every split that the data bring.

    Without splits in the data, patches are assigned by class with the fractions given, and the patches of one group
    (column `group`) stay together; a patch without a group is a group of its own. Data with `train` and `test` alone
    get a validation split out of `train`, data with `train` and `validation` alone a test split, and so on: `test` is
    never touched when it's given.

    Args:
        patches (`pandas.DataFrame`): Columns `label`, `split` (empty where not given) and `group` (None if unknown).
        settled (`pandas.Series`, *optional*): For each patch the split in which another data set already has its
            patient or a copy of it, else empty. Such a patch goes there too if that split is assigned here.

    Raises:
        ValueError: Some patches have a split and others none, or a split comes out empty.
    """
    given = check_given_splits(patches)
    patches = patches.copy()
    patches.loc[patches["split"] == "", "split"] = "train"
    settled = pd.Series("", index=patches.index) if settled is None else settled.where(~settled.isin(given), "")
    if "test" not in given:
        rest = 1.0 if not given else 1.0 - validation_fraction * ("validation" in given)
        patches = _move_out_of_train(patches, "test", test_fraction / rest, seed, settled)
    if "validation" not in given:
        rest = 1.0 - test_fraction if "test" not in given else 1.0
        patches = _move_out_of_train(patches, "validation", validation_fraction / rest, seed, settled)
    for split in SPLITS:
        if not (patches["split"] == split).any():
            raise ValueError(
                f"the split {split} comes out empty ({len(patches)} patches, given: {sorted(given) or 'none'}); "
                "raise max_samples or the split's fraction, or bring more groups"
            )
    return patches


def draw_validation(patches: pd.DataFrame, fraction: float, seed: int, settled: pd.Series) -> pd.Series:
    """Return `train` or `validation` for patches that are dealt into these two alone; arguments of `split_patches`."""
    return _move_out_of_train(patches.assign(split="train"), "validation", fraction, seed, settled)["split"]


def check_given_splits(patches: pd.DataFrame) -> set[str]:
    """Return the splits that the data bring; errors as in `split_patches`, before any picture is looked at."""
    given = set(patches["split"]) - {""}
    if given and (patches["split"] == "").any():
        stray = patches.loc[patches["split"] == ""].iloc[0]
        raise ValueError(
            f"{stray['path']} has no split while others have {sorted(given)}; name a split for every patch"
        )
    if given and "train" not in given:
        raise ValueError(
            f"the data bring the splits {sorted(given)}, expected `train` among them; map it with `splits`"
        )
    return given


def cap_patches(patches: pd.DataFrame, max_samples: int, seed: int = 42) -> pd.DataFrame:
    """Keep at most `max_samples // n_classes` patches of each class, each split in proportion, drawn by `seed`."""
    per_class = max_samples // patches["label"].nunique()
    rng = np.random.default_rng(seed)
    kept = []
    for _, rows in patches.groupby("label", sort=True):
        if len(rows) <= per_class:
            kept.extend(rows.index)
            continue
        # Largest remainders: the splits of a class keep their proportions and add up to the cap.
        shares = rows["split"].value_counts(sort=False).sort_index() * per_class / len(rows)
        counts = np.floor(shares).astype(int)
        counts[(shares - counts).sort_values(ascending=False, kind="stable").index[: per_class - counts.sum()]] += 1
        for split, count in counts.items():
            kept.extend(rng.permutation(rows.index[rows["split"] == split])[:count])
    return patches.loc[sorted(kept)]


def _move_out_of_train(
    patches: pd.DataFrame, split: str, fraction: float, seed: int, settled: pd.Series
) -> pd.DataFrame:
    """Move `fraction` of train to a split: first what is settled there, then whole groups and patches without one."""
    train = patches[patches["split"] == "train"]
    settled = settled[train.index]
    followers, free = train.index[settled == split], train[settled == ""]
    missing = fraction * len(train) - len(followers)
    if len(free) and (missing >= 1 or not len(followers)):
        # Where much is settled elsewhere, at most half of the rest goes.
        share = min(missing / len(free), max(fraction, 0.5))
        patches.loc[_draw(free, split, share, seed, spare=len(followers) > 0), "split"] = split
    patches.loc[followers, "split"] = split
    return patches


def _draw(patches: pd.DataFrame, split: str, fraction: float, seed: int, spare: bool) -> pd.Index:
    """Return the index of about `fraction` of the patches; `spare` says that none at all will do as well."""
    labels, folds = patches["label"], max(2, round(1 / fraction))
    together = patches["group"].map(patches["group"].value_counts()) > 1
    whole, alone = patches[together], patches[~together]
    size = round(fraction * len(patches))
    drawn = []
    if whole["group"].nunique() >= folds:
        # Without a class of as many patches as folds there is nothing to balance by.
        kind = StratifiedGroupKFold if whole["label"].value_counts().max() >= folds else GroupKFold
        folder = kind(n_splits=folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # A class may have fewer patches in groups than there are folds: those without one are assigned below.
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            drawn += whole.index[next(folder.split(whole, whole["label"], whole["group"]))[1]].tolist()
        size = round(fraction * len(alone))
    elif len(whole) and len(alone) < 2 * size and not spare:
        raise ValueError(
            f"the split {split} needs whole groups (patients, and copies of a picture) and there are "
            f"{whole['group'].nunique() + len(alone)}, expected at least {folds} for a fraction of {fraction:.2f}; "
            "bring more groups, raise the fraction, or give the splits yourself"
        )
    counts = alone["label"].value_counts()
    rare = counts.index[counts < 2]
    if len(rare) and not len(whole):
        raise ValueError(
            f"label {rare[0]!r} has one patch, expected enough for every split; bring more (max_samples is one "
            "limit) or leave it out"
        )
    # A patch that is the only one of its label beside whole groups stays in train.
    assigned = alone[~labels[alone.index].isin(rare)]
    kinds = assigned["label"].nunique()
    if not drawn:
        size = max(size, kinds)
    if size and kinds and len(assigned) >= 2 * kinds:
        size = min(size, len(assigned) - kinds)
        stratify = assigned["label"] if size >= kinds else None
        drawn += train_test_split(assigned.index, test_size=size, stratify=stratify, random_state=seed)[1].tolist()
    return pd.Index(drawn, dtype=patches.index.dtype)
