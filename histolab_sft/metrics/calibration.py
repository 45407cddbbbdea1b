"""Scores of probabilities: Brier score, log-likelihood, calibration error; temperature, prior and abstention."""

import logging

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

logger = logging.getLogger(__name__)

N_BINS = 10
TEMPERATURE_BOUNDS = (0.05, 20.0)

# i / 10 is the nearest float to the decimal, as a confidence of 0.3 is; linspace gives 0.30000000000000004
_INNER_EDGES = np.arange(1, N_BINS) / N_BINS


def compute_brier(probabilities: np.ndarray, label_index: np.ndarray) -> float:
    """Return the multi-class Brier score: squared errors summed over the classes, averaged over the patches.

    From 0 (sure and right) to 2 (sure and wrong), as Brier defined it in 1950; for two classes it is twice the
    one-column form of `sklearn.metrics.brier_score_loss`.

    Args:
        probabilities (`np.ndarray`): float, shape (patches, classes), rows summing to 1.
        label_index (`np.ndarray`): int, shape (patches,), column of the true class.

    Raises:
        ValueError: A row isn't a probability distribution, or a label isn't a column.
    """
    return float(brier_rows(*check_probabilities(probabilities, label_index)).mean())


def compute_nll(probabilities: np.ndarray, label_index: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the true classes, in nats; same arguments as `compute_brier`."""
    return float(nll_rows(*check_probabilities(probabilities, label_index)).mean())


def compute_ece(probabilities: np.ndarray, label_index: np.ndarray) -> float:
    """Return the expected calibration error over 10 equal bins on (0, 1], each closed above, so the last includes 1.

    Confidence is the largest probability of a row, and the answer is its class (the first of equals): the mean over
    the patches of |accuracy - confidence| of their bin (Guo et al. 2017, arXiv 1706.04599, equation 3). Same
    arguments as `compute_brier`.
    """
    probabilities, label_index = check_probabilities(probabilities, label_index)
    confidence, correct, bins = calibration_rows(probabilities, label_index)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=N_BINS)
    return float(np.abs(gaps).sum() / len(label_index))


def compute_class_ece(probabilities: np.ndarray, label_index: np.ndarray, column: int) -> float:
    """Return the calibration error of one class's probability, over the bins of `compute_ece`.

    It is the mean over the patches of |share of the class - mean probability of it| of their bin (a class's part of
    the classwise error of Kull et al. 2019, arXiv 1910.12656). A model that takes a rare class for frequent may have a
    small `compute_ece` all the same, which looks at the likeliest class alone. Same arguments as `compute_brier`, and
    the class's column.
    """
    probabilities, label_index = check_probabilities(probabilities, label_index)
    own = probabilities[:, column]
    bins = np.searchsorted(_INNER_EDGES, own, side="left")
    gaps = np.bincount(bins, weights=(label_index == column) - own, minlength=N_BINS)
    return float(np.abs(gaps).sum() / len(label_index))


def simulate_calibrated_ece(probabilities: np.ndarray, draws: int = 1000, seed: int = 0) -> dict:
    """Return the calibration error that chance alone gives a perfectly calibrated system with these confidences.

    Each answer is drawn as right with its own confidence (consistency resampling, Bröcker & Smith 2007, Weather and
    Forecasting 22:651).

    Returns:
        `dict`: `mean` of the draws, and `most`, which 95 of 100 don't exceed.
    """
    confidence, _, bins = calibration_rows(probabilities, np.zeros(len(probabilities), int))
    generator, errors = np.random.default_rng(seed), []
    for _ in range(draws):
        gaps = (generator.random(len(confidence)) < confidence) - confidence
        errors.append(np.abs(np.bincount(bins, weights=gaps, minlength=N_BINS)).sum() / len(confidence))
    return {"mean": float(np.mean(errors)), "most": float(np.quantile(errors, 0.95))}


def compute_reliability_bins(probabilities: np.ndarray, label_index: np.ndarray) -> list[dict]:
    """Return the bins of a reliability diagram, those of `compute_ece`.

    Each has `low`, `high` (open below, closed above), `n`, and the means `confidence` and `accuracy`, which are None
    in an empty bin. Same arguments as `compute_brier`.
    """
    probabilities, label_index = check_probabilities(probabilities, label_index)
    confidence, correct, bins = calibration_rows(probabilities, label_index)
    return [
        {
            "low": index / N_BINS,
            "high": (index + 1) / N_BINS,
            "n": int(inside.sum()),
            "confidence": float(confidence[inside].mean()) if inside.any() else None,
            "accuracy": float(correct[inside].mean()) if inside.any() else None,
        }
        for index, inside in enumerate(bins == index for index in range(N_BINS))
    ]


def fit_temperature(log_likelihoods: np.ndarray, label_index: np.ndarray) -> dict:
    """Return the temperature that makes `softmax(log_likelihoods / temperature)` most likely (Guo et al. 2017).

    Fit it on the validation split alone; a temperature fitted on the test split proves nothing about it.

    Args:
        log_likelihoods (`np.ndarray`): float, shape (patches, classes), finite, up to a constant per row.
        label_index (`np.ndarray`): int, shape (patches,), column of the true class.

    Returns:
        `dict`: `temperature`; `nll_before` and `nll_after` in nats; `hit_bound`, True when the search ended at 0.05
        or 20, which means that no temperature calibrates these answers (all right, or no better than chance).

    Raises:
        ValueError: A value isn't finite, or a label isn't a column.
    """
    log_likelihoods, label_index = _check_matrix(log_likelihoods, label_index, "log_likelihoods")
    rows = np.arange(len(label_index))

    def nll(log_temperature: float) -> float:
        return -log_softmax(log_likelihoods / np.exp(log_temperature), axis=1)[rows, label_index].mean()

    bounds = np.log(TEMPERATURE_BOUNDS)
    best = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    hit_bound = bool(np.min(np.abs(best.x - bounds)) < 1e-3)
    temperature = float(np.exp(best.x))
    if hit_bound:
        logger.warning(
            "temperature %.3g lies at the edge of %s: no temperature calibrates these %d validation answers; "
            "report uncalibrated probabilities or use more validation patches",
            temperature,
            TEMPERATURE_BOUNDS,
            len(label_index),
        )
    return {
        "temperature": temperature,
        "nll_before": float(nll(0.0)),
        "nll_after": float(best.fun),
        "hit_bound": hit_bound,
    }


def fit_log_prior(log_likelihoods: np.ndarray, label_index: np.ndarray) -> np.ndarray:
    """Return the system's prior over the answers, whatever the picture shows: its logarithms, shape (classes,).

    Subtracted from the log-likelihoods, it leaves a mean probability of one divided by the number of classes for each
    of them, over pictures weighted so that each true class counts once (prior matching, Liusie et al. 2023, arXiv
    2309.04992; with one step in place of the best fit it is the batch calibration of Zhou et al. 2024, arXiv
    2309.17249). Labels give the weights alone: no answer is compared with them. Same arguments as `fit_temperature`.
    """
    log_likelihoods, label_index = _check_matrix(log_likelihoods, label_index, "log_likelihoods")
    scores, n_classes = log_softmax(log_likelihoods, axis=1), log_likelihoods.shape[1]
    counts = np.bincount(label_index)
    weights = 1 / counts[label_index]
    weights /= weights.sum()

    def objective(log_prior: np.ndarray) -> tuple[float, np.ndarray]:
        # Convex; its gradient is the gap between the mean probabilities and equal ones.
        shifted = scores - log_prior
        value = weights @ logsumexp(shifted, axis=1) + log_prior.mean()
        return value, 1 / n_classes - weights @ softmax(shifted, axis=1)

    options = {"gtol": 1e-8, "ftol": 1e-14, "maxiter": 500}
    fitted = minimize(objective, weights @ scores, jac=True, method="L-BFGS-B", options=options)
    return log_softmax(fitted.x)


def apply_temperature(log_likelihoods: np.ndarray, temperature: float) -> np.ndarray:
    """Return `softmax(log_likelihoods / temperature)`: float64, shape (patches, classes), rows summing to 1."""
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}, expected a finite number above 0; use fit_temperature")
    log_likelihoods, _ = _check_matrix(log_likelihoods, np.zeros(len(log_likelihoods), int), "log_likelihoods")
    return softmax(log_likelihoods / temperature, axis=1)


def compute_abstention_curve(confidence: np.ndarray, correct: np.ndarray) -> dict:
    """Return the accuracy of the answers kept when the least confident are withheld.

    Patches of equal confidence are kept or withheld together, so the curve doesn't depend on the order of the rows.

    Args:
        confidence (`np.ndarray`): float, shape (patches,), finite.
        correct (`np.ndarray`): bool, shape (patches,).

    Returns:
        `dict` of three lists, one entry per distinct confidence, falling: `threshold` (the lowest confidence kept),
        `coverage` (part of the patches kept; ends at 1) and `accuracy` of those.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    if len(confidence) == 0 or len(confidence) != len(correct):
        raise ValueError(
            f"{len(confidence)} confidences for {len(correct)} answers, expected as many of both and at least one; "
            "give one of each per patch"
        )
    if not np.isfinite(confidence).all():
        row = int(np.argmin(np.isfinite(confidence)))
        raise ValueError(f"row {row}: confidence {confidence[row]}, expected a finite number; score this patch again")
    order = np.argsort(-confidence, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1)
    return {
        "threshold": confidence[order][ends].tolist(),
        "coverage": ((ends + 1) / len(order)).tolist(),
        "accuracy": (np.cumsum(correct[order])[ends] / (ends + 1)).tolist(),
    }


def brier_rows(probabilities: np.ndarray, label_index: np.ndarray) -> np.ndarray:
    """Return each patch's part of `compute_brier`, shape (patches,)."""
    return np.square(probabilities - np.eye(probabilities.shape[1])[label_index]).sum(axis=1)


def nll_rows(probabilities: np.ndarray, label_index: np.ndarray) -> np.ndarray:
    """Return each patch's part of `compute_nll`, shape (patches,).

    A probability of 0 counts as 2.2e-16, as in `sklearn.metrics.log_loss`: one patch must not make the mean infinite.
    """
    return -np.log(np.maximum(probabilities[np.arange(len(label_index)), label_index], np.finfo(np.float64).eps))


def calibration_rows(probabilities: np.ndarray, label_index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return confidence, correctness (0 or 1) and bin (0 to 9) of each patch, all of shape (patches,)."""
    confidence = probabilities.max(axis=1)
    correct = (probabilities.argmax(axis=1) == label_index).astype(np.float64)
    return confidence, correct, np.searchsorted(_INNER_EDGES, confidence, side="left")


def check_probabilities(probabilities: np.ndarray, label_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 and int arrays, or raise ValueError naming the first row that isn't a distribution."""
    probabilities, label_index = _check_matrix(probabilities, label_index, "probabilities")
    wrong = (probabilities < 0).any(axis=1) | (np.abs(probabilities.sum(axis=1) - 1) > 1e-6)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"row {row}: probabilities {probabilities[row].tolist()} sum to {probabilities[row].sum():.8g}, expected "
            "no negative value and a sum of 1 within 1e-6; normalise in float64 with apply_temperature"
        )
    return probabilities, label_index


def _check_matrix(values: np.ndarray, label_index: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    values, label_index = np.asarray(values, dtype=np.float64), np.asarray(label_index)
    if values.ndim != 2 or len(values) != len(label_index) or len(values) == 0:
        raise ValueError(
            f"{name} has shape {values.shape}, expected ({len(label_index)}, number of classes), at least one row; "
            "give one row per patch, in the order of the labels"
        )
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"row {row}: {name} {values[row].tolist()}, expected finite numbers; score this patch again")
    outside = (label_index < 0) | (label_index >= values.shape[1])
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"row {row}: class index {label_index[row]}, expected 0 to {values.shape[1] - 1}; "
            "use the order of the columns"
        )
    return values, label_index
