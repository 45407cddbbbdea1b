"""Open arrays of an HDF5 file only if they are stored in this file, and no larger than pictures and labels are.

HDF5 allows arrays that read any other file of the machine (external storage, external links, virtual arrays), and huge
arrays that are compressed to a few bytes.
"""

import math
from pathlib import Path

import h5py

from histolab_sft.data.pictures.steps import MAX_PIXELS

# Of one row of pictures (16-bit RGBA at the largest size), and of one chunk, which HDF5 unpacks as a whole.
MAX_ROW_BYTES = 8 * MAX_PIXELS
MAX_CHUNK_BYTES = 512 * 2**20
# Of an array that is read whole, as labels and file names are: 10 million rows of 25 bytes.
MAX_WHOLE_BYTES = 256 * 2**20


def open_hdf5(path: str | Path) -> h5py.File:
    """Open a file to read; raise ValueError if it is no HDF5 file, or a damaged one."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} can't be read as HDF5 ({error}); copy or download it again") from error


def find_array(file: h5py.File, key: str, whole: bool = False) -> h5py.Dataset:
    """Return the array of an open file under a key.

    Args:
        whole (`bool`): Whether all of it will be read at once, and not one row after the other.

    Raises:
        ValueError: There is no array under this key, it lies in another file, or it is too large to be what it should.
    """
    item, name = file, f"{file.filename}: {key}"
    for part in key.split("/"):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"{name} is a link to the file {link.filename!r}, expected an array; remove the link")
        item = item.get(part) if isinstance(item, h5py.Group) else None
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"{name} is no array among {sorted(file)}, expected one; correct the name of the key")
    if item.file.filename != file.filename or item.external or item.is_virtual:
        raise ValueError(f"{name} stores its values in another file, expected them in this one; copy them into it")
    size = item.dtype.itemsize
    for what, found, most in (
        ("a row", size * math.prod(item.shape[1:]), MAX_ROW_BYTES),
        ("a chunk", size * math.prod(item.chunks) if item.chunks else 0, MAX_CHUNK_BYTES),
        ("the whole", size * math.prod(item.shape) if whole else 0, MAX_WHOLE_BYTES),
    ):
        if found > most:
            raise ValueError(
                f"{name} has the shape {item.shape}, of which {what} takes {found:,} bytes, expected at most "
                f"{most:,}; write the array again in smaller parts"
            )
    return item
