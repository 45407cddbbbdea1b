"""How wide an interval will be, how many patients a gain needs, and what difference a test set could have shown.

Balanced accuracy is a sum over patches: each counts 1 / (classes x patches of its class) if it is right. With a spread
s of a patch (standard deviation) and a correlation r between patches of one patient or slide, its variance is the sum
over groups of

    (1 - r) x sum of (weight x s)^2  +  r x (sum of weight x s)^2

which for one class and groups of equal size is the design effect 1 + (size - 1) r of Kish (1965, Survey Sampling). A
patch that is right with probability p has s^2 = p (1 - p). The gain of one system over another on the same patches has
s^2 = d - gain^2, where d is how often one alone is right (Connor 1987, Biometrics 43:207). A two-sided test at 5 %
finds a gain in 80 of 100 studies if it is as large as the sum of both quantiles times its standard error; quantiles
are Student's t of the number of groups less one, as those of the intervals are.
"""

import numpy as np
import pandas as pd
from scipy import stats

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.groups import name_units
from histolab_sft.evaluation.score_names import is_percent, name_in_sentence
from histolab_sft.evaluation.uncertainty import Estimate

LEVEL, POWER = 0.05, 0.8
# Assumed of answers about patches of one patient or slide, before any is scored; it is told wherever it is used.
CORRELATION = 0.1
MOST_UNITS = 1_000_000


def plan_test(
    labels: np.ndarray, units: np.ndarray, score: float, gain: float, correlation: float = CORRELATION
) -> dict:
    """Return what a test set will be able to say about balanced accuracy.

    The two systems are taken to err independently of each other, which is on the safe side: those that err on the same
    patches differ on fewer.

    Args:
        labels, units (`np.ndarray`): Shape (patches,): class, and patient or slide (or the patch itself).
        score (`float`): Expected balanced accuracy of the fine-tuned model, the same recall in all classes.
        gain (`float`): Expected gain over the base model, less than `score`.
        correlation (`float`): Between patches of one unit, from 0 to 1.

    Returns:
        `dict`: `n_units`; `width` of the 95 % interval of the score and `gain_width` of that of the gain, None where
        one unit holds all patches; `units_needed` to find the gain with a power of 80 %, of the same make.
    """
    base = score - gain
    unlike = score * (1 - base) + base * (1 - score)
    names, n_units = np.unique(units, return_inverse=True)[1], len(set(units.tolist()))
    errors = [
        _standard_error(labels, names, np.sqrt(variance), correlation)
        for variance in (score * (1 - score), unlike - gain**2)
    ]
    if n_units < 2:
        return {"n_units": n_units, "width": None, "gain_width": None, "units_needed": None}
    reach = 2 * stats.t.ppf(1 - LEVEL / 2, n_units - 1)
    return {
        "n_units": n_units,
        # Intervals of a score by itself are wider by this; see `uncertainty.interval`.
        "width": float(reach * errors[0] * np.sqrt(n_units / (n_units - 1))),
        "gain_width": float(reach * errors[1]),
        "units_needed": count_needed(errors[1], n_units, gain),
    }


def count_needed(error: float, n_units: int, gain: float) -> int | None:
    """Return how many units find a gain with a power of 80 %, if `n_units` of them give a standard error.

    None where it would take more than a million.
    """
    low, high = 2, MOST_UNITS
    if _detectable(error * np.sqrt(n_units / high), high) > gain:
        return None
    while low < high:
        middle = (low + high) // 2
        found = _detectable(error * np.sqrt(n_units / middle), middle) <= gain
        low, high = (low, middle) if found else (middle + 1, high)
    return low


