"""Build the trainer of a phase from the recipe's keys: model, adapter, pictures, early stopping."""

from datasets import DatasetDict

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.data.class_balance import plan_balance
from histolab_sft.hub_access import fetch_base_model, resolve_commit
from histolab_sft.memory.fit import fit_to_hardware
from histolab_sft.models.continued_adapter import build_starting_point
from histolab_sft.models.load import load_base_processor, load_weights, load_whole, locate_base_model
from histolab_sft.models.precision import read_precision
from histolab_sft.training.callbacks import build_early_stopping
from histolab_sft.training.canary import run_canary
from histolab_sft.training.compiled_steps import compile_training
from histolab_sft.training.phases import Phase
from histolab_sft.training.picture_inputs import prepare_pictures
from histolab_sft.training.run_keys import describe_keys
from histolab_sft.training.trainer import PatchTrainer


def build_trainer(
    patches: DatasetDict, phase: Phase, histo_args: HistoArguments, model_args: ModelConfig
) -> PatchTrainer:
    """Return the trainer of a phase as it will train, its starting weights loaded and one step tried out.

    Args:
        patches: The rows of the phase, by split, audited.

    Raises:
        AdapterError, CanaryError, HubAccessError, ValueError: The recipe can't be carried out; the message says why.
    """
    training_args = phase.args
    # As the recipe has them, before they are fitted to the memory that is free.
    keys = describe_keys(histo_args, training_args, model_args)
    base_model = locate_base_model(model_args.model_name_or_path)
    fetch_base_model(base_model, model_args.model_revision)
    processor = load_base_processor(model_args)
    fit_to_hardware(patches["train"], processor, histo_args, training_args, model_args)
    lora, adapter_folder = build_starting_point(model_args, histo_args.lora_scope, phase.start, phase.all_parts)
    cache = histo_args.vision_cache
    if phase.start and not model_args.use_peft:
        model = load_whole(phase.start, model_args, phase.all_parts, cache)
    else:
        model = load_weights(base_model, model_args, read_precision(histo_args, training_args), cache)
    trainer = PatchTrainer(
        model=model,
        args=training_args,
        train_dataset=patches["train"],
        eval_dataset=patches["validation"],
        processing_class=processor,
        peft_config=lora,
        keys=keys,
        resume_changes=histo_args.resume_changes or (),
        oom=histo_args.oom,
        parts=phase.parts,
        learning_rates=phase.learning_rates,
        adapter_folder=adapter_folder,
        candidate_batch_size=histo_args.candidate_batch_size,
        balance=plan_balance(patches["train"], histo_args.class_weights, histo_args.class_sampling),
    )
    if lora is not None:
        # The name of the recipe, not the folder of this machine, goes into the adapter's configuration; beside it the
        # commit of the weights that were loaded.
        adapter = trainer.model.peft_config["default"]
        adapter.base_model_name_or_path = model_args.model_name_or_path
        adapter.revision = resolve_commit(base_model, model_args.model_revision)
    if histo_args.early_stopping != "none":
        trainer.add_callback(build_early_stopping(histo_args, trainer.guessing_level))
    prepare_pictures(trainer, patches, histo_args)
    run_canary(trainer)
    trainer.compiled_layers = compile_training(trainer, histo_args.compiled_layers)
    return trainer
