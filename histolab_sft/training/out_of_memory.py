"""When the memory of the device is too small: say what to change, or go on with smaller micro-batches."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

logger = logging.getLogger(__name__)

GIB = 2**30


class OutOfMemoryError(RuntimeError):
    """A step doesn't fit into memory, and the message says what to change."""


@contextmanager
def explaining_out_of_memory(inputs: Mapping, args, step: int, training: bool) -> Iterator[None]:
    """Turn an allocator's error under the block into an `OutOfMemoryError`; see `explain_out_of_memory`."""
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise OutOfMemoryError(explain_out_of_memory(error, inputs, args, step, training)) from error


def fit_micro_batch(trainer, run: Callable, inputs: dict, halve: bool):
    """Run a micro-batch forwards and backwards, in parts of as many rows as fit into memory, and return its loss.

    Args:
        trainer (`PatchTrainer`): Its `micro_batch` is the largest part so far that fits, None for a whole micro-batch.
        run: Of a batch, adds its gradients and returns its loss, the sum over its tokens divided by those of the
            whole step, so that the losses and gradients of parts add up.
        inputs (`dict`): The collated micro-batch.
        halve (`bool`): Whether to try again with half the rows; costs a copy of the gradients.

    Raises:
        OutOfMemoryError: A part doesn't fit, and can't or shall not be halved.
    """
    while True:
        parts = split_batch(inputs, trainer.micro_batch) if trainer.micro_batch else [inputs]
        before = _copy_gradients(trainer.model) if halve else []
        try:
            with explaining_out_of_memory(parts[0], trainer.args, trainer.state.global_step + 1, training=True):
                return sum([run(part) for part in parts])
        except OutOfMemoryError as error:
            rows = len(parts[0]["labels"])
            if not halve or rows == 1:
                raise
            message = str(error)
        # Out of the handler, whose error held the failed step's tensors.
        trainer.micro_batch = rows // 2
        logger.warning("%s. Going on with micro-batches of %d", message, trainer.micro_batch)
        for parameter, gradient in before:
            parameter.grad = gradient


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


def _copy_gradients(model: nn.Module) -> list[tuple]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [(p, None if p.grad is None else p.grad.clone()) for p in trained]


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
