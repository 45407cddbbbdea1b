"""Scores of a test split by hospital, scanner, sex or age: each part by itself, the worst one, and their spread."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.special import softmax

from histolab_sft.evaluation.groups import name_units
from histolab_sft.evaluation.predictions import SYSTEMS
from histolab_sft.evaluation.uncertainty import Estimate, bootstrap, difference, interval
from histolab_sft.metrics.calibration_slope import calibration_measure
from histolab_sft.metrics.weighted import classification_measure

MIN_PATCHES, MIN_GROUPS, MIN_OF_CLASS = 20, 8, 10  # of a part that is scored, and of a class that it is compared by
SCORES = {
    # With the scale on which its interval lies, where its value doesn't tell.
    "balanced_accuracy": None,
    "auroc": None,
    "confidence_gap": "signed",
    "calibration_slope": "real",
}


def score_all_parts(
    test: dict[str, pd.DataFrame], temperatures: dict[str, float], classes: list[str], positive: int
) -> dict:
    """Return `sites`, and `subgroups` by name, of a data set whose tables name any.

    Args:
        test: System -> table of `predict`, with `site` and `subgroups`.
        temperatures: System -> temperature, fitted on the validation split.
        classes: In the order of the log-likelihoods.
        positive (`int`): As of `compute_classification`.
    """
    table = test[SYSTEMS[0]]
    if "site" not in table:
        return {}
    subgroups = pd.DataFrame([json.loads(text) for text in table["subgroups"]], index=table.index)
    found = {}
    if table["site"].notna().any():
        found["sites"] = score_parts(table["site"], test, temperatures, classes, positive)
    if len(subgroups.columns):
        found["subgroups"] = {
            name: score_parts(subgroups[name], test, temperatures, classes, positive) for name in subgroups.columns
        }
    return found


def score_parts(
    names: pd.Series, test: dict[str, pd.DataFrame], temperatures: dict[str, float], classes: list[str], positive: int
) -> dict:
    """Score each part of a test split by itself, and compare them; arguments as of `score_all_parts`.

    Args:
        names: The part of each row, None where it isn't known.

    Returns:
        `parts`: name -> `n`, `n_groups`, `n_by_class`, and either a `reason` why it isn't scored or, for each system,
        `balanced_accuracy` (over the classes it has), `auroc` (None with `auroc_reason` where a class is missing or
        rare), `confidence_gap` and `calibration_slope`, and the `difference` in balanced accuracy. `n_unknown` counts
        rows of no known part. `comparison`: for each system `worst` and `spread`, or a `reason`.
    """
    parts, estimates = {}, {system: {} for system in SYSTEMS}
    for number, name in enumerate(sorted(names.dropna().unique())):
        rows = {system: table[(names == name).to_numpy()].reset_index(drop=True) for system, table in test.items()}
        described = _describe_support(rows[SYSTEMS[0]], classes)
        parts[name] = described
        if "reason" in described:
            continue
        found = _estimate(rows, temperatures, classes, positive, seed=number)
        for system in SYSTEMS:
            parts[name][system] = _read_scores(found[system], described["lacking"])
            if not described["lacking"]:
                estimates[system][name] = found[system]["balanced_accuracy"]
        gain = difference(*(found[system]["balanced_accuracy"] for system in reversed(SYSTEMS)))
        parts[name]["difference"] = {"balanced_accuracy": interval(gain)}
    return {
        "parts": parts,
        "n_unknown": int(names.isna().sum()),
        "comparison": {system: compare_parts(found) for system, found in estimates.items()},
    }


def compare_parts(estimates: dict[str, Estimate], seed: int = 0) -> dict:
    """Return the worst part and the spread of one score, both set against what chance gives as many equal parts.

    The lowest of many scores is low by chance alone. So the interval of the worst one is that of Bonferroni: the
    intervals of all parts, drawn as wide, hold all truths at once in 95 of 100 studies. And `chance` says how low the
    lowest would be, and how far apart the two ends, if all parts were equally good: in draws that keep the spread of
    each part and give all of them their common mean.

    Args:
        estimates: Part -> estimate, from draws of its own.

    Returns:
        `n_compared`; `worst`: `name`, `value`, `ci95`; `chance_lowest`, its mean under chance; `spread`: `value`,
        `chance` (mean), `most` (which 95 of 100 studies of equal parts don't exceed) and `p`. Fewer than two parts
        give `n_compared` and a `reason`.
    """
    if len(estimates) < 2:
        return {
            "n_compared": len(estimates),
            "reason": f"fewer than two scored parts have {MIN_OF_CLASS} patches of every class",
        }
    names, found = list(estimates), list(estimates.values())
    values = np.array([estimate.value for estimate in found])
    generator = np.random.default_rng(seed)
    errors = []
    for estimate in found:
        draws = np.where(np.isnan(estimate.draws), estimate.value, estimate.draws)
        # As `interval` has it: draws of few patients differ too little.
        few = np.sqrt((estimate.degrees + 1) / estimate.degrees)
        errors.append(generator.permutation((draws - draws.mean()) * few))
    weights = 1 / np.maximum(np.var(errors, axis=1), 1e-9)
    equal = np.clip((weights @ values) / weights.sum() + np.array(errors), 0, 1)
    spreads = equal.max(axis=0) - equal.min(axis=0)
    worst = int(values.argmin())
    return {
        "n_compared": len(names),
        # Bonferroni's: as wide as the intervals of all parts have to be.
        "worst": {"name": names[worst]} | interval(found[worst], level=0.05 / len(names)),
        "chance_lowest": float(equal.min(axis=0).mean()),
        "spread": {
            "value": float(np.ptp(values)),
            "chance": float(spreads.mean()),
            "most": float(np.quantile(spreads, 0.95)),
            "p": float((1 + (spreads >= np.ptp(values)).sum()) / (1 + len(spreads))),
        },
    }


def warn_parts(entry: dict) -> list[str]:
    """Return what a reader has to know of sites and subgroups: what isn't scored, and a spread above chance."""
    named = {"site": entry["sites"]} if "sites" in entry else {}
    warnings = []
    for name, scored in (named | entry.get("subgroups", {})).items():
        left = [part for part, found in scored["parts"].items() if "reason" in found]
        if left:
            warnings.append(
                f"{len(left)} of {len(scored['parts'])} parts by {name} aren't scored, for too few patches or patients"
            )
        if scored["n_unknown"]:
            warnings.append(f"the {name} of {scored['n_unknown']:,} patches isn't known; no part has them")
        compared = scored["comparison"][SYSTEMS[-1]]
        if "spread" in compared and compared["spread"]["p"] < 0.05:
            spread, worst = compared["spread"], compared["worst"]
            warnings.append(
                f"the fine-tuned model is not equally good by {name}: {100 * spread['value']:.1f} points from the "
                f"best to the worst ({worst['name']}), where chance gives {compared['n_compared']} equal ones "
                f"{100 * spread['chance']:.1f}"
            )
    return warnings


def _describe_support(table: pd.DataFrame, classes: list[str]) -> dict:
    groups, counts = name_units(table), table["label"].value_counts()
    n_groups = None if groups is None else len(np.unique(groups))
    described = {
        "n": len(table),
        "n_groups": n_groups,
        "n_by_class": {name: int(counts.get(name, 0)) for name in classes},
    }
    if len(table) < MIN_PATCHES or (n_groups is not None and n_groups < MIN_GROUPS):
        described["reason"] = f"fewer than {MIN_PATCHES} patches or {MIN_GROUPS} patients or slides"
    lacking = [name for name, count in described["n_by_class"].items() if count < MIN_OF_CLASS]
    return described | {"lacking": lacking}


def _estimate(
    rows: dict[str, pd.DataFrame], temperatures: dict[str, float], classes: list[str], positive: int, seed: int
) -> dict[str, dict[str, Estimate]]:
    measures = {}
    for system, table in rows.items():
        scores, labels = np.stack(table["log_likelihoods"]), table["label"].to_numpy(str)
        answers = np.array(classes)[scores.argmax(axis=1)]
        gold = np.array([classes.index(label) for label in labels])
        ranked = classification_measure(labels, answers, classes, softmax(scores, axis=1), positive)
        calibrated = calibration_measure(scores, gold, temperatures[system])
        # Each with its own pair, which the next turn of the loop must not replace.
        measures[system] = lambda weights, pair=(ranked, calibrated): pair[0](weights) | pair[1](weights)
    found = bootstrap(measures, len(rows[SYSTEMS[0]]), name_units(rows[SYSTEMS[0]]), seed=seed)
    return {
        system: {
            score: replace(estimate, scale=SCORES.get(score) or estimate.scale)
            for score, estimate in estimates.items()
            if score in (*SCORES, "accuracy")
        }
        for system, estimates in found.items()
    }


def _read_scores(estimates: dict[str, Estimate], lacking: list[str]) -> dict:
    scores = {score: interval(estimates[score]) for score in SCORES}
    scores["confidence_gap"] = _read_gap(estimates["confidence_gap"], estimates["accuracy"])
    if lacking:
        scores["auroc"] = {"value": None, "ci95": None}
        scores["auroc_reason"] = f"fewer than {MIN_OF_CLASS} patches of {', '.join(lacking)}"
    return scores


def _read_gap(gap: Estimate, accuracy: Estimate) -> dict:
    """Value and interval of the mean confidence less the accuracy.

    A gap varies because the accuracy does, so it is as skewed: where few answers are wrong, it is low and its draws
    lie close together. An interval that treats both sides alike misses higher truths in 6 of 100 studies of eight
    patients, and lower ones in 1. So its ends are those of an accuracy that varies as the gap does, on the logarithm
    of its odds.
    """
    if not 0 < accuracy.value < 1:
        return interval(gap)
    # `interval` widens a score by itself once more than a difference, which a gap is.
    once = (gap.degrees / (gap.degrees + 1)) ** 0.5
    turned = replace(gap, value=accuracy.value, draws=accuracy.value + once * (gap.value - gap.draws), scale="unit")
    found, both = interval(turned), gap.value + accuracy.value
    low, high = found["ci95"]
    return found | {"value": gap.value, "ci95": [both - high, both - low]}
