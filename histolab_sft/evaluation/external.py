"""External cohorts: both systems asked and scored as on the internal test split, and what changed from there to here.

Nothing is fitted or chosen on a cohort: temperatures, the base model's prior and its reading are those of the training
data set, and floors are trained there.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax
from transformers import PreTrainedModel, ProcessorMixin
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.external import REASONS, Cohort
from histolab_sft.errors import say_count
from histolab_sft.evaluation.asked import Asked, score_asked
from histolab_sft.evaluation.groups import name_units
from histolab_sft.evaluation.linear_probe import measure_linear_probe, measure_site_probe
from histolab_sft.evaluation.predictions import BASELINE, SYSTEMS, System, count_uses, predict
from histolab_sft.evaluation.uncertainty import Estimate, difference, independent_difference, interval, score_systems
from histolab_sft.evaluation.verdict import judge_dataset
from histolab_sft.evaluation.zero_shot import read_headline
from histolab_sft.models.devices import scoring_with_cache


def pair_cohorts(cohorts: Sequence[Cohort], asked: Sequence[Asked]) -> list[Asked]:
    """Return each cohort with the rows of train and validation of the data set that it is scored as."""
    rows = {entry.config.name: entry.rows for entry in asked}
    return [Asked(cohort.config, rows[cohort.config.trained.name] | {"test": cohort.rows}) for cohort in cohorts]


def ask_cohorts(
    pairs: Sequence[Asked],
    asked: Sequence[Asked],
    name: str,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    weights: str,
    histo_args: HistoArguments,
    training_args: SFTConfig,
) -> None:
    """Put every question of every cohort to one system, and keep the answers in `pairs`.

    Args:
        pairs: From `pair_cohorts`.
        asked: The data sets of the run, whose answers about validation are theirs too.
        name, model, weights: As in `System`.
        processor: The base model's.
    """
    # Apart from the run's own data sets, whose features are cached or not whatever cohorts come along.
    readings = [(entry.rows["test"], count_uses(entry.rows["test"], entry.config, histo_args)) for entry in pairs]
    with scoring_with_cache(
        histo_args.vision_cache, model, processor, readings, training_args, histo_args.compiled_layers
    ) as reader:
        system = System(name, model, reader, weights, histo_args, training_args.per_device_eval_batch_size)
        held_out = {entry.config.name: entry.validation[name] for entry in asked}
        for entry in pairs:
            entry.validation[name] = held_out[entry.config.trained.name]
            entry.test[name] = predict(entry.rows["test"], system, entry.config)
            if entry.config.options and name == BASELINE and training_args.process_index == 0:
                entry.probe = measure_linear_probe(entry.rows, system, entry.config)
                if entry.config.site_by:
                    entry.site_probe = measure_site_probe(entry.rows, system)


def score_cohorts(
    cohorts: Sequence[Cohort], pairs: Sequence[Asked], asked: Sequence[Asked], entries: dict, estimates: dict
) -> dict:
    """Return `external` of `results.json`: for each cohort an entry as a data set has, and beside that

    - `external_of`, the data set that it is scored as; `cohort`, the facts of `Cohort`; its own `verdict`;
    - `classes_absent`, those of the training data set that it has no row of;
    - `internal`, scores on the internal test split over the `classes_compared` that both have, `change`, external
      minus internal, and `change["difference"]`, of the gain of the fine-tuned model over the base model.

    Args:
        pairs: Of `pair_cohorts`, asked.
        asked: The data sets of the run, asked.
        entries, estimates: Of these, from `score_asked`.
    """
    internal = {entry.config.name: entry for entry in asked}
    scored = {}
    for cohort, given in zip(cohorts, pairs, strict=True):
        of = cohort.config.trained.name
        reading = entries[of]["zero_shot"]["headline"] if cohort.config.options else None
        entry, found = score_asked(given, reading)
        entry |= {"external_of": of, "cohort": cohort.facts}
        if cohort.config.options:
            labels = set(given.test[BASELINE]["label"])
            entry["classes_absent"] = [name for name in entry["classes"] if name not in labels]
            sides, entry["classes_compared"] = _restrict(given, internal[of], entry, found, estimates[of])
        else:
            sides = found, estimates[of]
        entry |= compare_with_internal(*sides)
        entry["warnings"] += _warn(entry, cohort)
        entry["verdict"] = judge_dataset(entry)
        scored[cohort.config.name] = entry
    return scored


def compare_with_internal(external: dict, internal: dict) -> dict:
    """Return `internal` and `change` of an entry, from the estimates of both systems on either side.

    The two samples are drawn apart, as they share no patient: the interval of a change is that of a difference of
    independent scores.
    """
    shared = [
        score
        for score in internal["finetuned"]
        if score != "unparsed_rate" and all(_has_value(side, score) for side in (external, internal))
    ]
    change = {
        system: {score: independent_difference(external[system][score], internal[system][score]) for score in shared}
        for system in SYSTEMS
    }
    gains = [
        {score: difference(side["finetuned"][score], side["baseline"][score]) for score in shared}
        for side in (external, internal)
    ]
    change["difference"] = {score: independent_difference(gains[0][score], gains[1][score]) for score in shared}
    scores = {system: {score: interval(internal[system][score]) for score in shared} for system in SYSTEMS}
    scores["difference"] = {score: interval(gains[1][score]) for score in shared}
    return {"internal": scores, "change": change}


def _has_value(side: dict, score: str) -> bool:
    return all(score in side[system] and not np.isnan(side[system][score].value) for system in SYSTEMS)


def _restrict(
    external: Asked, internal: Asked, entry: dict, found: dict, trained: dict
) -> tuple[list[dict[str, dict[str, Estimate]]], list[str]]:
    """Return the estimates of both sides on rows of the classes that both have, and these classes.

    A mean over classes that only one side has would change without any answer changing.
    """
    labels = [set(side.test[BASELINE]["label"]) for side in (external, internal)]
    common = [name for name in entry["classes"] if name in labels[0] & labels[1]]
    if not common:
        return [{system: {} for system in SYSTEMS}] * 2, []
    sides = zip((external, internal), labels, (found, trained), strict=True)
    return [
        whole if own == set(common) else _estimate(side.test, entry, common, external.config.positive)
        for side, own, whole in sides
    ], common


def _estimate(
    tables: dict[str, pd.DataFrame], entry: dict, labels: list[str], positive: str | None
) -> dict[str, dict[str, Estimate]]:
    """Score both systems on the rows of some labels; they may still answer any class."""
    tables = tables | {BASELINE: read_headline(tables[BASELINE], entry["zero_shot"])}
    kept = tables[BASELINE]["label"].isin(labels).to_numpy()
    classes, answers = np.array(entry["classes"]), {}
    for system, table in tables.items():
        scores = np.stack(table["log_likelihoods"])[kept]
        answers[system] = (classes[scores.argmax(axis=1)], softmax(scores, axis=1))
    rows = tables[BASELINE][kept]
    at = entry["classes"].index(positive) if positive else 1
    labels, groups = rows["label"].to_numpy(str), name_units(rows)
    _, estimates = score_systems(labels, answers, entry["classes"], groups, positive=at)
    return estimates


def _warn(entry: dict, cohort: Cohort) -> list[str]:
    """Return what a reader has to know of a cohort beside what holds for any data set."""
    warnings, facts = [], cohort.facts
    if absent := entry.get("classes_absent"):
        present = ", ".join(name for name in entry["classes"] if name not in absent)
        warnings.append(
            f"the cohort has no patch of {', '.join(absent)}: means over classes are over {present}, and the internal "
            "scores beside them are of internal patches of the same classes"
        )
    if facts["leaks"] == "allow" and facts["shared_rows"]:
        counts = ", ".join(f"{facts['shared'][reason]} {words}" for reason, words in REASONS.items())
        warnings.append(
            f"{facts['shared_rows']:,} of {entry['n']:,} rows show what the run was trained or chosen on ({counts}) "
            "and are scored all the same: that is no external validation"
        )
    if facts["shared_with_test"]:
        warnings.append(
            f"{say_count(facts['shared_with_test'], 'row')} of the cohort show a picture, near copy, patient or slide "
            "of the internal test split too: internal and external scores aren't independent, and the intervals of "
            "changes take them for it"
        )
    return warnings
