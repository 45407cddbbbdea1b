"""Data sets of N patches that take no room, and how they are listed, inspected and split: for `growth.py`."""

import os
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.rows import load_patches

CLASSES = {"Normal": "Normal", "Tumor": "Tumor"}


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


def list_rows(folder: Path) -> dict:
    """List, inspect and split the data set in `folder`, open one picture, and say what was written for it."""
    before = _weigh(folder)
    dataset = {"name": "pcam", "source": "data", "class_names": CLASSES}
    patches = load_patches(HistoArguments(datasets=[dataset], data_dir=str(folder)))
    patches["train"][len(patches["train"]) // 2]["images"][0].load()
    return {"rows": sum(map(len, patches.values())), "bytes_written": _weigh(folder) - before}


def _weigh(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
