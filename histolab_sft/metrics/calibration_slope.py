"""How far confidences are off in one part of the data: on the whole, and in how sharply they tell right from wrong."""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

SLOPES = (-1.0, 20.0)  # a fit that ends here has found none


def calibration_measure(log_likelihoods: np.ndarray, label_index: np.ndarray, temperature: float) -> Callable:
    """Return a function from weights (rows, draws) to `confidence_gap` and `calibration_slope`, each (draws,).

    The gap is the mean confidence less the accuracy: above 0 the answers are too sure on the whole. The slope is the
    factor of the log-likelihoods, after the temperature, that makes the truth likeliest (Cox 1958, Biometrika 45:562,
    without an intercept): 1 where confidences are as sharp as they should be, below 1 where they are too sharp, NaN
    where there is none, since all answers are right. In a draw it is one Newton step from that of all rows.

    Args:
        log_likelihoods (`np.ndarray`): float, shape (rows, classes), finite, up to a constant per row.
        label_index (`np.ndarray`): int, shape (rows,), column of the true class.
        temperature (`float`): That the confidences were calibrated with.
    """
    scores, rows = np.asarray(log_likelihoods, dtype=np.float64) / temperature, np.arange(len(label_index))
    probabilities = softmax(scores, axis=1)
    gap = probabilities.max(axis=1) - (probabilities.argmax(axis=1) == label_index)

    def nll(slope: float) -> float:
        return -log_softmax(slope * scores, axis=1)[rows, label_index].mean()

    slope = float(minimize_scalar(nll, bounds=SLOPES, method="bounded", options={"xatol": 1e-6}).x)
    found = min(slope - SLOPES[0], SLOPES[1] - slope) > 1e-3
    fitted = softmax(slope * scores, axis=1)
    mean = (fitted * scores).sum(axis=1)
    gradient = scores[rows, label_index] - mean
    curvature = (fitted * scores**2).sum(axis=1) - mean**2

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        steps = (gradient @ weights) / (curvature @ weights) if found else np.full(weights.shape[1], np.nan)
        return {"confidence_gap": gap @ weights / weights.sum(axis=0), "calibration_slope": slope + steps}

    return measure
