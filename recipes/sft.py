"""
Fine-tune a vision-language model on patches:

    accelerate launch recipes/sft.py --config recipes/demo.yaml
    accelerate launch --config_file accelerate_configs/deepspeed_zero2.yaml recipes/sft.py --config recipes/histolab_5k.yaml

SIGTERM, SIGINT and SIGUSR1 stop the run after the step in flight, with a checkpoint and exit code 143; the same command
with `--resume_from_checkpoint auto` goes on from it, or from the newest whole checkpoint after any other end.
"""  # noqa: E501

import logging
import sys
from pathlib import Path

from transformers.utils.hub import resolve_revision

from histolab_sft.arguments import parse_recipe, resolve_recipe
from histolab_sft.data.patches import load_audited_patches
from histolab_sft.models.hub_access import fetch_base_model
from histolab_sft.models.load import (
    build_lora_config,
    build_model_init_kwargs,
    build_quantization_config,
    load_processor,
    locate_base_model,
)
from histolab_sft.provenance import fingerprint_data, record_run
from histolab_sft.training.callbacks import build_early_stopping
from histolab_sft.training.curves import draw_curves
from histolab_sft.training.pictures import prepare_pictures
from histolab_sft.training.signals import EXIT_CODE
from histolab_sft.training.trainer import PatchTrainer


def main(histo_args, training_args, model_args):
    logging.basicConfig(level=logging.INFO if training_args.should_log else logging.WARNING, format="%(message)s")
    record = record_run(
        Path(training_args.output_dir, "run.json"),
        recipe=resolve_recipe(sys.argv[1:]),
        seed=training_args.seed,
        write=training_args.should_save,
        go_on=training_args.resume_from_checkpoint is not None,
    )
    with record as run:
        # One process decodes and audits; the others then find its results.
        with training_args.main_process_first(desc="data audit"):
            patches = load_audited_patches(histo_args, training_args.output_dir)
        run["data_fingerprint"] = fingerprint_data(patches)

        trainer = build_trainer(patches, histo_args, training_args, model_args)
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        if training_args.should_save:
            draw_curves(trainer.state.log_history, Path(training_args.output_dir, "loss.png"))
        run["resumed_from"] = training_args.resume_from_checkpoint
        run["steps"] = trainer.state.global_step
        if trainer.interrupted:
            run["exit_reason"] = f"{trainer.interrupted.name} after step {trainer.state.global_step}"
            return EXIT_CODE
        if trainer.state.global_step < trainer.state.max_steps:
            run["exit_reason"] = f"early stopping after step {trainer.state.global_step}"
        trainer.save_model()
        trainer.accelerator.print(f"adapter saved to {training_args.output_dir}")
    trainer.end()
    return 0


def build_trainer(patches, histo_args, training_args, model_args):
    base_model = locate_base_model(model_args.model_name_or_path)
    fetch_base_model(base_model, model_args.model_revision)
    training_args.model_init_kwargs = build_model_init_kwargs(model_args)
    trainer = PatchTrainer(
        model=base_model,
        args=training_args,
        train_dataset=patches["train"],
        eval_dataset=patches["validation"],
        processing_class=load_processor(base_model, model_args.model_revision),
        quantization_config=build_quantization_config(model_args),
        peft_config=build_lora_config(model_args, histo_args.lora_scope),
        oom=histo_args.oom,
    )
    # The name of the recipe, not the folder of this machine, goes into the adapter's configuration; beside it the
    # commit of the weights that were loaded.
    adapter = trainer.model.peft_config["default"]
    adapter.base_model_name_or_path = model_args.model_name_or_path
    adapter.revision = resolve_revision(base_model, model_args.model_revision, local_files_only=True)
    if histo_args.early_stopping != "none":
        trainer.add_callback(build_early_stopping(histo_args, trainer.guessing_level))
    prepare_pictures(trainer, patches, histo_args)
    return trainer


if __name__ == "__main__":
    sys.exit(main(*parse_recipe()))
