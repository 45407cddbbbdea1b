"""The precision of a recipe: set on the model once, so that every pass computes in it.

The weights have the dtype `dtype`; what is trained is float32. Beside that, matrix products run under autocast
(`bf16`, `fp16`), 4-bit layers multiply in a dtype of their own, and so does the vision tower. Training, canary step,
scoring in training and after it, merging and demo all call a model that went through `set_precision`.
"""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._pytree import tree_map

from histolab_sft.models.generate import unwrap_adapter
from histolab_sft.models.vision_tower import find_vision_tower

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """Names of dtypes beside `dtype`, None where there is none of its own.

    Attributes:
        autocast: In which matrix products run, whatever their inputs are.
        compute: In which 4-bit layers multiply.
        tower: Of the vision tower.
    """

    autocast: str | None = None
    compute: str | None = None
    tower: str | None = None


_PRECISIONS: WeakKeyDictionary[nn.Module, Precision] = WeakKeyDictionary()


def read_precision(histo_args, training_args) -> Precision:
    """Return what a recipe says, in its `HistoArguments` and `SFTConfig`."""
    autocast = "bfloat16" if training_args.bf16 else "float16" if training_args.fp16 else None
    return Precision(autocast, histo_args.bnb_4bit_compute_dtype, histo_args.vision_tower_dtype)


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Let every later pass of the model, with an adapter or without, compute in this precision. Call it once.

    In training call it when the trainer is built: TRL and PEFT replace the model's forward pass by their own.

    Args:
        precision: `compute` was already used when the weights were loaded.
    """
    cast_vision_tower(model, precision.tower)
    base = unwrap_adapter(model)
    _PRECISIONS[base] = precision
    if precision.autocast is not None:
        base.forward = _within(base.forward, lambda: autocasting(base))
        if precision.tower not in (None, precision.autocast):
            tower = find_vision_tower(base)
            # Else the tower would multiply in the dtype of autocast, whatever its own is.
            tower.forward = _within(tower.forward, lambda: torch.autocast(tower.device.type, enabled=False))


def _within(forward: Callable, context: Callable[[], AbstractContextManager]) -> Callable:
    @functools.wraps(forward)
    def forward_within(*args, **kwargs):
        with context():
            return forward(*args, **kwargs)

    return forward_within


def get_precision(model: nn.Module) -> Precision:
    """Return what `set_precision` was told about the model."""
    return _PRECISIONS.get(unwrap_adapter(model), Precision())


def autocasting(model: nn.Module) -> AbstractContextManager:
    """Return the context in which the model's own forward pass runs, for a pass of a part of it."""
    base = unwrap_adapter(model)
    name = get_precision(base).autocast
    return nullcontext() if name is None else torch.autocast(base.device.type, DTYPES[name])


def cast_vision_tower(model: nn.Module, name: str | None) -> None:
    """Cast the frozen weights of the vision tower and what goes into it, and what comes out of it back.

    Everything behind the tower sees the dtype that it saw before: SigLIP's activations stay in float16's range, those
    of Gemma 3's language layers do not. Call it once, before pictures are encoded.

    Args:
        model (`PreTrainedModel` or `PeftModel`): What is trained in the tower keeps its dtype.
        name (`str`, *optional*): `bfloat16`, `float16` or `float32`; None leaves the tower alone.
    """
    if name is None:
        return
    tower = find_vision_tower(model)
    inside, outside = DTYPES[name], tower.dtype
    for parameter in tower.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(inside)
    tower.register_forward_pre_hook(
        lambda module, args, kwargs: (_cast(args, inside), _cast(kwargs, inside)), with_kwargs=True
    )
    tower.register_forward_hook(lambda module, args, output: _cast(output, outside))


def _cast(values, dtype: torch.dtype):
    return tree_map(
        lambda value: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value,
        values,
    )


def count_4bit(weights: int, double_quantized: bool) -> int:
    """Return the bytes of one layer's `weights` in NF4: half a byte each and a scale for every 64.

    A scale is a float32; quantised once more it is one byte, with a float32 for every 256 of them, their mean and
    their table of 256 values (Dettmers et al. 2023, section 3). A table of 16 values comes with each layer.
    """
    scales = math.ceil(weights / 64)
    nested = scales + 4 * (math.ceil(scales / 256) + 1 + 256)
    return math.ceil(weights / 2) + 4 * 16 + (nested if double_quantized else 4 * scales)
