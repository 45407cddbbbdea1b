"""Data loaders for training: each batch knows its rows, and workers neither hang nor die of a stop signal."""

from functools import partial

from histolab_sft.signals import ignore_stop_signals
from histolab_sft.workers import PICTURE_BYTES, WORKER_TIMEOUT, limit_workers

# Key of a batch under which the ids of its rows are
ROWS = "row_ids"


def set_up_loader(loader, batch_size: int) -> None:
    """Change how a loader of Trainer reads: ids beside the tensors, workers limited by memory and with a time limit.

    Args:
        loader: From accelerate, around the one that reads.
        batch_size (`int`): Rows of one micro-batch.
    """
    reader = loader.base_dataloader
    reader.collate_fn = partial(collate_with_rows, reader.collate_fn)
    reader.worker_init_fn = partial(start_worker, reader.worker_init_fn)
    reader.num_workers = limit_workers(reader.num_workers, PICTURE_BYTES * batch_size)
    reader.timeout = WORKER_TIMEOUT if reader.num_workers else 0


def collate_with_rows(collate, examples: list[dict]) -> dict:
    """Collate, and keep beside the tensors which rows they are."""
    rows = [str(example.pop("id", "without id")) for example in examples]
    for example in examples:
        example.pop("pixel_sha256", None)
    batch = collate(examples)
    batch[ROWS] = rows
    return batch


def start_worker(start, worker: int) -> None:
    """Start a data loader worker that leaves stop signals to its parent."""
    ignore_stop_signals()
    if start is not None:
        start(worker)
