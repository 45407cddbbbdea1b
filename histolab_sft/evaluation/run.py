"""Score the base model and the fine-tuned one in the same way, from the recipe to the report."""

import logging
import shutil
from pathlib import Path

import pandas as pd
from datasets import DatasetDict
from transformers.trainer_utils import enable_full_determinism
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.phase import list_trained_parts
from histolab_sft.data.external import Cohort, load_cohorts
from histolab_sft.data.frozen_split import list_trained, load_scored_patches
from histolab_sft.data.rows import select_datasets
from histolab_sft.evaluation.asked import Asked, correct_priors, score_asked
from histolab_sft.evaluation.external import ask_cohorts, pair_cohorts, score_cohorts
from histolab_sft.evaluation.html_report import write_report
from histolab_sft.evaluation.linear_probe import measure_linear_probe, measure_neighbours, measure_site_probe
from histolab_sft.evaluation.predictions import (
    BASELINE,
    FINETUNED,
    SYSTEMS,
    System,
    count_readings,
    hash_weights,
    predict,
    predict_held_out,
    write_predictions,
)
from histolab_sft.evaluation.results import score_overall, write_results
from histolab_sft.evaluation.rung_tables import NEIGHBOURS
from histolab_sft.evaluation.rungs import check_rungs, measure_rungs
from histolab_sft.evaluation.sample_size import describe_detectable
from histolab_sft.evaluation.screen import format_results
from histolab_sft.evaluation.sensitivity import list_sides, predict_sides, predict_variants, score_sensitivity
from histolab_sft.evaluation.verdict import add_front
from histolab_sft.models.devices import scoring_with_cache
from histolab_sft.models.load import (
    check_recipe_model,
    find_weights,
    load_base_model,
    load_base_processor,
    load_config,
    load_finetuned,
)
from histolab_sft.models.precision import read_precision
from histolab_sft.models.resolution import read_resolution
from histolab_sft.processes import check_processes
from histolab_sft.provenance import describe_result
from histolab_sft.settings import collect_settings, find_changes

logger = logging.getLogger(__name__)

EXTERNAL = "external"  # in `results.json`, and the folder of predictions


def evaluate(
    histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig, recipe: dict
) -> str | None:
    """Score both systems on the test split of every data set, and write predictions, `results.json` and the report.

    Args:
        histo_args, training_args, model_args: The parsed recipe.
        recipe (`dict`): Its keys and values as the run reads them, for `results.json`.

    Returns:
        `str`: The table of scores; None in the processes that only help the first one.

    Raises:
        FileNotFoundError, ValueError: Weights or data aren't there, or are not what the recipe says.
    """
    check_processes(training_args, model_args, scoring=True)
    check_recipe_model(model_args)
    check_rungs(histo_args)
    list_sides(histo_args, model_args)
    find_weights(training_args.output_dir, model_args.use_peft)
    with training_args.main_process_first(desc="data audit"):
        patches, changes = load_scored_patches(histo_args, training_args.output_dir)
        cohorts = []
        if histo_args.external:
            trained = list_trained(histo_args, training_args.output_dir)
            cohorts = load_cohorts(histo_args, trained, training_args.output_dir)
    changes += _tell_changed_settings(histo_args, training_args, model_args)

    if training_args.full_determinism:
        enable_full_determinism(training_args.seed)
    asked = [
        Asked(config, {split: select_datasets(rows, config.name) for split, rows in patches.items()})
        for config in histo_args.datasets
    ]
    pairs = pair_cohorts(cohorts, asked)
    ask_systems(asked, pairs, patches, histo_args, training_args, model_args)
    if training_args.process_index > 0:
        return None
    measure_rungs(asked, histo_args, training_args)
    correct_priors([*asked, *pairs], training_args.output_dir, histo_args.prior_correction)

    folder = Path(training_args.output_dir, "evaluation")
    predictions = {(entry.config.name, system): entry.test[system] for system in SYSTEMS for entry in asked}
    write_predictions(predictions, folder)
    # In a folder of their own, so that another cohort changes nothing of the run's own predictions.
    if (folder / EXTERNAL).is_dir():
        shutil.rmtree(folder / EXTERNAL)
    tables = {(entry.config.name, system): entry.test[system] for system in SYSTEMS for entry in pairs}
    if tables:
        write_predictions(tables, folder / EXTERNAL)
    provenance = describe_result(training_args.output_dir, patches, training_args.seed, changes)
    results = {"recipe": recipe, "provenance": provenance} | score_all(asked, cohorts, pairs, histo_args, model_args)
    add_front(results, training_args.output_dir)
    write_results(results, folder)
    write_report(results, predictions | tables, patches, folder, {c.config.name: c.rows for c in cohorts})
    return format_results(results)


