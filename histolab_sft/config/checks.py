"""What is wrong with a recipe, said all at once, before anything is loaded."""

import dataclasses
import difflib
import enum
import importlib.util
import typing

from pydantic import TypeAdapter, ValidationError

# Names that recipes elsewhere use, where the nearest spelling would mislead.
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


def check_keys(found, known, place: str) -> None:
    """Raise a `ValueError` that names every key of `found` not in `known`, with the nearest that is."""
    complaints = [f"{key!r}{_suggest(key, known)}" for key in found if key not in known]
    if complaints:
        raise ValueError(f"unknown key in {place}: {', '.join(complaints)}; correct or remove it")


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
            if entry.name in recipe and entry.name not in ("datasets", "phases"):
                complaints += _complain(entry, hints[entry.name], recipe[entry.name])
    if complaints:
        raise ValueError("; ".join(complaints))


def check_consistency(histo_args, training_args, model_args) -> None:
    """Raise a `ValueError` that names every contradiction between keys."""
    quantised = model_args.load_in_4bit or model_args.load_in_8bit
    metric = histo_args.early_stopping_metric
    records = any(config.format is not None for config in histo_args.datasets)
    unanswerable = {
        "generate_answers: false": not histo_args.generate_answers,
        f"sensitivity: {histo_args.sensitivity}": histo_args.sensitivity != "none",
        f"augmentation: {histo_args.augmentation}": histo_args.augmentation != "none",
        f"prompt_style: {histo_args.prompt_style}": histo_args.prompt_style != "generic",
    }
    stopping = histo_args.early_stopping != "none"
    gemma3 = any(name in str(model_args.model_name_or_path).lower() for name in ("gemma-3", "medgemma"))
    rules = [
        (
            quantised and not model_args.use_peft,
            "load_in_4bit or load_in_8bit without an adapter: quantised weights can't be trained; set use_peft: true",
        ),
        (
            model_args.use_peft and not (model_args.lora_target_modules or histo_args.adapter_name_or_path),
            "use_peft is on and lora_target_modules is empty; name linear layers such as [q_proj, v_proj]",
        ),
        (
            stopping and training_args.logging_strategy == "no",
            "early_stopping reads the log and logging_strategy is no; set logging_strategy: steps",
        ),
        (
            stopping and metric.startswith("eval_") and training_args.eval_strategy == "no",
            f"early_stopping_metric {metric} is never logged with eval_strategy: no; set eval_strategy: steps",
        ),
        (
            records and any(unanswerable.values()),
            f"{', '.join(key for key, given in unanswerable.items() if given)}: data sets with a format bring their "
            "own questions, their answers are written, and turning a picture would move boxes and sides; remove it",
        ),
        (
            records and "balanced_accuracy" in f"{metric if stopping else ''} {training_args.metric_for_best_model}",
            "eval_balanced_accuracy is measured on class folders alone; with a format, watch loss or eval_loss",
        ),
        (
            histo_args.constrained_decoding and any(config.format != "biomarkers" for config in histo_args.datasets),
            "constrained_decoding needs the form of a JSON answer, which only data sets with format: biomarkers have; "
            "remove it, or give them a recipe of their own",
        ),
        (
            histo_args.constrained_decoding and importlib.util.find_spec("llguidance") is None,
            "constrained_decoding needs llguidance, which isn't here; run `pip install histolab_sft[constrained]`",
        ),
        (
            histo_args.find_siblings and importlib.util.find_spec("cv2") is None,
            "find_siblings needs OpenCV, which isn't here; run `pip install histolab_sft[siblings]`",
        ),
        (
            training_args.trust_remote_code,
            "trust_remote_code runs code that comes with the weights; remove it, no model here needs it",
        ),
        (
            training_args.packing or training_args.padding_free,
            "packing and padding_free don't exist for pictures in TRL; remove them",
        ),
        (
            training_args.completion_only_loss is False or training_args.assistant_only_loss,
            "the loss is on the answer only; remove completion_only_loss and assistant_only_loss",
        ),
        (
            "flash" in str(model_args.attn_implementation),
            "flash attention drops Gemma 3's two-way attention among image tokens, without an error; "
            "remove attn_implementation (sdpa is used)",
        ),
        (
            gemma3 and (training_args.fp16 or model_args.dtype == "float16"),
            "Gemma 3 overflows in float16; set dtype: bfloat16 and fp16: false",
        ),
        (
            training_args.hub_token is not None,
            "a recipe takes no token; remove hub_token and log in with `hf auth login` or set HF_TOKEN",
        ),
        (
            training_args.push_to_hub,
            "push_to_hub uploads all that lies in output_dir; remove it and use recipes/push_adapter.py",
        ),
        (
            training_args.save_only_model or training_args.ignore_data_skip,
            "save_only_model and ignore_data_skip make runs that can't go on exactly; remove them",
        ),
        (
            training_args.enable_jit_checkpoint,
            "enable_jit_checkpoint saves in the middle of a step; remove it, stop signals save at the step's end",
        ),
        (
            training_args.auto_find_batch_size,
            "auto_find_batch_size starts the run again with other steps; set oom: halve in its place",
        ),
        (
            histo_args.vision_cache not in ("auto", "off")
            and (histo_args.augmentation in ("stain", "all") or histo_args.lora_scope != "language"),
            f"vision_cache {histo_args.vision_cache}: features stay the same only while no stain jitter changes the "
            "pictures and no adapter the vision tower; set vision_cache: off",
        ),
        (
            histo_args.vision_cache not in ("auto", "off")
            and (histo_args.sensitivity == "all" or histo_args.sensitivity_sides)
            and not training_args.use_cpu,
            "sensitivity: all and sensitivity_sides ask about changed pictures, for which the vision tower must be on "
            f"the GPU, and vision_cache: {histo_args.vision_cache} keeps it off; set sensitivity: prompt without "
            "sensitivity_sides, or vision_cache: auto",
        ),
        (
            histo_args.sensitivity_sides and histo_args.sensitivity == "none",
            "sensitivity_sides asks about the patches of sensitivity, which is none; set sensitivity: prompt or all",
        ),
        (
            histo_args.sensitivity_sides and not model_args.use_peft,
            "sensitivity_sides compares one adapter on base models of several sides, and use_peft is off; remove it",
        ),
        (
            training_args.load_best_model_at_end and training_args.eval_strategy == "no",
            "load_best_model_at_end compares evaluations and eval_strategy is no; set eval_strategy: steps",
        ),
    ]
    complaints = [message for broken, message in rules if broken]
    if complaints:
        raise ValueError("; ".join(complaints))


def _complain(entry: dataclasses.Field, hint, value) -> list[str]:
    if entry.name == "resume_from_checkpoint" and str(value).lower() in ("true", "false"):
        return [f"{entry.name} is {value!r}, expected auto, which takes the newest whole checkpoint, or a folder"]
    # YAML reads a bare off as false, and a bare on as true.
    value = "off" if entry.name in ("vision_cache", "compiled_layers") and value is False else value
    value = "on" if entry.name == "compiled_layers" and value is True else value
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
