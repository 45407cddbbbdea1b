"""On which device a model is: all of it on one, or vision tower and language model one after the other.

A process uses one GPU, however many it can see: over several, accelerate's hooks and `.to()` disagree about where a
layer is.

Cards that don't hold the whole model use `vision_cache: FOLDER`, with which no step reads pixels. The model is loaded
on the CPU. The tower moves to the GPU, encodes the pictures and moves back. Then the language model moves to the GPU.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import DistributedType, PartialState
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook
from datasets import Dataset
from torch import nn
from transformers import Gemma3Model, PreTrainedModel, ProcessorMixin, TrainingArguments
from transformers.integrations import is_fsdp_enabled

from histolab_sft.models.vision_cache.choice import AUTO, OFF, attached_cache


def swaps_parts(vision_cache: str) -> bool:
    """Return whether tower and language model use the device one after the other.

    Not with `auto`: it may decide against the cache, and then both are needed at once.
    """
    return vision_cache not in (AUTO, OFF)


def choose_device_map(vision_cache: str = OFF) -> dict[str, str] | None:
    """Return `device_map` for `from_pretrained`: this process's own device, or the CPU if `swaps_parts`.

    None under DeepSpeed and FSDP, which move the model themselves.
    """
    state = PartialState()
    # Before the trainer is made, only the launcher's variable tells of DeepSpeed.
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if deepspeed or state.distributed_type == DistributedType.DEEPSPEED or is_fsdp_enabled():
        return None
    if swaps_parts(vision_cache) or state.device.type != "cuda":
        return {"": "cpu"}
    return {"": f"cuda:{torch.cuda.current_device() if state.device.index is None else state.device.index}"}


def list_devices(model: nn.Module) -> set[str]:
    """Return every device that a model's weights and buffers lie on, or that a hook of accelerate sends inputs to."""
    tensors = [*model.parameters(), *model.buffers()]
    devices = {str(tensor.device) for tensor in tensors}
    for module in model.modules():
        hook = vars(module).get("_hf_hook")
        hooks = hook.hooks if isinstance(hook, SequentialHook) else [hook] if isinstance(hook, ModelHook) else []
        devices |= {
            str(torch.device(hook.execution_device))
            for hook in hooks
            if isinstance(hook, AlignDevicesHook) and hook.execution_device is not None
        }
    return devices


def move_tower(model: nn.Module, device: torch.device | str) -> None:
    """Move tower and projector alone; where `vision_cache` knows the model, the pictures go where the tower is."""
    for module in model.modules():
        if isinstance(module, Gemma3Model):
            module.vision_tower.to(device)
            module.multi_modal_projector.to(device)
            return


@contextmanager
def scoring_with_cache(
    vision_cache: str,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    uses: Sequence[tuple[Dataset, int]],
    training_args: TrainingArguments,
    compiled_layers: str = OFF,
) -> Iterator[ProcessorMixin]:
    """Give the processor that scoring reads pictures with, the model being on its device and attached to the cache.

    If `swaps_parts`, the language model is on `training_args.device` under the block and the tower on the CPU; before
    and afterwards all of it is on the CPU. The projector, 6 MB in MedGemma-4B, moves with both.
    """
    batch_size, device = training_args.per_device_eval_batch_size, training_args.device
    if not swaps_parts(vision_cache):
        with attached_cache(vision_cache, model, processor, uses, batch_size, compiled_layers) as reader:
            yield reader
        return
    move_tower(model, device)
    with attached_cache(vision_cache, model, processor, uses, batch_size, compiled_layers) as reader:
        model.to(device)
        try:
            yield reader
        finally:
            model.to("cpu")
