"""
Seconds and memory that it takes to list and split N patches, from class folders and from PCam's HDF5 pairs:

    python -m benchmarks.rows
"""

import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from histolab_sft.arguments import HistoArguments
from histolab_sft.data.patches import load_patches

CLASSES = {"Normal": "Normal", "Tumor": "Tumor"}
RESULTS = Path("benchmarks/results/rows.json")


def write_folders(folder: Path, count: int) -> None:
    """Write `count` files in two class folders, all names of one picture: only their listing is measured."""
    for label in CLASSES:
        (folder / "data" / label).mkdir(parents=True)
    for i in range(count):
        if i % 50_000 == 0:  # file systems limit the names of one file
            picture = folder / f"picture{i}.png"
            Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(picture)
        label = list(CLASSES)[i % 2]
        os.link(picture, folder / "data" / label / f"{label}-S{i % 200:03d}-{i:06d}.png")


def write_hdf5(folder: Path, count: int) -> None:
    """Write a pair whose pictures take no room: what was never written reads as zeros."""
    (folder / "data").mkdir()
    with h5py.File(folder / "data" / "a_train_x.h5", "w") as file:
        file.create_dataset("x", (count, 96, 96, 3), np.uint8, chunks=(1, 96, 96, 3))
    with h5py.File(folder / "data" / "a_train_y.h5", "w") as file:
        file["y"] = (np.arange(count) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)


def measure(folder: Path, queue) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    dataset = {"name": "pcam", "source": "data", "class_names": CLASSES}
    patches = load_patches(HistoArguments(datasets=[dataset], data_dir=str(folder)))
    seconds = time.perf_counter() - start
    patches["train"][len(patches["train"]) // 2]["image"].load()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    queue.put({"rows": sum(map(len, patches.values())), "seconds": round(seconds, 2), "memory_mib": round(grown, 1)})


def main():
    context = multiprocessing.get_context("fork")
    results = []
    for layout, write in (("class folders", write_folders), ("HDF5", write_hdf5)):
        for count in (1_000, 10_000, 100_000):
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), count)
                size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
                queue = context.Queue()
                process = context.Process(target=measure, args=(Path(folder), queue))
                process.start()
                result = {"layout": layout} | queue.get()
                process.join()
                after = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
                results.append(result | {"bytes_written": after - size})
                print(results[-1])
    RESULTS.write_text(
        json.dumps({"machine": f"{os.cpu_count()} cores, {platform.machine()}", "runs": results}, indent=2)
    )


if __name__ == "__main__":
    main()
