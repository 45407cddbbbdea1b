"""Rare classes weigh more or come more often, within each data set, by an amount that can be told beforehand."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from histolab_sft.config.class_balance import CLASS_SAMPLING, CLASS_WEIGHTS
from histolab_sft.data.class_balance import draw_epoch, format_balance, plan_balance, weigh_classes
from histolab_sft.training.balanced_rows import BalancedSampler

COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def make_rows(**counts):
    """Rows of data sets: name -> rows of its classes A, B, C and so on."""
    rows = [
        {"dataset": name, "label": chr(ord("A") + i)}
        for name, own in counts.items()
        for i, count in enumerate(own)
        for _ in range(count)
    ]
    return Dataset.from_list(rows)


@given(counts=COUNTS, how=st.sampled_from(CLASS_WEIGHTS))
def test_the_mean_weight_over_the_rows_is_one_and_rarer_classes_never_weigh_less(counts, how):
    weights = weigh_classes({str(i): count for i, count in enumerate(counts)}, how)
    assert np.dot(list(weights.values()), counts) / sum(counts) == pytest.approx(1)
    ordered = [weights[str(i)] for i in np.argsort(counts)]
    assert all(first >= second - 1e-12 for first, second in zip(ordered, ordered[1:], strict=False))


@pytest.mark.parametrize(
    ("how", "ratio"),
    [
        ("none", 1),
        ("inverse_frequency", 59),
        # b = 59/60: 1 - b^59 over 1 - b
        ("effective_number", (1 - (59 / 60) ** 59) / (1 - 59 / 60)),
    ],
)
def test_one_row_against_59_weighs_as_the_formula_says(how, ratio):
    weights = weigh_classes({"common": 59, "rare": 1}, how)
    assert weights["rare"] / weights["common"] == pytest.approx(ratio)


def test_weights_by_inverse_frequency_give_every_class_the_same_sum():
    weights = weigh_classes({"a": 30, "b": 5, "c": 1}, "inverse_frequency")
    assert [weights["a"] * 30, weights["b"] * 5, weights["c"]] == pytest.approx([12, 12, 12])


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(datasets=st.lists(COUNTS, min_size=1, max_size=3), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_has_as_many_rows_of_each_data_set_and_its_classes_equally_often(datasets, seed):
    rows = make_rows(**{f"set{i}": counts for i, counts in enumerate(datasets)})
    keys = list(zip(rows["dataset"], rows["label"], strict=True))
    drawn = draw_epoch(plan_balance(rows, "none", "balanced").members, np.random.default_rng(seed)).tolist()
    for i, counts in enumerate(datasets):
        times = [
            Counter(row for row in drawn if keys[row] == (f"set{i}", chr(ord("A") + k))) for k in range(len(counts))
        ]
        quotas = [own.total() for own in times]
        assert sum(quotas) == sum(counts) and max(quotas) - min(quotas) <= 1
        for own, count in zip(times, counts, strict=True):
            # No row comes twice more often than another one of its class.
            least = min(own.values()) if len(own) == count else 0
            assert not own or max(own.values()) - least <= 1


def test_over_epochs_all_rows_of_the_common_class_come_up():
    members = plan_balance(make_rows(ward=[59, 1]), "none", "balanced").members
    seen = {row for epoch in range(30) for row in draw_epoch(members, np.random.default_rng([7, epoch])).tolist()}
    assert seen == set(range(60))


def test_what_an_epoch_draws_depends_on_seed_and_epoch_alone():
    members = plan_balance(make_rows(ward=[10, 3]), "none", "balanced").members
    sampler, again = BalancedSampler(members, 7), BalancedSampler(members, 7)
    epochs = []
    for sampler.epoch in range(3):
        epochs.append(list(sampler))
        assert len(epochs[-1]) == len(sampler) == 13
    assert epochs[0] != epochs[1] != epochs[2]
    for again.epoch in (2, 0):
        assert list(again) == epochs[again.epoch]
    assert list(BalancedSampler(members, 8)) != epochs[0]


def test_the_plan_is_of_each_data_set_by_itself_and_says_what_an_epoch_has():
    rows = make_rows(ward=[6, 2], clinic=[1, 3])
    weighed = plan_balance(rows, "inverse_frequency", "natural")
    assert weighed.weights == pytest.approx(
        {("ward", "A"): 4 / 6, ("ward", "B"): 2, ("clinic", "A"): 2, ("clinic", "B"): 2 / 3}
    )
    assert not weighed.members and weighed.shares.sum() == pytest.approx(len(rows))
    sampled = plan_balance(rows, "none", "balanced")
    assert not sampled.weights and sampled.shares.tolist() == pytest.approx([4 / 6] * 6 + [2] * 2 + [2] + [2 / 3] * 3)
    assert sampled.described["clinic"] == {
        "A": {"rows": 1, "weight": 1.0, "drawn": 2.0},
        "B": {"rows": 3, "weight": 1.0, "drawn": 2.0},
    }
    assert "clinic, A: 1 rows, each 2 times an epoch, with weight 1" in format_balance(sampled.described)


def test_without_weights_and_balanced_sampling_nothing_is_planned():
    plan = plan_balance(make_rows(ward=[6, 2]), CLASS_WEIGHTS[0], CLASS_SAMPLING[0])
    assert not plan.weights and not plan.members and plan.shares is None and not plan.described
