"""Scores of classes: against values worked by hand and against scikit-learn."""

import json

import numpy as np
import pytest
from drawn_answers import draw_answers
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from histolab_sft.metrics.classification import UNPARSED, compute_classification

CLASSES = ["Normal", "Benign", "Tumor"]
LABELS = ["Normal", "Normal", "Normal", "Normal", "Tumor", "Tumor"]
PREDICTIONS = ["Normal", "Normal", "Tumor", UNPARSED, "Tumor", "Benign"]


def test_scores_equal_those_worked_by_hand():
    scores = compute_classification(LABELS, PREDICTIONS, CLASSES)
    assert scores["accuracy"] == pytest.approx(3 / 6)
    assert scores["balanced_accuracy"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    # Normal: 2 right, 4 true, 2 named; Tumor: 1 right, 2 true, 2 named; Benign is absent and doesn't enter
    assert scores["macro_f1"] == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert scores["unparsed_rate"] == pytest.approx(1 / 6)


def test_an_absent_class_has_no_recall_rather_than_a_recall_of_zero():
    per_class = compute_classification(LABELS, PREDICTIONS, CLASSES)["per_class"]
    assert per_class["Normal"] == {"recall": 0.5, "precision": 1.0, "f1": pytest.approx(2 / 3), "support": 4}
    assert per_class["Benign"] == {"recall": None, "precision": 0.0, "f1": None, "support": 0}


def test_a_class_never_named_has_no_precision():
    per_class = compute_classification(["Normal", "Tumor"], ["Normal", "Normal"], CLASSES)["per_class"]
    assert per_class["Tumor"] == {"recall": 0.0, "precision": None, "f1": 0.0, "support": 1}


def test_confusion_matrix_has_a_column_for_unparsed_answers():
    matrix = compute_classification(LABELS, PREDICTIONS, CLASSES)["confusion_matrix"]
    assert matrix["labels"] == [*CLASSES, UNPARSED]
    assert matrix["rows"] == [[2, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_all_unparsed_is_all_wrong():
    scores = compute_classification(LABELS, [UNPARSED] * 6, CLASSES)
    assert (scores["accuracy"], scores["balanced_accuracy"], scores["macro_f1"]) == (0.0, 0.0, 0.0)
    assert scores["unparsed_rate"] == 1.0


def test_one_class_only_gives_no_auroc_but_a_reason():
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6]])
    scores = compute_classification(["Normal"] * 2, ["Normal", "Tumor"], ["Normal", "Tumor"], probabilities)
    assert scores["auroc"] is None and scores["average_precision"] is None
    assert "one class" in scores["auroc_reason"]
    assert scores["balanced_accuracy"] == 0.5


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learn_on_random_answers(seed):
    labels, predictions, classes, probabilities, gold = draw_answers(seed)
    scores = compute_classification(labels, predictions, classes, probabilities)
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, predictions, labels=classes, average="macro"))
    assert scores["auroc"] == pytest.approx(roc_auc_score(gold, probabilities, multi_class="ovr", average="macro"))


def test_binary_auroc_ranks_the_second_class_and_a_tie_counts_half():
    labels = ["Normal", "Tumor", "Normal", "Tumor"]
    positive = np.array([0.2, 0.5, 0.5, 0.9])
    scores = compute_classification(labels, labels, ["Normal", "Tumor"], np.stack([1 - positive, positive], axis=1))
    assert scores["auroc"] == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert scores["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_auroc_with_an_absent_class_is_the_mean_over_those_present():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6], [0.1, 0.5, 0.4]])
    scores = compute_classification(["Normal", "Normal", "Tumor", "Tumor"], ["Normal"] * 4, CLASSES, probabilities)
    assert scores["auroc"] == pytest.approx(1.0)


def test_results_hold_no_nan_and_go_into_json():
    labels, predictions, classes, probabilities, _ = draw_answers(0)
    scores = compute_classification(labels, predictions, [*classes, "absent"], np.pad(probabilities, ((0, 0), (0, 1))))
    json.dumps(scores, allow_nan=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_probability_that_is_not_finite_is_refused_with_its_row(bad):
    labels, predictions, classes, probabilities, _ = draw_answers(0)
    probabilities[17, 1] = bad
    with pytest.raises(ValueError, match="row 17"):
        compute_classification(labels, predictions, classes, probabilities)


@pytest.mark.parametrize(("row", "values"), [(3, [0.5, 0.4, 0.0, 0.0]), (4, [1.5, -0.5, 0.0, 0.0])])
def test_a_row_that_is_no_distribution_is_refused(row, values):
    labels, predictions, classes, probabilities, _ = draw_answers(0)
    probabilities[row] = values
    with pytest.raises(ValueError, match=f"row {row}: probabilities"):
        compute_classification(labels, predictions, classes, probabilities)


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        (["Normal", float("nan")], ["Normal", "Normal"], "row 1: label 'nan'"),
        (["Normal", "Tumor"], ["tumor", "Tumor"], "row 0: prediction 'tumor'"),
        (["Normal", UNPARSED], ["Normal", "Tumor"], "row 1: label 'unparsed'"),
        (["Normal"], ["Normal", "Tumor"], "1 labels and 2 predictions"),
        ([], [], "at least one"),
    ],
)
def test_labels_and_answers_outside_the_classes_are_refused(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        compute_classification(labels, predictions, CLASSES)


@pytest.mark.parametrize("classes", [["Normal", "Normal"], ["Normal", UNPARSED]])
def test_class_names_that_cannot_be_told_apart_are_refused(classes):
    with pytest.raises(ValueError, match="rename"):
        compute_classification(["Normal"], ["Normal"], classes)