def describe_detectable(entry: dict, estimates: dict[str, dict[str, Estimate]], gain: float) -> dict | None:
    """Return the entry `detectable` of `results.json`: what difference the test set could have shown.

    It comes from the spread of the paired difference over the draws, never from the difference that was found: the
    power to find what was found says no more than its p-value (Hoenig & Heisey 2001, The American Statistician 55:19).

    Args:
        entry (`dict`): Of the data set.
        estimates (`dict`): System -> score -> its draws, both systems' from one call of `bootstrap`.
        gain (`float`): The recipe's `expected_gain`.

    Returns:
        `dict`: `score`, `value` (the difference that is found with a power of 80 %), `n_units`, `expected_gain`,
        `units_needed` to find that, and `text` in a sentence. None without a score, or without a spread of it.
    """
    name = entry.get("headline", "balanced_accuracy")
    if name not in estimates["finetuned"]:
        return None
    finetuned, baseline = (estimates[system][name] for system in ("finetuned", "baseline"))
    n_units = int(finetuned.degrees + 1)
    spread = float(np.nanstd(finetuned.draws - baseline.draws)) if n_units > 1 else 0.0
    if not spread > 0:
        return None
    # Drawing n units with replacement spreads less by this than drawing patients from the world does.
    error = spread * np.sqrt(n_units / (n_units - 1))
    value, needed = _detectable(error, n_units), count_needed(error, n_units, gain)
    units = "patients or slides" if entry["group_unit"] == "group" else "questions" if "task" in entry else "patches"
    percent = is_percent(name)
    sizes = [f"{round(100 * size, 1):g} points" if percent else f"{size:.3g}" for size in (value, gain)]
    return {
        "score": name,
        "value": value,
        "n_units": n_units,
        "expected_gain": gain,
        "units_needed": needed,
        "text": (
            f"With {n_units:,} {units} this test set finds a difference of {sizes[0]} or more in "
            f"{name_in_sentence(name)} in 4 of 5 studies (power 80 %, two-sided 5 %, from the paired spread that was "
            f"observed). To find {sizes[1]}, {_say_needed(needed, units)}."
        ),
    }


def format_plan(config: DatasetConfig, test: pd.DataFrame, score: float, gain: float) -> str:
    """Return what preflight says about the size of a test split, from its rows with `label`, `group` and `id`."""
    if not config.options:
        return (
            f"{config.name}: how much its score spreads isn't known before a run; the report says what it could show"
        )
    groups = name_units(test)
    units = test["id"].to_numpy(str) if groups is None else groups
    plan = plan_test(test["label"].to_numpy(str), units, score, gain, 0.0 if groups is None else CORRELATION)
    name = "patches" if groups is None else "patients or slides"
    counted = f"{len(test):,} test patches" + ("" if groups is None else f" of {plan['n_units']:,} {name}")
    if plan["width"] is None:
        return f"{config.name}: {counted}: one alone gives no interval"
    needed = _say_needed(plan["units_needed"], name)
    if groups is not None and plan["units_needed"] is not None:
        needed += f" ({round(plan['units_needed'] * len(test) / plan['n_units']):,} patches)"
    return (
        f"{config.name}: {counted}. At a balanced accuracy of {score:.0%} its 95 % interval will be about "
        f"{100 * plan['width']:.1f} points wide, and that of a gain of {100 * gain:g} points "
        f"{100 * plan['gain_width']:.1f}. To find that gain in 4 of 5 studies, {needed}.\n"
        "  Assumed: both systems err independently; "
        + (
            "patches are independent, as no patient is known"
            if groups is None
            else f"correlation within one of {CORRELATION}"
        )
    )


def _say_needed(needed: int | None, units: str) -> str:
    return (
        f"more than {MOST_UNITS:,} {units} are needed"
        if needed is None
        else f"about {needed:,} {units} as these are needed"
    )


def _detectable(error: float, n_units: int) -> float:
    degrees = n_units - 1
    return float((stats.t.ppf(1 - LEVEL / 2, degrees) + stats.t.ppf(POWER, degrees)) * error)


def _standard_error(labels: np.ndarray, units: np.ndarray, spread: float, correlation: float) -> float:
    """Standard error of a mean over classes of means over patches.

    Args:
        units (`np.ndarray`): int, shape (patches,), from 0.
        spread (`float`): Of one patch.
    """
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = spread / (len(counts) * counts[codes])
    together = np.bincount(units, weights=weights)
    return float(np.sqrt((1 - correlation) * np.square(weights).sum() + correlation * np.square(together).sum()))
