"""The scores of `classification` for many weightings of the same patches at once, as a bootstrap needs them.

Weights have shape (patches, draws): how often a patch occurs in a draw. Every sum below is a matrix product or a
running sum over whole rows, so that 1,000 draws of 33,000 patches take seconds. Where a draw lacks a class, means over
classes are over those that it has.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse

from histolab_sft.metrics.calibration import (
    N_BINS,
    brier_rows,
    calibration_rows,
    check_probabilities,
    nll_rows,
)
from histolab_sft.metrics.classification import check_columns, encode_answers

Measure = Callable[[np.ndarray], dict[str, np.ndarray]]


def classification_measure(
    labels: np.ndarray,
    predictions: np.ndarray,
    classes: list[str],
    probabilities: np.ndarray | None = None,
    positive: int = 1,
) -> Measure:
    """Return a function from weights (patches, draws) to `{score: (draws,)}`, NaN where a draw has no value.

    With weights of 1 its `accuracy`, `balanced_accuracy`, `macro_f1`, `unparsed_rate` and, given probabilities,
    `auroc`, `average_precision`, `brier`, `nll` and `ece` equal those of `compute_classification`, whose arguments and
    errors it shares.
    """
    gold, answers = encode_answers(labels, predictions, classes)
    cells = _indicator(gold * (len(classes) + 1) + answers, len(classes) * (len(classes) + 1))
    if probabilities is not None:
        probabilities, gold = check_probabilities(probabilities, gold)
        check_columns(probabilities, classes)
        losses = np.stack([brier_rows(probabilities, gold), nll_rows(probabilities, gold)])
        confidence, correct, bins = calibration_rows(probabilities, gold)
        gaps = _indicator(bins, N_BINS, correct - confidence)
        scores = probabilities[:, [positive]] if len(classes) == 2 else probabilities
        positives = [gold == k for k in ([positive] if len(classes) == 2 else range(len(classes)))]

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(axis=0)
        results = _confusion_scores((cells @ weights).reshape(len(classes), len(classes) + 1, -1))
        if probabilities is not None:
            ranking = [_rank(score, positive, weights) for score, positive in zip(scores.T, positives, strict=True)]
            results["auroc"], results["average_precision"] = mean_defined(np.stack(ranking, axis=1))
            results["brier"], results["nll"] = losses @ weights / total
            results["ece"] = np.abs(gaps @ weights).sum(axis=0) / total
        return results

    return measure


def _confusion_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of `confusion`, shape (classes, classes + 1, draws): true class, answer, draw."""
    right = np.einsum("kkd->kd", confusion[:, :-1])
    support, named = confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)
    total = support.sum(axis=0)
    recall = np.divide(right, support, out=np.full_like(right, np.nan), where=support > 0)
    f1 = np.divide(2 * right, support + named, out=np.full_like(right, np.nan), where=support > 0)
    return {
        "accuracy": right.sum(axis=0) / total,
        "balanced_accuracy": mean_defined(recall),
        "macro_f1": mean_defined(f1),
        "unparsed_rate": confusion[:, -1].sum(axis=0) / total,
    }


def _rank(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC (Mann-Whitney, ties count half) and average precision of one class, each of shape (draws,)."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    positive = positive[order]
    all_until = running_sum(weights[order])
    positive_weights = weights[order[positive]]
    positive_until = running_sum(positive_weights)
    # Where the run of equal scores of each positive patch starts and ends, counted in patches and in positive patches.
    counted = np.concatenate([[0], np.cumsum(positive)])
    start = np.searchsorted(ranked, ranked[positive], side="left")
    end = np.searchsorted(ranked, ranked[positive], side="right")

    above = all_until[-1] - all_until[start]
    positive_above = positive_until[-1] - positive_until[counted[start]]
    negative_below = all_until[start] - positive_until[counted[start]]
    negative_until = all_until[end] - positive_until[counted[end]]
    n_positive, n_negative = positive_until[-1], all_until[-1] - positive_until[-1]

    precision = np.divide(positive_above, above, out=np.zeros_like(above), where=above > 0)
    pairs = (positive_weights * (negative_below + negative_until)).sum(axis=0) / 2
    undefined = np.full_like(n_positive, np.nan)
    defined = (n_positive > 0) & (n_negative > 0)
    auroc = np.divide(pairs, n_positive * n_negative, out=undefined.copy(), where=defined)
    return auroc, np.divide((positive_weights * precision).sum(axis=0), n_positive, out=undefined, where=defined)


def running_sum(weights: np.ndarray) -> np.ndarray:
    """Return the sums of the first 0, 1, 2 and so on rows, of shape (rows + 1, draws)."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def mean_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean over the classes or folds (axis -2) that have a value; NaN where none has."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=-2)
    total = np.where(defined, values, 0.0).sum(axis=-2)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _indicator(codes: np.ndarray, n_codes: int, values: np.ndarray | None = None) -> sparse.csr_array:
    """Matrix (codes, patches) that sums the rows of the weights by code."""
    values = np.ones(len(codes)) if values is None else values
    return sparse.csr_array((values, (codes, np.arange(len(codes)))), shape=(n_codes, len(codes)))
