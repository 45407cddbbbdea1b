"""Trace the activation memory of one training step, without weights and without a GPU, in seconds.

The model's own code runs on PyTorch's fake tensors, which have shapes, dtypes and lifetimes but no data. Every storage
is counted from the operation that makes it to the moment it is freed: no formula a layer, so a change in the libraries
(another cast, another mask) changes the numbers.

Fake tensors live on the processor, whose fused attention keeps what the GPU's does: the output and one float32 a row.
"""

import copy
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial

import torch
from peft.helpers import disable_input_dtype_casting
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from histolab_sft.models.vision_tower import find_vision_tower

# Vocabulary width that TRL's loss projects at once (trl.trainer.utils).
VOCABULARY_CHUNK = 32768
# All layers of a model have the same shapes, so two depths give the line on which every other depth lies. The first
# layer is another case: nothing before it is trained.
DEPTHS = (2, 3)


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run.

    Args:
        weights (`torch.dtype`): Of the frozen weights, and of what passes between the layers.
        tower (`torch.dtype`): Of the vision tower.
        autocast (`torch.dtype`, *optional*): Of matrix products under automatic mixed precision.
        adapter_casts (`bool`): PEFT casts what enters an adapter to the adapter's float32 first. Around layers in 4 or
            8 bits it leaves that to autocast, if it finds autocast on, of which it checks the GPU's alone.
        fused_bfloat16 (`bool`): A fused attention kernel takes bfloat16 (compute capability 8 and later); without one
            the scores of all pairs of tokens are kept.
        byte_masks (`bool`): Dropout keeps one byte an element, as on a GPU. On a processor it keeps what it multiplies
            by, in the dtype of its input.
    """

    weights: torch.dtype
    tower: torch.dtype
    autocast: torch.dtype | None = None
    adapter_casts: bool = True
    fused_bfloat16: bool = True
    byte_masks: bool = False


@dataclass(frozen=True)
class Activations:
    """Bytes beside weights and gradients: `kept` from the forward to the backward pass; `above` that at the peak."""

    kept: int
    above: int


@cache
def trace_language(model, precision: Precision, tokens: int, checkpointing: bool) -> Activations:
    """Trace forward and backward pass of the language layers, without the head, for one sequence.

    Args:
        model (`PreTrainedModel` or `PeftModel`): On the meta device; it is not changed.
        precision (`Precision`): The dtypes of the run.
        tokens (`int`): Length of the sequence, image tokens included.
        checkpointing (`bool`): Keep the input of each layer and recompute the rest.
    """

    def trace(depth: int) -> Activations:
        fake = _fake(model, precision, depth).train()
        if checkpointing:
            fake.activation_checkpointing_enable({"use_reentrant": False})
        decoder = fake.get_decoder()
        inputs = _inputs(decoder, precision, tokens)
        # With checkpointing, TRL makes the embeddings require a gradient.
        inputs["inputs_embeds"].requires_grad_(checkpointing)
        with _kernels(fake, precision, precision.weights), LiveStorages(fake, *inputs.values()) as storages:
            with _autocast(precision):
                hidden = decoder(**inputs, use_cache=False).last_hidden_state
            kept = storages.now
            hidden.backward(torch.empty_like(hidden))
        return Activations(kept, storages.peak - kept)

    return _extrapolate(trace, model)


@cache
def trace_cache(model, precision: Precision, tokens: int) -> Activations:
    """Trace the pass over one prompt in scoring, which keeps its keys and values; arguments as above."""

    def trace(depth: int) -> Activations:
        fake = _fake(model, precision, depth).eval()
        decoder = fake.get_decoder()
        inputs = _inputs(decoder, precision, tokens)
        with (
            torch.no_grad(),
            _kernels(fake, precision, precision.weights),
            LiveStorages(fake, *inputs.values()) as storages,
        ):
            with _autocast(precision):
                cache = decoder(**inputs, use_cache=True).past_key_values
            kept = storages.now
            del cache
        return Activations(kept, storages.peak - kept)

    return _extrapolate(trace, model)


@cache
def trace_head(model, precision: Precision, positions: int) -> int:
    """Return the peak bytes of TRL's loss on a processor, forward and backward, with logits at `positions`."""
    with FakeTensorMode():
        fake = _fake(model, precision, 1)
        head = fake.get_output_embeddings()
        hidden = torch.empty(positions, head.in_features, dtype=precision.weights, requires_grad=True)
        targets = torch.empty(positions, dtype=torch.long)
        with LiveStorages(fake, hidden, targets) as storages:
            with _autocast(precision):
                log_probs, *_ = ChunkedLogProbFunction.apply(
                    hidden, head.weight, head.bias, targets, 1.0, VOCABULARY_CHUNK, None, 1.0, ("entropy", "is_top1")
                )
            log_probs.sum().backward()
    return storages.peak


