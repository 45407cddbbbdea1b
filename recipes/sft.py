"""
Fine-tune a vision-language model on patches:

    accelerate launch recipes/sft.py --config recipes/demo.yaml
    accelerate launch --config_file accelerate_configs/deepspeed_zero2.yaml recipes/sft.py --config recipes/histolab_5k.yaml

SIGTERM, SIGINT and SIGUSR1 stop the run after the step in flight, with a checkpoint and exit code 143; the same command
with `--resume_from_checkpoint auto` goes on from it, or from the newest whole checkpoint after any other end.
"""  # noqa: E501

import logging
import sys
from functools import partial
from pathlib import Path

from histolab_sft.errors import plain_errors
from histolab_sft.signals import EXIT_CODE, ending_on_signals

logger = logging.getLogger(__name__)


def main(histo_args, training_args, model_args):
    # A mistake in the recipe is told before these are loaded, which takes seconds.
    from accelerate.state import AcceleratorState
    from accelerate.utils.memory import clear_device_cache

    from histolab_sft.config.arguments import resolve_recipe
    from histolab_sft.data.frozen_split import load_training_patches
    from histolab_sft.models.load import check_recipe_model
    from histolab_sft.processes import check_processes, explain_lost_process
    from histolab_sft.provenance import fingerprint_data, record_run
    from histolab_sft.run_lock import hold_folder
    from histolab_sft.settings import collect_settings, hash_weight_files
    from histolab_sft.training.assembly import build_trainer
    from histolab_sft.training.curves import draw_curves
    from histolab_sft.training.phases import (
        begin_phase,
        copy_result,
        describe_phase,
        describe_start,
        finish_phase,
        plan_phases,
        select_rows,
    )

    logging.basicConfig(level=logging.INFO if training_args.should_log else logging.WARNING, format="%(message)s")
    check_processes(training_args, model_args)
    check_recipe_model(model_args)
    record = record_run(
        Path(training_args.output_dir, "run.json"),
        recipe=resolve_recipe(sys.argv[1:]),
        seed=training_args.seed,
        write=training_args.should_save,
        go_on=training_args.resume_from_checkpoint is not None,
    )
    lock = hold_folder(training_args.output_dir, training_args.should_save)
    with lock, record as run, explain_lost_process():
        # One process decodes and audits; the others then find its results.
        with training_args.main_process_first(desc="data audit"):
            patches = load_training_patches(histo_args, training_args.output_dir)
        run["data_fingerprint"] = fingerprint_data(patches)
        run["hardware_profile"] = histo_args.hardware
        run["settings"] = collect_settings(histo_args, training_args, model_args)

        trainer = None
        # One phase where the recipe names none; a phase that an earlier run has finished is passed over.
        for phase in (phases := plan_phases(histo_args, training_args)):
            rows = select_rows(phase, patches)
            if not begin_phase(phase, rows):
                continue
            # The model of the phase before goes, where there is one, and so does the state that DeepSpeed has left.
            trainer = None
            clear_device_cache(garbage_collection=True)
            AcceleratorState._reset_state()
            trainer = build_trainer(rows, phase, histo_args, model_args)
            trainer.on_begin = partial(describe_start, run, phase, trainer)
            trainer.train(resume_from_checkpoint=phase.args.resume_from_checkpoint)
            if training_args.should_save:
                draw_curves(trainer.state.log_history, Path(phase.args.output_dir, "loss.png"))
            describe_phase(run, phase, trainer)
            if trainer.interrupted:
                break
            trainer.save_model()
            finish_phase(phase, rows)
        else:
            copy_result(phases[-1], training_args.output_dir)
            run["weights"] = hash_weight_files(training_args.output_dir)
            logger.info("weights saved to %s", training_args.output_dir)
    if trainer is None:
        return 0
    trainer.end()
    return EXIT_CODE if trainer.interrupted else 0


if __name__ == "__main__":
    with ending_on_signals(), plain_errors():
        # Not before the signals have their handlers: loading it takes seconds.
        from histolab_sft.config.arguments import parse_recipe

        sys.exit(main(*parse_recipe()))
