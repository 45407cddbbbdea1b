"""Score the base model and the fine-tuned one in the same way, from the recipe to the report."""

import logging
from pathlib import Path

import pandas as pd
from transformers.trainer_utils import enable_full_determinism
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.phase import list_trained_parts
from histolab_sft.data.frozen_split import load_scored_patches
from histolab_sft.data.rows import select_dataset
from histolab_sft.evaluation.floors import measure_floors
from histolab_sft.evaluation.html_report import write_report
from histolab_sft.evaluation.linear_probe import list_looks, measure_linear_probe
from histolab_sft.evaluation.open_answers import score_answers, score_overall_answers
from histolab_sft.evaluation.open_report import write_answers_report
from histolab_sft.evaluation.open_tables import format_answers_table
from histolab_sft.evaluation.predictions import hash_weights, predict, predict_splits, write_predictions
from histolab_sft.evaluation.results import SYSTEMS, format_table, score_dataset, score_overall, write_results
from histolab_sft.evaluation.sensitivity import list_sides, predict_sides, predict_variants, score_sensitivity
from histolab_sft.evaluation.verdict import add_front
from histolab_sft.models.devices import scoring_with_cache
from histolab_sft.models.load import (
    check_resolution,
    find_weights,
    load_base_model,
    load_base_processor,
    load_finetuned,
)
from histolab_sft.models.precision import read_precision
from histolab_sft.models.resolution import read_resolution
from histolab_sft.processes import check_processes
from histolab_sft.provenance import describe_result
from histolab_sft.settings import collect_settings, find_changes

logger = logging.getLogger(__name__)


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
    check_resolution(model_args)
    list_sides(histo_args, model_args)
    folder = Path(training_args.output_dir, "evaluation")

    find_weights(training_args.output_dir, model_args.use_peft)
    with training_args.main_process_first(desc="data audit"):
        patches, changes = load_scored_patches(histo_args, training_args.output_dir)
    others = find_changes(training_args.output_dir, collect_settings(histo_args, training_args, model_args))
    for change in others:
        logger.warning("changed since training: %s", change)

    if training_args.full_determinism:
        enable_full_determinism(training_args.seed)
    how = read_precision(histo_args, training_args), histo_args.vision_cache
    model = load_base_model(model_args, *how)
    processor = load_base_processor(model_args)
    batch_size = training_args.per_device_eval_batch_size
    records = histo_args.datasets[0].format is not None
    test, validation, variants, probes, estimates = {}, {}, {}, {}, {}
    for system in SYSTEMS:
        if system == "finetuned":
            trained = training_args.output_dir, list_trained_parts(histo_args)
            model = load_finetuned(model, model_args, *trained, *how)
        weights = hash_weights(model)
        looks = list_looks(patches, histo_args, system)
        with scoring_with_cache(histo_args.vision_cache, model, processor, looks, training_args) as reader:
            for config in histo_args.datasets:
                rows = {split: select_dataset(patches[split], config.name) for split in ("validation", "test")}
                ask = (model, reader, weights, config, histo_args, batch_size)
                if records:
                    validation[config.name, system], test[config.name, system] = predict_splits(rows, *ask)
                    continue
                validation[config.name, system] = predict(rows["validation"], *ask, generate=False)
                test[config.name, system] = predict(rows["test"], *ask, generate=histo_args.generate_answers)
                if histo_args.sensitivity == "prompt":
                    variants[config.name, system] = predict_variants(rows["test"], *ask)
                if system == "baseline" and training_args.process_index == 0:
                    probes[config.name] = measure_linear_probe(patches, config, model, reader, weights, batch_size)
        for config in histo_args.datasets if histo_args.sensitivity == "all" else ():
            # Changed pictures are new to the cache, and come once.
            ask = (model, processor, weights, config, histo_args, batch_size)
            variants[config.name, system] = predict_variants(select_dataset(patches["test"], config.name), *ask)
    own_side = None
    if histo_args.sensitivity_sides:
        own_side = read_resolution(model.config).side
        # Its memory is for the next one.
        del model
        test_rows = {config.name: select_dataset(patches["test"], config.name) for config in histo_args.datasets}
        for name, table in predict_sides(test_rows, histo_args, training_args, model_args).items():
            variants[name] = pd.concat([variants[name], table], ignore_index=True)
    if training_args.process_index > 0:
        return None
    write_predictions(test, folder)

    provenance = describe_result(training_args.output_dir, patches, training_args.seed, [*changes, *others])
    results = {"recipe": recipe, "provenance": provenance, "datasets": {}}
    for config in histo_args.datasets:
        protocol = select_dataset(patches["test"], config.name).with_format(None)["protocol"][0]
        if records:
            asked = [{system: tables[config.name, system] for system in SYSTEMS} for tables in (test, validation)]
            results["datasets"][config.name], estimates[config.name] = score_answers(
                config, *asked, select_dataset(patches["train"], config.name), protocol
            )
            continue
        results["datasets"][config.name], estimates[config.name] = score_dataset(
            config,
            test={system: test[config.name, system] for system in SYSTEMS},
            validation={system: validation[config.name, system] for system in SYSTEMS},
            floors=measure_floors(patches, config) | {"linear_probe": probes[config.name]},
            protocol=protocol,
        )
        if histo_args.sensitivity != "none":
            asked = {system: variants[config.name, system] for system in SYSTEMS}
            entry = results["datasets"][config.name]
            entry["sensitivity"] = score_sensitivity(config, histo_args, asked, entry["zero_shot"], own_side)
    if records:
        results["overall"] = score_overall_answers(estimates, results["datasets"])
    else:
        results["overall"] = score_overall(estimates)
    add_front(results, training_args.output_dir)
    write_results(results, folder)
    (write_answers_report if records else write_report)(results, test, patches, folder)
    return format_answers_table(results) if records else format_table(results)