def ask_systems(
    asked: list[Asked],
    cohorts: list[Asked],
    patches: DatasetDict,
    histo_args: HistoArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
) -> None:
    """Put every question of every data set and cohort to both systems, one after the other in the same weights."""
    how = read_precision(histo_args, training_args), histo_args.vision_cache
    model = load_base_model(model_args, *how)
    processor = load_base_processor(model_args)
    batch_size = training_args.per_device_eval_batch_size
    for name in SYSTEMS:
        if name == FINETUNED:
            trained = training_args.output_dir, list_trained_parts(histo_args)
            model = load_finetuned(model, model_args, *trained, *how)
        weights = hash_weights(model)
        readings = count_readings(patches, histo_args, name)
        with scoring_with_cache(
            histo_args.vision_cache, model, processor, readings, training_args, histo_args.compiled_layers
        ) as reader:
            system = System(name, model, reader, weights, histo_args, batch_size)
            for entry in asked:
                entry.validation[name] = predict_held_out(entry.rows["validation"], system, entry.config)
                entry.test[name] = predict(entry.rows["test"], system, entry.config)
                if not entry.config.options:
                    continue
                if histo_args.sensitivity == "prompt":
                    entry.variants[name] = predict_variants(entry.rows["test"], system, entry.config)
                if name == BASELINE and training_args.process_index == 0:
                    entry.probe = measure_linear_probe(entry.rows, system, entry.config)
                    if histo_args.encoders:
                        entry.rungs[NEIGHBOURS] = measure_neighbours(entry.rows, system, entry.config)
                    if entry.config.site_by:
                        entry.site_probe = measure_site_probe(entry.rows, system)
        if cohorts:
            ask_cohorts(cohorts, asked, name, model, processor, weights, histo_args, training_args)
        if histo_args.sensitivity == "all":
            # Changed pictures are new to the cache, and come once.
            system = System(name, model, processor, weights, histo_args, batch_size)
            for entry in asked:
                if entry.config.options:
                    entry.variants[name] = predict_variants(entry.rows["test"], system, entry.config)
    if histo_args.sensitivity_sides:
        # Its memory is for the next one.
        del model, system
        rows = {entry.config.name: entry.rows["test"] for entry in asked if entry.config.options}
        sides = predict_sides(rows, histo_args, training_args, model_args)
        for entry in asked:
            for name in entry.variants:
                parts = entry.variants[name], sides[entry.config.name, name]
                entry.variants[name] = pd.concat(parts, ignore_index=True)


def score_all(
    asked: list[Asked],
    cohorts: list[Cohort],
    pairs: list[Asked],
    histo_args: HistoArguments,
    model_args: ModelConfig,
) -> dict:
    """Return `datasets`, `overall` and, with cohorts, `external` of `results.json`."""
    entries, estimates = {}, {}
    own_side = read_resolution(load_config(model_args)).side if histo_args.sensitivity_sides else None
    for given in asked:
        config = given.config
        entry, found = score_asked(given)
        entry["detectable"] = describe_detectable(entry, found, histo_args.expected_gain)
        if given.variants:
            entry["sensitivity"] = score_sensitivity(config, histo_args, given.variants, entry["zero_shot"], own_side)
        entries[config.name], estimates[config.name] = entry, found
    results = {"datasets": entries, "overall": score_overall(estimates, entries)}
    return results | ({EXTERNAL: score_cohorts(cohorts, pairs, asked, entries, estimates)} if cohorts else {})


def _tell_changed_settings(histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig) -> list[str]:
    changes = find_changes(training_args.output_dir, collect_settings(histo_args, training_args, model_args))
    for change in changes:
        logger.warning("changed since training: %s", change)
    return changes
