"""From the answers of both systems to `results.json`: scores, intervals, differences, floors, calibration."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import softmax

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.answer_findings import (
    describe_written,
    list_findings,
    warn_constant,
    warn_few_to_calibrate,
)
from histolab_sft.evaluation.field_confidences import score_confidences
from histolab_sft.evaluation.floors import colour_floor_line
from histolab_sft.evaluation.groups import name_units, score_groups, warn_of_unknown
from histolab_sft.evaluation.operating_points import fit_points, score_points, warn_points
from histolab_sft.evaluation.parts import score_all_parts, warn_parts
from histolab_sft.evaluation.predictions import SYSTEMS
from histolab_sft.evaluation.proportions import score_classes, score_two_classes
from histolab_sft.evaluation.uncertainty import (
    Estimate,
    bootstrap,
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
from histolab_sft.tasks import TASKS, classification

logger = logging.getLogger(__name__)

FLOOR = "constant"
NOT_SHARED = "the data sets have no score in common, and a mean over different ones says nothing"
LEAKS = {
    "patches": "the split is random over patches: patches of one patient stand on both sides, and scores leak",
    "questions": "the split is random: questions about one patient may stand on both sides, and scores leak",
}
# Of options; of written answers it is every score that all data sets have.
OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "brier", "nll", "ece")


def score_dataset(
    config: DatasetConfig,
    test: dict[str, pd.DataFrame],
    validation: dict[str, pd.DataFrame],
    floors: dict[str, dict],
    protocol: str,
    reading: str | None = None,
) -> tuple[dict, dict]:
    """Score both systems and the floors on a data set with options, on the same draws of the same patches.

    A system's answer is the class whose whole answer it finds likeliest. What it writes when it generates is scored
    beside it (`generation`), an answer that names no class as wrong. The baseline is the better one of the two
    readings of the base model (`zero_shot`).

    Args:
        test, validation (`dict`): System -> table from `predict`; `validation` is for what is fitted: temperature and
            the base model's prior.
        floors (`dict`): Floor -> `predictions` and `probabilities`, from `compute_floors`.
        protocol (`str`): `official`, `seed` or `external`.
        reading (`str`, *optional*): The baseline's reading, where the test split is not to choose it.

    Returns:
        The entry of `results.json`, and `{system: {score: Estimate}}` for the overall means.
    """
    classes = config.options
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
    positive = classes.index(config.positive) if config.positive else 1
    scores, estimates = score_systems(labels, answers, classes, groups, positive=positive)
    zero_shot = choose_reading({name: scores[name] for name in READINGS}, log_prior, classes, reading)
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
        "warnings": [*warn_of_rows("patches", units, protocol), *warn_of_unknown(table)],
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
            entry[system] |= score_two_classes(labels, answers[system][0], config.positive, groups)
        entry[system] |= _calibrate(classes, test[system], validation[system])
        fitted = fit_points(config, validation[system], entry[system]["temperature"]["temperature"])
        entry[system]["operating_points"] = {"fitted": fitted} | score_points(fitted, test[system])
        if groups is not None:
            entry[system]["groups"] = score_groups(test[system], groups, classes, answers[system][0], positive)
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
    entry["warnings"] += warn_points(entry["finetuned"]["operating_points"])
    temperatures = {system: entry[system]["temperature"]["temperature"] for system in SYSTEMS}
    entry |= score_all_parts(test, temperatures, classes, positive)
    entry["warnings"] += warn_parts(entry)
    entry["floors"] = {
        floor: result
        and scores[f"floor_{floor}"] | {"regularisation_c": result.get("regularisation_c")} | result.get("fitted", {})
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


def score_written(
    config: DatasetConfig,
    test: dict[str, pd.DataFrame],
    validation: dict[str, pd.DataFrame | None],
    train: Dataset,
    protocol: str,
) -> tuple[dict, dict[str, dict[str, Estimate]]]:
    """Score both systems and the constant answer of train on one data set, on the same draws of the same questions.

    An answer that couldn't be read counts as wrong, never as left out. Questions whose answer is hidden were asked but
    can't be scored; they are counted.

    Args:
        test (`dict`): System -> table from `predict`.
        validation (`dict`): The same of the validation split, for the temperature of confidences; None where the task
            has none.
        train (`Dataset`): Rows of the same data set, from which alone the floor is fitted.
        protocol (`str`): `official` or `seed`.

    Returns:
        The entry of `results.json`, and `{system: {score: Estimate}}` for the means over data sets.

    Raises:
        ValueError: The systems were asked different questions, or every answer is hidden.
    """
    if not test["baseline"]["id"].equals(test["finetuned"]["id"]):
        raise ValueError(f"{config.name}: the two systems were asked different questions; score both again")
    n_hidden = int((test["baseline"]["truth"] == "null").sum())
    known = {system: table[table["truth"] != "null"] for system, table in test.items()}
    table = known["baseline"]
    if table.empty:
        raise ValueError(
            f"{config.name}: the answers of all {n_hidden} test questions are hidden, expected some to score; name "
            "another split of the data as test by `splits`"
        )
    name = table["task"].iloc[0]
    task = TASKS[name]
    gold, asks = ([json.loads(text) for text in table[column]] for column in ("truth", "ask"))
    groups = name_units(table)
    plain = train.with_format(None)
    seen = [(json.loads(ask), json.loads(answer)) for ask, answer in zip(plain["ask"], plain["answer"], strict=True)]
    guesses = task.guess_answers(seen, asks, config)

    answers = {system: [json.loads(text) for text in part["predicted"]] for system, part in known.items()}
    answers[FLOOR] = guesses
    measures, described = {}, {}
    for system, given in answers.items():
        measures[system], described[system] = task.measure_answers(gold, given, asks, guesses, config)
    estimates = bootstrap(measures, len(gold), groups)
    scores = {
        system: described[system] | {score: interval(estimate) for score, estimate in estimates[system].items()}
        for system in answers
    }
    if task.list_fields:
        for system in SYSTEMS:
            _add_confidences(scores[system]["fields"], test[system], validation[system], task.list_fields(config))
    units = describe_units(len(gold), groups)
    entry = {
        "n": len(gold),
        "n_hidden": n_hidden,
        "task": name,
        "headline": task.HEADLINE,
        "question": task.format_question(asks[0], config),
        "group_unit": "group" if groups is not None else "patch",
        "n_groups": units["n_groups"],
        "split_protocol": protocol,
        "constrained_decoding": bool(table["constrained"].all()),
        "warnings": [*warn_of_rows("questions", units, protocol, n_hidden), *warn_of_unknown(table)],
        "colour_floor": None,
    }
    truths = [task.format_answer(ask, answer, config) for ask, answer in zip(asks, gold, strict=True)]
    learnt = [task.format_answer(ask, answer, config) for ask, answer in seen if answer is not None]
    for system in SYSTEMS:
        rates = {"truncated_rate": known[system]["truncated"], "repaired_rate": known[system]["repaired"]}
        unread = known[system]["predicted"] == "null"
        entry[system] = scores[system] | {"written": describe_written(known[system]["answer"], unread, truths, learnt)}
        entry[system] |= {rate: {"value": float(values.mean())} for rate, values in rates.items()}
    entry["difference"] = {
        score: interval(difference(estimates["finetuned"][score], estimates["baseline"][score]))
        for score in estimates["baseline"]
    }
    entry["floors"] = {FLOOR: scores[FLOOR]}
    entry["above_floors"] = {
        FLOOR: {
            score: interval(difference(estimates["finetuned"][score], estimates[FLOOR][score]))
            for score in estimates["finetuned"]
        }
    }
    entry["warnings"] += list_findings(entry)
    if task.HEADLINE in entry["above_floors"][FLOOR]:
        entry["warnings"] += warn_constant(entry["above_floors"][FLOOR][task.HEADLINE], task.HEADLINE)
    if task.list_fields and validation["finetuned"] is not None:
        entry["warnings"] += warn_few_to_calibrate(len(validation["finetuned"]), "questions")
    return entry, {system: estimates[system] for system in SYSTEMS}


def score_overall(estimates: dict[str, dict], entries: dict[str, dict]) -> dict:
    """Return the macro mean over data sets of each score that they share, with its interval, of both systems.

    Args:
        estimates (`dict`): Data set -> the estimates of `score_dataset` or `score_written`.
        entries (`dict`): Data set -> its entry. One with options has no `task`.

    Returns:
        `{"baseline", "finetuned", "difference"}`, empty with a `reason` where only the rate of unparsed answers is
        shared; with several tasks also `by_task`, the same for the data sets of each.
    """
    tasks = {name: entry.get("task", classification.NAME) for name, entry in entries.items()}
    overall = _average(estimates, entries)
    counts = Counter(tasks.values())
    if len(counts) > 1:
        overall["by_task"] = {
            task: {"n_datasets": count}
            | _average({name: found for name, found in estimates.items() if tasks[name] == task}, entries)
            for task, count in counts.items()
        }
    return overall


def write_results(results: dict, folder: Path) -> None:
    """Write `results.json` in one step; a number that isn't finite is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    logger.info("results written to %s", folder)


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


