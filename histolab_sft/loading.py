"""How many processes read and scale pictures beside the one that computes."""

import os

import torch

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
    if pictures < FEW:
        return 0
    if torch.cuda.is_available():
        return count_loader_workers()
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
