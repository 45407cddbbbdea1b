"""Scores of numbers. An answer without a number counts as the training median; the share of such answers is told."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import pearsonr, spearmanr

from histolab_sft.metrics.pairs import check_pairs

MIN_FOR_CORRELATION = 3


def compute_quantity(gold: Sequence[float], predicted: Sequence[float | None], train_median: float) -> dict:
    """Return the scores of one system on one data set, ready for JSON, over all patches.

    Args:
        gold: True numbers, shape (patches,), finite.
        predicted: Numbers answered, shape (patches,), None where the answer holds none.
        train_median (`float`): Median of the training targets; stands in for None and is the floor.

    Returns:
        `dict`: `parse_rate`, `unparsed_rate`, `imputed_with` (the median), `mae`, `rmse` in the unit of `gold`;
        `spearman` and `pearson`, None with `spearman_reason` and `pearson_reason` where the truth or the answers are
        constant or there are fewer than three; `median_floor` with the `mae` and `rmse` of always answering the
        median.

    Raises:
        ValueError: Different lengths, no patches, or a number that isn't finite.
    """
    check_pairs(gold, predicted, "true numbers", "an answer without a number")
    unparsed = np.array([value is None for value in predicted])
    gold = np.array(gold, dtype=float)
    answers = np.array([train_median if value is None else value for value in predicted], dtype=float)
    for name, values in (("truth", gold), ("answer", answers)):
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise ValueError(
                f"row {row}: {name} {values[row]}, expected a finite number; leave the row out or parse it"
            )
    return {
        "parse_rate": float(1 - unparsed.mean()),
        "unparsed_rate": float(unparsed.mean()),
        "imputed_with": float(train_median),
        **compute_errors(gold, answers),
        **compute_correlations(gold, answers),
        "median_floor": compute_errors(gold, np.full_like(gold, train_median)),
    }


def compute_errors(gold: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """Return `mae` and `rmse` of float arrays of shape (patches,)."""
    difference = answers - gold
    return {"mae": float(np.abs(difference).mean()), "rmse": float(np.sqrt((difference**2).mean()))}


def compute_correlations(gold: np.ndarray, answers: np.ndarray) -> dict[str, float | str | None]:
    """Return `spearman` and `pearson` of float arrays of shape (patches,), or None and the reason."""
    reason = None
    if len(gold) < MIN_FOR_CORRELATION:
        reason = f"{len(gold)} patches; a correlation needs {MIN_FOR_CORRELATION}"
    elif np.ptp(answers) == 0:
        reason = f"all {len(answers)} answers are {answers[0]:g}; constant answers correlate with nothing"
    elif np.ptp(gold) == 0:
        reason = f"all {len(gold)} true numbers are {gold[0]:g}; nothing correlates with a constant"
    if reason:
        return {"spearman": None, "spearman_reason": reason, "pearson": None, "pearson_reason": reason}
    return {"spearman": float(spearmanr(gold, answers).statistic), "pearson": float(pearsonr(gold, answers).statistic)}
