"""From the answers of both systems to `results.json`: scores, intervals, differences, floors, calibration."""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.answer_findings import (
    describe_written,
    list_findings,
    warn_constant,
    warn_few_to_calibrate,
)
from histolab_sft.evaluation.floors import colour_floor_line
from histolab_sft.evaluation.groups import aggregate_groups, name_units, warn_of_unknown
from histolab_sft.evaluation.proportions import compute_roc, score_classes, score_two_classes
from histolab_sft.evaluation.uncertainty import (
    compute_mcnemar,
    describe_units,
    difference,
    interval,
    macro_mean,
    score_systems,
)
from histolab_sft.evaluation.zero_shot import READINGS, choose_reading, fit_prior, read_headline, take_away
from histolab_sft.files import replacing
from histolab_sft.metrics.calibration import (
    apply_temperature,
    compute_abstention_curve,
    compute_ece,
    compute_nll,
    compute_reliability_bins,
    fit_temperature,
    simulate_calibrated_ece,
)
from histolab_sft.metrics.classification import UNPARSED

logger = logging.getLogger(__name__)

SYSTEMS = ("baseline", "finetuned")
OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "brier", "nll", "ece")


def score_dataset(
    config: DatasetConfig,
    test: dict[str, pd.DataFrame],
    validation: dict[str, pd.DataFrame],
    floors: dict[str, dict],
    protocol: str,
) -> tuple[dict, dict]:
    """Score both systems and the floors on one data set, on the same draws of the same patches.

    A system's answer is the class whose whole answer it finds likeliest. What it writes when it generates is scored
    beside it (`generation`), an answer that names no class as wrong. The baseline is the better one of the two
    readings of the base model (`zero_shot`).

    Args:
        test, validation (`dict`): System -> table from `predict`; `validation` is for what is fitted: temperature and
            the base model's prior.
        floors (`dict`): Floor -> `predictions` and `probabilities`, from `compute_floors`.
        protocol (`str`): `official` or `seed`.

    Returns:
        The entry of `results.json`, and `{system: {score: Estimate}}` for the overall means.
    """
    classes = list(config.class_names.values())
    table = test["baseline"]
    if not table["id"].equals(test["finetuned"]["id"]):
        raise ValueError(f"{config.name}: the two systems were scored on different patches; score both again")
    labels = table["label"].to_numpy(str)
    groups = name_units(table)

    log_prior = fit_prior(validation["baseline"], classes)
    readings = {"raw": test["baseline"], "corrected": take_away(test["baseline"], log_prior)}
    answers = {}
    for system, answered in (readings | {"finetuned": test["finetuned"]}).items():
        scores = np.stack(answered["log_likelihoods"])
        answers[system] = (np.array(classes)[scores.argmax(axis=1)], softmax(scores, axis=1))
    for system, answered in test.items():
        if "generated" in answered:
            answers[f"{system}_generation"] = (answered["generated"].to_numpy(str), None)
    for floor, result in floors.items():
        if result is not None:
            answers[f"floor_{floor}"] = (result["predictions"], result["probabilities"])
    scores, estimates = score_systems(labels, answers, classes, groups)
    zero_shot = choose_reading({reading: scores[reading] for reading in READINGS}, log_prior, classes)
    for part in (answers, scores, estimates):
        part["baseline"] = part[zero_shot["headline"]]
    test, validation = (
        tables | {"baseline": read_headline(tables["baseline"], zero_shot)} for tables in (test, validation)
    )

    units = describe_units(len(labels), groups)
    entry = {
        "n": len(labels),
        "classes": classes,
        "group_unit": "group" if groups is not None else "patch",
        "n_groups": units["n_groups"],
        "split_protocol": protocol,
        "warnings": [*_warn(units, protocol), *warn_of_unknown(table)],
        "zero_shot": zero_shot,
    }
    for system in SYSTEMS:
        entry[system] = scores[system] | _describe_generation(scores, test[system], answers, system)
        entry[system]["per_class"] = {
            name: row | intervals
            for (name, row), intervals in zip(
                entry[system]["per_class"].items(),
                score_classes(labels, answers[system][0], classes, groups).values(),
                strict=True,
            )
        }
        if len(classes) == 2:
            entry[system] |= score_two_classes(labels, answers[system][0], classes, groups)
            entry[system]["roc"] = compute_roc(labels == classes[1], answers[system][1][:, 1])
        entry[system] |= _calibrate(classes, test[system], validation[system])
        if groups is not None:
            entry[system]["groups"] = _score_groups(classes, labels, groups, test[system], answers[system][0])
    # Likelihoods always name a class; whether an answer can be read is a matter of generation.
    gains = {
        score: difference(estimates["finetuned"][score], estimates["baseline"][score])
        for score in estimates["baseline"]
        if score != "unparsed_rate"
    }
    if "finetuned_generation" in estimates:
        gains["unparsed_rate"] = difference(
            estimates["finetuned_generation"]["unparsed_rate"], estimates["baseline_generation"]["unparsed_rate"]
        )
    entry["difference"] = {score: interval(gain) for score, gain in gains.items()} | compute_mcnemar(
        labels, answers["baseline"][0], answers["finetuned"][0], groups
    )
    entry["warnings"] += list_findings(entry) + warn_few_to_calibrate(len(validation["finetuned"]))
    entry["floors"] = {
        floor: result and scores[f"floor_{floor}"] | {"regularisation_c": result.get("regularisation_c")}
        for floor, result in floors.items()
    }
    score = "balanced_accuracy"
    entry["above_floors"] = {
        floor: {score: interval(difference(estimates["finetuned"][score], estimates[f"floor_{floor}"][score]))}
        for floor, result in floors.items()
        if result
    }
    gains = {floor: gain[score] for floor, gain in entry["above_floors"].items()}
    entry["colour_floor"] = colour_floor_line(entry["finetuned"], entry["floors"], gains) if floors else None
    if "majority" in gains:
        entry["warnings"] += warn_constant(gains["majority"], "balanced_accuracy")
    return entry, estimates


