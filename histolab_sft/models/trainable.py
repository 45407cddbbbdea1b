"""Find language layers, projector and vision tower in any model, and choose which of them are trained."""

import re
from collections.abc import Sequence

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from histolab_sft.config.phase import LANGUAGE, PARTS, PROJECTOR, VISION
from histolab_sft.models.generate import unwrap_adapter
from histolab_sft.models.vision_tower import find_vision_tower

# What PEFT puts between the names of a module and of its weights.
_WRAPPED = (".modules_to_save.default", ".original_module", ".base_layer")
_ORIGINAL = ".original_module."


def find_parts(model: PreTrainedModel) -> dict[str, list[str]]:
    """Return the full names of the modules that each part consists of.

    The projector is what stands beside language model and tower; where nothing does (Qwen-VL), it is what comes after
    the layers inside the tower. So a module inside the tower may belong to the projector.

    Raises:
        ValueError: The model has no vision tower, or no projector.
    """
    decoder, tower = _find_name(model, model.get_decoder()), _find_name(model, find_vision_tower(model))
    head = _find_name(model, model.get_output_embeddings())
    beside = [name for name in list_siblings(model, decoder) if not f"{tower}.".startswith(f"{name}.")]
    beside = [name for name in beside if name != head and list(model.get_submodule(name).parameters())]
    if not beside:
        whole = model.get_submodule(tower)
        # An adapter that trains the tower holds a second one.
        whole = whole.original_module if isinstance(whole, ModulesToSaveWrapper) else whole
        children = list(whole.named_children())
        layers = [i for i, (_, child) in enumerate(children) if isinstance(child, nn.ModuleList)]
        after = children[layers[0] + 1 :] if layers else []
        beside = [f"{tower}.{name}" for name, child in after if list(child.parameters())]
    if not beside:
        raise ValueError(
            f"{type(model).__name__} has nothing between {tower} and {decoder}, expected a projector; check "
            "model_name_or_path"
        )
    return {LANGUAGE: [decoder, head], PROJECTOR: beside, VISION: [tower]}


def list_siblings(model: PreTrainedModel, name: str) -> list[str]:
    """Return the full names of the modules beside the path from the model to the module `name`."""
    path = name.split(".")
    siblings = []
    for depth, step in enumerate(path):
        prefix = ".".join(path[:depth])
        parent = model.get_submodule(prefix)
        siblings += [f"{prefix}.{child}".lstrip(".") for child, _ in parent.named_children() if child != step]
    return siblings


def list_linear_layers(model: PreTrainedModel, part: str) -> list[str]:
    """Return the full names of the linear layers in a list of layers (`.0.`, `.1.`, ...) inside the module `part`.

    What stands beside the list, such as a pooling head, is no layer.
    """
    layer = re.compile(rf"{re.escape(part)}\.(.*\.)?\d+\..+")
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and layer.fullmatch(name)]


def list_saved_modules(model: PreTrainedModel, config: LoraConfig, parts: list[str]) -> list[str]:
    """Return the modules that an adapter must hold whole so that these parts can be trained: PEFT's `modules_to_save`.

    Language layers never (they have LoRA), the projector always, the tower where it has no LoRA either.

    Args:
        model: The base model.
        config: With `target_modules`.
    """
    found = find_parts(model)
    tower = found[VISION][0]
    adapted = any(
        name.startswith(f"{tower}.") and check_target_module_exists(config, name) for name, _ in model.named_modules()
    )
    whole = [tower] if VISION in parts and not adapted else []
    projector = found[PROJECTOR] if PROJECTOR in parts else []
    return whole + [name for name in projector if not (whole and name.startswith(f"{tower}."))]


def train_parts(model: nn.Module, parts: list[str]) -> None:
    """Train these parts in float32 and freeze everything else. Under an adapter, its weights are all that can train.

    TRL casts what is trained on a quantised model to bfloat16, where small AdamW steps are lost, and resuming would
    cast it back to float32. Here it is float32 from the start.

    Raises:
        ValueError: A part has nothing that can be trained.
    """
    adapted = unwrap_adapter(model) is not model
    for part, parameters in list_parameters(model).items():
        can = {
            name: parameter
            for name, parameter in parameters.items()
            if _ORIGINAL not in name and (not adapted or ".lora_" in name or ".modules_to_save." in name)
        }
        if part in parts and not can:
            raise ValueError(
                f"nothing of the part {part} can be trained, expected LoRA there; see lora_target_modules"
            )
        for name, parameter in parameters.items():
            parameter.requires_grad_(part in parts and name in can)
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    _match_dtypes(unwrap_adapter(model))


def freeze_dtypes(model: PreTrainedModel, parts: Sequence[str], dtype: torch.dtype) -> None:
    """Give all but these parts, which were trained in float32, the dtype that frozen weights have in training."""
    for part, parameters in list_parameters(model).items():
        for parameter in parameters.values() if part not in parts else ():
            parameter.data = parameter.data.to(dtype)
    _match_dtypes(model)


def list_parameters(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Return `{part: {name: parameter}}` of the model with or without an adapter."""
    base = unwrap_adapter(model)
    modules = find_parts(base)
    found = {part: {} for part in PARTS}
    for name, parameter in base.named_parameters():
        plain = name
        for infix in _WRAPPED:
            plain = plain.replace(infix, "")
        # The projector first, since it may lie inside the tower.
        part = next(
            part for part in (PROJECTOR, VISION, LANGUAGE) if any(plain.startswith(f"{x}.") for x in modules[part])
        )
        found[part][name] = parameter
    return found


def count_trained(model: nn.Module) -> dict[str, int]:
    """Return how many parameters of each part are trained, parts without any included."""
    return {
        part: sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
        for part, parameters in list_parameters(model).items()
    }


def set_learning_rates(optimizer: torch.optim.Optimizer, model: nn.Module, rates: dict[str, float]) -> None:
    """Give parts a learning rate of their own: each group of the optimiser is split, the parts without one first.

    Args:
        optimizer: Before its first step, and before a schedule is made for it.
        rates (`dict`): Part -> learning rate.
    """
    own = {id(p): part for part, found in list_parameters(model).items() if part in rates for p in found.values()}
    groups = []
    for group in optimizer.param_groups:
        for part in (None, *rates):
            parameters = [parameter for parameter in group["params"] if own.get(id(parameter)) == part]
            if parameters:
                groups.append(group | {"params": parameters} | ({"lr": rates[part]} if part else {}))
    optimizer.param_groups[:] = groups


def _find_name(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _match_dtypes(model: PreTrainedModel) -> None:
    """Let the projector take what the tower gives, where one of the two is trained, and so in float32."""
    for name in find_parts(model)[PROJECTOR]:
        module = model.get_submodule(name)
        used = [parameter for path, parameter in module.named_parameters() if _ORIGINAL not in f".{path}"]
        dtype = used[0].dtype
        module.register_forward_pre_hook(
            lambda _, inputs, dtype=dtype: tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
        )
