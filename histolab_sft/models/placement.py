"""Tower and language model on the GPU one after the other, for cards that don't hold both.

With `vision_cache: FOLDER` no step reads pixels. The model is loaded on the CPU; the tower goes to the GPU alone and
encodes the pictures; it goes back; then the language model takes its place.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from datasets import Dataset
from torch import nn
from transformers import Gemma3Model, PreTrainedModel, ProcessorMixin, TrainingArguments

from histolab_sft.models.cache_choice import AUTO, OFF, encoded_once


def takes_turns(vision_cache: str) -> bool:
    """Return whether tower and language model take turns: `auto` may decline, and then they are needed at once."""
    return vision_cache not in (AUTO, OFF)


def choose_device_map(vision_cache: str) -> dict:
    """Return the argument of `from_pretrained` for training: the CPU first where the parts take turns."""
    return {"device_map": "cpu"} if takes_turns(vision_cache) else {}


def move_tower(model: nn.Module, device: torch.device | str) -> None:
    """Move tower and projector alone; where `vision_cache` knows the model, the pictures go where the tower is."""
    for module in model.modules():
        if isinstance(module, Gemma3Model):
            module.vision_tower.to(device)
            module.multi_modal_projector.to(device)
            return


@contextmanager
def encoded_in_turns(
    vision_cache: str,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    looks: Sequence[tuple[Dataset, int]],
    training_args: TrainingArguments,
) -> Iterator[ProcessorMixin]:
    """Give what `encoded_once` gives, with the parts of the model taking turns on the device if they do.

    Meanwhile the language model is on `training_args.device` and the tower on the CPU; before and afterwards all of
    it is on the CPU. The projector, 6 MB in MedGemma-4B, goes with both.
    """
    batch_size, device = training_args.per_device_eval_batch_size, training_args.device
    if not takes_turns(vision_cache):
        with encoded_once(vision_cache, model, processor, looks, batch_size) as reader:
            yield reader
        return
    move_tower(model, device)
    with encoded_once(vision_cache, model, processor, looks, batch_size) as reader:
        model.to(device)
        try:
            yield reader
        finally:
            # The tower comes back to where the rest is.
            model.to("cpu")
