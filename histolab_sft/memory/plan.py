"""Print a recipe's memory plan: its parts, what fits this machine and every profile, and which keys to change."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from peft import get_peft_model
from transformers.training_args import OptimizerNames

from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.hardware import (
    BFLOAT16_CAPABILITY,
    CPU,
    GIB,
    HOPPER,
    PROFILES,
    USABLE_GIB,
    check_precision,
    detect_available,
    detect_capability,
    detect_profile,
)
from histolab_sft.config.phase import LANGUAGE, list_trained_parts
from histolab_sft.memory.activations import Precision
from histolab_sft.memory.peak import (
    MOMENTS,
    SCORING,
    TRAINING,
    MemoryRow,
    Setup,
    compute_peak,
    find_largest_micro_batch,
    plan_memory,
)
from histolab_sft.models.geometry import MEDGEMMA_4B_SIZED, write_medgemma_4b_config
from histolab_sft.models.load import build_lora_config, build_meta_model
from histolab_sft.models.precision import DTYPES
from histolab_sft.models.resolution import GEMMA3, read_resolution
from histolab_sft.models.trainable import train_parts
from histolab_sft.models.vision_tower import find_vision_tower

# Without the data at hand: one picture a row, and beside it, in tokens, nine class names and a sentence.
TEXT_TOKENS = 54
WITHOUT_DATA = {"labelled": 8, "pictures": 1, "options": None}
# What the profiles are made for; a plan for them must not depend on the card of the machine that prints it.
CAPABILITIES = {
    "gpu_4gb": (7, 5),
    "gpu_16gb_turing": (7, 5),
    "gpu_16gb": (8, 0),
    "gpu_24gb": (8, 0),
    "gpu_80gb": (9, 0),
}
NOT_COUNTED = (
    "Weights are counted and activations traced with the model's own code. The CUDA context is an assumption. What\n"
    "loading the weights takes for a moment, and the pass that fills the cache of features, are not in the plan.\n"
    "With vision_cache: auto, which may decline, the tower is planned to stay."
)


def plan_for_recipe(
    histo_args, training_args, model_args, on_gpu: bool | None = None, lengths: dict | None = None
) -> str:
    """Return the plan of a recipe as text: its parts, and a table of all profiles. Loads no weights.

    Args:
        histo_args (`HistoArguments`), training_args (`SFTConfig`), model_args (`ModelConfig`): The recipe.
        on_gpu (`bool`, *optional*): Where it will run, if not where `use_cpu` says.
        lengths (`dict`, *optional*): From `fit.measure_lengths`; one picture and 54 tokens of text if omitted.
    """
    model, note = build_planned_model(model_args, histo_args.lora_scope, list_trained_parts(histo_args))
    assumed = {"tokens": model.config.to_dict().get("mm_tokens_per_image", 256) + TEXT_TOKENS} | WITHOUT_DATA
    recipe = vars(model_args) | vars(training_args) | vars(histo_args) | (lengths or assumed)
    on_gpu = not training_args.use_cpu if on_gpu is None else on_gpu
    machine, capability = detect_profile(), detect_capability()
    setup = build_setup(model, recipe, on_gpu, capability)
    rows = plan_memory(model, setup)
    lines = [note] if note else []
    if lengths is None:
        lines.append("Planned without the data: one picture a row, a short question and a short answer.")
    lines += [f"{note}." for note in histo_args.profile_notes]
    lines += check_precision(training_args, model_args, model.config.model_type, capability if on_gpu else None)
    lines.append(
        f"{model_args.model_name_or_path}, at most {setup.tokens} tokens and {setup.pictures} "
        f"{'picture' if setup.pictures == 1 else 'pictures'} a row, micro-batch {setup.batch_size}"
        + (f"; {resolution}" if (resolution := read_resolution(model.config)) else "")
    )
    lines.append(format_plan(rows))
    if on_gpu and machine == CPU:
        lines.append("There is no GPU here to compare with.")
    else:
        available = detect_available()
        verdict = suggest_changes(model, setup, available, training_args.gradient_accumulation_steps)
        lines.append(
            f"This machine ({machine}, {available / GIB:.1f} GiB free): {verdict}; "
            f"largest batch {find_largest_batches(model, setup, available)}"
        )
    build = partial(build_resized, histo_args, model_args)
    return "\n".join([*lines, "", format_profiles(model, recipe, build), "", NOT_COUNTED])


def build_planned_model(
    model_args: ModelConfig, lora_scope: str, parts: Sequence[str] = (LANGUAGE,)
) -> tuple[torch.nn.Module, str]:
    """Return the model on the meta device with the recipe's adapter, and a note if its shape is the built-in one.

    Args:
        parts: What is trained of `language`, `projector` and `vision`: all of it that any phase trains.
    """
    note = ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, _ = build_meta_model(model_args)
        except OSError as error:
            if model_args.model_name_or_path not in MEDGEMMA_4B_SIZED:
                raise
            reason = str(error).splitlines()[0]
            note = (
                f"The configuration of {model_args.model_name_or_path} is out of reach ({reason}): planned with the "
                "built-in copy of it."
            )
            model_args = replace(model_args, model_name_or_path=str(write_medgemma_4b_config(folder)))
            model, _ = build_meta_model(model_args)
        lora = build_lora_config(model_args, lora_scope, parts)
    if lora is not None:
        model = get_peft_model(model, lora, low_cpu_mem_usage=True)
    train_parts(model, parts)
    return model, note


def build_resized(histo_args, model_args, side: int | None, tokens: int | None) -> torch.nn.Module:
    """Return the planned model of a recipe for pictures of another resolution."""
    model_args = replace(model_args, image_side=side, image_tokens=tokens)
    return build_planned_model(model_args, histo_args.lora_scope, list_trained_parts(histo_args))[0]


def build_setup(model, keys: dict, on_gpu: bool, capability: tuple[int, int] | None) -> Setup:
    """Return what `plan_memory` needs from a recipe's keys.

    Args:
        keys (`dict`): With `tokens`, `labelled`, `pictures` and `options` of the data beside the recipe's own.
        capability (`tuple[int, int]`, *optional*): Of the GPU; where it isn't known, one of the Ampere generation.
    """
    capability = capability or BFLOAT16_CAPABILITY
    frozen_tower = not any(parameter.requires_grad for parameter in find_vision_tower(model).parameters())
    autocast = torch.bfloat16 if keys["bf16"] else torch.float16 if keys["fp16"] else None
    quantized = keys["load_in_4bit"] or keys["load_in_8bit"]
    # MedGemma and most others are published in bfloat16, which `auto` takes.
    weights = torch.bfloat16 if keys["dtype"] == "auto" else DTYPES[keys["dtype"]]
    return Setup(
        precision=Precision(
            weights=weights,
            tower=DTYPES[keys["vision_tower_dtype"]] if keys["vision_tower_dtype"] else weights,
            autocast=autocast,
            adapter_casts=not (on_gpu and quantized and autocast is not None),
            fused_bfloat16=capability >= BFLOAT16_CAPABILITY or not on_gpu,
            byte_masks=on_gpu,
        ),
        load_in_4bit=keys["load_in_4bit"],
        load_in_8bit=keys["load_in_8bit"],
        double_quantized=keys["use_bnb_nested_quant"],
        compute_4bit=DTYPES[own] if (own := keys["bnb_4bit_compute_dtype"]) and keys["load_in_4bit"] else None,
        batch_size=keys["per_device_train_batch_size"],
        accumulation=keys["gradient_accumulation_steps"],
        tokens=keys["tokens"],
        labelled=keys["labelled"],
        pictures=keys["pictures"],
        options=keys["options"],
        checkpointing=keys["activation_checkpointing"],
        # Of other families the cache declines, whatever the key says.
        cached=keys["vision_cache"] not in ("auto", "off") and frozen_tower and model.config.model_type == GEMMA3,
        optimiser=OptimizerNames(keys["optim"]).value,
        scoring_batch=keys["per_device_eval_batch_size"],
        candidates=keys["candidate_batch_size"],
        on_gpu=on_gpu,
        hopper=capability >= HOPPER,
    )


def format_plan(rows: list[MemoryRow]) -> str:
    """Return the plan as a table, with the peak of each moment."""
    lines = [f"{'part':<20}{'dtype':<20}{'GiB':>8}  where the number comes from"]
    lines += [f"{row.part:<20}{row.dtype:<20}{row.bytes / GIB:>8.3f}  {row.source}" for row in rows]
    peaks = ", ".join(f"{moment} {compute_peak(rows, (moment,)) / GIB:.2f}" for moment in MOMENTS)
    lines.append(f"{'peak':<40}{compute_peak(rows) / GIB:>8.3f}  the largest of: {peaks}")
    return "\n".join(lines)


def format_profiles(model, recipe: dict, build: Callable[[int | None, int | None], torch.nn.Module]) -> str:
    """Return one line a profile: what its values and the recipe's adapter take, and how far the batch can grow.

    Args:
        recipe (`dict`): As in `build_setup`.
        build: Gives the model for a profile's `image_side` and `image_tokens`.
    """
    own = read_resolution(model.config)
    models = {(recipe["image_side"], recipe["image_tokens"]): model}
    lines = [f"{'profile':<17}{'GiB':>6}{'batch':>7}{'training':>10}{'scoring':>9}{'largest batch':>15}  verdict"]
    for name, table in PROFILES.items():
        keys = recipe | {key: value for key, (value, _) in table.items()}
        # A profile's resolution is MedGemma's, and no other family's.
        if model.config.model_type == GEMMA3:
            size = keys["image_side"], keys["image_tokens"]
            model = models[size] = models.get(size) or build(*size)
            keys["tokens"] += keys["pictures"] * (read_resolution(model.config).tokens - own.tokens)
        setup = build_setup(model, keys, name != CPU, CAPABILITIES.get(name))
        rows = plan_memory(model, setup)
        training, scoring = (compute_peak(rows, moments) / GIB for moments in (TRAINING, SCORING))
        usable, largest, verdict = "", "", "as much main memory as these"
        if name != CPU:
            available = round(USABLE_GIB[name] * GIB)
            usable = f"{USABLE_GIB[name]:.2f}"
            largest = find_largest_batches(model, setup, available)
            verdict = suggest_changes(model, setup, available, keys["gradient_accumulation_steps"])
        lines.append(
            f"{name:<17}{usable:>6}{setup.batch_size:>7}{training:>10.2f}{scoring:>9.2f}{largest:>15}  {verdict}"
        )
    lines.append(
        "Largest batch: without checkpointing of activations, and with it in brackets; 64 is the most that is tried."
    )
    return "\n".join(lines)


def find_largest_batches(model, setup: Setup, available: int) -> str:
    """Return the largest micro-batch without checkpointing of activations, and in brackets the largest with it."""
    sizes = (find_largest_micro_batch(model, replace(setup, checkpointing=on), available) for on in (False, True))
    return "{} ({})".format(*sizes)


def suggest_changes(model, setup: Setup, available: int, accumulation: int) -> str:
    """Return `fits`, or the keys to change until it does, the least loss of speed first."""
    changes = []
    if compute_peak(plan_memory(model, setup), SCORING) > available:
        setup = replace(setup, scoring_batch=1, candidates=1)
        changes.append("per_device_eval_batch_size: 1, candidate_batch_size: 1")
    tower_frozen = not any(parameter.requires_grad for parameter in find_vision_tower(model).parameters())
    adapter = any(not parameter.requires_grad for parameter in model.parameters())
    cacheable = model.config.model_type == GEMMA3 and tower_frozen and not setup.cached
    steps = [
        ("", {}, True),
        ("activation_checkpointing: true", {"checkpointing": True}, not setup.checkpointing),
        ("vision_cache: FOLDER", {"cached": True}, cacheable),
        (
            "load_in_4bit: true" + " in place of load_in_8bit" * setup.load_in_8bit,
            {"load_in_4bit": True, "load_in_8bit": False},
            adapter and not setup.load_in_4bit,
        ),
        ("use_bnb_nested_quant: true", {"double_quantized": True}, adapter and not setup.double_quantized),
    ]
    for text, change, possible in steps:
        if not possible:
            continue
        setup = replace(setup, **change)
        changes += [text] if text else []
        batch = min(find_largest_micro_batch(model, setup, available), setup.batch_size)
        if batch and compute_peak(plan_memory(model, setup), SCORING) <= available:
            if batch < setup.batch_size:
                accumulation = math.ceil(setup.batch_size * accumulation / batch)
                changes.append(f"per_device_train_batch_size: {batch}, gradient_accumulation_steps: {accumulation}")
            return f"fits after {'; '.join(changes)}" if changes else "fits"
    return "does not fit, whatever is changed: take a smaller base model or a larger card"
