"""Read the stored bytes of one patch: a file of its own, or a row of a parquet, Arrow, HDF5 or tar file.

Row -1: the file is the picture. From 0 on: a row of a parquet file, of an Arrow file of `save_to_disk` or of an array
in an HDF5 or .npz file, or the n-th picture of a tar shard. Compressed shards and .npz arrays are unpacked once, to
the cache. Files are opened read-only, once per process. Any number of threads and processes may read at once.
A parquet file may also be on the Hub (see `hub_files`); one row group at a time is fetched.
"""

import os
import shutil
import stat
import tarfile
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path, PurePath

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histolab_sft.data.pictures.archives import gunzip
from histolab_sft.data.pictures.hdf5_arrays import find_array, open_hdf5
from histolab_sft.data.pictures.hub_files import is_remote, open_remote, reading
from histolab_sft.data.pictures.npz_arrays import read_picture
from histolab_sft.files import unpack_once

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm")
# 25 Mpx of uncompressed 16-bit RGBA are 200 MB. A larger file must be a whole slide, and isn't read.
MAX_FILE_BYTES = 256 * 2**20
MAX_ROW_GROUP_BYTES = 512 * 2**20
# Row groups are kept up to this size in each process: all of a small data set, one or two groups of a large one.
ROW_GROUP_CACHE_BYTES = 64 * 2**20

_row_groups: OrderedDict[tuple[str, int, str], pa.ChunkedArray] = OrderedDict()
# Neither the dictionary above nor an open `ParquetFile` may be used by two threads at once.
_parquet_lock = threading.Lock()
# A process forked while another thread reads would find the lock taken for ever, and the dictionary half changed.
os.register_at_fork(
    before=_parquet_lock.acquire, after_in_parent=_parquet_lock.release, after_in_child=_parquet_lock.release
)


def name_patch(path: str, row: int = -1) -> str:
    """Return the name of a patch in messages and reports: its path, and `#row` inside a container."""
    return path if row < 0 else f"{path}#{row}"


def read_patch(path: str, row: int = -1, image_column: str = "image") -> bytes | np.ndarray:
    """Return the encoded bytes of a patch, or its pixels (H, W, 3) uint8 where they are stored raw (HDF5, .npz).

    Raises:
        ImageRefused: There is no such file or row, or it is no regular file, or too large to be a patch.
        HubAccessError: A file on the Hub can't be had.
    """
    size = 0 if is_remote(path) else check_file(path).st_size
    if row < 0:
        if size > MAX_FILE_BYTES:
            raise ImageRefused(path, f"{size} bytes, expected at most {MAX_FILE_BYTES}; cut the slide into patches")
        with open(path, "rb") as file:
            return file.read()
    readers = {".parquet": _read_parquet, ".arrow": _read_arrow, ".h5": _read_hdf5, ".hdf5": _read_hdf5}
    readers |= {".npz": _read_npz}
    readers |= dict.fromkeys((".tar", ".tgz", ".gz"), _read_tar)
    suffix = PurePath(path).suffix.lower()
    if suffix not in readers:
        raise ImageRefused(
            path, f"row {row} of a {suffix or 'nameless'} file, expected {', '.join(readers)}; use row -1"
        )
    try:
        with reading(path):
            return readers[suffix](path, row, image_column)
    except ImageRefused:
        raise
    except (OSError, ValueError, LookupError, pa.ArrowException, tarfile.TarError) as error:
        reason = f"{type(error).__name__}: {error}; expected a readable {suffix} file; download it again"
        raise ImageRefused(name_patch(path, row), reason) from error


def check_file(path: str) -> os.stat_result:
    """Return the status of a regular, readable file, without opening it: opening a pipe would wait for ever."""
    try:
        path.encode("utf-8")
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name holds bytes that aren't UTF-8, or a NUL"
        raise ImageRefused(path, f"{reason}; expected a readable file; correct the path or rename it") from error
    if not stat.S_ISREG(status.st_mode):
        raise ImageRefused(path, "is a folder, pipe, socket or device, expected a regular file; take it off the list")
    if status.st_size == 0:
        raise ImageRefused(path, "has zero bytes, expected a picture; copy or download it again")
    if not os.access(path, os.R_OK):
        raise ImageRefused(path, "may not be read by this user, expected read permission; change it with chmod")
    return status


def _read_parquet(path: str, row: int, image_column: str) -> bytes:
    with _parquet_lock:
        column, position = _find_row(path, row, image_column)
    return _take_bytes(column[position].as_py(), name_patch(path, row), image_column)


def _take_bytes(cell: object, name: str, image_column: str) -> bytes:
    data = cell["bytes"] if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or not data:
        reason = f"column {image_column!r} has no bytes in this row, expected an encoded picture; embed the pictures"
        raise ImageRefused(name, reason)
    return data


