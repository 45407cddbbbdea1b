"""Dtypes beside the model's own: a vision tower in another one, and what layers take in 4 bits."""

import math

import torch
from torch import nn
from torch.utils._pytree import tree_map

from histolab_sft.models.vision_tower import find_vision_tower

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


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
