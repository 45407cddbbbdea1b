"""Where a model is: all of it on one device a process; or tower and language model on it one after the other.

One process uses one GPU, whatever else it can see: spread over several, accelerate's hooks and `.to()` disagree about
where a layer is. The second way is for cards that don't hold both.

With `vision_cache: FOLDER` no step reads pixels. The model is loaded on the CPU; the tower goes to the GPU alone and
encodes the pictures; it goes back; then the language model takes its place.
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

from histolab_sft.models.vision_cache.choice import AUTO, OFF, encoded_once


def takes_turns(vision_cache: str) -> bool:
    """Return whether tower and language model take turns: `auto` may decline, and then they are needed at once."""
    return vision_cache not in (AUTO, OFF)


def choose_device_map(vision_cache: str = OFF) -> dict[str, str] | None:
    """Return `device_map` for `from_pretrained`: this process's own device, the CPU first where the parts take turns.

    DeepSpeed and FSDP put a model in its place themselves, and get None.
    """
    state = PartialState()
    # Before the trainer is made, only the launcher's variable tells of DeepSpeed.
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if deepspeed or state.distributed_type == DistributedType.DEEPSPEED or is_fsdp_enabled():
        return None
    if takes_turns(vision_cache) or state.device.type != "cuda":
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
