import numpy as np
import pytest

from histolab_sft.metrics.multilabel import compute_multilabel, count_labels, example_f1


def test_scores_by_hand():
    gold = [["A", "B"], ["A"], []]
    predicted = [["a"], ["A", "C"], []]
    results = compute_multilabel(gold, predicted)
    assert results["example_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert results["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert results["micro_precision"] == results["micro_recall"] == pytest.approx(2 / 3)
    assert results["exact_match"] == pytest.approx(1 / 3)
    assert results["per_label"] == {
        "a": {"f1": 1, "n_gold": 2, "n_predicted": 2},
        "b": {"f1": 0, "n_gold": 1, "n_predicted": 0},
    }


def test_bug_15_an_unparsed_answer_is_wrong_even_where_nothing_applies():
    results = compute_multilabel([["A"], []], [None, None])
    assert (results["example_f1"], results["micro_f1"], results["exact_match"]) == (0, 0, 0)
    assert results["unparsed_rate"] == 1


def test_nothing_true_and_nothing_answered_is_right_but_has_no_micro_f1():
    results = compute_multilabel([[], []], [[], []])
    assert results["example_f1"] == 1 and results["micro_f1"] is None
    assert results["micro_f1_reason"] == "no label in the truth or the answers of 2 patches"


def test_counts_and_scores_stand_by_patch():
    gold, predicted = [["A", "B"], ["A"]], [["A", "C"], None]
    assert count_labels(gold, predicted).tolist() == [[1, 1, 1], [0, 1, 0]]
    assert np.allclose(example_f1(gold, predicted), [0.5, 0])


def test_different_numbers_of_patches_are_refused():
    with pytest.raises(ValueError, match="2 true label sets and 1 answers"):
        compute_multilabel([[], []], [[]])
