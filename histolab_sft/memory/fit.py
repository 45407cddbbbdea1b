"""Fit a run into the memory that is free: activation checkpointing, micro-batch and accumulation."""

import logging
from dataclasses import replace

from datasets import Dataset
from transformers import ProcessorMixin

from histolab_sft.config.hardware import (
    BATCH,
    CHECKPOINTING,
    GIB,
    NO_PROFILE,
    check_precision,
    detect_available,
    detect_capability,
)
from histolab_sft.config.phase import list_trained_parts
from histolab_sft.memory.peak import TRAINING, MemoryRow, Setup, compute_peak, plan_memory
from histolab_sft.memory.plan import build_planned_model, build_setup
from histolab_sft.models.generate import render_completion, render_prompt
from histolab_sft.models.load import build_meta_model

logger = logging.getLogger(__name__)

# Of the memory that is free: whatever else runs on the card may come to take a little more.
SHARE = 0.97
# Marks and line breaks that a processor writes around a picture.
MARKUP_TOKENS = 8
# Of a picture, where a processor doesn't say.
OTHER_IMAGE_TOKENS = 256
# Texts whose tokens are counted to find the longest.
COUNTED_TEXTS = 64


def fit_to_hardware(rows: Dataset, processor: ProcessorMixin, histo_args, training_args, model_args) -> None:
    """Before weights are read: refuse what gives wrong numbers, log what the profile does, and fit a run on one GPU.

    With several processes the keys of the recipe and the profile stay: each process sees another free memory, and all
    must decide alike.

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
        lengths = measure_lengths(rows, processor)
        available = detect_available()
        notes.append(fit_to_memory(model, histo_args, training_args, model_args, available, capability, lengths))
    for note in notes:
        logger.info("%s", note)


def fit_to_memory(
    model, histo_args, training_args, model_args, available: int, capability: tuple[int, int], lengths: dict
) -> str:
    """Decide what the recipe doesn't write, in `training_args`, and say what and why.

    Without checkpointing a step is a third faster, so it is the first choice. With a profile (`hardware`) the batch is
    open too, and the rows of a step stay: where the profile gave it, the micro-batch is the largest part of a step
    that fits, the whole of it at best; a batch that the recipe writes is cut, and the gradients of more of them are
    added up, only if it doesn't fit with checkpointing either.

    Args:
        model (`PreTrainedModel` or `PeftModel`): From `build_planned_model`.
        histo_args (`HistoArguments`), training_args (`SFTConfig`), model_args (`ModelConfig`): The recipe.
        available (`int`): Free bytes of the GPU.
        capability (`tuple[int, int]`): Of the GPU.
        lengths (`dict`): From `measure_lengths`.
    """
    recipe = vars(model_args) | vars(training_args) | vars(histo_args) | lengths
    setup = build_setup(model, recipe, True, capability)
    size, accumulation = setup.batch_size, training_args.gradient_accumulation_steps
    rows, written = size * accumulation, histo_args.written
    open_batch = histo_args.hardware != NO_PROFILE
    parts = [part for part in range(rows, 0, -1) if rows % part == 0] if open_batch else [size]
    checkpointing = [setup.checkpointing] if written & set(CHECKPOINTING) else [False, True]
    if written & set(BATCH):
        choices = [(size, on) for on in checkpointing]
        choices += [(part, checkpointing[-1]) for part in parts if part < size]
    else:
        choices = [(part, on) for on in checkpointing for part in parts]
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


def plan_fitted(
    rows: Dataset, processor: ProcessorMixin, histo_args, training_args, model_args
) -> tuple[Setup, list[MemoryRow]]:
    """Return the plan of a recipe whose open keys `fit_to_hardware` has decided: what it is for, and its rows."""
    model, _ = build_planned_model(model_args, histo_args.lora_scope, list_trained_parts(histo_args))
    lengths = measure_lengths(rows, processor)
    keys = vars(model_args) | vars(training_args) | vars(histo_args) | lengths
    setup = build_setup(model, keys, not training_args.use_cpu, detect_capability())
    return setup, plan_memory(model, setup)


def measure_lengths(rows: Dataset, processor: ProcessorMixin) -> dict:
    """Return what a plan must know of the rows, as keys of `plan.build_setup`.

    Args:
        rows (`Dataset`): With `prompt` and `completion`.

    Returns:
        `dict`: `tokens` of the longest sequence, `labelled` tokens of the longest answer, most `pictures` of a row,
        and how many answers there are to choose from (`options`, None where answers are free).
    """
    plain = rows.with_format(None)
    pictures = max(map(len, plain["images"]))
    pairs = {(p[0]["content"], c[0]["content"]) for p, c in zip(plain["prompt"], plain["completion"], strict=True)}
    answers = {answer: question for question, answer in pairs}
    image_tokens = getattr(processor, "image_seq_length", OTHER_IMAGE_TOKENS)
    # Words of other lengths have other numbers of tokens, so several of the longest by letters are counted.
    longest = sorted(pairs, key=lambda pair: -len(pair[0]) - len(pair[1]))[:COUNTED_TEXTS]
    lasting = sorted(answers, key=len)[-COUNTED_TEXTS:]

    def count(texts: list[str]) -> list[int]:
        return [len(tokens) for tokens in processor.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    prompts = count([render_prompt(processor, question) for question, _ in longest])
    completions = count([render_completion(processor, *pair) for pair in longest])
    return {
        "tokens": pictures * (image_tokens + MARKUP_TOKENS) + max(map(sum, zip(prompts, completions, strict=True))),
        "labelled": max(count([render_completion(processor, answers[answer], answer) for answer in lasting])),
        "pictures": pictures,
        "options": _count_options(plain),
    }


def _count_options(plain: Dataset) -> int | None:
    """Return the classes of the data set with the most of them, None where an answer isn't one of a few."""
    names: dict[str, set[str]] = {}
    for dataset, label in zip(plain["dataset"], plain["label"], strict=True):
        if label is not None:
            names.setdefault(dataset, set()).add(label)
    return max(map(len, names.values()), default=None)