def _average(estimates: dict[str, dict], entries: dict[str, dict]) -> dict:
    sets = list(estimates.values())
    shared = list(OVERALL)
    if any("task" in entries[name] for name in estimates):
        # A score without a value in one data set has no mean.
        shared = [
            score
            for score in sets[0]["baseline"]
            if all(not np.isnan(entry[system].get(score, _ABSENT).value) for entry in sets for system in SYSTEMS)
        ]
        if not set(shared) - {"unparsed_rate"}:
            return {system: {} for system in (*SYSTEMS, "difference")} | {"reason": NOT_SHARED}
    overall = {
        system: {score: interval(macro_mean([entry[system][score] for entry in sets])) for score in shared}
        for system in SYSTEMS
    }
    overall["difference"] = {
        score: interval(
            macro_mean([difference(entry["finetuned"][score], entry["baseline"][score]) for entry in sets])
        )
        for score in shared
    }
    return overall


def _add_confidences(fields: dict, test: pd.DataFrame, validation: pd.DataFrame, asked: Sequence[Mapping]) -> None:
    """Add `confidence` to the entry of each field with words for values; one that isn't scored says why here too."""
    for field in asked:
        entry = fields[field["name"]]
        if "values" in field:
            reason = {"reason": entry["reason"]} if "reason" in entry else None
            entry["confidence"] = reason or score_confidences(test, validation, field)


def warn_of_rows(rows: str, units: dict, protocol: str, n_hidden: int = 0) -> list[str]:
    """Return what the numbers alone don't say; `rows` is what the data set calls them, patches or questions."""
    warnings = [units["warning"]] if "warning" in units else []
    if units["unit"] == "patch":
        warnings.append(f"no patient or slide is known: intervals take {rows} for independent and are too narrow")
        if protocol == "seed":
            warnings.append(LEAKS[rows])
    if n_hidden:
        warnings.append(f"{n_hidden} more questions were answered whose true answer is hidden; they aren't scored")
    return warnings


def _index(labels: pd.Series, classes: list[str]) -> np.ndarray:
    return np.array([classes.index(label) for label in labels])


_ABSENT = Estimate(float("nan"), np.array([]), 0.0)
