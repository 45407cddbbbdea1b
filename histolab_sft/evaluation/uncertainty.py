"""How sure a score is: bootstrap intervals clustered by patient or slide, paired differences, tests.

Patches of one patient are alike, so a bootstrap that draws patches takes 1,000 patches of 20 patients for 1,000
observations and gives an interval that is far too narrow. Here whole groups are drawn with replacement wherever groups
are known, and all systems are scored on the same draws, so that their differences are paired.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from histolab_sft.metrics.classification import compute_classification
from histolab_sft.metrics.weighted import Measure, classification_measure

FEW_UNITS = 30
# A calibration error is above zero by chance alone, so that an interval around it doesn't cover the truth;
# `simulate_calibrated_ece` says what chance gives.
WITHOUT_INTERVAL = ("ece",)
POSITIVE = ("brier", "nll", "mae", "rmse")
SIGNED = ("spearman", "pearson")
_CHUNK = 4_000_000  # weights held at once, 32 MB of float64


def score_systems(
    labels: np.ndarray,
    systems: dict[str, tuple[np.ndarray, np.ndarray | None]],
    classes: list[str],
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    positive: int = 1,
) -> "tuple[dict[str, dict], dict[str, dict[str, Estimate]]]":
    """Return the scores of several systems on the same patches, and the estimates behind them.

    Args:
        labels, classes, positive: As in `compute_classification`.
        systems (`dict`): System -> its predictions, and its probabilities or None.
        groups, draws, seed: As in `bootstrap_interval`.

    Returns:
        The dict of `compute_classification` for each system, every score in it as `{"value", "ci95"}`; and the
        estimates as `bootstrap` returns them, for `difference` and `macro_mean`.
    """
    measures = {
        system: classification_measure(labels, predictions, classes, probabilities, positive)
        for system, (predictions, probabilities) in systems.items()
    }
    estimates = bootstrap(measures, len(labels), groups, draws, seed)
    scores = {
        system: compute_classification(labels, predictions, classes, probabilities, positive)
        | {score: interval(estimate) for score, estimate in estimates[system].items()}
        for system, (predictions, probabilities) in systems.items()
    }
    return scores, estimates


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    n_rows: int,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict:
    """Return one statistic with its 95 % interval.

    Args:
        statistic: From weights, float64 of shape (patches, draws), to values of shape (draws,).
        n_rows (`int`): Number of patches.
        groups (`np.ndarray`, *optional*): shape (patches,), patient or slide of each patch; without it patches are
            drawn one by one.

    Returns:
        `dict`: `interval` of the statistic and `describe_units`.
    """
    estimates = bootstrap({"system": lambda weights: {"statistic": statistic(weights)}}, n_rows, groups, draws, seed)
    return interval(estimates["system"]["statistic"]) | describe_units(n_rows, groups)


def bootstrap(
    measures: dict[str, Measure],
    n_rows: int,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> "dict[str, dict[str, Estimate]]":
    """Score several systems on the same draws of the same patches.

    Args:
        measures (`dict`): For each system a function such as `classification_measure` returns, from weights of shape
            (patches, draws) to `{score: (draws,)}`.
        n_rows, groups, draws, seed: As in `bootstrap_interval`.

    Returns:
        `{system: {score: Estimate}}`, to be read with `interval`, `difference` and `macro_mean`.

    Raises:
        ValueError: `groups` has another length than the patches, or a patch has no group.
    """
    units, n_units = _encode_groups(n_rows, groups)
    values = {system: measure(np.ones((n_rows, 1))) for system, measure in measures.items()}
    parts = {system: [] for system in measures}
    for weights in _draw_weights(units, n_units, draws, np.random.default_rng(seed)):
        for system, measure in measures.items():
            parts[system].append(measure(weights))
    return {
        system: {
            score: Estimate(
                value=float(value[0]),
                draws=np.concatenate([part[score] for part in parts[system]]),
                degrees=n_units - 1.0,
                scale=_find_scale(score, value[0]),
            )
            for score, value in values[system].items()
        }
        for system in measures
    }


def interval(
    estimate: "Estimate",
    more: float = 0.0,
    level: float = 0.05,
) -> dict:
    """Return `{"value", "ci95": [low, high]}`, with a `warning` where one is due.

    Both are None where the score has no value, `ci95` alone where there is a single group to draw from or the score is
    one of `WITHOUT_INTERVAL`. The interval is Student's t of n - 1 degrees of freedom, n the number of units drawn,
    times the standard deviation of the draws, times `sqrt(n / (n - 1))` (Hesterberg 2015, The American Statistician
    69:371; once more for a score by itself, as simulations with ten patients ask), by the delta method on the logit
    of a score between 0 and 1, the logarithm of an error, the inverse hyperbolic tangent of a correlation or of a
    difference of parts. Quantiles of the draws are too narrow for few groups: with ten they cover the truth in 90 of
    100 studies. Draws without a value are left out and counted.

    Args:
        more: How far the interval would reach by what is not in the draws, independent of it, on a line without ends.
        level: One less the share of studies in which the interval holds the truth, smaller for one of several that are
            to hold theirs at once.
    """
    if np.isnan(estimate.value):
        return {"value": None, "ci95": None, "warning": "no value: what the score needs is absent"}
    if estimate.scale == "none":
        return {"value": estimate.value, "ci95": None}
    if estimate.scale == "ranked" and estimate.degrees + 1 < FEW_UNITS:
        return {"value": estimate.value, "ci95": None, "warning": f"no interval: fewer than {FEW_UNITS} units drawn"}
    if estimate.degrees < 1:
        return {"value": estimate.value, "ci95": None, "warning": "no interval: all patches are of one group"}
    defined = estimate.draws[~np.isnan(estimate.draws)]
    alone = estimate.scale in ("unit", "ranked", "positive")
    inflation = _widen(estimate) ** (2 if alone else 1)
    reach = np.hypot(stats.t.ppf(1 - level / 2, estimate.degrees) * inflation * defined.std(), more)
    low, high = _spread(estimate.value, reach, estimate.scale)
    result = {"value": estimate.value, "ci95": [low, high]}
    warnings = []
    if np.ptp(defined) == 0 and not more:
        warnings.append("every draw gave the same value: an interval without width says nothing about chance")
    if len(defined) < len(estimate.draws):
        warnings.append(f"{len(estimate.draws) - len(defined)} draws lacked a class and had no value")
    return result | ({"warning": "; ".join(warnings)} if warnings else {})


def difference(finetuned: "Estimate", baseline: "Estimate") -> "Estimate":
    """Return finetuned minus baseline, draw by draw; both from one call of `bootstrap`."""
    scales = {"unit": "signed", "ranked": "signed", "none": "none"}
    return Estimate(
        finetuned.value - baseline.value,
        finetuned.draws - baseline.draws,
        min(finetuned.degrees, baseline.degrees),
        scales.get(finetuned.scale, "real"),
    )


def independent_difference(first: "Estimate", second: "Estimate") -> dict:
    """Return first minus second as `interval` does, of two samples that have no unit in common.

    Each score has ends of its own, on the line where its draws spread alike to both sides, and these are put together
    (Zou and Donner 2008, Statistics in Medicine 27:1693). An interval about the difference itself would lose how
    skewed either score is: with twelve patients on one side, that of a log loss covers the truth in 93 of 100 studies
    and errs to one side. Degrees of freedom are Welch's (Biometrika 1947, 34:28), from the variance of the draws.
    """
    degrees = _pool_degrees([first, second])
    # Paired at random: equal seeds would draw the same places of either sample.
    shuffled = np.random.default_rng(0).permutation(second.draws)
    gap = difference(first, Estimate(second.value, shuffled, second.degrees, second.scale))
    found = interval(Estimate(gap.value, gap.draws, degrees, gap.scale))
    if found["ci95"] is None:
        return found
    (low, high), (other_low, other_high) = (
        _spread(side.value, stats.t.ppf(0.975, degrees) * _widen(side) * np.nanstd(side.draws), side.scale)
        for side in (first, second)
    )
    below = np.hypot(first.value - low, other_high - second.value)
    above = np.hypot(high - first.value, second.value - other_low)
    return found | {"ci95": [float(gap.value - below), float(gap.value + above)]}


def macro_mean(estimates: "list[Estimate]") -> "Estimate":
    """Return the mean over data sets, each counted once whatever its size.

    Draws of different data sets are paired at random, which makes them independent even if all used one seed. Degrees
    of freedom are Satterthwaite's (Biometrics Bulletin 1946, 2:110).
    """
    generator = np.random.default_rng(0)
    draws = np.mean([generator.permutation(estimate.draws) for estimate in estimates], axis=0)
    value = float(np.mean([estimate.value for estimate in estimates]))
    return Estimate(value, draws, _pool_degrees(estimates), estimates[0].scale)


def describe_units(n_rows: int, groups: np.ndarray | None = None) -> dict:
    """Return `unit` (`"group"` or `"patch"`), `n_groups` (None without groups) and, below 30 units, a `warning`."""
    _, n_units = _encode_groups(n_rows, groups)
    unit = "patch" if groups is None else "group"
    result = {"unit": unit, "n_groups": None if groups is None else n_units}
    if n_units < FEW_UNITS:
        plural = "patches" if unit == "patch" else "groups"
        result["warning"] = (
            f"{n_units} {plural}, fewer than {FEW_UNITS}: the interval is rough; score more before comparing systems"
        )
    return result


def compute_mcnemar(
    labels: np.ndarray, baseline: np.ndarray, finetuned: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> dict:
    """Test whether two systems err equally often on the same patches.

    Args:
        labels, baseline, finetuned (`np.ndarray`): str, shape (patches,): true classes and the two systems' answers.
        groups (`np.ndarray`, *optional*): shape (patches,), patient or slide of each patch.

    Returns:
        `dict`: `only_baseline` and `only_finetuned`, patches that one system alone has right; `mcnemar_p`, McNemar's
        exact two-sided p over those patches, which takes them for independent and is too small where patches come in
        groups; with `groups` also `group_p`, which isn't: in 10,000 draws the systems are swapped in whole groups at
        random and p is the part of them with a difference at least as large; and `n_unlike_groups`, the groups in
        which one system has more right: with `n` of them `group_p` can't fall below `2 ** (1 - n)`.
    """
    labels, baseline, finetuned = (np.asarray(names, dtype=str) for names in (labels, baseline, finetuned))
    gain = (finetuned == labels).astype(int) - (baseline == labels).astype(int)
    only_baseline, only_finetuned = int((gain < 0).sum()), int((gain > 0).sum())
    discordant = only_baseline + only_finetuned
    result = {
        "only_baseline": only_baseline,
        "only_finetuned": only_finetuned,
        "mcnemar_p": float(stats.binomtest(only_baseline, discordant).pvalue) if discordant else 1.0,
    }
    if groups is not None:
        units, n_units = _encode_groups(len(gain), groups)
        gains = np.bincount(units, weights=gain, minlength=n_units)
        gains = gains[gains != 0]
        result["n_unlike_groups"] = len(gains)
        generator = np.random.default_rng(seed)
        sums = [(generator.choice([-1.0, 1.0], size=(100, len(gains))) @ gains) for _ in range(100)]
        result["group_p"] = float((1 + (np.abs(sums) >= abs(gains.sum())).sum()) / (1 + np.size(sums)))
    return result


def _widen(estimate: "Estimate") -> float:
    """Return the factor by which draws of few units differ too little."""
    return ((estimate.degrees + 1) / estimate.degrees) ** 0.5


def _pool_degrees(estimates: "list[Estimate]") -> float:
    """Degrees of freedom of a sum of independent estimates; fewer than 1 where one of them has no interval."""
    degrees = np.array([estimate.degrees for estimate in estimates])
    if any(np.isnan(estimate.value) for estimate in estimates) or (degrees < 1).any():
        return float(degrees.min())
    variances = np.array([np.nanvar(estimate.draws) for estimate in estimates])
    return float(variances.sum() ** 2 / (variances**2 / degrees).sum() if variances.any() else degrees.min())


def _find_scale(score: str | int, value: float) -> str:
    """Scale of a score by its name; one between 0 and 1 by its value. A place's bias has a number for a name."""
    last = str(score).split("_")[-1]
    if last in WITHOUT_INTERVAL:
        return "none"
    if score == "average_precision":
        return "ranked"
    if last in POSITIVE or score == "cider_d":
        return "positive"
    if last in SIGNED or isinstance(score, int):
        return "signed"
    return "real" if last == "statistic" or not 0 <= value <= 1 else "unit"


