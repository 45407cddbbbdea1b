"""The scores of many weightings at once: against the plain scores of the repeated rows."""

import warnings

import numpy as np
import pytest
from drawn_answers import draw_answers

from histolab_sft.metrics.classification import UNPARSED, compute_classification
from histolab_sft.metrics.weighted import classification_measure

SCORES = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "unparsed_rate",
    "auroc",
    "average_precision",
    "brier",
    "nll",
    "ece",
)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_weight_is_worth_as_many_copies_of_the_patch(n_classes):
    labels, predictions, classes, probabilities, _ = draw_answers(n_classes, n=120, n_classes=n_classes)
    weights = np.random.default_rng(0).integers(0, 4, size=(120, 6)).astype(float)
    scores = classification_measure(labels, predictions, classes, probabilities)(weights)
    assert tuple(scores) == SCORES
    for draw in range(6):
        rows = np.repeat(np.arange(120), weights[:, draw].astype(int))
        expected = compute_classification(labels[rows], predictions[rows], classes, probabilities[rows])
        assert {name: scores[name][draw] for name in SCORES} == pytest.approx(
            {name: expected[name] for name in SCORES}
        )


def test_a_draw_without_a_class_is_scored_over_the_classes_it_has():
    labels, predictions, classes, probabilities, gold = draw_answers(0, n=80, n_classes=3)
    scores = classification_measure(labels, predictions, classes, probabilities)((gold != 2).astype(float)[:, None])
    rows = gold != 2
    expected = compute_classification(labels[rows], predictions[rows], classes, probabilities[rows])
    assert {name: scores[name][0] for name in SCORES} == pytest.approx({name: expected[name] for name in SCORES})


def test_a_draw_of_one_class_has_no_ranking_and_raises_no_warning():
    labels, predictions, classes, probabilities, gold = draw_answers(0, n=80, n_classes=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = classification_measure(labels, predictions, classes, probabilities)((gold == 1.0)[:, None] * 1.0)
    assert np.isnan(scores["auroc"]) and np.isnan(scores["average_precision"])
    assert scores["balanced_accuracy"] == pytest.approx(np.mean(predictions[gold == 1] == labels[gold == 1]))


def test_all_unparsed_is_all_wrong_in_every_draw():
    scores = classification_measure(["a", "b"], [UNPARSED] * 2, ["a", "b"])(np.array([[1.0, 2.0], [1.0, 0.0]]))
    np.testing.assert_array_equal(scores["balanced_accuracy"], [0, 0])
    np.testing.assert_array_equal(scores["unparsed_rate"], [1, 1])


def test_nan_is_refused_with_its_row():
    labels, predictions, classes, probabilities, _ = draw_answers(0)
    probabilities[5, 0] = np.nan
    with pytest.raises(ValueError, match="row 5"):
        classification_measure(labels, predictions, classes, probabilities)
