"""Check an adapter's files against the base model before any of them is loaded: they may come from anywhere."""

import json
import logging
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from histolab_sft.hub_access import resolve_commit
from histolab_sft.models.resolution import Resolution, check_same_resolution, read_resolution

logger = logging.getLogger(__name__)

MAX_RANK = 512
MAX_ALPHA = 65536  # 128 times the largest rank; what is meant to be a scale is far below
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PREFIX = "base_model.model."
# What is read from the configuration. The target modules are read from the tensors' names: in the configuration they
# are a regular expression, which can be made to run for years.
READ_KEYS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save", "task_type")
RESOLUTION_KEYS = ("image_side", "image_tokens")
# What may stand there and isn't read.
IGNORED_KEYS = (
    *("target_modules", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "peft_type"),
    "auto_mapping",
)


@dataclass
class ResolutionLoraConfig(LoraConfig):
    """Configuration of an adapter that was trained at a resolution which its recipe names."""

    image_side: int | None = None  # pixels
    image_tokens: int | None = None


class AdapterError(ValueError):
    """The adapter doesn't fit the base model, or isn't one, and the message says how."""


def read_adapter_config(folder: str | Path) -> dict:
    """Return `adapter_config.json` of a plain LoRA adapter.

    Raises:
        AdapterError: It can't be read, is of another kind of adapter, names a rank out of bounds, or asks for
            something that isn't understood here (some settings of PEFT import modules or change the base model).
    """
    path = Path(folder, "adapter_config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} can't be read ({error}), expected the configuration of an adapter") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"{path} is of {kind!r}, expected LORA; train an adapter with recipes/sft.py")
    defaults = LoraConfig().to_dict()
    odd = [
        key
        for key, value in config.items()
        if value and key not in READ_KEYS + RESOLUTION_KEYS + IGNORED_KEYS and value != defaults.get(key)
    ]
    if odd:
        raise AdapterError(f"{path} sets {', '.join(sorted(odd))}, expected defaults; use an adapter without them")
    rank = config.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise AdapterError(f"{path} has rank {rank!r}, expected a whole number from 1 to {MAX_RANK}")
    _check_scale(path, config)
    read_trained_resolution(path, config)
    if not isinstance(config.get("base_model_name_or_path"), str):
        raise AdapterError(f"{path} names no base model, expected base_model_name_or_path; use a complete adapter")
    return config


def read_trained_resolution(path: Path, config: dict) -> Resolution | None:
    """Return the resolution that an adapter's configuration names, None if it is the base model's own.

    Raises:
        AdapterError: It is something else than two whole numbers.
    """
    values = [config.get(key) for key in RESOLUTION_KEYS]
    if values == [None, None]:
        return None
    if not all(type(value) is int and value > 0 for value in values):
        raise AdapterError(
            f"{path} has image_side {values[0]!r} and image_tokens {values[1]!r}, expected whole numbers above 0"
        )
    return Resolution(*values)


def keep_resolution(config: LoraConfig, resolution: Resolution) -> LoraConfig:
    """Return the configuration with the resolution of pictures, which is written beside the adapter with it."""
    values = {entry.name: getattr(config, entry.name) for entry in fields(LoraConfig) if entry.init}
    return ResolutionLoraConfig(**values, image_side=resolution.side, image_tokens=resolution.tokens)


