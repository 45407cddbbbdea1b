"""Divide the patches of one data set into train, validation and test: balanced by class, whole groups only."""

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from histolab_sft.dataset_config import SPLITS


def split_patches(
    patches: pd.DataFrame, validation_fraction: float = 0.15, test_fraction: float = 0.15, seed: int = 42
) -> pd.DataFrame:
    """Fill the column `split`, keeping every split that the data bring.

    Without splits in the data, patches are dealt out by class with the fractions given, and the patches of one group
    (column `group`) stay together. Data with `train` and `test` alone get a validation split out of `train`, data with
    `train` and `validation` alone a test split, and so on: `test` is never touched when it's given.

    Args:
        patches (`pandas.DataFrame`): Columns `label`, `split` (empty where not given) and `group` (None if unknown).

    Raises:
        ValueError: Some patches have a split and others none, or a split comes out empty.
    """
    patches = patches.copy()
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
    patches.loc[patches["split"] == "", "split"] = "train"
    if "test" not in given:
        rest = 1.0 if not given else 1.0 - validation_fraction * ("validation" in given)
        patches = _move_out_of_train(patches, "test", test_fraction / rest, seed)
    if "validation" not in given:
        rest = 1.0 - test_fraction if "test" not in given else 1.0
        patches = _move_out_of_train(patches, "validation", validation_fraction / rest, seed)
    for split in SPLITS:
        if not (patches["split"] == split).any():
            raise ValueError(
                f"the split {split} comes out empty ({len(patches)} patches, given: {sorted(given) or 'none'}); "
                "raise max_samples or the split's fraction, or bring more groups"
            )
    return patches


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


def _move_out_of_train(patches: pd.DataFrame, split: str, fraction: float, seed: int) -> pd.DataFrame:
    train = patches.index[patches["split"] == "train"]
    labels, groups = patches.loc[train, "label"], patches.loc[train, "group"]
    if groups.isna().any():
        if labels.value_counts().min() < 2:
            rare = labels.value_counts().idxmin()
            raise ValueError(
                f"label {rare!r} has one patch, expected enough for every split; bring more or leave it out"
            )
        size = max(round(fraction * len(train)), labels.nunique())
        _, moved = train_test_split(train, test_size=size, stratify=labels, random_state=seed)
    else:
        folds = max(2, round(1 / fraction))
        if groups.nunique() < folds:
            raise ValueError(
                f"the split {split} needs whole groups and there are {groups.nunique()}, expected at least {folds} "
                f"for a fraction of {fraction:.2f}; bring more groups, raise the fraction, or give the splits yourself"
            )
        folder = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
        moved = train[next(folder.split(train, labels, groups))[1]]
    patches.loc[moved, "split"] = split
    return patches