def score_overall(estimates: dict[str, dict]) -> dict:
    """Return the macro mean over data sets of each score, with its own interval, for both systems and the difference.

    Args:
        estimates (`dict`): Data set -> the estimates of `score_dataset`.
    """
    sets = list(estimates.values())
    overall = {
        system: {score: interval(macro_mean([entry[system][score] for entry in sets])) for score in OVERALL}
        for system in SYSTEMS
    }
    overall["difference"] = {
        score: interval(
            macro_mean([difference(entry["finetuned"][score], entry["baseline"][score]) for entry in sets])
        )
        for score in OVERALL
    }
    return overall


def write_results(results: dict, folder: Path) -> None:
    """Write `results.json` in one step; a number that isn't finite is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    logger.info("results written to %s", folder)


def format_table(results: dict) -> str:
    """Return balanced accuracy with its interval, of floors and both systems, as a table for the screen."""
    titles = "".join(f"{title:>22}" for title in ("colour floor", *SYSTEMS))
    lines = [f"{'balanced accuracy':<18}{'patches':>8}{titles}{'unparsed':>10}"]
    for name, entry in [*results["datasets"].items(), ("overall", results["overall"])]:
        floor = entry.get("floors", {}).get("colour_histogram")
        cells = [floor and floor["balanced_accuracy"], *(entry[system]["balanced_accuracy"] for system in SYSTEMS)]
        unparsed = entry["finetuned"].get("generation", {}).get("unparsed_rate")
        lines.append(
            f"{name:<18}{entry.get('n', ''):>8}"
            + "".join(f"{_format(cell):>22}" for cell in cells)
            + (f"{unparsed['value']:>10.3f}" if unparsed else "")
        )
    lines += [
        f"{name}: {entry['colour_floor']}" for name, entry in results["datasets"].items() if entry["colour_floor"]
    ]
    lines += [f"{name}: {warning}" for name, entry in results["datasets"].items() for warning in entry["warnings"]]
    return "\n".join(lines)


def _describe_generation(scores: dict, table: pd.DataFrame, answers: dict, system: str) -> dict:
    if "generated" not in table:
        return {}
    generation = scores[f"{system}_generation"] | {"truncated_rate": {"value": float(table["truncated"].mean())}}
    agreement = float(np.mean(answers[system][0] == answers[f"{system}_generation"][0]))
    return {
        "generation": generation,
        "unparsed_rate": generation["unparsed_rate"],
        "agreement": {"value": agreement},
        "written": describe_written(table["answer"], table["generated"] == UNPARSED),
    }


def _calibrate(classes: list[str], test: pd.DataFrame, validation: pd.DataFrame) -> dict:
    """Fit the temperature on validation and say what it does on test; curves before it."""
    fitted = fit_temperature(np.stack(validation["log_likelihoods"]), _index(validation["label"], classes))
    scores, gold = np.stack(test["log_likelihoods"]), _index(test["label"], classes)
    held_out, truth = np.stack(validation["log_likelihoods"]), _index(validation["label"], classes)
    raw, scaled = softmax(scores, axis=1), apply_temperature(scores, fitted["temperature"])
    return {
        "temperature": fitted,
        "ece_calibrated": {"value": compute_ece(scaled, gold)},
        "nll_calibrated": {"value": compute_nll(scaled, gold)},
        "calibrated_ece": simulate_calibrated_ece(raw),
        "reliability": compute_reliability_bins(raw, gold),
        # For a threshold that the test split had no part in.
        "abstention_validation": compute_abstention_curve(
            softmax(held_out, axis=1).max(axis=1), held_out.argmax(axis=1) == truth
        ),
        "abstention": compute_abstention_curve(raw.max(axis=1), raw.argmax(axis=1) == gold),
    }


def _score_groups(
    classes: list[str], labels: np.ndarray, groups: np.ndarray, table: pd.DataFrame, predictions: np.ndarray
) -> dict:
    """Answers of whole slides or patients, by mean log-probability and by vote."""
    answers = aggregate_groups(labels, groups, classes, predictions, np.stack(table["log_likelihoods"]))
    described = {"n": len(answers["groups"]), "n_mixed": len(answers["mixed"]), "n_ties": answers["n_ties"]}
    if not described["n"]:
        return described
    systems = {
        "mean_log_probability": (answers["mean_log_probability"], answers["probabilities"]),
        "majority_vote": (answers["majority_vote"], None),
    }
    scores, _ = score_systems(answers["labels"], systems, classes)
    return described | scores


def _warn(units: dict, protocol: str) -> list[str]:
    warnings = [units["warning"]] if "warning" in units else []
    if units["unit"] == "patch":
        warnings.append("no patient or slide is known: intervals take patches for independent and are too narrow")
    if protocol == "seed" and units["unit"] == "patch":
        warnings.append(
            "the split is random over patches: patches of one patient stand on both sides, and scores leak"
        )
    return warnings


def _index(labels: pd.Series, classes: list[str]) -> np.ndarray:
    return np.array([classes.index(label) for label in labels])


def _format(score: dict | None) -> str:
    if not score:
        return ""
    low, high = score["ci95"] or (float("nan"), float("nan"))
    return f"{score['value']:.3f} ({low:.3f}-{high:.3f})"
