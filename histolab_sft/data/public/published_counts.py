"""Compare a data set on disk with its published counts."""

import csv
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

from histolab_sft.data.public.benchmarks import Benchmark

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


def check_folder(benchmark: Benchmark, folder: Path) -> None:
    """Compare what lies in `folder` with the published counts; raise ValueError naming every difference."""
    problems = []
    for subfolder, classes in benchmark.counts.items():
        for name, expected in classes.items():
            found = len(image_files(folder / subfolder / name))
            if found != expected:
                problems.append(f"{Path(subfolder) / name}: found {found} images, expected {expected}")
    for file, arrays in benchmark.rows.items():
        for key, expected in arrays.items():
            found = _count_rows(folder / file, key)
            if found != expected:
                problems.append(f"{file}[{key}]: found {found} rows, expected {expected}")
    for file, columns in benchmark.tables.items():
        rows = _read_table(folder / file)
        for column, expected in columns.items():
            found = Counter(row.get(column, f"no column {column}") for row in rows)
            if found != expected:
                problems.append(f"{file}, column {column}: found {dict(found)}, expected {dict(expected)}")
    for file, (column, label_file) in benchmark.labels.items():
        if not (folder / label_file).exists():
            continue  # already told above
        told = [row.get(column) == "True" for row in _read_table(folder / file)]
        with h5py.File(folder / label_file) as opened:
            labels = opened["y"][...].ravel().astype(bool)
        if not np.array_equal(told, labels):
            problems.append(f"{file}: its column {column} is not the labels of {label_file}: wrong or swapped file")
    if problems:
        raise ValueError(
            f"{folder} does not hold {benchmark.title}: {'; '.join(problems)}. "
            f"Move what is wrong out of {folder} and run the download again"
        )


def image_files(folder: Path) -> list[Path]:
    """Every image below `folder`, hidden files (macOS puts some beside the real ones) left out."""
    return [p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]


def _count_rows(path: Path, key: str) -> int:
    if not path.exists():
        return 0
    if path.suffix == ".npz":
        with np.load(path) as opened:
            return len(opened[key])
    with h5py.File(path) as opened:
        return len(opened[key])


def _read_table(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8-sig") as stream:
        return list(csv.DictReader(stream))
