"""Deal the rows of a recipe into folds for cross-validation: by class, and with whole groups."""

import logging
import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

from histolab_sft.data.splits import draw_validation

logger = logging.getLogger(__name__)


def hold_out_test(patches: pd.DataFrame, name: str, fold: int | None) -> tuple[pd.DataFrame, list[dict]]:
    """Leave out the official test split of a data set, and deal all other patches anew.

    Returns:
        The patches that are dealt into folds, without a split; and counts by class of those left out, as in
        `audit.json`.

    Raises:
        ValueError: No fold is named.
    """
    if fold is None:
        raise ValueError(
            "folds is set and no fold is named, expected one training to have one; run `histolab_sft study`, which "
            "trains and scores all of them, or name one by --fold 1"
        )
    test = patches["split"] == "test"
    if test.any():
        logger.info(
            "%s: %d rows of the official test split are held out of the folds; split_protocol: seed deals them too",
            *(name, test.sum()),
        )
    counts = patches[test].groupby("label", dropna=False, sort=False).size()
    left_out = [
        {"key": "folds", "reason": "official test split", "dataset": name, "split": "test", "rows": int(count)}
        | {"label": None if pd.isna(label) else label}
        for label, count in counts.items()
    ]
    return patches[~test].assign(split=""), left_out


def draw_folds(tables: dict[str, pd.DataFrame], folds: int, seed: int) -> pd.Series:
    """Return the fold of each patch, from 1 to `folds`.

    In each data set every class is spread over the folds as evenly as whole groups allow (scikit-learn's
    StratifiedGroupKFold). A group that stands in several data sets has one fold, which the first of them settles.

    Args:
        tables: Data set -> its patches with `label` and `group`, a number that no other group has.

    Raises:
        ValueError: A data set has fewer groups than folds.
    """
    settled, parts = pd.Series(dtype=int), []
    for name, table in tables.items():
        found = table["group"].map(settled)
        free = table[found.isna()]
        n_groups = table["group"].nunique()
        if n_groups < folds:
            raise ValueError(
                f"data set {name!r}: {folds} folds need whole groups (patients, and copies of a picture) and there "
                f"are {n_groups}, expected at least {folds}; lower folds, or bring more groups"
            )
        found[free.index] = _draw_new(free, folds, seed)
        parts.append(found.astype(int))
        settled = pd.concat([settled, found.groupby(table["group"]).first().astype(int)])
        settled = settled[~settled.index.duplicated()]
    return pd.concat(parts)


def split_fold(
    table: pd.DataFrame, tested: pd.Series, validation_fraction: float, seed: int, settled: pd.Series
) -> pd.DataFrame:
    """Fill the column `split` of one data set: `test` where `tested`, the rest train and validation.

    Args:
        table, seed, settled: As in `split_patches`.
        tested: For each patch whether it is in the fold that is the test.
        validation_fraction: Share of the rest for validation.

    Raises:
        ValueError: A split comes out empty.
    """
    rest = table[~tested]
    splits = pd.Series("test", index=table.index)
    splits[rest.index] = draw_validation(rest, validation_fraction, seed, settled[rest.index])
    missing = {"train", "validation", "test"} - set(splits)
    if missing:
        raise ValueError(
            f"of {len(table)} patches in folds, {', '.join(sorted(missing))} comes out empty; raise max_samples or "
            "validation_fraction, lower folds, or bring more groups"
        )
    return table.assign(split=splits)


def _draw_new(patches: pd.DataFrame, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each patch: groups of several patches are dealt first, and then the single ones."""
    numbers = pd.Series(0, index=patches.index)
    order, begun = np.random.default_rng(seed).permutation(folds) + 1, 0
    together = patches["group"].map(patches["group"].value_counts()) > 1
    for part, kinds in ((patches[together], (StratifiedGroupKFold, GroupKFold)), (patches[~together], None)):
        names = part["group"].unique()
        if len(names) < folds:
            places = {name: order[(begun + count) % folds] for count, name in enumerate(names)}
            numbers[part.index] = part["group"].map(places).astype(int)
            begun += len(names)
            continue
        # Without a class of as many patches as folds there is nothing to balance by.
        balanced = part["label"].value_counts().max() >= folds
        kind = (kinds or (StratifiedKFold, GroupKFold))[0 if balanced else 1]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            dealer, groups = kind(n_splits=folds, shuffle=True, random_state=seed), part["group"]
            parts = dealer.split(part, part["label"], None if kind is StratifiedKFold else groups)
            for number, (_, test) in enumerate(parts, start=1):
                numbers[part.index[test]] = number
    return numbers.to_numpy()
