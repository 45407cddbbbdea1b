"""Intervals of proportions, such as the recall of a class, where patches come in groups and all may be right."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from histolab_sft.metrics.classification import UNPARSED


def compute_proportion(hits: np.ndarray, counted: np.ndarray, groups: np.ndarray | None = None) -> dict:
    """Return the proportion of hits among the rows that count, with its 95 % interval.

    Wilson's interval with the effective number of rows in place of their number, and Student's t of the number of
    groups in place of the normal quantile (Dean & Pagano 2015, Journal of Survey Statistics and Methodology 3:484):
    unlike a bootstrap it has a width where all rows are hits. The effective number is n over the design effect, the
    variance of the ratio between groups over that of independent rows. Where groups differ no more than chance makes
    them, rows count as independent.

    Args:
        hits, counted (bools): Shape (rows,); hits of rows that don't count don't matter.
        groups (*optional*): Shape (rows,), patient or slide of each row; without it rows are independent.

    Returns:
        `{"value", "ci95": [low, high]}`; both None where no row counts, `ci95` alone where one group holds them all.
    """
    counted = np.asarray(counted, dtype=bool)
    hits = np.asarray(hits, dtype=bool)[counted]
    n = len(hits)
    if n == 0:
        return {"value": None, "ci95": None}
    units = np.arange(n) if groups is None else np.unique(np.asarray(groups)[counted], return_inverse=True)[1]
    n_units, value = int(units.max()) + 1, float(hits.mean())
    if n_units < 2:
        return {"value": value, "ci95": None}
    residuals = np.bincount(units, weights=hits - value)
    variance = n_units / (n_units - 1) * np.square(residuals).sum() / n**2
    grouped = groups is not None and variance * n > value * (1 - value)
    effective = value * (1 - value) / variance if grouped else n
    quantile = (stats.t.ppf(0.975, n_units - 1) if grouped else stats.norm.ppf(0.975)) ** 2
    middle = (value + quantile / (2 * effective)) / (1 + quantile / effective)
    half = np.sqrt(quantile * (value * (1 - value) / effective + quantile / (4 * effective**2))) / (
        1 + quantile / effective
    )
    return {"value": value, "ci95": [float(max(middle - half, 0.0)), float(min(middle + half, 1.0))]}


def score_classes(
    labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str], groups: np.ndarray | None
) -> dict[str, dict]:
    """Return `{class: {"recall_ci95", "precision_ci95"}}`, None where there is no interval."""
    return {
        name: {
            "recall_ci95": compute_proportion(predictions == name, labels == name, groups)["ci95"],
            "precision_ci95": compute_proportion(labels == name, predictions == name, groups)["ci95"],
        }
        for name in classes
    }


def score_two_classes(
    labels: np.ndarray, predictions: np.ndarray, positive: str, groups: np.ndarray | None
) -> dict[str, dict]:
    """Return `sensitivity`, `specificity`, `ppv` and `npv` of one of two classes.

    An answer that names no class is a miss of either class, and neither a positive nor a negative answer.
    """
    true, called = labels == positive, predictions == positive
    cleared = ~called & (predictions != UNPARSED)
    return {
        "sensitivity": compute_proportion(called, true, groups),
        "specificity": compute_proportion(cleared, ~true, groups),
        "ppv": compute_proportion(true, called, groups),
        "npv": compute_proportion(~true, cleared, groups),
    }
