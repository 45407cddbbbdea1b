"""Send pictures to the vision tower's device as bytes: a quarter of the memory and a ninth of the work of floats.

Pillow scales a picture to 8 bits. What an image processor then does to each value (rescale, normalise) has only 256
results a channel. A table of them is made with the processor itself and used on the device, so that the tower gets the
same numbers, bit for bit.
"""

import copy
import logging

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils._pytree import tree_map
from transformers import BaseImageProcessor, BatchFeature, Gemma3Model, PreTrainedModel, ProcessorMixin

logger = logging.getLogger(__name__)

AS_BYTES = {"do_rescale": False, "do_normalize": False}


def send_bytes(model: PreTrainedModel, processor: ProcessorMixin) -> ProcessorMixin:
    """Return a copy of the processor whose pictures are bytes, for which the model is prepared.

    The given one is returned where it changes pictures by more than a table, or where the model isn't a Gemma 3. The
    model goes on taking floats as well.
    """
    gemma = next((module for module in model.modules() if isinstance(module, Gemma3Model)), None)
    table = None if gemma is None else build_table(processor.image_processor, processor.images_kwargs)
    if table is None:
        return processor
    accept_bytes(gemma.vision_tower, table)
    sending = copy.copy(processor)
    sending.image_processor = BytePictures(processor.image_processor)
    return sending


def build_table(image_processor: BaseImageProcessor, settings: dict) -> torch.Tensor | None:
    """Return what the processor makes of each byte: `(channels, 256)` float32; None where a table can't tell.

    Args:
        settings (`dict`): With which the processor is called (`ProcessorMixin.images_kwargs`).
    """
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    as_they_are = settings | {"return_tensors": "pt", "do_resize": False}
    made = image_processor([Image.fromarray(values)], **as_they_are)["pixel_values"]
    if not isinstance(made, torch.Tensor) or made.shape != (1, 3, 16, 16):
        return None
    table = made[0].flatten(1)
    # Whether it holds for pictures that are scaled, each in as many parts as the processor likes.
    trial = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    scaled, plain = (
        image_processor([trial], return_tensors="pt", **settings | how)["pixel_values"] for how in (AS_BYTES, {})
    )
    if (
        scaled.dtype != torch.uint8
        or scaled.shape != plain.shape
        or not torch.equal(apply_table(table, scaled), plain)
    ):
        logger.info("%s: pictures are prepared as floats on the processor", type(image_processor).__name__)
        return None
    return table


def apply_table(table: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Return the values of pictures `(pictures, channels, height, width)` of bytes, in the table's dtype."""
    channels = torch.arange(len(table), dtype=torch.int32, device=pictures.device)
    return table.flatten()[pictures.int() + 256 * channels[:, None, None]]


def accept_bytes(tower: nn.Module, table: torch.Tensor) -> None:
    """Let the tower take bytes as well as floats. It may be called several times."""
    tower.register_buffer("pixel_table", table.to(next(tower.parameters()).device), persistent=False)
    hooks = tower._forward_pre_hooks.values()
    if _convert_bytes not in hooks:
        # Before hooks that cast floats.
        tower.register_forward_pre_hook(_convert_bytes, with_kwargs=True, prepend=True)


def _convert_bytes(tower: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    def convert(value):
        is_bytes = isinstance(value, torch.Tensor) and value.dtype == torch.uint8
        return apply_table(tower.pixel_table, value) if is_bytes else value

    return tree_map(convert, args), tree_map(convert, kwargs)


class BytePictures:
    """Replaces the image processor inside a processor: pictures come out as bytes."""

    def __init__(self, image_processor: BaseImageProcessor):
        self.image_processor = image_processor

    def to_json_string(self) -> str:
        # The numbers are the same, so whoever names results by these settings must find them by the same name.
        return self.image_processor.to_json_string()

    def fetch_images(self, images):
        return self.image_processor.fetch_images(images)

    def __call__(self, images, **settings) -> BatchFeature:
        return self.image_processor(images, **settings | AS_BYTES)
