"""Operating points of a score: thresholds, predictive values at a prevalence, curves over all thresholds, abstention.

A row counts as positive where its score is at or above the threshold.
"""

from collections.abc import Callable

import numpy as np

from histolab_sft.metrics.calibration import compute_abstention_curve
from histolab_sft.metrics.weighted import running_sum

SENSITIVITY, SPECIFICITY = AIMS = ("sensitivity", "specificity")


def choose_threshold(scores: np.ndarray, positive: np.ndarray, aim: str, target: float) -> float:
    """Return the threshold that reaches a sensitivity or a specificity on these rows and costs least of the other.

    Between the two scores that it parts it lies halfway, which is as good as any place here and the safest elsewhere.

    Args:
        scores (`np.ndarray`): float, shape (rows,), finite.
        positive (`np.ndarray`): bool, shape (rows,).
        aim (`str`): `sensitivity` or `specificity`.
        target (`float`): Its least value, above 0 and up to 1.

    Raises:
        ValueError: No row is of the class that the aim is about.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    own = scores[positive if aim == SENSITIVITY else ~positive]
    if len(own) == 0:
        raise ValueError(f"no {'positive' if aim == SENSITIVITY else 'negative'} row, expected some to fix {aim} on")
    needed = int(np.ceil(target * len(own) - 1e-9))  # 0.7 of 10 rows is 7, not 8
    if aim == SENSITIVITY:
        lowest = np.sort(own)[-needed]
        below = scores[scores < lowest]
        return _part(below.max(), lowest) if len(below) else float(lowest)
    highest = np.sort(own)[needed - 1]
    above = scores[scores > highest]
    return _part(highest, above.min()) if len(above) else float(np.nextafter(highest, np.inf))


def compute_predictive_values(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return positive and negative predictive value at a prevalence, by Bayes' theorem; NaN where nobody is called so.

    Args:
        sensitivity, specificity (`np.ndarray`): float, of one shape.
        prevalence (`float`): Part of the positive ones where the test will be used.
    """
    found, missed = prevalence * sensitivity, prevalence * (1 - sensitivity)
    cleared, alarmed = (1 - prevalence) * specificity, (1 - prevalence) * (1 - specificity)
    with np.errstate(invalid="ignore"):
        return np.divide(found, found + alarmed), np.divide(cleared, cleared + missed)


def move_prevalence(probabilities: np.ndarray, before: float, after: float) -> np.ndarray:
    """Return the probabilities of the positive class as they are at another prevalence.

    The odds are multiplied by those of the new prevalence over those of the old (Saerens et al. 2002, Neural
    Computation 14:21, equation 2.4): the pictures of a class stay as they are, its part changes.
    """
    factor = after / (1 - after) * (1 - before) / before
    return factor * probabilities / (factor * probabilities + 1 - probabilities)


def compute_net_benefit(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: np.ndarray | float, thresholds: np.ndarray
) -> np.ndarray:
    """Return the net benefit of treating those called positive (Vickers & Elkin 2006, Medical Decision Making 26:565).

    True positives less false positives, each a part of all rows, the false ones weighted by the odds of the threshold
    probability: what a false alarm costs, in missed cases. To treat everyone is a sensitivity of 1 and a specificity
    of 0; to treat nobody has a net benefit of 0.
    """
    return prevalence * sensitivity - (1 - prevalence) * (1 - specificity) * thresholds / (1 - thresholds)


def curve_measure(scores: np.ndarray, positive: np.ndarray, places: np.ndarray) -> Callable:
    """Return a function from weights (rows, draws) to two curves, float64 of shape (places, draws) each.

    The first is the sensitivity at each false positive rate of `places`: between two thresholds a straight line, as
    that of `sklearn.metrics.roc_curve`. The second is the precision at each recall of `places`: that of the highest
    threshold that reaches it, or finds any row for a recall of 0, as `sklearn.metrics.average_precision_score` counts.
    Both are NaN in a draw without positive or without negative rows.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    positive = np.asarray(positive, dtype=bool)[order]
    # The last row of each score, and how many positive ones there are up to it: a threshold parts no equal scores.
    ends = np.append(np.flatnonzero(np.diff(np.asarray(scores)[order])), len(order) - 1)
    n_true, own = np.cumsum(positive)[ends], order[positive]

    def measure(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        every, true = (
            np.ascontiguousarray(running_sum(weights[rows])[np.append(0, until)].T)
            for rows, until in ((order, ends + 1), (own, n_true))
        )
        curves = np.full((2, len(places), weights.shape[1]), np.nan)
        for draw, (t, f) in enumerate(zip(true, every - true, strict=True)):
            if t[-1] == 0 or f[-1] == 0:
                continue
            # Of several points at one rate, the last and highest.
            curves[0, :, draw] = np.interp(places * f[-1], f, t) / t[-1]
            reached = np.searchsorted(t, np.maximum(places - 1e-12, 1e-9) * t[-1])
            curves[1, :, draw] = t[reached] / (t[reached] + f[reached])
        return curves[0], curves[1]

    return measure


def rates_measure(called: np.ndarray, positive: np.ndarray) -> Callable:
    """Return a function from weights (rows, draws) to sensitivities and specificities, each of shape (rules, draws).

    Args:
        called (`np.ndarray`): bool, shape (rules, rows): which rows each rule calls positive.
        positive (`np.ndarray`): bool, shape (rows,).
    """
    found, cleared = (called & positive).astype(np.float64), (~called & ~positive).astype(np.float64)

    def measure(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _divide(found @ weights, weights[positive].sum(axis=0)), _divide(
            cleared @ weights, weights[~positive].sum(axis=0)
        )

    return measure


def choose_abstention(confidence: np.ndarray, correct: np.ndarray, target: float, least: int) -> dict | None:
    """Return the threshold of confidence that leaves most answers with their accuracy at the target.

    Args:
        confidence (`np.ndarray`): float, shape (rows,), finite.
        correct (`np.ndarray`): bool, shape (rows,).
        target (`float`): Least accuracy of the answers that are given.
        least (`int`): Answers that have to be left: the accuracy of fewer is chance.

    Returns:
        `threshold` (an answer is given where the confidence is at or above it; 0 where all are), `coverage` and
        `accuracy` on these rows; None where no threshold reaches the target.
    """
    curve = {key: np.array(values) for key, values in compute_abstention_curve(confidence, correct).items()}
    enough = (curve["accuracy"] >= target - 1e-12) & (curve["coverage"] * len(confidence) >= least - 1e-9)
    if not enough.any():
        return None
    place = int(np.flatnonzero(enough)[-1])
    last = place == len(curve["threshold"]) - 1
    threshold = 0.0 if last else _part(*curve["threshold"][[place + 1, place]])
    return {"threshold": threshold} | {key: float(curve[key][place]) for key in ("coverage", "accuracy")}


def _part(low: float, high: float) -> float:
    """The middle of two scores, which parts them; the higher one where no number lies between."""
    middle = float((low + high) / 2)
    return middle if middle > low else float(high)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part by part over the whole; NaN where that is 0."""
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
