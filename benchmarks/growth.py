"""How seconds and peak memory grow with the rows of a data set and with the batch, each case in its own process."""

import contextlib
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.rows import list_rows, write_folders, write_hdf5

MIB = 2**20


def measure_apart(function, *args) -> dict:
    """Return what `function(*args)` returns, with `seconds` and `peak_mib`, the growth of memory over its start.

    It runs in a fresh process, whose peak nothing before it has raised.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.growth", "benchmarks.training_arms"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, torch.get_num_threads(), function, args))
    process.start()
    sender.close()
    result = receiver.recv()
    # At its end it would wait five minutes for joblib's idle workers, which go with it.
    process.kill()
    process.join()
    return result


def measure_rows(layout: str, count: int) -> dict:
    """List and split a data set of `count` patches."""
    write = {"folders": write_folders, "hdf5": write_hdf5}[layout]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), count)
        return measure_apart(list_rows, Path(folder))


def _send(sender, threads: int, function, args) -> None:
    torch.set_num_threads(threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        result = function(*args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sender.send({"seconds": time.perf_counter() - start} | result | {"peak_mib": (peak - before) / MIB})
