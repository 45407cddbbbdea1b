"""Pictures in an .npz file as MedMNIST publishes it: `SPLIT_images` (N, H, W, 3) or (N, H, W), `SPLIT_labels` (N, 1).

The arrays are compressed as wholes, so that a row can't be read by itself: an array is unpacked once, into the cache,
and its rows are then read where they lie. Rows are counted over all arrays of pictures, in the file's order.
"""

import math
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from histolab_sft.data.pictures.archives import MAX_RATIO, RATIO_FLOOR
from histolab_sft.data.pictures.hdf5_arrays import MAX_ROW_BYTES, MAX_WHOLE_BYTES
from histolab_sft.files import unpack_once

PICTURES, LABELS = "_images", "_labels"


def list_arrays(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array, in the file's order, from their headers.

    Raises:
        ValueError: It is no .npz file, a damaged one, or one that holds something else than plain numbers.
    """
    with _opened(path) as archive:
        return {
            name.removesuffix(".npy"): _read_header(archive, name, path)[0]
            for name in archive.namelist()
            if name.endswith(".npy")
        }


def read_labels(path: str | Path, name: str) -> np.ndarray:
    """Return an array that is read whole; raise ValueError as `list_arrays`, or if it is too large for labels."""
    with _opened(path) as archive:
        shape, size = _read_header(archive, f"{name}.npy", path)
        if size > MAX_WHOLE_BYTES:
            raise ValueError(
                f"{path}: {name} has the shape {shape}, {size:,} bytes, expected at most {MAX_WHOLE_BYTES:,}"
            )
        with archive.open(f"{name}.npy") as member:
            return npy.read_array(member, allow_pickle=False)


def read_picture(path: str, row: int) -> np.ndarray:
    """Return the pixels (H, W, 3) of a row, grey ones three times; raise ValueError if there is none, as above."""
    start = 0
    for name, count in _list_pictures(path):
        if row < start + count:
            pixels = _map(path, name)[row - start]
            return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else np.array(pixels)
        start += count
    raise ValueError(f"the file has {start} pictures; correct the manifest")


@lru_cache(maxsize=64)
def _list_pictures(path: str) -> list[tuple[str, int]]:
    return [(name, shape[0]) for name, shape in list_arrays(path).items() if name.endswith(PICTURES)]


@lru_cache(maxsize=64)
def _map(path: str, name: str) -> np.ndarray:
    def write(target: Path) -> None:
        with _opened(path) as archive, archive.open(f"{name}.npy") as member, open(target, "wb") as file:
            shutil.copyfileobj(member, file, 2**20)

    with _opened(path) as archive:
        _, size = _read_header(archive, f"{name}.npy", path)
    return np.load(unpack_once(path, f"{name}.npy", size, write), mmap_mode="r", allow_pickle=False)


def _read_header(archive: zipfile.ZipFile, name: str, path: str | Path) -> tuple[tuple[int, ...], int]:
    """Return shape and bytes of an array, which are those that its member unpacks to."""
    info = archive.getinfo(name)
    with archive.open(name) as member:
        version = npy.read_magic(member)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(member)
        size = member.tell() + math.prod(shape) * dtype.itemsize
    row = dtype.itemsize * math.prod(shape[1:])
    if dtype.hasobject or not shape:
        raise ValueError(f"{path}: {name} holds {dtype} {shape}, expected rows of plain numbers; write it anew")
    if info.file_size != size or row > MAX_ROW_BYTES or size > max(MAX_RATIO * info.compress_size, RATIO_FLOOR):
        raise ValueError(
            f"{path}: {name} has the shape {shape}, {row:,} bytes a row, and unpacks from {info.compress_size:,} to "
            f"{info.file_size:,} bytes, expected what its shape takes, and pictures; download it again"
        )
    return shape, size


@contextmanager
def _opened(path: str | Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} can't be read as .npz ({error}); copy or download it again") from error
