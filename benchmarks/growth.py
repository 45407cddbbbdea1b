"""How seconds and peak memory grow with the rows of a data set and with the batch, each case in its own process."""

import contextlib
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from benchmarks.rows import list_rows, write_folders, write_hdf5
from histolab_sft.models.byte_pictures import BytePictures
from histolab_sft.models.feature_store import FeatureStore
from histolab_sft.models.geometry import IMAGE_TOKENS, TEXT_SIZES, VISION_SIZES
from histolab_sft.models.tiny_tokenizer import build_processor

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
    process.join()
    return result


def measure_rows(layout: str, count: int) -> dict:
    """List and split a data set of `count` patches."""
    write = {"folders": write_folders, "hdf5": write_hdf5}[layout]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), count)
        return measure_apart(list_rows, Path(folder))


def measure_loader(rows: Dataset, workers: int, seconds: float = 3.0) -> dict[str, float]:
    """Return pictures a second at MedGemma-4B's sizes: `decoded`, `scaled` to 896 pixels, and as `features` read."""
    pictures = BytePictures(build_processor(VISION_SIZES["image_size"], IMAGE_TOKENS).image_processor)
    keys = rows.with_format(None)["pixel_sha256"]
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder, "features"))
        shape = IMAGE_TOKENS, TEXT_SIZES["hidden_size"]
        store.write({key: torch.randn(shape).bfloat16() for key in keys}, "bench")
        readers = {
            "decoded": lambda examples: [np.asarray(example["image"]) for example in examples],
            "scaled": lambda examples: pictures([example["image"] for example in examples], return_tensors="pt")[
                "pixel_values"
            ],
            "features": store.features,
        }
        rates = {}
        for name, collate in readers.items():
            source = list(keys) * 64 if name == "features" else rows
            loader = DataLoader(source, 8, num_workers=workers, collate_fn=collate)
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                for batch in loader:
                    count += len(batch)
                    if time.perf_counter() - start >= seconds:
                        break
            rates[name] = count / (time.perf_counter() - start)
    return rates


def _send(sender, threads: int, function, args) -> None:
    torch.set_num_threads(threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        result = function(*args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sender.send({"seconds": time.perf_counter() - start} | result | {"peak_mib": (peak - before) / MIB})
