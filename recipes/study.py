"""
Train and score a recipe with `folds` or `seeds` once for each of them, and report on all trainings together:

    python recipes/study.py --config recipes/demo_study.yaml
    python recipes/study.py --config recipes/my_tissue.yaml --folds 5 --seeds 3

Each training is an ordinary run in a folder of its own, such as `output_dir/fold1_seed42`. The same command goes on
with a study that was stopped. On several GPUs the trainings run side by side, one a GPU.
"""

import logging
import sys

from histolab_sft.errors import plain_errors
from histolab_sft.signals import ending_on_signals


def main(histo_args, training_args, model_args):
    # A mistake in the recipe is told before these are loaded, which takes seconds.
    from histolab_sft.run_lock import hold_folder
    from histolab_sft.study.plan import plan_study
    from histolab_sft.study.report import report_study
    from histolab_sft.study.runs import list_devices, run_trainings

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with hold_folder(training_args.output_dir):
        trainings = plan_study(sys.argv[1:], histo_args, training_args.seed, training_args.output_dir)
        run_trainings(trainings, list_devices(training_args.use_cpu))
        print(report_study(trainings, training_args.output_dir))


if __name__ == "__main__":
    with ending_on_signals(), plain_errors():
        # Not before the signals have their handlers: loading it takes seconds.
        from histolab_sft.config.arguments import parse_recipe

        main(*parse_recipe())
