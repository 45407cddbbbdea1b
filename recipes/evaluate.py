"""
Score the base model and the fine-tuned one on the test split, in the same way:

    python recipes/evaluate.py --config recipes/demo.yaml
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/evaluate.py --config recipes/demo.yaml
"""

import logging
import sys

from histolab_sft.errors import plain_errors
from histolab_sft.signals import ending_on_signals


def main(histo_args, training_args, model_args):
    # A mistake in the recipe is told before these are loaded, which takes seconds.
    from histolab_sft.config.arguments import resolve_recipe
    from histolab_sft.evaluation.run import evaluate
    from histolab_sft.run_lock import hold_folder

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with hold_folder(training_args.output_dir, training_args.should_save):
        table = evaluate(histo_args, training_args, model_args, resolve_recipe(sys.argv[1:]))
    if table is not None:
        print(table)


if __name__ == "__main__":
    with ending_on_signals(), plain_errors():
        # Not before the signals have their handlers: loading it takes seconds.
        from histolab_sft.config.arguments import parse_recipe

        main(*parse_recipe())
