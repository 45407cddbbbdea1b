"""What a recipe leaves to the memory that is free: checkpointing of activations, and how a step is cut."""

import logging
from dataclasses import replace

from datasets import Dataset
from transformers import ProcessorMixin

from histolab_sft.hardware import (
    BATCH,
    BFLOAT16_CAPABILITY,
    CHECKPOINTING,
    GIB,
    NO_PROFILE,
    check_precision,
    detect_available,
    detect_capability,
)
from histolab_sft.models.generate import render_completion, render_prompt
from histolab_sft.models.load import build_meta_model
from histolab_sft.models.memory import TRAINING, compute_peak, plan_memory
from histolab_sft.models.plan import build_planned_model, build_setup
from histolab_sft.phase_config import list_trained_parts

logger = logging.getLogger(__name__)

# Of the memory that is free: the allocator holds more than the plan counts.
SHARE = 0.95
# Marks and line breaks that a processor writes around a picture.
MARKUP_TOKENS = 8


def settle_hardware(rows: Dataset, processor: ProcessorMixin, histo_args, training_args, model_args) -> None:
    """Before weights are read: refuse what gives wrong numbers, log what the profile does, and fit a run on one GPU.

    Several processes must decide alike without asking each other, so there the recipe's and the profile's keys stand.

    Args:
        rows (`Dataset`): What is trained on, for the lengths of its sequences.

    Raises:
        ValueError: From `check_precision`.
    """
    base, _ = build_meta_model(model_args)
    capability = None if training_args.use_cpu else detect_capability()
    notes = [f"hardware: {histo_args.hardware}", *histo_args.profile_notes]
    notes += check_precision(training_args, model_args, base.config.model_type, capability)
    if capability is not None and training_args.world_size == 1 and training_args.deepspeed_plugin is None:
        model, _ = build_planned_model(model_args, histo_args.lora_scope, list_trained_parts(histo_args))
        lengths = measure_lengths(rows, processor, base.config.to_dict().get("mm_tokens_per_image", 256))
        available = detect_available()
        notes.append(fit_to_memory(model, histo_args, training_args, model_args, available, capability, lengths))
    for note in notes:
        logger.info("%s", note)


def fit_to_memory(
    model, histo_args, training_args, model_args, available: int, capability: tuple[int, int], lengths: tuple[int, int]
) -> str:
    """Decide what the recipe doesn't write, in `training_args`, and say what and why.

    Without checkpointing a step is a third faster, so it is the first choice. With a profile (`hardware`) the batch is
    open too: a micro-batch that doesn't fit is cut, and the gradients of more of them are added up, so that a step
    keeps its rows. A batch that the recipe writes is cut last, one that the profile gave before checkpointing.

    Args:
        model (`PreTrainedModel` or `PeftModel`): From `build_planned_model`.
        histo_args (`HistoArguments`), training_args (`SFTConfig`), model_args (`ModelConfig`): The recipe.
        available (`int`): Free bytes of the GPU.
        capability (`tuple[int, int]`): Of the GPU.
        lengths (`tuple[int, int]`): Longest sequence and longest answer in tokens.
    """
    recipe = vars(model_args) | vars(training_args) | vars(histo_args)
    recipe |= {"tokens": lengths[0], "labelled": lengths[1]}
    setup = build_setup(model, recipe, True, capability >= BFLOAT16_CAPABILITY)
    size, accumulation = setup.batch_size, training_args.gradient_accumulation_steps
    rows, written = size * accumulation, histo_args.written
    cuts = [less for less in range(size - 1, 0, -1) if rows % less == 0] if histo_args.hardware != NO_PROFILE else []
    checkpointing = [setup.checkpointing] if written & set(CHECKPOINTING) else [False, True]
    if written & set(BATCH):
        choices = [(size, on) for on in checkpointing] + [(less, checkpointing[-1]) for less in cuts]
    else:
        choices = [(less, on) for on in checkpointing for less in (size, *cuts)]
    for batch, on in choices:
        cut = replace(setup, batch_size=batch, accumulation=rows // batch, checkpointing=on)
        peak = compute_peak(plan_memory(model, cut), TRAINING)
        if peak <= SHARE * available:
            break
    training_args.activation_checkpointing = training_args.gradient_checkpointing = on
    training_args.per_device_train_batch_size = batch
    training_args.gradient_accumulation_steps = rows // batch
    outcome = (
        f"activation_checkpointing: {str(on).lower()}, per_device_train_batch_size: {batch}, "
        f"gradient_accumulation_steps: {rows // batch}: planned {peak / GIB:.2f} GiB of {available / GIB:.2f} free"
    )
    if peak > SHARE * available:
        outcome += f", which is over {SHARE:.0%} of it: look at the plan that preflight.py prints for what to change"
    return outcome


def measure_lengths(rows: Dataset, processor: ProcessorMixin, image_tokens: int) -> tuple[int, int]:
    """Return the tokens of the longest sequence and of the longest answer; `image_tokens` are those of a picture."""
    plain = rows.with_format(None)
    pictures = max(map(len, plain["images"])) if "images" in plain.column_names else 1
    turns = {(p[0]["content"], c[0]["content"]) for p, c in zip(plain["prompt"], plain["completion"], strict=True)}
    answers = {answer: question for question, answer in turns}
    longest, answer = max(turns, key=lambda turn: len(turn[0]) + len(turn[1])), max(answers, key=len)
    prompt, *completions = (
        processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (
            render_prompt(processor, longest[0]),
            render_completion(processor, *longest),
            render_completion(processor, answers[answer], answer),
        )
    )
    return pictures * image_tokens + len(prompt) + len(completions[0]) + MARKUP_TOKENS, len(completions[1])
