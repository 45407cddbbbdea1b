"""Operating points: fixed on the validation split, scored on test or on any other cohort.

`fit_points` gives what a clinic would write down before the first patient comes: the class that counts as positive,
the temperature, thresholds, and how sure an answer must be. `score_points` applies it to answers that had no part in
choosing it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit, logit

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.groups import name_units
from histolab_sft.evaluation.proportions import compute_proportion
from histolab_sft.evaluation.uncertainty import Estimate, bootstrap, interval
from histolab_sft.metrics.calibration import apply_temperature
from histolab_sft.metrics.operating_points import (
    AIMS,
    SENSITIVITY,
    SPECIFICITY,
    choose_abstention,
    choose_threshold,
    compute_net_benefit,
    compute_predictive_values,
    curve_measure,
    move_prevalence,
    rates_measure,
)

FEW = 20  # validation patches of a class, or answers, below which a threshold rests on chance
LIKELIEST = "likeliest class"
PLACES = np.linspace(0, 1, 51)  # of ROC and precision-recall
RISKS = np.arange(1, 50) / 50  # threshold probabilities of the decision curve


def fit_points(config: DatasetConfig, validation: pd.DataFrame, temperature: float) -> dict:
    """Return what the recipe's targets come to on the validation split, ready for JSON.

    Args:
        config: With `positive` and the targets.
        validation: `label` and `log_likelihoods` of one system, in the order of `config.options`.
        temperature (`float`): Of `fit_temperature`, on the same split.

    Returns:
        `classes`, `temperature`; `abstention`, what `choose_abstention` gives with its `target`, or a `reason`; and
        with a positive class `positive_class`, `prevalence` (the recipe's), `validation_prevalence` and `thresholds`,
        each with `aim`, `target`, `threshold` and what it reaches on `validation`, or a `reason`. A `warning` tells of
        a threshold that rests on few patches.
    """
    probabilities = apply_temperature(np.stack(validation["log_likelihoods"]), temperature)
    labels = validation["label"].to_numpy(str)
    fitted = {"classes": config.options, "temperature": temperature}
    if config.target_accuracy is not None:
        correct = np.array(config.options)[probabilities.argmax(axis=1)] == labels
        fitted["abstention"] = _fit_abstention(probabilities.max(axis=1), correct, config.target_accuracy)
    if config.positive is None:
        return fitted
    positive = labels == config.positive
    scores = probabilities[:, config.options.index(config.positive)]
    targets = {aim: getattr(config, f"target_{aim}") for aim in AIMS}
    return fitted | {
        "positive_class": config.positive,
        "prevalence": config.prevalence,
        "validation_prevalence": float(positive.mean()),
        "thresholds": [
            _fit_threshold(scores, positive, aim, target) for aim, target in targets.items() if target is not None
        ],
    }


def score_points(fitted: dict, table: pd.DataFrame) -> dict:
    """Return how operating points from `fit_points` do on answers that had no part in choosing them.

    Args:
        fitted: From `fit_points`, of the same system; as it stands in `results.json` too.
        table: `id`, `group`, `label` (words of `fitted["classes"]`; some may be absent) and `log_likelihoods` of the
            test split or of another cohort.

    Returns:
        `abstention`: `coverage`, `accuracy` (of the answers given) and `all_answers` (accuracy without withholding).
        With a positive class: `n_positive`, `n_negative`; `points`, the likeliest class first and then each threshold,
        with `sensitivity`, `specificity`, `ppv`, `npv`, and `ppv_at_prevalence` and `npv_at_prevalence` where the
        recipe names one; `curves` (`roc`, `precision_recall`, `decision`) with bands, None where the table lacks
        positive or negative rows. Intervals of proportions are of `compute_proportion`; those of predictive values at
        a prevalence, and bands, are of a bootstrap that draws whole groups.
    """
    probabilities = apply_temperature(np.stack(table["log_likelihoods"]), fitted["temperature"])
    labels, groups = table["label"].to_numpy(str), name_units(table)
    answers = np.array(fitted["classes"])[probabilities.argmax(axis=1)]
    scored = {}
    if "abstention" in fitted:
        scored["abstention"] = _score_abstention(fitted["abstention"], probabilities, answers == labels, groups)
    if "positive_class" not in fitted:
        return scored
    positive = labels == fitted["positive_class"]
    scores = probabilities[:, fitted["classes"].index(fitted["positive_class"])]
    rules = [({"aim": LIKELIEST}, answers == fitted["positive_class"])]
    # A rule without a threshold calls nobody positive.
    rules += [(point, scores >= point.get("threshold", np.inf)) for point in fitted["thresholds"]]
    both = bool(positive.any() and not positive.all())
    estimates = _bootstrap_points(fitted, rules, scores, positive, groups) if both else {}
    points = [
        point
        if "reason" in point
        else _score_point(number, point, called, positive, groups, estimates, fitted["prevalence"])
        for number, (point, called) in enumerate(rules)
    ]
    return scored | {
        "n_positive": int(positive.sum()),
        "n_negative": int((~positive).sum()),
        "points": points,
        "curves": _read_curves(fitted, estimates, positive) if both else None,
    }


def warn_points(points: dict) -> list[str]:
    """Return what has to be known before a threshold is used, of the fine-tuned system's `operating_points`."""
    warnings = []
    for point in points.get("points", []):
        name = f"the threshold for a {point['aim']} of {_say(point.get('target', 0))}"
        if "reason" in point:
            warnings.append(
                f"there is no threshold for a {point['aim']} of {_say(point['target'])}: {point['reason']}"
            )
        elif point["aim"] in AIMS:
            warnings += [f"{name} {point['warning']}"] if "warning" in point else []
            warnings += _warn_missed(name, point["aim"], point[point["aim"]], point["target"])
    abstention = points.get("abstention", {})
    name = f"withholding answers for an accuracy of {_say(abstention.get('target', 0))}"
    if "reason" in abstention:
        warnings.append(f"{name} isn't possible: {abstention['reason']}")
    elif abstention:
        warnings += _warn_missed(name, "accuracy", abstention["accuracy"], abstention["target"])
    return warnings


def _say(part: float) -> str:
    return f"{100 * part:g} %"


def _warn_missed(name: str, score: str, found: dict, target: float) -> list[str]:
    if found["ci95"] is None or found["ci95"][1] >= target:
        return []
    low, high = (f"{100 * limit:.1f}" for limit in found["ci95"])
    return [f"{name} doesn't hold on test: {score} {100 * found['value']:.1f} % ({low} to {high})"]


def _fit_threshold(scores: np.ndarray, positive: np.ndarray, aim: str, target: float) -> dict:
    point = {"aim": aim, "target": target}
    n = int((positive if aim == SENSITIVITY else ~positive).sum())
    kind = "positive" if aim == SENSITIVITY else "negative"
    if n == 0:
        return point | {"reason": f"the validation split has no {kind} patch"}
    threshold = choose_threshold(scores, positive, aim, target)
    called = scores >= threshold
    reached = {
        SENSITIVITY: float(called[positive].mean()) if positive.any() else None,
        SPECIFICITY: float((~called)[~positive].mean()) if not positive.all() else None,
    }
    point |= {"threshold": threshold, "validation": reached | {"n": n}}
    return point | ({"warning": f"rests on {n} {kind} validation patches"} if n < FEW else {})


def _fit_abstention(confidence: np.ndarray, correct: np.ndarray, target: float) -> dict:
    chosen = choose_abstention(confidence, correct, target, min(FEW, len(correct)))
    if chosen is None:
        return {
            "target": target,
            "reason": f"no part of the {len(correct)} validation answers with at least {min(FEW, len(correct))} in it "
            "is right that often",
        }
    return {"target": target, "threshold": chosen.pop("threshold"), "validation": chosen | {"n": len(correct)}}


def _score_abstention(fitted: dict, probabilities: np.ndarray, correct: np.ndarray, groups: np.ndarray | None) -> dict:
    everything = np.ones(len(correct), dtype=bool)
    found = {"target": fitted["target"], "all_answers": compute_proportion(correct, everything, groups)}
    if "threshold" not in fitted:
        return found | {"reason": fitted["reason"]}
    given = probabilities.max(axis=1) >= fitted["threshold"]
    return found | {
        "threshold": fitted["threshold"],
        "coverage": compute_proportion(given, everything, groups),
        "accuracy": compute_proportion(correct, given, groups),
    }


def _bootstrap_points(
    fitted: dict, rules: Sequence, scores: np.ndarray, positive: np.ndarray, groups: np.ndarray | None
) -> dict[str, Estimate]:
    """Estimates of everything that has no interval of its own: predictive values at a prevalence, and curves."""
    curves = curve_measure(scores, positive, PLACES)
    rates = rates_measure(np.stack([called for _, called in rules]), positive)
    risks = _move(fitted, scores)
    treated = rates_measure(risks >= RISKS[:, None], positive)

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {
            f"{kind} {place}": values
            for kind, curve in zip(("roc", "precision_recall"), curves(weights), strict=True)
            for place, values in enumerate(curve)
        }
        prevalence = fitted["prevalence"] or weights[positive].sum(axis=0) / weights.sum(axis=0)
        benefits = compute_net_benefit(*treated(weights), prevalence, RISKS[:, None])
        found |= {f"decision {place}": values for place, values in enumerate(benefits)}
        if fitted["prevalence"]:
            for number, pair in enumerate(zip(*rates(weights), strict=True)):
                values = compute_predictive_values(*pair, fitted["prevalence"])
                found |= {f"{name} {number}": value for name, value in zip(("ppv", "npv"), values, strict=True)}
        return found

    return bootstrap({"system": measure}, len(scores), groups)["system"]


def _score_point(
    number: int,
    point: dict,
    called: np.ndarray,
    positive: np.ndarray,
    groups: np.ndarray | None,
    estimates: dict[str, Estimate],
    prevalence: float | None,
) -> dict:
    found = point | {
        "sensitivity": compute_proportion(called, positive, groups),
        "specificity": compute_proportion(~called, ~positive, groups),
        "ppv": compute_proportion(positive, called, groups),
        "npv": compute_proportion(~positive, ~called, groups),
    }
    for place, value in enumerate(("ppv", "npv")):
        if f"{value} {number}" in estimates:
            estimate = _read_predictive_value(estimates[f"{value} {number}"])
            if estimate["value"] in (0, 1) and found["sensitivity"]["ci95"] and found["specificity"]["ci95"]:
                # No draw differs where no row is called wrongly: what the ends of both rates give, which is too wide.
                ends = (np.array(found[aim]["ci95"]) for aim in AIMS)
                estimate = {
                    "value": estimate["value"],
                    "ci95": compute_predictive_values(*ends, prevalence)[place].tolist(),
                }
            found[f"{value}_at_prevalence"] = estimate
    return found


def _read_predictive_value(estimate: Estimate) -> dict:
    """Value and interval on the line of log odds, on which the draws spread alike to both sides."""
    if not 0 < estimate.value < 1:
        return interval(estimate)
    draws = np.where((estimate.draws > 0) & (estimate.draws < 1), estimate.draws, np.nan)
    found = interval(replace(estimate, value=logit(estimate.value), draws=logit(draws), scale="real"))
    return found | {"value": estimate.value, "ci95": found["ci95"] and expit(found["ci95"]).tolist()}


def _move(fitted: dict, scores: np.ndarray) -> np.ndarray:
    """Probabilities as risks where the model is to be used; as they are without a prevalence, or one to start from."""
    before, after = fitted["validation_prevalence"], fitted["prevalence"]
    return move_prevalence(scores, before, after) if after and 0 < before < 1 else scores


def _read_curves(fitted: dict, estimates: dict[str, Estimate], positive: np.ndarray) -> dict:
    prevalence = fitted["prevalence"] or float(positive.mean())
    everyone = compute_net_benefit(1.0, 0.0, prevalence, RISKS)
    return {
        "roc": {"false_positive_rate": PLACES.tolist()} | _read_band(estimates, "roc", "sensitivity"),
        "precision_recall": {"recall": PLACES.tolist()} | _read_band(estimates, "precision_recall", "precision"),
        "decision": {"threshold": RISKS.tolist()}
        | _read_band(estimates, "decision", "net_benefit")
        | {"treat_all": everyone.tolist(), "prevalence": prevalence},
    }


def _read_band(estimates: dict[str, Estimate], kind: str, name: str) -> dict:
    """The curve and its band: quantiles of the draws, moved apart as few units ask for, which `interval` explains."""
    found = [estimate for key, estimate in estimates.items() if key.startswith(f"{kind} ")]
    values, draws = np.array([part.value for part in found]), np.stack([part.draws for part in found])
    low, middle, high = np.nanquantile(draws, (0.025, 0.5, 0.975), axis=1)
    degrees = found[0].degrees
    reach = stats.t.ppf(0.975, degrees) / stats.norm.ppf(0.975) * np.sqrt((degrees + 1) / degrees) if degrees else 0
    ends = (values + reach * (low - middle), values + reach * (high - middle))
    if kind != "decision":
        ends = (np.clip(end, 0, 1) for end in ends)
    return {name: values.tolist()} | {key: end.tolist() for key, end in zip(("low", "high"), ends, strict=True)}
