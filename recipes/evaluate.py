"""
Score the base model and the fine-tuned one on the test split, in the same way:

    python recipes/evaluate.py --config recipes/demo.yaml
"""

import logging
from pathlib import Path

from histolab_sft.arguments import parse_recipe
from histolab_sft.data.patches import load_audited_patches
from histolab_sft.evaluation.harness import format_table, predict, score, write_results
from histolab_sft.models.load import find_adapter, load_adapter, load_base_model, load_processor, locate_base_model


def main(histo_args, training_args, model_args):
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    find_adapter(training_args.output_dir)
    patches = load_audited_patches(histo_args, training_args.output_dir)["test"]

    model = load_base_model(model_args)
    processor = load_processor(locate_base_model(model_args.model_name_or_path), model_args.model_revision)
    batch_size = training_args.per_device_eval_batch_size

    predictions = {}
    predictions["baseline"] = predict(model, processor, patches, histo_args, batch_size)
    model = load_adapter(model, training_args.output_dir)
    predictions["finetuned"] = predict(model, processor, patches, histo_args, batch_size)

    results = score(predictions, histo_args.datasets)
    write_results(results, predictions, Path(training_args.output_dir, "evaluation"))
    print(format_table(results))


if __name__ == "__main__":
    main(*parse_recipe())
