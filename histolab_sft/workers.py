"""How many worker processes read and scale pictures."""

import logging
import os
import shutil
import sys
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
PICTURE_BYTES = 10**7  # 3 x 896 x 896 numbers of 32 bits; fewer at a smaller image_side
AHEAD = 3  # batches of a worker: two that wait, PyTorch's default, and the one in hand
# A batch takes seconds; a worker that is silent for so long has hung, on a network drive for instance.
WORKER_TIMEOUT = 900.0

# Four keep ahead of the fastest card: a patch takes 10 ms to read and scale to 896 pixels, a step 11 ms a patch.
MOST_WORKERS = 4
# Pictures that a process prepares by itself in the time in which workers start.
FEW = 64


def count_loader_workers() -> int:
    """Return the default of `dataloader_num_workers`: one a core that is left to each GPU, and none on a processor.

    A processor computes with all its cores, so a worker would only take one away.
    """
    if not torch.cuda.is_available():
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(MOST_WORKERS, cores - 1))


def count_preparing_workers(pictures: int) -> int:
    """Return how many processes prepare so many pictures for encoding or scoring."""
    if pictures < FEW or sys.platform != "linux":  # elsewhere processes are started, not forked
        return 0
    if torch.cuda.is_available():
        return count_loader_workers()
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def limit_workers(workers: int, batch_bytes: int) -> int:
    """Return how many loader workers there may be: none where their batches don't fit into shared memory.

    A worker hands over its batches in /dev/shm, of which a container has 64 MB unless it is told otherwise. One that
    finds it full waits for ever, or is killed.

    Args:
        workers (`int`): Wanted.
        batch_bytes (`int`): Of one batch; a worker is ahead by `AHEAD` of them.
    """
    if workers == 0 or not SHARED_MEMORY.is_dir():
        return workers
    found, needed = shutil.disk_usage(SHARED_MEMORY).free, workers * AHEAD * batch_bytes
    if found >= needed:
        return workers
    logger.warning(
        "%s has %.1f MB free, and %d loader workers need %.1f MB there: pictures are prepared in this process; start "
        "a container with --shm-size=8g (docker) or an emptyDir of medium Memory at /dev/shm (Kubernetes)",
        SHARED_MEMORY,
        found / 1e6,
        workers,
        needed / 1e6,
    )
    return 0