def _find_row(path: str, row: int, image_column: str) -> tuple[pa.ChunkedArray, int]:
    """Return the pictures of the row group that holds a row, and the row's position among them."""
    file, starts = _open_parquet(path, os.getpid())
    if row >= starts[-1]:
        raise ImageRefused(name_patch(path, row), f"the file has {starts[-1]} rows; correct the manifest")
    group = int(np.searchsorted(starts, row, side="right")) - 1
    key = (path, group, image_column)
    if key not in _row_groups:
        if image_column not in file.schema_arrow.names:
            raise ImageRefused(path, f"columns {file.schema_arrow.names}, expected {image_column!r}; set image_column")
        # Threads of Arrow's own don't survive a fork into a loader's worker.
        _row_groups[key] = _read_row_group(file, path, group, image_column)
        while len(_row_groups) > 1 and sum(column.nbytes for column in _row_groups.values()) > ROW_GROUP_CACHE_BYTES:
            _row_groups.popitem(last=False)
    _row_groups.move_to_end(key)
    return _row_groups[key], row - int(starts[group])


def _read_row_group(file: pq.ParquetFile, path: str, group: int, image_column: str) -> pa.ChunkedArray:
    """Return a column of a row group, read in small parts to stop before too much is unpacked."""
    chunks = (file.metadata.row_group(group).column(i) for i in range(file.metadata.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.startswith(image_column))
    parts, total = [], size
    if size <= MAX_ROW_GROUP_BYTES:
        total = 0
        for batch in file.iter_batches(64, [group], [image_column], use_threads=False):
            parts.append(batch.column(0))
            total += parts[-1].nbytes
            if total > MAX_ROW_GROUP_BYTES:
                break
    if total > MAX_ROW_GROUP_BYTES:
        reason = f"row group {group} unpacks to more than {MAX_ROW_GROUP_BYTES} bytes, expected fewer"
        raise ImageRefused(path, f"{reason}; write the file again with fewer rows in a group")
    return pa.chunked_array(parts, type=file.schema_arrow.field(image_column).type)


def _read_hdf5(path: str, row: int, image_column: str) -> np.ndarray:
    file = _open_hdf5(path, os.getpid())
    if image_column not in file:
        raise ImageRefused(path, f"keys {sorted(file)}, expected {image_column!r}; set image_column")
    try:
        pixels = find_array(file, image_column)
    except ValueError as error:
        raise ImageRefused(name_patch(path, row), str(error)) from error
    if row >= len(pixels):
        raise ImageRefused(name_patch(path, row), f"the file has {len(pixels)} rows; correct the manifest")
    return pixels[row]


def _read_npz(path: str, row: int, image_column: str) -> np.ndarray:
    return read_picture(path, row)


def _read_arrow(path: str, row: int, image_column: str) -> bytes:
    table = open_arrow(path)
    if row >= len(table):
        raise ImageRefused(name_patch(path, row), f"the file has {len(table)} rows; correct the manifest")
    if image_column not in table.column_names:
        raise ImageRefused(path, f"columns {table.column_names}, expected {image_column!r}; set image_column")
    return _take_bytes(table[image_column][row].as_py(), name_patch(path, row), image_column)


def _read_tar(path: str, row: int, image_column: str) -> bytes:
    members = index_tar(path)
    if row >= len(members):
        raise ImageRefused(name_patch(path, row), f"the shard has {len(members)} pictures; correct the manifest")
    _, offset, size = members[row]
    if size > MAX_FILE_BYTES:
        raise ImageRefused(name_patch(path, row), f"{size} bytes, expected at most {MAX_FILE_BYTES}; cut it up")
    with open(unpack_shard(path), "rb") as file:
        file.seek(offset)
        return file.read(size)


@lru_cache(maxsize=64)
def index_tar(path: str) -> list[tuple[str, int, int]]:
    """Return name, offset and size in bytes of each picture in a tar shard, in the archive's order."""
    with tarfile.open(unpack_shard(path), "r:") as archive:
        members = (member for member in archive if member.isreg() and member.name.lower().endswith(IMAGE_SUFFIXES))
        return [(member.name, member.offset_data, member.size) for member in members]


@lru_cache(maxsize=64)
def unpack_shard(path: str) -> str:
    """Return the path of a tar shard; of a compressed one, the path of its unpacked copy in the cache.

    Raises:
        UnsafeArchiveError: It is damaged, or unpacks to more than there is room for.
    """
    if path.lower().endswith(".tar"):
        return path

    def write(target: Path) -> None:
        gunzip(Path(path), target, shutil.disk_usage(target.parent).free // 2)

    return str(unpack_once(path, "shard.tar", None, write))


@lru_cache(maxsize=64)
def open_arrow(path: str) -> pa.Table:
    """Return the table in an Arrow file that `save_to_disk` wrote, memory-mapped: its rows are read when used."""
    return pa.ipc.open_stream(pa.memory_map(path)).read_all()


# An open file must not be shared with a forked process (both would move its one position), hence the process id.
@lru_cache(maxsize=64)
def _open_parquet(path: str, process: int) -> tuple[pq.ParquetFile, np.ndarray]:
    file = pq.ParquetFile(open_remote(path) if is_remote(path) else path)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    return file, np.cumsum([0, *sizes])


@lru_cache(maxsize=64)
def _open_hdf5(path: str, process: int) -> h5py.File:
    return open_hdf5(path)


class ImageRefused(ValueError):
    """A patch that can't be used: `path` (with `#row` inside a container) and `reason`."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{ascii(self.path)[1:-1] if not self.path.isprintable() else self.path}: {self.reason}"
