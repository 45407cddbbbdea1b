"""Class weights and class-balanced sampling, where training takes its rows and sums its losses."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler
from trl import SFTConfig

from histolab_sft.data.class_balance import ClassBalance, draw_epoch, format_balance

logger = logging.getLogger(__name__)


class BalancedSampler(Sampler[int]):
    """The rows of an epoch by `draw_epoch`: what is drawn depends on seed and epoch alone.

    So every process draws the same, of which it takes its part, and a run that goes on draws what it would have drawn.

    Attributes:
        epoch (`int`): From 0; the trainer sets it as each begins.
    """

    def __init__(self, members: list[list[np.ndarray]], seed: int):
        self.members = members
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return sum(len(rows) for classes in self.members for rows in classes)

    def __iter__(self) -> Iterator[int]:
        yield from draw_epoch(self.members, np.random.default_rng([self.seed, self.epoch])).tolist()


def build_sampler(balance: ClassBalance, args: SFTConfig) -> BalancedSampler | None:
    """Return what draws the rows of each epoch, None where Trainer's own sampler does, and tell what is done."""
    if balance.described:
        logger.info("%s", format_balance(balance.described))
    seed = args.seed if args.data_seed is None else args.data_seed
    return BalancedSampler(balance.members, seed) if balance.members else None


@contextmanager
def watching_outputs(model: torch.nn.Module, weights: torch.Tensor | None) -> Iterator[list]:
    """Give the outputs of the model's passes within the block, as they come.

    Args:
        weights (`torch.Tensor` of shape `(rows,)`, *optional*): The model's caller gets each row's log-probabilities
            times its weight. The loss is their sum divided by the number of tokens of the whole optimiser step, so
            weighted rows add up over micro-batches and processes as others do.
    """
    outputs = []

    def keep(module, args, output):
        outputs.append(output)
        if weights is None:
            return output
        return dataclasses.replace(output, log_probs=output.log_probs * weights[:, None])

    hook = model.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()
