"""Folds: every patch is tested once, no group crosses, each class is spread, and what is fitted sees no test patch."""

import numpy as np
import pandas as pd
import pytest
from conftest import PCAM_CLASSES, write_class_folders

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.folds import draw_folds, split_fold
from histolab_sft.data.rows import audit_recipe, load_patches


def make_table(per_class=60, classes=("a", "b", "c"), slides=15, start=0):
    rows = [
        {"label": label, "group": start + (i % slides if slides else number * per_class + i)}
        for number, label in enumerate(classes)
        for i in range(per_class)
    ]
    return pd.DataFrame(rows, index=range(start, start + len(rows)))


def write_data(folder, official=False, **keys):
    """Write patches of 12 slides, the same in every split's folder, and return the arguments of their recipe."""
    if official:
        for split, slides in (("train", 12), ("test", 5)):
            write_class_folders(folder / "pcam" / split, PCAM_CLASSES, per_class=24, slides=slides, size=16)
    else:
        write_class_folders(folder / "pcam", PCAM_CLASSES, per_class=36, slides=12, size=16)
    entry = {"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES, "group_by": r"-(S\d+)-"}
    return HistoArguments(**{"datasets": [entry], "data_dir": str(folder)} | keys)


def read_splits(histo_args):
    return {split: set(rows.with_format(None)["id"]) for split, rows in load_patches(histo_args).items()}


@pytest.mark.parametrize("slides", [15, None])
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_each_class_is_spread_over_the_folds_and_no_group_crosses(folds, slides):
    table = make_table(slides=slides)
    numbers = draw_folds({"x": table}, folds, seed=42)
    assert set(numbers) == set(range(1, folds + 1))
    assert numbers.groupby(table["group"]).nunique().max() == 1
    counts = pd.crosstab(table["label"], numbers)
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= (4 if slides else 1)


def test_folds_are_dealt_by_seed():
    first, again, other = (draw_folds({"x": make_table()}, 3, seed) for seed in (1, 1, 2))
    assert first.equals(again) and not first.equals(other)


def test_a_few_copies_beside_many_single_patches_stay_together():
    table = make_table(slides=None)
    table.loc[[0, 70], "group"], table.loc[[1, 100], "group"] = 900, 901
    numbers = draw_folds({"x": table}, 5, seed=0)
    assert numbers[0] == numbers[70] and numbers[1] == numbers[100]
    assert numbers.value_counts().max() - numbers.value_counts().min() <= 4


def test_as_many_groups_as_folds_fill_every_fold():
    table = pd.DataFrame({"label": list("aabbab") + ["a", "b"], "group": [1, 1, 2, 2, 3, 3, 4, 5]})
    assert set(draw_folds({"x": table}, 5, seed=3)) == {1, 2, 3, 4, 5}


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(ValueError, match="'x': 5 folds need whole groups .* and there are 4"):
        draw_folds({"x": make_table(slides=4)}, 5, seed=0)


def test_a_patient_of_two_data_sets_has_one_fold():
    first, second = make_table(), make_table(start=1000)
    second["group"] = np.where(second["group"] < 1005, second["group"] - 1000, second["group"])
    numbers = draw_folds({"x": first, "y": second}, 3, seed=0)
    both = pd.concat([first, second])["group"]
    assert numbers.groupby(both).nunique().max() == 1 and set(both[second.index]) & set(both[first.index])


def test_validation_is_drawn_from_the_other_folds_by_groups():
    table = make_table(slides=24)
    tested = draw_folds({"x": table}, 3, seed=0) == 2
    splits = split_fold(table, tested, 0.15, 0, pd.Series("", index=table.index))["split"]
    assert (splits == "test").equals(tested)
    assert splits.groupby(table["group"]).nunique().max() == 1
    assert 0.08 < (splits == "validation").sum() / (~tested).sum() < 0.25


@pytest.mark.slow
def test_every_patch_is_the_test_of_one_fold_and_no_slide_crosses(tmp_path):
    histo_args = write_data(tmp_path, folds=3, fold=1)
    splits = [read_splits(write_data(tmp_path, folds=3, fold=fold)) for fold in (1, 2, 3)]
    everything = set.union(*splits[0].values())
    assert sum(len(found["test"]) for found in splits) == len(everything) == 72
    assert set.union(*(found["test"] for found in splits)) == everything
    for fold in (1, 2, 3):
        histo_args.fold = fold
        slides = {s: set(rows.with_format(None)["group"]) for s, rows in load_patches(histo_args).items()}
        assert sum(map(len, slides.values())) == len(set.union(*slides.values())) == 12


@pytest.mark.slow
def test_an_official_test_split_is_held_out_of_the_folds_and_counted(tmp_path):
    histo_args = write_data(tmp_path, official=True, folds=3, fold=2, leaks="allow")
    patches, audit, _ = audit_recipe(histo_args, tmp_path / "out")
    assert len(patches) == 48 and not patches["id"].str.contains("test/").any()
    assert set(patches["split"]) == {"train", "validation", "test"}
    left = [entry for entry in audit["dropped"] if entry["key"] == "folds"]
    assert sum(entry["rows"] for entry in left) == 48
    assert {(entry["reason"], entry["split"]) for entry in left} == {("official test split", "test")}
    assert sum(audit["flow"]["pcam"]["found"].values()) == 96


@pytest.mark.slow
def test_split_protocol_seed_deals_an_official_test_split_too(tmp_path):
    histo_args = write_data(tmp_path, official=True, folds=3, fold=2, split_protocol="seed", leaks="allow")
    assert sum(map(len, read_splits(histo_args).values())) == 96


def test_folds_without_a_fold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="run `histolab_sft study`"):
        load_patches(write_data(tmp_path, folds=3))


@pytest.mark.slow
def test_the_cap_is_drawn_before_the_folds_and_is_the_same_in_each(tmp_path):
    found = [
        read_splits(write_data(tmp_path, folds=3, fold=fold, max_samples=40, validation_fraction=0.25))
        for fold in (1, 2, 3)
    ]
    assert set.union(*found[0].values()) == set.union(*found[2].values()) == set.union(*(f["test"] for f in found))
    assert len(set.union(*found[0].values())) == 40


@pytest.mark.parametrize("value", [3, [5, 6, 9]])
def test_seeds_are_a_number_or_a_list(tmp_path, value):
    assert write_data(tmp_path, seeds=value).seeds == ([3] if value == 3 else value)
