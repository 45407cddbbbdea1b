"""Splits are seeded, balanced by class, and never divide a group."""

import pandas as pd
import pytest

from histolab_sft.data.splits import cap_patches, split_patches


def make_patches(per_class=100, classes=("a", "b", "c"), slides=None, split=""):
    rows = [
        {"path": f"{label}{i}", "label": label, "split": split, "group": f"s{i % slides}" if slides else None}
        for label in classes
        for i in range(per_class)
    ]
    return pd.DataFrame(rows)


def counts(patches):
    return patches.groupby("split").size().to_dict()


def test_without_splits_in_the_data_patches_are_dealt_out_70_15_15_by_class():
    patches = split_patches(make_patches())
    assert counts(patches) == {"test": 45, "train": 210, "validation": 45}
    assert patches.groupby(["label", "split"]).size().unstack().to_numpy().tolist() == [[15, 70, 15]] * 3


def test_the_same_seed_gives_the_same_splits_and_another_seed_others():
    first, again, other = (split_patches(make_patches(), seed=seed)["split"] for seed in (1, 1, 2))
    assert first.equals(again) and not first.equals(other)


def test_no_group_crosses_splits():
    patches = split_patches(make_patches(slides=20))
    assert patches.groupby("group")["split"].nunique().max() == 1
    assert set(patches["split"]) == {"train", "validation", "test"}


def test_classes_smaller_than_the_folds_are_divided_by_group_alone():
    patches = split_patches(
        make_patches(per_class=6, classes="abcdefghi", slides=24).assign(group=[f"s{i // 2}" for i in range(54)])
    )
    assert patches.groupby("group")["split"].nunique().max() == 1
    assert set(patches["split"]) == {"train", "validation", "test"}


@pytest.mark.parametrize("known", [0.1, 0.5, 0.95])
def test_an_unknown_patient_is_a_group_of_its_own_beside_known_ones(known):
    patches = make_patches(slides=25)
    patches.loc[patches.index >= known * len(patches), "group"] = None
    patches = split_patches(patches)
    assert patches.groupby("group")["split"].nunique().max() == 1
    assert all(abs(counts(patches)[split] / 300 - 0.15) < 0.05 for split in ("validation", "test"))
    assert (patches.groupby(["label", "split"]).size() >= 8).all()


def test_a_few_groups_stay_in_train_beside_many_single_patches():
    patches = make_patches()
    patches.loc[[0, 1], "group"], patches.loc[[100, 201], "group"] = "pair", "twins"
    patches = split_patches(patches)
    assert set(patches.loc[[0, 1, 100, 201], "split"]) == {"train"}
    assert counts(patches) == {"test": 45, "train": 210, "validation": 45}


@pytest.mark.parametrize("place", ["train", "validation", "test"])
def test_what_another_data_set_has_settled_is_followed_and_counts(place):
    patches = make_patches()
    settled = pd.Series("", index=patches.index)
    settled[:30] = place
    patches = split_patches(patches, settled=settled)
    assert set(patches["split"][:30]) == {place}
    assert all(abs(counts(patches)[split] - 45) <= 1 for split in ("validation", "test"))


def test_a_split_that_the_data_bring_follows_nobody():
    given = pd.concat([make_patches(80, split="train"), make_patches(20, split="test")], ignore_index=True)
    settled = pd.Series("test", index=given.index)
    assert split_patches(given, settled=settled)["split"].equals(split_patches(given)["split"])


def test_a_data_set_that_is_settled_as_a_whole_is_not_dealt():
    patches = make_patches(4)
    settled = pd.Series(["train"] * 8 + ["validation", "validation", "test", "test"])
    assert split_patches(patches, settled=settled)["split"].tolist() == settled.tolist()


def test_given_splits_stay_and_the_missing_one_comes_out_of_train():
    given = pd.concat([make_patches(80, split="train"), make_patches(20, split="test")], ignore_index=True)
    patches = split_patches(given)
    assert patches.index[patches["split"] == "test"].equals(given.index[given["split"] == "test"])
    assert counts(patches) == {"test": 60, "train": 204, "validation": 36}


def test_a_patch_without_a_split_among_others_that_have_one_is_refused():
    given = make_patches(10, split="train")
    given.loc[3, "split"] = ""
    with pytest.raises(ValueError, match="a3 has no split"):
        split_patches(given)


def test_data_without_a_train_split_are_refused():
    with pytest.raises(ValueError, match="expected `train`"):
        split_patches(make_patches(10, split="test"))


def test_too_few_groups_for_a_split_are_refused():
    with pytest.raises(ValueError, match="needs whole groups .* and there are 3"):
        split_patches(make_patches(slides=3))


def test_one_patch_of_a_label_is_refused():
    patches = pd.concat([make_patches(20), make_patches(1, classes=("rare",))], ignore_index=True)
    with pytest.raises(ValueError, match="'rare' has one patch"):
        split_patches(patches)


def test_the_cap_is_balanced_by_class_and_keeps_the_proportions_of_the_splits():
    patches = split_patches(pd.concat([make_patches(200), make_patches(20, classes=("few",))], ignore_index=True))
    capped = cap_patches(patches, max_samples=160)
    assert capped["label"].value_counts().to_dict() == {"a": 40, "b": 40, "c": 40, "few": 20}
    assert capped[capped["label"] == "a"]["split"].value_counts().to_dict() == {
        "train": 28,
        "validation": 6,
        "test": 6,
    }


def test_the_cap_draws_by_seed():
    patches = split_patches(make_patches())
    assert cap_patches(patches, 30, 1).index.equals(cap_patches(patches, 30, 1).index)
    assert not cap_patches(patches, 30, 1).index.equals(cap_patches(patches, 30, 2).index)
