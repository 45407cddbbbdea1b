"""
Ask the fine-tuned model FLARE's questions and write what the challenge takes, a file for each split that is the test:

    python recipes/write_submission.py --config recipes/flare.yaml

What an evaluation has asked before isn't asked again.
"""

import logging
from pathlib import Path

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.errors import plain_errors
from histolab_sft.signals import ending_on_signals


def main(histo_args, training_args, model_args):
    # A mistake in the recipe is told before these are loaded, which takes seconds.
    from histolab_sft.config.phase import list_trained_parts
    from histolab_sft.data.frozen_split import load_scored_patches
    from histolab_sft.data.rows import select_datasets
    from histolab_sft.evaluation.predictions import FINETUNED, System, hash_weights, predict
    from histolab_sft.evaluation.submission import list_submitted, plan_files, write_submissions
    from histolab_sft.models.devices import scoring_with_cache
    from histolab_sft.models.load import (
        find_weights,
        load_base_model,
        load_base_processor,
        load_finetuned,
    )
    from histolab_sft.models.precision import read_precision
    from histolab_sft.processes import check_processes

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_processes(training_args, model_args, scoring=True)
    configs = list_submitted(histo_args)
    histo_args.max_test_samples = None  # every question needs an answer

    find_weights(training_args.output_dir, model_args.use_peft)
    with training_args.main_process_first(desc="data audit"):
        patches, _ = load_scored_patches(histo_args, training_args.output_dir)
    questions = {config.name: select_datasets(patches["test"], config.name) for config in configs}
    # Before the model is asked for hours.
    plan_files([name for rows in questions.values() for name in rows.with_format(None)["id"]], histo_args)
    how = read_precision(histo_args, training_args), histo_args.vision_cache
    trained = training_args.output_dir, list_trained_parts(histo_args)
    model = load_finetuned(load_base_model(model_args, *how), model_args, *trained, *how)
    processor = load_base_processor(model_args)
    weights, answers = hash_weights(model), {}
    uses = [(rows, 1) for rows in questions.values()]
    with scoring_with_cache(
        histo_args.vision_cache, model, processor, uses, training_args, histo_args.compiled_layers
    ) as reader:
        system = System(FINETUNED, model, reader, weights, histo_args, training_args.per_device_eval_batch_size)
        for config in configs:
            answers[config.name] = predict(questions[config.name], system, config)
    if training_args.process_index > 0:
        return
    written = write_submissions(answers, histo_args, Path(training_args.output_dir, "submission"))
    for path, (count, empty) in written.items():
        print(f"{path}: {count} answers, {empty} of them empty because they couldn't be read")


if __name__ == "__main__":
    with ending_on_signals(), plain_errors():
        main(*parse_recipe())
