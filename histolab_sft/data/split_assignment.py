"""Deal out the splits that the data leave open, and apply the caps.

Splits are dealt when the pictures are known, so that copies stay together; but the caps come first wherever they can,
so that of a large data set no more pictures are decoded than are used. Drawing a class's patches at random and then
dealing them gives the same shares as dealing first and then drawing from each split. Only `max_test_samples` of a test
split that is dealt here has to wait.
"""

import pandas as pd

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import SPLITS, DatasetConfig
from histolab_sft.data.folds import draw_folds, hold_out_test, split_fold
from histolab_sft.data.row_counts import count_found
from histolab_sft.data.splits import cap_patches, check_given_splits, split_patches
from histolab_sft.errors import is_for_user


def prepare_splits(patches: pd.DataFrame, config: DatasetConfig, histo_args: HistoArguments) -> pd.DataFrame:
    """Return the patches of one data set that are used, with the splits that the data bring, and empty ones.

    Also fills `found` and `given` (`count_found`), and `protocol`: `official` where the data bring the test split,
    else `seed`. `max_samples` caps all splits but a test split that the data bring, which is scored whole;
    `max_test_samples` caps the test split in either case. With `folds`, all splits but a test split are dealt anew,
    and `attrs["left_out"]` counts what `hold_out_test` left out.

    Raises:
        ValueError: Some patches have a split and others none, or there are splits and none is train.
    """
    if histo_args.split_protocol == "seed":
        patches = patches.assign(split="")
    with_data_set_named(config.name, check_given_splits, patches.assign(path=patches["id"]))
    left_out = []
    if histo_args.folds:
        patches, left_out = hold_out_test(patches, config.name, histo_args.fold)
    test = patches["split"] == "test"
    patches = count_found(patches.assign(protocol="official" if test.any() else "seed"))
    if max_samples := config.max_samples or histo_args.max_samples:
        patches = pd.concat([_cap(patches[~test], max_samples, histo_args), patches[test]])
    patches = _cap_test(patches, histo_args)
    patches.attrs["left_out"] = left_out
    return patches


def has_open_splits(patches: pd.DataFrame) -> bool:
    """Whether the splits of some data set have to be dealt out."""
    return any(not set(SPLITS) <= set(part) for _, part in patches.groupby("dataset")["split"])


def assign_splits(patches: pd.DataFrame, ties: pd.Series, histo_args: HistoArguments) -> pd.DataFrame:
    """Fill the splits of all data sets.

    What is tied stays together also between data sets: one that brings its splits settles them, and the first that is
    dealt does for those after it.

    Args:
        patches: Rows of `prepare_splits`, of all data sets, with `dataset`.
        ties: From `tie_patches`, under the same index.

    Raises:
        ValueError: A split comes out empty, or there are too few groups to deal out.
    """
    splits, settled = patches["split"].copy(), pd.Series(dtype=int)
    parts = dict(list(patches.groupby("dataset", sort=False)))
    if histo_args.folds:
        tables = {name: _label(part).assign(group=ties[part.index]) for name, part in parts.items()}
        tested = draw_folds(tables, histo_args.folds, histo_args.split_seed) == histo_args.fold
    for name, part in sorted(parts.items(), key=lambda entry: has_open_splits(entry[1])):
        table = _label(part).assign(group=ties[part.index], path=part["id"])
        places = table["group"].map(settled).map(dict(enumerate(SPLITS))).fillna("")
        if histo_args.folds:
            given = table, tested[part.index], histo_args.validation_fraction, histo_args.split_seed, places
            table = with_data_set_named(name, split_fold, *given)
        else:
            fractions = histo_args.validation_fraction, histo_args.test_fraction, histo_args.split_seed
            table = with_data_set_named(name, split_patches, table, *fractions, places)
        splits[part.index] = table["split"]
        ranks = table["split"].map(SPLITS.index).groupby(table["group"]).max()
        # A set that stands in several splits already follows the last, which is scored and not learnt.
        settled = pd.concat([settled, ranks]).groupby(level=0).max()
    patches = patches.assign(split=splits)
    open_rows = patches["protocol"] == "seed"
    parts = [_cap_test(part, histo_args) for _, part in patches[open_rows].groupby("dataset", sort=False)]
    kept = pd.concat([patches[~open_rows], *parts]).index
    return patches[patches.index.isin(kept)]


def with_data_set_named(name: str, function, *args):
    """Return `function(*args)`; an error of it says first which data set it is about."""
    try:
        return function(*args)
    except ValueError as error:
        # What a library says is a bug, and keeps its traceback.
        if not is_for_user(error):
            raise
        raise ValueError(f"data set {name!r}: {error}") from error


def _cap_test(patches: pd.DataFrame, histo_args: HistoArguments) -> pd.DataFrame:
    test = patches["split"] == "test"
    if histo_args.max_test_samples is None or not test.any():
        return patches
    return pd.concat([patches[~test], _cap(patches[test], histo_args.max_test_samples, histo_args)])


def _cap(patches: pd.DataFrame, max_samples: int, histo_args: HistoArguments) -> pd.DataFrame:
    return patches.loc[cap_patches(_label(patches), max_samples, histo_args.split_seed).index]


def _label(patches: pd.DataFrame) -> pd.DataFrame:
    """Rows without options have no class: they are dealt out and capped as if of one."""
    return patches.assign(label=patches["label"].fillna(""))
