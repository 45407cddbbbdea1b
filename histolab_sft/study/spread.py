"""How far a score spreads over patients and over trainings, and the interval that holds both.

A study has one answer to each patch for each seed. Patients and seeds are crossed: every patient is answered by every
seed. So the variance of a mean over both is that of the patients, plus that of the trainings, less what the two have
in common, which both count (Owen 2007, Annals of Applied Statistics 1:386). The patients' part is the bootstrap's over
whole patients, all seeds on the same draws. The trainings' part is the jackknife's over seeds (Efron and Stein 1981,
Annals of Statistics 9:586), which for a mean over seeds is their variance divided by their number. It is taken in each
fold by itself, as its trainings are other ones, and each part reaches as far as Student's t of its own degrees of
freedom says (Cochran 1964, Biometrics 20:191).

The trainings of several folds share most of their patients. What another set of patients to train on would change
can't be told from one set: no unbiased estimate of the variance of cross-validation exists (Bengio and Grandvalet
2004, JMLR 5:1089), and the spread over folds is too small for it (Nadeau and Bengio 2003, Machine Learning 52:239).
The interval holds no part for it.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from histolab_sft.evaluation.uncertainty import Estimate, difference, interval, macro_mean


@dataclass(frozen=True)
class Spread:
    """A score of a study, and what each seed has in it.

    Attributes:
        whole: The score with all seeds, over all folds.
        seeds: For each seed its pseudo-value: `n` times the score with all `n` seeds, less `n - 1` times the one
            without it. For a mean over seeds it is the score of the seed. All have the draws of `whole`.
        folds: float, shape (folds, seeds): the same pseudo-values of each fold by itself, NaN where it has none.
        shares: float, shape (folds,): each fold's part of the score, 1 in all.
    """

    whole: Estimate
    seeds: tuple[Estimate, ...]
    folds: np.ndarray
    shares: np.ndarray


def spread_mean(scores: list[Estimate], folds: np.ndarray, shares: np.ndarray) -> Spread:
    """Return the mean over seeds of a score.

    Args:
        scores: One a seed, of one call of `bootstrap`.
        folds: float, shape (folds, seeds), the score of each training on its own test.
    """
    value = float(np.mean([score.value for score in scores]))
    draws = np.mean([score.draws for score in scores], axis=0)
    whole = Estimate(value, draws, scores[0].degrees, scores[0].scale)
    return Spread(whole, tuple(scores), folds, shares)


def spread_ensemble(
    whole: Estimate, without: list[Estimate], fold_values: np.ndarray, folds_without: np.ndarray, shares: np.ndarray
) -> Spread:
    """Return the spread of a score that all seeds give together.

    Args:
        without: For each seed the score without it; empty for a study of one seed, where nothing can be left out.
        fold_values: float, shape (folds,), the score in each fold.
        folds_without: float, shape (folds, seeds), the score in each fold without each seed.
    """
    count = len(without)
    if not count:
        return Spread(whole, (whole,), fold_values[:, None], shares)
    seeds = tuple(
        Estimate(
            count * whole.value - (count - 1) * left.value,
            count * whole.draws - (count - 1) * left.draws,
            whole.degrees,
        )
        for left in without
    )
    return Spread(whole, seeds, count * fold_values[:, None] - (count - 1) * folds_without, shares)


def spread_constant(score: Estimate, like: Spread) -> Spread:
    """Return the spread of a score that no training changes, for a study such as `like` is of."""
    return Spread(score, (score,) * len(like.seeds), np.zeros_like(like.folds), like.shares)


def subtract_spreads(first: Spread, second: Spread) -> Spread:
    """Return the paired difference of two scores of the same patches, folds and seeds."""
    pairs = zip(first.seeds, second.seeds, strict=True)
    seeds = tuple(difference(*pair) for pair in pairs)
    return Spread(difference(first.whole, second.whole), seeds, first.folds - second.folds, first.shares)


def average_spreads(spreads: list[Spread]) -> Spread:
    """Return the mean over data sets of a score, all of the same trainings."""
    seeds = tuple(macro_mean(list(parts)) for parts in zip(*(spread.seeds for spread in spreads), strict=True))
    folds, shares = (np.mean([getattr(spread, part) for spread in spreads], axis=0) for part in ("folds", "shares"))
    return Spread(macro_mean([spread.whole for spread in spreads]), seeds, folds, shares)


def measure_training(spread: Spread) -> tuple[float, int]:
    """Return the variance that training adds to a score beside the patients', and its degrees of freedom.

    (0, 0) for a single seed, which shows none.
    """
    n_folds, count = spread.folds.shape
    if count < 2:
        return 0.0, 0
    variances = np.var(spread.folds, axis=1, ddof=1)
    known = ~np.isnan(variances)
    if not known.any():
        return 0.0, 0
    variance = (spread.shares**2 * np.where(known, variances, variances[known].mean())).sum()
    # In draws of patients seeds differ by their own difference, and once more by what is of both patients and seeds.
    drawn = np.nanmean(np.var([seed.draws for seed in spread.seeds], axis=0, ddof=1))
    shared = max(0.0, drawn - np.var([seed.value for seed in spread.seeds], ddof=1))
    return float(max(0.0, variance - shared) / count), int(known.sum()) * (count - 1)


def describe_spread(spread: Spread) -> dict:
    """Return the score, its interval, and what that is made of.

    Returns:
        `dict`: `value`, `ci95` and `warning` as `interval` gives them, of patients and trainings together;
        `sample_ci95`, of the patients alone; `sample_sd` and `training_sd`, the standard errors of both parts, the
        second None with a single seed, when the interval has no such part.
    """
    variance, degrees = measure_training(spread)
    reach = stats.t.ppf(0.975, degrees) * variance**0.5 if degrees else 0.0
    found, alone = interval(spread.whole, reach), interval(spread.whole)
    if found["value"] is None:
        return found
    return found | {
        "sample_ci95": alone["ci95"],
        "sample_sd": float(np.nanstd(spread.whole.draws)),
        "training_sd": variance**0.5 if degrees else None,
    }
