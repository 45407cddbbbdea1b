"""Calibration: against values worked by hand and against scikit-learn."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss, log_loss

from histolab_sft.metrics.calibration import (
    apply_temperature,
    compute_abstention_curve,
    compute_brier,
    compute_class_ece,
    compute_ece,
    compute_nll,
    compute_reliability_bins,
    fit_temperature,
)


def test_brier_sums_over_the_classes():
    probabilities = np.array([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2]])
    assert compute_brier(probabilities, [0, 1]) == pytest.approx((0 + 0.25 + 0.49 + 0.04) / 2)
    assert compute_brier(np.array([[0.0, 1.0]]), [0]) == 2.0


def test_brier_of_two_classes_is_twice_that_of_scikit_learn():
    positive = np.random.default_rng(0).random(200)
    gold = (np.random.default_rng(1).random(200) < positive).astype(int)
    ours = compute_brier(np.stack([1 - positive, positive], axis=1), gold)
    assert ours == pytest.approx(2 * brier_score_loss(gold, positive))


def test_nll_equals_that_of_scikit_learn_even_where_a_true_class_has_probability_zero():
    probabilities = np.vstack([softmax(np.random.default_rng(0).normal(size=(50, 3)), axis=1), [[1.0, 0.0, 0.0]]])
    gold = np.append(np.random.default_rng(1).integers(3, size=50), 1)
    assert compute_nll(probabilities, gold) == pytest.approx(log_loss(gold, probabilities, labels=[0, 1, 2]))


def test_ece_equals_that_worked_by_hand():
    confidence = np.array([0.95, 0.93, 0.62, 0.68])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    # bin (0.9, 1]: accuracy 1/2, confidence 0.94; bin (0.6, 0.7]: accuracy 1, confidence 0.65
    assert compute_ece(probabilities, [0, 1, 0, 0]) == pytest.approx(0.5 * 0.44 + 0.5 * 0.35)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    probabilities = np.array([[0.7, 0.3], [0.6, 0.4], [1.0, 0.0], [0.5, 0.5]])
    bins = compute_reliability_bins(probabilities, [0, 0, 0, 0])
    assert [entry["n"] for entry in bins] == [0, 0, 0, 0, 1, 1, 1, 0, 0, 1]


def test_reliability_bins_give_back_the_ece():
    generator = np.random.default_rng(0)
    probabilities, gold = softmax(2 * generator.normal(size=(500, 3)), axis=1), generator.integers(3, size=500)
    bins = compute_reliability_bins(probabilities, gold)
    assert sum(entry["n"] for entry in bins) == 500
    assert bins[0] == {"low": 0.0, "high": 0.1, "n": 0, "confidence": None, "accuracy": None}
    gaps = [entry["n"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins if entry["n"]]
    assert sum(gaps) / 500 == pytest.approx(compute_ece(probabilities, gold))


def test_temperature_undoes_a_known_overconfidence():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 4))
    gold = (softmax(logits, axis=1).cumsum(axis=1) < generator.random((20_000, 1))).sum(axis=1)
    fit = fit_temperature(log_softmax(3 * logits, axis=1), gold)
    assert fit["temperature"] == pytest.approx(3, rel=0.05)
    assert fit["nll_after"] < fit["nll_before"] and not fit["hit_bound"]


def test_a_constant_added_to_a_row_changes_no_temperature():
    generator = np.random.default_rng(0)
    likelihoods, gold = generator.normal(size=(300, 3)), generator.integers(3, size=300)
    likelihoods[np.arange(300), gold] += 1
    shifted = likelihoods - 40 * generator.random((300, 1))
    expected = fit_temperature(likelihoods, gold)["temperature"]
    assert fit_temperature(shifted, gold)["temperature"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("gold", "bound"), [([0, 1, 0], 0.05), ([1, 0, 1], 20.0)])
def test_answers_that_no_temperature_calibrates_hit_a_bound_and_say_so(gold, bound, caplog):
    fit = fit_temperature(np.log([[0.6, 0.4], [0.3, 0.7], [0.8, 0.2]]), gold)
    assert fit["hit_bound"] and fit["temperature"] == pytest.approx(bound, rel=1e-3)
    assert "edge" in caplog.text


def test_temperature_keeps_the_answer_and_the_sum():
    likelihoods = np.random.default_rng(0).normal(size=(100, 5)) * 30 - 500
    probabilities = apply_temperature(likelihoods, 7.0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), likelihoods.argmax(axis=1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
def test_an_impossible_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="fit_temperature"):
        apply_temperature(np.zeros((1, 2)), temperature)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_log_likelihood_that_is_not_finite_is_refused_with_its_row(bad):
    likelihoods = np.zeros((5, 2))
    likelihoods[3, 0] = bad
    with pytest.raises(ValueError, match="row 3"):
        fit_temperature(likelihoods, [0, 1, 0, 1, 0])
    with pytest.raises(ValueError, match="row 3"):
        apply_temperature(likelihoods, 1.0)


def test_a_class_index_without_a_column_is_refused():
    with pytest.raises(ValueError, match="row 1: class index 2"):
        compute_brier(np.array([[0.5, 0.5], [0.5, 0.5]]), [0, 2])


def test_abstention_curve_withholds_the_least_confident_first_and_ties_together():
    curve = compute_abstention_curve([0.9, 0.5, 0.7, 0.7, 0.5], [True, False, True, False, True])
    assert curve["threshold"] == [0.9, 0.7, 0.5]
    assert curve["coverage"] == pytest.approx([1 / 5, 3 / 5, 1])
    assert curve["accuracy"] == pytest.approx([1, 2 / 3, 3 / 5])


def test_abstention_curve_does_not_depend_on_the_order_of_the_rows():
    generator = np.random.default_rng(0)
    confidence, correct = generator.integers(5, size=100) / 5, generator.random(100) < 0.5
    order = generator.permutation(100)
    assert compute_abstention_curve(confidence, correct) == compute_abstention_curve(confidence[order], correct[order])


def test_abstention_curve_refuses_nan():
    with pytest.raises(ValueError, match="row 1"):
        compute_abstention_curve([0.5, np.nan], [True, True])


def test_a_class_taken_for_frequent_shows_in_its_own_calibration_error_and_not_in_that_of_the_answers():
    # Of 100 patches half are given 0.75 of the second class and 25 of them have it: three answers in four are right.
    probabilities = np.repeat([[0.25, 0.75], [0.75, 0.25]], 50, axis=0)
    labels = np.r_[np.ones(25, int), np.zeros(25, int), np.zeros(50, int)]
    assert compute_ece(probabilities, labels) == pytest.approx(0.0)
    assert compute_class_ece(probabilities, labels, 1) == pytest.approx(0.25)
    assert compute_class_ece(probabilities, labels, 0) == pytest.approx(0.25)
