"""
Fine-tune a vision-language model on patches:

    accelerate launch recipes/sft.py --config recipes/demo.yaml
    accelerate launch --config_file accelerate_configs/deepspeed_zero2.yaml recipes/sft.py --config recipes/histolab_5k.yaml
"""  # noqa: E501

import logging

from histolab_sft.arguments import parse_recipe
from histolab_sft.data.patches import load_audited_patches
from histolab_sft.models.load import (
    build_lora_config,
    build_model_init_kwargs,
    build_quantization_config,
    load_processor,
    locate_base_model,
)
from histolab_sft.training.callbacks import build_early_stopping
from histolab_sft.training.trainer import PatchTrainer


def main(histo_args, training_args, model_args):
    logging.basicConfig(level=logging.INFO if training_args.should_log else logging.WARNING, format="%(message)s")

    # One process decodes and audits; the others then find its results.
    with training_args.main_process_first(desc="data audit"):
        patches = load_audited_patches(histo_args, training_args.output_dir)

    base_model = locate_base_model(model_args.model_name_or_path)
    training_args.model_init_kwargs = build_model_init_kwargs(model_args)
    trainer = PatchTrainer(
        model=base_model,
        args=training_args,
        train_dataset=patches["train"],
        eval_dataset=patches["validation"],
        processing_class=load_processor(base_model, model_args.model_revision),
        quantization_config=build_quantization_config(model_args),
        peft_config=build_lora_config(model_args, histo_args.lora_scope),
    )
    # The name of the recipe, not the folder of this machine, goes into the adapter's configuration.
    trainer.model.peft_config["default"].base_model_name_or_path = model_args.model_name_or_path
    if histo_args.early_stopping != "none":
        trainer.add_callback(build_early_stopping(histo_args, trainer.guessing_level))

    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.accelerator.print(f"adapter saved to {training_args.output_dir}")
    trainer.end()


if __name__ == "__main__":
    main(*parse_recipe())
