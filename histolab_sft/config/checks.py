"""Declare the keys of a recipe, and check each alone: that it exists, and its value's type and range."""

import dataclasses
import difflib
import enum
import typing
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

# Names of other projects' recipes, for which the nearest spelling would be a wrong suggestion.
RENAMED = {
    "base_model": "model_name_or_path",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "evaluation_strategy": "eval_strategy",
    "gradient_accumulation": "gradient_accumulation_steps",
    "image_size": "image_side",
    "image_token_len": "image_tokens",
    "group_by_length": "train_sampling_strategy",
    "lora_target_scope": "lora_scope",
    "max_seq_length": "max_length",
    "model": "model_name_or_path",
    "no_cuda": "use_cpu",
    "per_device_batch_size": "per_device_train_batch_size",
    "quantization": "load_in_4bit",
    "samples_per_dataset": "max_samples",
    "target_modules": "lora_target_modules",
    "torch_dtype": "dtype",
    "train_ratio": "validation_fraction",
    "use_qlora": "load_in_4bit",
    "use_wandb": "report_to",
    "warmup_ratio": "warmup_steps",
}

# Least and greatest value, both allowed; None where there is no bound.
RANGES = {
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "candidate_batch_size": (1, None),
    "dataloader_num_workers": (0, None),
    "early_stopping_min_delta": (0, None),
    "early_stopping_patience": (1, None),
    "ema_decay": (0, 0.999999),
    "fold": (1, None),
    "folds": (2, 100),
    "expected_gain": (0.001, 0.9),
    "expected_score": (0.01, 0.999),
    "gradient_accumulation_steps": (1, None),
    "image_side": (1, 4096),
    "image_tokens": (1, 4096),
    "label_smoothing_factor": (0, 1),
    "learning_rate": (0, 1),
    "logging_steps": (0, None),
    "lora_alpha": (1, None),
    "lora_dropout": (0, 0.99),
    "lora_r": (1, None),
    "max_grad_norm": (0, None),
    "max_new_tokens": (1, None),
    "max_samples": (2, None),
    "max_test_samples": (2, None),
    "num_train_epochs": (0, None),
    "per_device_eval_batch_size": (1, None),
    "per_device_train_batch_size": (1, None),
    "projector_learning_rate": (0, 1),
    "save_steps": (0, None),
    "save_total_limit": (1, None),
    "seed": (0, 2**32 - 1),
    "split_seed": (0, 2**32 - 1),
    "test_fraction": (0.001, 0.998),
    "validation_fraction": (0.001, 0.998),
    "vision_learning_rate": (0, 1),
    "warmup_steps": (0, None),
    "weight_decay": (0, 1),
}


def key(default: object, help: str, choices: Sequence | None = None):
    """Return the field of a dataclass for a key of a recipe: its default, its help text and its allowed values."""
    return dataclasses.field(default=default, metadata={"help": help} | ({"choices": choices} if choices else {}))


def check_keys(found, known, where: str) -> None:
    """Raise a `ValueError` that names every key of `found` not in `known`, with the nearest that is."""
    complaints = [f"{key!r}{_suggest(key, known)}" for key in found if key not in known]
    if complaints:
        raise ValueError(f"unknown key in {where}: {', '.join(complaints)}; correct or remove it")


def check_values(recipe: dict, dataclass_types) -> None:
    """Raise a `ValueError` that names every value of the wrong type, outside its range or not among its choices.

    Text that reads as a number is one, since YAML takes `2e-5` for text.

    Args:
        recipe (`dict`): Keys that exist and their values, from the YAML.
        dataclass_types: The dataclasses whose fields the keys are.
    """
    complaints = []
    for dataclass_type in dataclass_types:
        hints = typing.get_type_hints(dataclass_type)
        for entry in dataclasses.fields(dataclass_type):
            listed = ("datasets", "external", "phases", "prior_correction")
            if entry.name in recipe and entry.name not in listed:
                complaints += _complain(entry, hints[entry.name], recipe[entry.name])
    if complaints:
        raise ValueError("; ".join(complaints))


def _complain(entry: dataclasses.Field, hint, value) -> list[str]:
    if entry.name == "resume_from_checkpoint" and str(value).lower() in ("true", "false"):
        return [f"{entry.name} is {value!r}, expected auto, which takes the newest whole checkpoint, or a folder"]
    # YAML reads a bare off as false, and a bare on as true.
    value = "off" if entry.name in ("vision_cache", "compiled_layers") and value is False else value
    value = "on" if entry.name == "compiled_layers" and value is True else value
    # A number of seeds stands for a list of them.
    value = [value] if entry.name == "seeds" and type(value) is int else value
    if value is None and (entry.default is None or type(None) in typing.get_args(hint)):
        return []
    try:
        TypeAdapter(hint, config={"arbitrary_types_allowed": True}).validate_python(value)
    except ValidationError:
        name = str(hint).removeprefix("<class '").removesuffix("'>")
        return [f"{entry.name} is {value!r}, expected {name}"]
    choices = entry.metadata.get("choices") or _enum_values(hint)
    if choices and value not in list(choices):
        return [f"{entry.name} is {value!r}, expected one of {', '.join(map(str, choices))}{_suggest(value, choices)}"]
    low, high = RANGES.get(entry.name, (None, None))
    if (low is not None and float(value) < low) or (high is not None and float(value) > high):
        bounds = f"at least {low}" + ("" if high is None else f" and at most {high}")
        return [f"{entry.name} is {value!r}, expected {bounds}"]
    if isinstance(value, float) and value != value:
        return [f"{entry.name} is not a number"]
    return []


def _enum_values(hint) -> list[str]:
    for kind in typing.get_args(hint):
        if isinstance(kind, enum.EnumMeta):
            return [member.value for member in kind]
    return []


def _suggest(word, known) -> str:
    word = str(word)
    nearest = (
        [RENAMED[word]] if RENAMED.get(word) in known else difflib.get_close_matches(word, map(str, known), 1, 0.5)
    )
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
