"""How fast pictures are read and prepared, and whether the cores are busy while they are encoded."""

import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText

from histolab_sft.embedded.tokenizer import build_processor
from histolab_sft.models.byte_pictures import BytePictures
from histolab_sft.models.geometry import IMAGE_TOKENS, TEXT_SIZES, VISION_SIZES
from histolab_sft.models.load import load_processor
from histolab_sft.models.vision_cache.features import build_vision_cache
from histolab_sft.models.vision_cache.store import FeatureStore


def measure_loader(rows: Dataset, workers: int, seconds: float = 3.0) -> dict[str, float]:
    """Return pictures a second at MedGemma-4B's sizes: `decoded`, `scaled` to 896 pixels, and as `features` read."""
    pictures = _build_image_processors()["as bytes"]
    keys = [key for [key] in rows.with_format(None)["pixel_sha256"]]
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder, "features"))
        shape = IMAGE_TOKENS, TEXT_SIZES["hidden_size"]
        store.write({key: torch.randn(shape).bfloat16() for key in keys}, "bench")
        readers = {
            "decoded": lambda examples: [np.asarray(example["images"][0]) for example in examples],
            "scaled": lambda examples: pictures([example["images"][0] for example in examples], return_tensors="pt")[
                "pixel_values"
            ],
            "features": store.features,
        }
        # Drawn from without end, as an epoch is: workers that start again and again would be measured instead.
        return {
            name: _measure_rate(
                DataLoader(
                    list(keys) if name == "features" else rows,
                    8,
                    sampler=_Endless(len(rows)),
                    num_workers=workers,
                    collate_fn=collate,
                ),
                seconds,
            )
            for name, collate in readers.items()
        }


class _Endless:
    def __init__(self, length: int):
        self.length = length

    def __iter__(self):
        while True:
            yield from range(self.length)


def _measure_rate(loader: DataLoader, seconds: float) -> float:
    batches, count = iter(loader), 0
    next(batches)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += len(next(batches))
    return count / (time.perf_counter() - start)


def measure_preparing(rows: Dataset, rounds: int, seconds: float) -> dict[str, float]:
    """Return pictures a second that one worker prepares for MedGemma-4B, `as floats` and `as bytes`, in turn.

    As floats is what `transformers` does on the processor: scaled, rescaled and normalised. Bytes are only scaled;
    the rest is looked up where the tower is. Both are handed over to this process, which costs floats more as well.
    """
    images = [row["images"][0] for row in rows]
    rates = {name: [] for name in _build_image_processors()}
    for _ in range(rounds):
        for name, image_processor in _build_image_processors().items():
            loader = DataLoader(
                images,
                8,
                sampler=_Endless(len(images)),
                num_workers=1,
                collate_fn=lambda batch, prepare=image_processor: prepare(batch, return_tensors="pt")["pixel_values"],
            )
            rates[name].append(_measure_rate(loader, seconds))
    return {name: median(found) for name, found in rates.items()}


def _build_image_processors() -> dict:
    plain = build_processor(VISION_SIZES["image_size"], IMAGE_TOKENS).image_processor
    return {"as floats": plain, "as bytes": BytePictures(plain)}


def measure_encoding(model: Path, rows: Dataset, threads: int) -> dict[str, float]:
    """Encode all pictures into an empty cache and return `patches_per_s` and `busy`, the share of `threads` cores.

    Busy is the time on a processor of this process and of those that read for it, by the time that passed.
    """
    torch.set_num_threads(threads)
    processor = load_processor(str(model))
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    pictures = [
        (key, lambda row=row: rows[row]["images"][0])
        for row, [key] in enumerate(rows.with_format(None)["pixel_sha256"])
    ]
    with tempfile.TemporaryDirectory() as folder:
        before, start = _count_cpu_seconds(), time.perf_counter()
        build_vision_cache(loaded, processor, pictures, folder, 8)
        passed = time.perf_counter() - start
        return {"patches_per_s": len(rows) / passed, "busy": (_count_cpu_seconds() - before) / passed / threads}


def _count_cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
