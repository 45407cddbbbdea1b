"""When the memory of the device is too small: say what to change, or go on with smaller micro-batches."""

from collections.abc import Mapping

import torch

GIB = 2**30


class OutOfMemoryError(RuntimeError):
    """A step doesn't fit into memory, and the message says what to change."""


def split_batch(inputs: Mapping, size: int) -> list[dict]:
    """Split a collated batch into parts of at most `size` rows, in order.

    Tensors whose first dimension is the number of rows or a multiple of it (several pictures a row), and lists with
    one entry a row are split; anything else goes into every part.

    Args:
        inputs: With `labels` of shape `(rows, length)`.
        size (`int`): Rows.
    """
    rows = len(inputs["labels"])
    return [
        {key: _cut(value, start, min(start + size, rows), rows) for key, value in inputs.items()}
        for start in range(0, rows, size)
    ]


def explain_out_of_memory(error: Exception, inputs: Mapping, args, step: int, training: bool) -> str:
    """Return one message with the numbers of the batch and the device, and the keys of the recipe to change.

    Args:
        error: What the allocator said.
        inputs: The batch that didn't fit.
        args (`SFTConfig`): The recipe's.
        step (`int`): Optimiser step, counted from 1.
        training (`bool`): Whether it was in training, else in evaluation.
    """
    rows, length = inputs["labels"].shape
    pictures = len(inputs["pixel_values"]) if "pixel_values" in inputs else 0
    found = (
        f"out of memory in step {step} of {'training' if training else 'evaluation'}: a micro-batch of {rows} rows, "
        f"{length} tokens each, {pictures} pictures in all; {_describe_device(error)}"
    )
    if not training:
        return f"{found}. Lower per_device_eval_batch_size (now {args.per_device_eval_batch_size})"
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    advice = []
    if batch > 1:
        advice.append(
            f"per_device_train_batch_size: {batch // 2} (now {batch}) with gradient_accumulation_steps: "
            f"{accumulation * batch // (batch // 2)} (now {accumulation}): the same rows a step, the same loss; oom: "
            "halve does that by itself"
        )
    if not args.activation_checkpointing:
        advice.append("activation_checkpointing: true (now false)")
    advice.append("vision_cache: auto, which keeps a frozen tower's features on disk, where augmentation allows it")
    if pictures > rows:
        advice.append(f"fewer pictures a row (now {pictures / rows:g})")
    return f"{found}. Change, in this order: {'; '.join(advice)}"


def _cut(value, start: int, end: int, rows: int):
    if isinstance(value, torch.Tensor) and value.dim() and len(value) and len(value) % rows == 0:
        each = len(value) // rows
        return value[start * each : end * each]
    if isinstance(value, list) and len(value) == rows:
        return value[start:end]
    return value


def _describe_device(error: Exception) -> str:
    if not torch.cuda.is_available():
        return str(error).splitlines()[0]
    free, total = torch.cuda.mem_get_info()
    peak = torch.cuda.max_memory_allocated()
    return (
        f"{torch.cuda.get_device_name()} has {free / GIB:.1f} of {total / GIB:.1f} GiB free, and this process used "
        f"{peak / GIB:.1f} GiB at its peak"
    )
