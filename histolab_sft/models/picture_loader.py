"""Prepare pictures and prompts in other processes while this one computes; used wherever nothing is trained."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from histolab_sft.workers import PICTURE_BYTES, WORKER_TIMEOUT, count_preparing_workers, limit_workers

PICTURES_AN_ITEM = 16  # as a guess of how many are prepared together


class _Prepared(Dataset):
    def __init__(self, prepare: Callable):
        self.prepare = prepare

    def __getitem__(self, item):
        try:
            return self.prepare(item)
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            # A worker would send its traceback instead of the message.
            return error


class _InOrder(Sampler):
    def __init__(self, items: Iterable):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def prepare_ahead(prepare: Callable, items: Iterable, pictures: int) -> Iterator:
    """Yield `prepare(item)` for each item, in order, made by worker processes ahead of the caller.

    Args:
        prepare: Gives tensors, or dictionaries of them, on the CPU; they come in pinned memory where there is a GPU.
        items: What a worker needs to know, small. They are drawn in this process, a few ahead of what is yielded.
        pictures (`int`): How many there are in all. Few are prepared in this process.
    """
    workers = limit_workers(count_preparing_workers(pictures), PICTURES_AN_ITEM * PICTURE_BYTES)
    loader = DataLoader(
        _Prepared(prepare),
        batch_size=None,
        sampler=_InOrder(items),
        num_workers=workers,
        timeout=WORKER_TIMEOUT if workers else 0,
        # `prepare` holds models and open files, which a forked process inherits and no other could be sent.
        multiprocessing_context="fork" if workers else None,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        # Of its own: training's random numbers must not depend on what is prepared in between.
        generator=torch.Generator(),
    )
    for made in loader:
        if isinstance(made, Exception):
            raise made
        yield made


def _as_it_is(made):
    return made