def _spread(value: float, reach: float, scale: str) -> tuple[float, float]:
    """Ends of an interval that would reach `reach` to both sides on a line without ends."""
    scale = "unit" if scale == "ranked" else scale
    room = {"unit": value * (1 - value), "signed": 1 - value**2, "positive": value, "real": 1.0}[scale]
    if reach == 0 or room <= 0:
        return value, value
    turn, back = {
        "unit": (logit, expit),
        "signed": (np.arctanh, np.tanh),
        "positive": (np.log, np.exp),
        "real": (float, float),
    }[scale]
    middle = turn(value)
    return float(back(middle - reach / room)), float(back(middle + reach / room))


def _encode_groups(n_rows: int, groups: np.ndarray | None) -> tuple[np.ndarray | None, int]:
    """Unit of each patch (None: each its own) and number of units."""
    if groups is None:
        return None, n_rows
    if len(groups) != n_rows:
        raise ValueError(f"{len(groups)} groups for {n_rows} patches, expected one for each; or give no groups")
    missing = [group is None or group != group or group == "" for group in groups]
    if any(missing):
        raise ValueError(
            f"row {missing.index(True)}: no group ({sum(missing)} of {n_rows} patches have none), expected a patient "
            "or slide for every patch; name them all, or give no groups"
        )
    names, units = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return units, len(names)


def _draw_weights(
    units: np.ndarray | None, n_units: int, draws: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield weights, float64 of shape (patches, some draws): how often each patch's unit was drawn."""
    n_rows = n_units if units is None else len(units)
    chunk = max(1, _CHUNK // n_rows)
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        picks = generator.integers(n_units, size=(n_units, size)) * size + np.arange(size)
        counts = np.bincount(picks.ravel(), minlength=n_units * size).reshape(n_units, size).astype(np.float64)
        yield counts if units is None else counts[units]


@dataclass(frozen=True)
class Estimate:
    """A score, its values in the draws (shape (draws,), NaN where it has none), and degrees of freedom.

    `scale` says what values it may have: `unit` from 0 to 1, `positive`, `signed` from -1 to 1, `real`; `none` that no
    interval is given, `ranked` that it is one from 0 to 1 of which few units give no interval: that of an average
    precision covers the truth too rarely then.
    """

    value: float
    draws: np.ndarray
    degrees: float
    scale: str = "real"
