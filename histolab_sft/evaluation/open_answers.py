"""From what both systems write to the questions of records to their entry in `results.json`."""

import json
from collections import Counter

import numpy as np
import pandas as pd
from datasets import Dataset

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.answer_findings import (
    describe_written,
    list_findings,
    warn_constant,
    warn_few_to_calibrate,
)
from histolab_sft.evaluation.field_confidences import score_confidences
from histolab_sft.evaluation.groups import name_units, warn_of_unknown
from histolab_sft.evaluation.uncertainty import (
    Estimate,
    bootstrap,
    describe_units,
    difference,
    interval,
    macro_mean,
)
from histolab_sft.tasks import TASKS, WITH_FIELDS
from histolab_sft.tasks.biomarkers import list_fields

SYSTEMS = ("baseline", "finetuned")
FLOOR = "constant"
NOT_SHARED = "the data sets have no score in common, and a mean over different ones says nothing"


def score_answers(
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
        test (`dict`): System -> table from `predict_answers`.
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
    if name in WITH_FIELDS:
        for system in SYSTEMS:
            _add_confidences(scores[system]["fields"], test[system], validation[system], config)
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
        "warnings": [*_warn(units, protocol, n_hidden), *warn_of_unknown(table)],
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
    if name in WITH_FIELDS and validation["finetuned"] is not None:
        entry["warnings"] += warn_few_to_calibrate(len(validation["finetuned"]), "questions")
    return entry, {system: estimates[system] for system in SYSTEMS}


def score_overall_answers(estimates: dict[str, dict], entries: dict[str, dict]) -> dict:
    """Return the macro means over the data sets of the scores that all of them share, each with its own interval.

    Args:
        estimates (`dict`): Data set -> the estimates of `score_answers`.
        entries (`dict`): Data set -> its entry.

    Returns:
        `{"baseline", "finetuned", "difference"}`, empty with a `reason` where only the rate of unparsed answers is
        shared; with several tasks also `by_task`, the same for the data sets of each.
    """
    overall = _average(list(estimates.values()))
    tasks = Counter(entry["task"] for entry in entries.values())
    if len(tasks) > 1:
        overall["by_task"] = {
            task: {"n_datasets": count}
            | _average([estimates[name] for name in entries if entries[name]["task"] == task])
            for task, count in tasks.items()
        }
    return overall


def _average(sets: list[dict]) -> dict:
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


def _add_confidences(fields: dict, test: pd.DataFrame, validation: pd.DataFrame, config: DatasetConfig) -> None:
    """Add `confidence` to the entry of each field with words for values; one that isn't scored says why here too."""
    for field in list_fields(config):
        entry = fields[field["name"]]
        if "values" in field:
            reason = {"reason": entry["reason"]} if "reason" in entry else None
            entry["confidence"] = reason or score_confidences(test, validation, field)


def _warn(units: dict, protocol: str, n_hidden: int) -> list[str]:
    warnings = [units["warning"]] if "warning" in units else []
    if units["unit"] == "patch":
        warnings.append("no patient or slide is known: intervals take questions for independent and are too narrow")
        if protocol == "seed":
            warnings.append(
                "the split is random: questions about one patient may stand on both sides, and scores leak"
            )
    if n_hidden:
        warnings.append(f"{n_hidden} more questions were answered whose true answer is hidden; they aren't scored")
    return warnings


_ABSENT = Estimate(float("nan"), np.array([]), 0.0)
