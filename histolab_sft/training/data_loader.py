"""Data loaders for training: each batch knows its rows, and workers neither hang nor die of a stop signal."""

from functools import partial

import torch

from histolab_sft.signals import ignore_stop_signals
from histolab_sft.training.answer_tokens import mask_deciding_tokens
from histolab_sft.workers import PICTURE_BYTES, WORKER_TIMEOUT, limit_workers

# Keys of a batch under which the ids of its rows are, the weights of their losses, float32 of shape (rows,), and from
# `mask_deciding_tokens` which labels tell the classes apart
ROWS, WEIGHTS, DECIDING = "row_ids", "row_weights", "deciding_tokens"


def set_up_loader(loader, batch_size: int, weights: dict[tuple[str, str], float], branches: set[tuple[int, ...]]):
    """Return a loader of Trainer after a change to how it reads.

    Ids stand beside the tensors, and workers are limited by memory and have a time limit. They also find the tokens
    that decide, row by row, for which the device would be waited for again and again.

    Args:
        loader: From accelerate, around the one that reads.
        batch_size (`int`): Rows of one micro-batch.
        weights (`dict`): (Data set, class) -> weight of a row's loss; empty where all weigh 1.
        branches (`set`): From `find_branches`.
    """
    reader = loader.base_dataloader
    reader.collate_fn = partial(collate_with_rows, reader.collate_fn, weights, branches)
    reader.worker_init_fn = partial(start_worker, reader.worker_init_fn)
    reader.num_workers = limit_workers(reader.num_workers, PICTURE_BYTES * batch_size)
    reader.timeout = WORKER_TIMEOUT if reader.num_workers else 0
    return loader


def collate_with_rows(
    collate, weights: dict[tuple[str, str], float], branches: set[tuple[int, ...]], examples: list[dict]
) -> dict:
    """Collate, and keep beside the tensors which rows they are, how much they weigh, and which tokens decide."""
    rows = [str(example.pop("id", "without id")) for example in examples]
    classes = [(example.pop("dataset", None), example.pop("label", None)) for example in examples]
    for example in examples:
        example.pop("pixel_sha256", None)
    batch = collate(examples)
    batch[ROWS], batch[DECIDING] = rows, mask_deciding_tokens(batch["labels"], branches)
    if weights:
        batch[WEIGHTS] = torch.tensor([weights[key] for key in classes])
    return batch


def start_worker(start, worker: int) -> None:
    """Start a data loader worker that leaves stop signals to its parent."""
    ignore_stop_signals()
    if start is not None:
        start(worker)
