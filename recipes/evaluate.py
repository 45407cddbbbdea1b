"""
Score the base model and the fine-tuned one on the test split, in the same way:

    python recipes/evaluate.py --config recipes/demo.yaml
"""

import logging
import sys
from pathlib import Path

from histolab_sft.arguments import parse_recipe, resolve_recipe
from histolab_sft.data.patches import load_audited_patches, select_dataset
from histolab_sft.evaluation.floors import measure_floors
from histolab_sft.evaluation.harness import hash_weights, predict, write_predictions
from histolab_sft.evaluation.linear_probe import measure_linear_probe, select_probe_rows
from histolab_sft.evaluation.report import write_report
from histolab_sft.evaluation.results import SYSTEMS, format_table, score_dataset, score_overall, write_results
from histolab_sft.evaluation.sensitivity import predict_variants, score_sensitivity
from histolab_sft.models.cache_choice import encoded_once
from histolab_sft.models.load import find_adapter, load_adapter, load_base_model, load_processor, locate_base_model
from histolab_sft.provenance import describe_result


def main(histo_args, training_args, model_args):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = Path(training_args.output_dir, "evaluation")

    find_adapter(training_args.output_dir)
    patches = load_audited_patches(histo_args, training_args.output_dir)

    model = load_base_model(model_args)
    processor = load_processor(locate_base_model(model_args.model_name_or_path), model_args.model_revision)
    batch_size = training_args.per_device_eval_batch_size
    test, validation, variants, probes = {}, {}, {}, {}
    for system in SYSTEMS:
        if system == "finetuned":
            model = load_adapter(model, training_args.output_dir, model_args.model_revision)
        weights = hash_weights(model)
        looks = [(patches["validation"], 2), (patches["test"], 2 + 2 * histo_args.generate_answers)]
        if system == "baseline":
            looks += [
                (rows, 1) for config in histo_args.datasets for rows in select_probe_rows(patches, config).values()
            ]
        with encoded_once(histo_args.vision_cache, model, processor, looks, batch_size) as reader:
            for config in histo_args.datasets:
                rows = {split: select_dataset(patches[split], config.name) for split in ("validation", "test")}
                ask = (model, reader, weights, config, histo_args, batch_size)
                validation[config.name, system] = predict(rows["validation"], *ask, generate=False)
                test[config.name, system] = predict(rows["test"], *ask, generate=histo_args.generate_answers)
                if histo_args.sensitivity == "prompt":
                    variants[config.name, system] = predict_variants(rows["test"], *ask)
                if system == "baseline":
                    probes[config.name] = measure_linear_probe(patches, config, model, reader, weights, batch_size)
        for config in histo_args.datasets if histo_args.sensitivity == "all" else ():
            rows = select_dataset(patches["test"], config.name)
            # Changed pictures are new to the cache, and come once.
            ask = (model, processor, weights, config, histo_args, batch_size)
            variants[config.name, system] = predict_variants(rows, *ask)
    write_predictions(test, folder)

    results = {
        "recipe": resolve_recipe(sys.argv[1:]),
        "provenance": describe_result(training_args.output_dir, patches, training_args.seed),
        "datasets": {},
    }
    estimates = {}
    for config in histo_args.datasets:
        results["datasets"][config.name], estimates[config.name] = score_dataset(
            config,
            test={system: test[config.name, system] for system in SYSTEMS},
            validation={system: validation[config.name, system] for system in SYSTEMS},
            floors=measure_floors(patches, config) | {"linear_probe": probes[config.name]},
            protocol=select_dataset(patches["test"], config.name)[0]["protocol"],
        )
        if histo_args.sensitivity != "none":
            asked = {system: variants[config.name, system] for system in SYSTEMS}
            results["datasets"][config.name]["sensitivity"] = score_sensitivity(config, histo_args, asked)
    results["overall"] = score_overall(estimates)
    write_results(results, folder)
    write_report(results, test, patches, folder)
    print(format_table(results))


if __name__ == "__main__":
    main(*parse_recipe())
