"""Thresholds, predictive values, curves and abstention against scikit-learn, and against counting by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve, roc_auc_score, roc_curve

from histolab_sft.metrics.operating_points import (
    choose_abstention,
    choose_threshold,
    compute_net_benefit,
    compute_predictive_values,
    curve_measure,
    move_prevalence,
    rates_measure,
)

GRID = np.linspace(0, 1, 21)


@st.composite
def rows(draw):
    """Scores with many ties, or none, and rows of both classes."""
    n = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    positive = rng.permutation(np.arange(n) < draw(st.integers(1, n - 1)))
    return np.round(rng.normal(positive), draw(st.sampled_from([0, 1, 12]))), positive


@settings(max_examples=60, deadline=None)
@given(rows(), st.floats(0.01, 1))
def test_a_threshold_reaches_its_target_and_no_threshold_of_scikit_learn_gives_more_of_the_other(table, target):
    scores, positive = table
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    for aim, kept, other in (("sensitivity", true, 1 - false), ("specificity", 1 - false, true)):
        threshold = choose_threshold(scores, positive, aim, target)
        rates = {
            "sensitivity": np.mean(scores[positive] >= threshold),
            "specificity": np.mean(scores[~positive] < threshold),
        }
        assert rates.pop(aim) >= target - 1e-9
        assert rates.popitem()[1] == pytest.approx(other[kept >= target - 1e-9].max())


def test_a_threshold_lies_halfway_between_the_scores_that_it_parts():
    scores, positive = np.array([0.1, 0.2, 0.6, 0.9]), np.array([False, False, True, True])
    assert choose_threshold(scores, positive, "sensitivity", 1) == pytest.approx(0.4)
    assert choose_threshold(scores, positive, "specificity", 1) == pytest.approx(0.4)


def test_a_threshold_needs_a_row_of_the_class_that_it_is_about():
    with pytest.raises(ValueError, match="no positive row"):
        choose_threshold(np.array([0.2, 0.3]), np.array([False, False]), "sensitivity", 0.9)


@settings(max_examples=40, deadline=None)
@given(rows())
def test_the_curves_are_those_of_scikit_learn(table):
    scores, positive = table
    once = np.ones((len(scores), 1))
    false, true, _ = roc_curve(positive, scores)
    roc = curve_measure(scores, positive, GRID)(once)[0][:, 0]
    assert roc[-1] == 1 and (np.diff(roc) >= -1e-12).all()
    # Where scikit-learn's curve jumps, at a rate of its own, any height of the jump is as good.
    inner = ~np.isin(np.round(GRID, 9), np.round(false, 9))
    assert roc[inner] == pytest.approx(np.interp(GRID, false, true)[inner])
    fine = np.linspace(0, 1, 20_001)
    area = curve_measure(scores, positive, fine)(once)[0].mean()
    assert area == pytest.approx(roc_auc_score(positive, scores), abs=2e-3)
    recalls = np.unique(precision_recall_curve(positive, scores)[1])[1:]
    precision = curve_measure(scores, positive, recalls)(once)[1][:, 0]
    assert np.diff(recalls, prepend=0) @ precision == pytest.approx(average_precision_score(positive, scores))


@settings(max_examples=30, deadline=None)
@given(rows(), st.integers(0, 1000))
def test_a_weight_counts_a_row_as_often(table, seed):
    scores, positive = table
    times = np.random.default_rng(seed).integers(0, 3, size=len(scores))
    times[[positive.argmax(), (~positive).argmax()]] = 1
    again, more = np.repeat(scores, times), np.repeat(positive, times)
    weighted = curve_measure(scores, positive, GRID)(times[:, None].astype(float))
    repeated = curve_measure(again, more, GRID)(np.ones((len(again), 1)))
    assert np.array(weighted) == pytest.approx(np.array(repeated))
    called = scores >= np.median(scores)
    (sensitivity,), (specificity,) = rates_measure(called[None], positive)(times[:, None].astype(float))
    (cleared, alarmed), (missed, found) = confusion_matrix(more, np.repeat(called, times), labels=[False, True])
    assert (sensitivity[0], specificity[0]) == pytest.approx((found / (found + missed), cleared / (cleared + alarmed)))


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_predictive_values_follow_bayes_in_a_population_that_is_counted(sensitivity, specificity, prevalence):
    ill, well = 1000 * prevalence, 1000 * (1 - prevalence)
    ppv, npv = compute_predictive_values(sensitivity, specificity, prevalence)
    assert ppv == pytest.approx(ill * sensitivity / (ill * sensitivity + well * (1 - specificity)))
    assert npv == pytest.approx(well * specificity / (well * specificity + ill * (1 - sensitivity)))


def test_a_rule_that_calls_nobody_positive_has_no_positive_predictive_value():
    ppv, npv = compute_predictive_values(np.array(0.0), np.array(1.0), 0.2)
    assert np.isnan(ppv) and npv == pytest.approx(0.8)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_probabilities_go_to_another_prevalence_and_back(probability, before, after):
    moved = move_prevalence(probability, before, after)
    assert move_prevalence(moved, after, before) == pytest.approx(probability)
    assert (moved > probability) == (after > before) or moved == pytest.approx(probability)


def test_calibrated_probabilities_are_calibrated_at_the_other_prevalence_too():
    rng = np.random.default_rng(0)
    ill = rng.random(400_000) < 0.5
    risk = 1 / (1 + np.exp(-(rng.normal(np.where(ill, 1, -1)) * 2)))  # log odds of two normal distributions
    kept = ~ill | (rng.random(len(ill)) < 1 / 9)
    moved = move_prevalence(risk, 0.5, 0.1)
    for low, high in ((0.05, 0.1), (0.3, 0.4), (0.7, 0.9)):
        inside = kept & (moved > low) & (moved < high)
        assert ill[inside].mean() == pytest.approx(moved[inside].mean(), abs=0.02)


def test_net_benefit_is_the_example_of_its_authors_formula():
    # 100 patients, 20 ill; 15 of them and 10 others called positive at a threshold probability of 20 %.
    assert compute_net_benefit(15 / 20, 70 / 80, 0.2, 0.2) == pytest.approx(15 / 100 - 10 / 100 * 0.2 / 0.8)
    assert compute_net_benefit(1.0, 0.0, 0.2, 0.2) == pytest.approx(0)  # treat everyone, at the prevalence itself


@settings(max_examples=60, deadline=None)
@given(rows(), st.floats(0.05, 0.99))
def test_abstention_leaves_the_most_answers_that_reach_the_target(table, target):
    confidence, correct = 1 / (1 + np.exp(-table[0])), table[1]
    chosen = choose_abstention(confidence, correct, target, 3)
    ways = [
        (np.mean(confidence >= c), correct[confidence >= c].mean()) for c in confidence if (confidence >= c).sum() >= 3
    ]
    good = [coverage for coverage, accuracy in ways if accuracy >= target - 1e-12]
    assert (chosen is None) == (not good)
    if chosen:
        given_answers = confidence >= chosen["threshold"]
        assert given_answers.mean() == pytest.approx(chosen["coverage"]) == pytest.approx(max(good))
        assert correct[given_answers].mean() == pytest.approx(chosen["accuracy"])
        assert chosen["accuracy"] >= target - 1e-9
