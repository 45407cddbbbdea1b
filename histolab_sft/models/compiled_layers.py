"""Layers compiled by PyTorch, one at a time: a training step launches a third of the kernels.

All layers of a kind share one compiled graph for each shape of the hidden states, so a run is held to few shapes: full
batches of few lengths. Whatever has another shape (an epoch's last batch, generation with its growing cache) runs
layer by layer as it always did. That is the decoder; the vision tower's layers are compiled where it fills the cache.
"""

import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextModel
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from histolab_sft.files import cache_folder
from histolab_sft.models.one_pass import MULTIPLE

logger = logging.getLogger(__name__)

AUTO, ON, OFF = "auto", "on", "off"
# Lengths for which layers are compiled; with a sliding window there are two kinds of layers, so twice as many graphs.
MOST_LENGTHS = 2
# Graphs that PyTorch keeps for one piece of code before it gives up: the layers of all models of transformers share a
# piece, in training and in scoring.
MOST_GRAPHS = 64
# Seconds on an H100 with MedGemma-4B's 34 layers (benchmarks/results/h100-exploration.md): to compile one length for
# the first time, and what a pass saves at the least, forwards and backwards and forwards alone.
COMPILE_S = {True: 25.0, False: 6.0}
SAVED_S = {True: 0.18, False: 0.05}
MEASURED_LAYERS = 34


def decide(choice: str, model: nn.Module, device: torch.device, passes: float, learning: bool) -> bool:
    """Return whether to compile, and log why.

    Args:
        choice (`str`): `on`, `off`, or `auto`: on a GPU, where the estimate says that it is repaid.
        passes (`float`): Passes of full batches in the run.
        learning (`bool`): Whether they go backwards as well.
    """
    if choice == OFF:
        return False
    if not any(isinstance(module, Gemma3TextModel) for module in model.modules()):
        logger.info("compiled layers: they are known of Gemma 3 alone, and not used")
        return False
    layers = len(find_layers(model))
    cost, saved = MOST_LENGTHS * COMPILE_S[learning], passes * SAVED_S[learning] * layers / MEASURED_LAYERS
    estimate = f"about {cost:.0f} s to compile, about {saved:.0f} s saved in {passes:.0f} passes of {layers} layers"
    if missing := find_missing(device):
        logger.warning("compiled layers: not used, %s", missing)
        return False
    if choice == AUTO and device.type != "cuda":
        logger.info("compiled layers: not used on a processor; compiled_layers: on would")
        return False
    worthwhile = choice == ON or saved > cost
    logger.info("compiled layers: %s%s", "" if worthwhile else "not used, ", estimate)
    return worthwhile


def find_missing(device: torch.device) -> str | None:
    """Return what the compiler lacks on this machine, None if nothing."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton isn't installed"
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++"]
    if not any(map(shutil.which, names)):
        return f"no C++ compiler ({', '.join(names)}) is on the PATH"
    return None


def find_layers(model: nn.Module) -> list[nn.Module]:
    """Return the decoder's layers."""
    return list(model.get_decoder().layers)


class LayerSwitch:
    """Use the compiled layers where the shape is one of the run's, and the plain ones elsewhere.

    The choice made in a forward pass holds until the next, so that what the backward pass recomputes is the same.

    Args:
        model (`PreTrainedModel` or `PeftModel`)
        rows (`int`): In a full batch.
        learning (`bool`): Whether passes with gradients are meant, else those without.
    """

    def __init__(self, model: nn.Module, rows: int, learning: bool):
        self.rows, self.learning = rows, learning
        self.lengths: set[int] = set()
        self.layers = find_layers(model)
        self.compiled = compile_each(self.layers)
        self.started: tuple[int, float] | None = None
        decoder = model.get_decoder()
        self.hooks = [
            decoder.register_forward_pre_hook(self.choose, with_kwargs=True),
            decoder.register_forward_hook(self.tell),
        ]

    def choose(self, decoder: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before a pass of the decoder: set its layers to compiled or plain."""
        rows, length = kwargs["inputs_embeds"].shape[:2]
        fits = rows == self.rows and length % MULTIPLE == 0 and kwargs.get("past_key_values") is None
        fits = fits and torch.is_grad_enabled() == self.learning and not kwargs.get("use_cache")
        if fits and length not in self.lengths:
            fits = len(self.lengths) < MOST_LENGTHS
            if fits:
                self.lengths.add(length)
                self.started = length, time.perf_counter()
        use_compiled(self.layers, self.compiled if fits else None)

    def tell(self, *_) -> None:
        """After a pass: log how long it took where it compiled."""
        if self.started is not None:
            length, start = self.started
            self.started = None
            seconds = time.perf_counter() - start
            logger.info("compiled layers: %d rows of %d tokens, compiled in %.0f s", self.rows, length, seconds)

    def remove(self) -> None:
        """Leave the layers as they were."""
        for hook in self.hooks:
            hook.remove()
        use_compiled(self.layers, None)


def compile_each(layers: list[nn.Module]) -> list[Callable]:
    """Return a compiled call of each layer, which stays as it is until `use_compiled`."""
    # So that the next run finds what this one compiles.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    calls = []
    for layer in layers:
        layer.compile(dynamic=False)
        calls.append(layer._compiled_call_impl)
        layer._compiled_call_impl = None
    return calls


def use_compiled(layers: list[nn.Module], calls: list[Callable] | None) -> None:
    """Let the layers run by the calls of `compile_each`, or as they always did."""
    for place, layer in enumerate(layers):
        layer._compiled_call_impl = None if calls is None else calls[place]


@contextmanager
def compiled_scoring(choice: str, model: nn.Module, rows: int, count: int) -> Iterator[None]:
    """Compile the layers for passes without gradients meanwhile, if it pays for `count` patches, `rows` at a time."""
    device = next(model.parameters()).device
    if not decide(choice, model, device, count // rows, learning=False):
        yield
        return
    switch = LayerSwitch(model, rows, learning=False)
    try:
        yield
    finally:
        switch.remove()


def decide_encoding(choice: str, device: torch.device) -> bool:
    """Return whether to compile the vision tower's layers: with `on` alone, as what it saves was not measured yet."""
    if choice != ON:
        return False
    if missing := find_missing(device):
        logger.warning("compiled layers: not used in the vision tower, %s", missing)
        return False
    return True


@contextmanager
def compiled_encoding(tower: nn.Module, rows: int) -> Iterator[None]:
    """Compile the layers of a SigLIP tower meanwhile, for batches of `rows` pictures: one graph for all of them."""
    layers = [module for module in tower.modules() if isinstance(module, SiglipEncoderLayer)]
    calls = compile_each(layers)

    def choose(tower: nn.Module, args: tuple, kwargs: dict) -> None:
        use_compiled(layers, calls if len(kwargs["pixel_values"]) == rows else None)

    hook = tower.register_forward_pre_hook(choose, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        use_compiled(layers, None)
