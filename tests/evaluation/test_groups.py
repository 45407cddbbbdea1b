"""From patches to slides or patients."""

import numpy as np
import pandas as pd
import pytest

from histolab_sft.evaluation.groups import aggregate_groups, name_units, warn_of_unknown
from histolab_sft.evaluation.uncertainty import bootstrap_interval, score_systems
from histolab_sft.metrics.classification import UNPARSED

CLASSES = ["Normal", "Tumor"]


def test_vote_and_mean_log_probability_can_name_different_classes():
    # two lukewarm patches against one that is nearly sure
    likelihoods = np.log([[0.6, 0.4], [0.6, 0.4], [0.01, 0.99]])
    found = aggregate_groups(["Tumor"] * 3, ["s"] * 3, CLASSES, ["Normal", "Normal", "Tumor"], likelihoods)
    assert found["majority_vote"].tolist() == ["Normal"]
    assert found["mean_log_probability"].tolist() == ["Tumor"]
    means = np.log([[0.6, 0.4], [0.6, 0.4], [0.01, 0.99]]).mean(axis=0)
    np.testing.assert_allclose(found["probabilities"][0], np.exp(means) / np.exp(means).sum())


def test_a_tie_and_a_group_without_any_answer_are_unparsed():
    groups = ["tie", "tie", "mute", "mute", "one", "one", "one"]
    predictions = ["Normal", "Tumor", UNPARSED, UNPARSED, "Tumor", UNPARSED, UNPARSED]
    found = aggregate_groups(["Tumor"] * 7, groups, CLASSES, predictions)
    assert dict(zip(found["groups"], found["majority_vote"], strict=True)) == {
        "tie": UNPARSED,
        "mute": UNPARSED,
        "one": "Tumor",
    }
    assert found["n_ties"] == 1


def test_a_group_of_patches_with_two_labels_is_named_and_not_scored():
    found = aggregate_groups(["Normal", "Tumor", "Tumor"], ["p1", "p1", "p2"], CLASSES, ["Normal", "Tumor", "Tumor"])
    assert found["mixed"] == ["p1"]
    assert found["groups"].tolist() == ["p2"] and found["labels"].tolist() == ["Tumor"]


def test_order_of_the_patches_and_a_constant_per_row_change_nothing():
    generator = np.random.default_rng(0)
    groups = generator.integers(12, size=120)
    labels = np.array(CLASSES)[groups % 2]
    predictions = np.array(CLASSES)[generator.integers(2, size=120)]
    likelihoods = generator.normal(size=(120, 2))
    one = aggregate_groups(labels, groups, CLASSES, predictions, likelihoods)
    order = generator.permutation(120)
    two = aggregate_groups(labels[order], groups[order], CLASSES, predictions[order], likelihoods[order] - 100)
    for name in ("groups", "labels", "majority_vote", "mean_log_probability"):
        np.testing.assert_array_equal(one[name], two[name])
    np.testing.assert_allclose(one["probabilities"], two["probabilities"])


def test_slides_are_scored_with_intervals_over_slides():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 15)
    labels = np.array(CLASSES)[groups % 2]
    likelihoods = generator.normal(size=(600, 2)) + 0.8 * np.eye(2)[groups % 2]
    predictions = np.array(CLASSES)[likelihoods.argmax(axis=1)]
    slides = aggregate_groups(labels, groups, CLASSES, predictions, likelihoods)
    answers = {"finetuned": (slides["mean_log_probability"], slides["probabilities"])}
    scores, _ = score_systems(slides["labels"], answers, CLASSES)
    assert scores["finetuned"]["accuracy"]["value"] > np.mean(predictions == labels) + 0.1
    assert sum(map(sum, scores["finetuned"]["confusion_matrix"]["rows"])) == 40


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_log_likelihood_that_is_not_finite_is_refused_with_its_row(bad):
    likelihoods = np.zeros((3, 2))
    likelihoods[1, 0] = bad
    with pytest.raises(ValueError, match="row 1"):
        aggregate_groups(["Tumor"] * 3, ["s"] * 3, CLASSES, ["Tumor"] * 3, likelihoods)


@pytest.mark.parametrize(
    ("groups", "units"),
    [
        ([None, None, None], None),
        (["p1", "p1", "p2"], ["p1", "p1", "p2"]),
        (["p1", "p1", None], ["p1", "p1", "\0c"]),
        ([None, "p1", None], ["\0a", "p1", "\0c"]),
    ],
)
def test_an_unknown_patient_is_drawn_by_itself_and_known_ones_whole(groups, units):
    table = pd.DataFrame({"id": list("abc"), "group": pd.Series(groups, dtype=object)})
    named = name_units(table)
    assert named is None if units is None else named.tolist() == units
    unknown = groups.count(None)
    told = warn_of_unknown(table)
    assert [f"{unknown} of 3 rows is unknown" in warning for warning in told] == [True] * (unknown in (1, 2))


def test_one_unknown_patient_of_many_does_not_make_intervals_those_of_patches():
    groups = np.repeat(np.arange(40), 15).astype(str).astype(object)
    right = np.repeat(np.random.default_rng(0).random(40) < 0.7, 15)
    table = pd.DataFrame({"id": np.arange(600).astype(str), "group": groups})
    widths = {}
    for name, known in (("all", 600), ("all but one", 599), ("none", 0)):
        part = table.assign(group=table["group"].where(table.index < known, None))
        found = bootstrap_interval(lambda weights: right @ weights / weights.sum(axis=0), 600, name_units(part))
        widths[name] = np.diff(found["ci95"])[0]
    assert widths["all but one"] == pytest.approx(widths["all"], rel=0.1)
    assert widths["none"] < 0.5 * widths["all"]