def _check_scale(path: Path, config: dict) -> None:
    """Raise AdapterError for settings with which the adapter would load and compute nonsense."""
    alpha, dropout = config.get("lora_alpha"), config.get("lora_dropout", 0.0)
    if not _is_number(alpha) or not 0 < alpha <= MAX_ALPHA:
        raise AdapterError(f"{path} has lora_alpha {alpha!r}, expected a number above 0 and at most {MAX_ALPHA}")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise AdapterError(f"{path} has lora_dropout {dropout!r}, expected a number from 0 to below 1")
    for key in ("use_rslora", "use_dora"):
        if not isinstance(config.get(key, False), bool):
            raise AdapterError(f"{path} has {key} {config[key]!r}, expected true or false")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise AdapterError(f"{path} has task_type {config['task_type']!r}, expected CAUSAL_LM or none")
    modules = config.get("modules_to_save")
    if modules is not None and not (isinstance(modules, list) and all(isinstance(name, str) for name in modules)):
        raise AdapterError(f"{path} has modules_to_save {modules!r}, expected a list of names or none")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_adapter(
    path: str | Path,
    config: dict,
    model: PreTrainedModel,
    base_model: str,
    revision: str = "main",
    any_resolution: bool = False,
) -> LoraConfig:
    """Return the configuration to load the adapter with, made from what was checked.

    Args:
        path: Weights of the adapter, safetensors.
        config (`dict`): From `read_adapter_config`.
        model: The base model.
        base_model (`str`): Where the base model that `config` names is loaded from.
        revision (`str`): Of the base model, as it was loaded.
        any_resolution (`bool`): Take it although pictures have another resolution than in training.

    Raises:
        AdapterError: Another base model, revision or resolution of pictures; tensors that aren't LoRA's, of modules
            that the model hasn't, of another shape, or not finite.
    """
    path = Path(path)
    if base_model != model.name_or_path:
        raise AdapterError(
            f"{path.parent} is an adapter of {config['base_model_name_or_path']}, expected one of "
            f"{model.name_or_path}; correct model_name_or_path or output_dir"
        )
    _check_revision(path.parent, config.get("revision"), base_model, revision)
    if not any_resolution:
        _check_resolution(path.parent, config, model, base_model, revision)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise AdapterError(f"{path} can't be read as safetensors ({error}); train again") from error
    expected = _list_expected(set(tensors), config, model, path)
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise AdapterError(
                f"{name} in {path} has the shape {tuple(tensor.shape)}, expected {expected[name]} for this base model "
                "and rank; use the base model that the adapter was trained on"
            )
        if tensor.dtype not in DTYPES:
            found = str(tensor.dtype).removeprefix("torch.")
            raise AdapterError(f"{name} in {path} is of {found}, expected float32, bfloat16 or float16; train again")
        if not tensor.isfinite().all():
            raise AdapterError(f"{name} in {path} isn't finite numbers throughout; train again")
    checked = LoraConfig(
        target_modules=sorted({name.removeprefix(PREFIX).split(".lora_")[0] for name in tensors if ".lora_" in name}),
        base_model_name_or_path=config["base_model_name_or_path"],
        revision=config.get("revision"),
        inference_mode=True,
        **{key: config[key] for key in READ_KEYS if key in config},
    )
    trained = read_trained_resolution(path.parent, config)
    return checked if trained is None else keep_resolution(checked, trained)


def _check_resolution(folder: Path, config: dict, model: PreTrainedModel, base_model: str, revision: str) -> None:
    trained = read_trained_resolution(folder, config)
    if trained is None:
        # An adapter that names none was trained at the base model's own.
        trained = read_resolution(AutoConfig.from_pretrained(base_model, revision=revision, trust_remote_code=False))
    try:
        check_same_resolution(folder, trained, read_resolution(model.config))
    except ValueError as error:
        raise AdapterError(str(error)) from None


def _check_revision(folder: Path, found: str | None, base_model: str, revision: str) -> None:
    if found is None:
        logger.warning("%s doesn't tell the revision of its base model: it may be of another one", folder)
        return
    found, loaded = (resolve_commit(base_model, name) for name in (found, revision))
    if found != loaded:
        raise AdapterError(
            f"{folder} is an adapter of {base_model} at {found}, and {loaded} is loaded; set model_revision: {found}"
        )


def _list_expected(names: set[str], config: dict, model: PreTrainedModel, path: Path) -> dict[str, tuple[int, ...]]:
    """The shape that each tensor must have. Raises `AdapterError` for one that is missing or has no business there."""
    modules = dict(model.named_modules())
    # Whole modules that were trained beside the LoRA matrices, if the configuration names any.
    expected = {
        PREFIX + name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if any(f".{module}." in f".{name}" for module in config.get("modules_to_save") or ())
    }
    for name in sorted(names - set(expected)):
        module, separator, _ = name.removeprefix(PREFIX).rpartition(".lora_")
        layer = modules.get(module)
        if separator and isinstance(layer, nn.Linear):
            expected[f"{PREFIX}{module}.lora_A.weight"] = (config["r"], layer.in_features)
            expected[f"{PREFIX}{module}.lora_B.weight"] = (layer.out_features, config["r"])
            if config.get("use_dora"):
                expected[f"{PREFIX}{module}.lora_magnitude_vector"] = (layer.out_features,)
        if name not in expected:
            raise AdapterError(
                f"{path} holds {name}, expected tensors lora_A and lora_B of linear layers of {model.name_or_path}; "
                "use the base model that the adapter was trained on"
            )
    # What is missing would be filled up with random numbers.
    if missing := sorted(set(expected) - names):
        raise AdapterError(f"{path} lacks {missing[0]}, expected {len(expected)} tensors; train again")
    if not expected:
        raise AdapterError(f"{path} holds no tensor, expected an adapter; train again")
    return expected