@cache
def trace_tower(model, precision: Precision, image_size: int, trained: bool, checkpointing: bool) -> Activations:
    """Trace the vision tower for one picture; a frozen one keeps nothing but its output.

    Args:
        model, precision, checkpointing: As in `trace_language`.
        image_size (`int`): Pixels a side.
        trained (`bool`): There is a backward pass through the tower.
    """
    with FakeTensorMode():
        fake = _fake(model, precision, 1).train()
        if checkpointing:
            fake.activation_checkpointing_enable({"use_reentrant": False})
        tower = find_vision_tower(fake)
        pixels = torch.empty(1, 3, image_size, image_size, dtype=precision.tower, requires_grad=trained)
        with _kernels(fake, precision, precision.tower), LiveStorages(fake, pixels) as storages:
            with torch.set_grad_enabled(trained), _autocast(precision):
                features = tower(pixel_values=pixels).last_hidden_state
            kept = storages.now
            if trained:
                features.backward(torch.empty_like(features))
    return Activations(kept, storages.peak - kept)


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages that operations under this mode have made and nobody has freed yet.

    Weights, gradients and inputs, which are there before, are not counted.
    """

    def __init__(self, model, *inputs):
        super().__init__()
        self.now = self.peak = 0
        tensors = [*model.parameters(), *model.buffers(), *inputs]
        tensors += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self._alive = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_iter(outputs):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._alive:
                    self._alive.add(storage._cdata)
                    self._count(storage.nbytes())
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return outputs

    def _count(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, pointer: int, size: int) -> None:
        self._alive.remove(pointer)
        self._count(-size)


def _extrapolate(trace, model) -> Activations:
    """Trace at two depths and follow the line to all layers."""
    layers = len(model.get_decoder().layers)
    with FakeTensorMode():
        low, high = (trace(min(depth, layers)) for depth in DEPTHS)
    more = max(layers - DEPTHS[1], 0)
    return Activations(
        high.kept + more * (high.kept - low.kept),
        high.above + more * (high.above - low.above),
    )


def _autocast(precision: Precision) -> torch.autocast:
    return torch.autocast("cpu", precision.autocast, enabled=precision.autocast is not None)


def _kernels(model, precision: Precision, dtype: torch.dtype) -> ExitStack:
    """Return the context of forward and backward pass: the attention kernel, and what PEFT casts."""
    stack = ExitStack()
    if not precision.fused_bfloat16 and torch.bfloat16 in (dtype, precision.autocast):
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    if not precision.adapter_casts:
        stack.enter_context(disable_input_dtype_casting(model))
    return stack


def _inputs(decoder, precision: Precision, tokens: int) -> dict[str, torch.Tensor]:
    embeddings = torch.empty(1, tokens, decoder.config.hidden_size, dtype=precision.weights)
    return {"inputs_embeds": embeddings, "attention_mask": torch.ones(1, tokens, dtype=torch.long)}


def _fake(model, precision: Precision, depth: int):
    """Return a copy of the meta model with `depth` language layers and fake weights in the run's dtypes."""
    layers = model.get_decoder().layers
    with unset_fake_temporarily():
        model = copy.deepcopy(model, {id(layers): copy.deepcopy(layers[:depth])})
    tower = find_vision_tower(model)
    in_tower = {id(tensor) for tensor in [*tower.parameters(), *tower.buffers()]}
    fakes = {}  # a tied weight stays one
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in fakes:
                    dtype = precision.tower if id(tensor) in in_tower else precision.weights
                    fakes[id(tensor)] = _fake_tensor(tensor, dtype), tensor
                if tensor is not None:
                    tensors[name] = fakes[id(tensor)][0]
        if isinstance(module, torch.nn.Dropout) and precision.byte_masks:
            module.forward = partial(_drop_by_bytes, module)
    return model


def _drop_by_bytes(module: torch.nn.Dropout, values: torch.Tensor) -> torch.Tensor:
    return torch.native_dropout(values, module.p, module.training)[0]


def _fake_tensor(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not isinstance(tensor, torch.nn.Parameter):
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    # What is trained is float32 in this project, whatever the frozen weights are.
    fake = torch.empty(tensor.shape, dtype=torch.float32 if tensor.requires_grad else dtype)
    fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
    fake.grad = torch.empty_like(fake) if tensor.requires_grad else None
    return fake
