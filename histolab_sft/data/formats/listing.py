"""List the files below a source, and count by kind those that no row comes from.

A `name` is a path relative to the source, with `/` between its parts.
"""

import logging
import mimetypes
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

# Written beside the pictures by macOS, Windows, storage devices and file systems. Compared in lower case.
SYSTEM_NAMES = (
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "lost+found"),
)
HIDDEN, PICTURES, OTHER_PICTURES = "hidden or of the system", "pictures", "pictures of another format"
# Whole slides and JPEG 2000, which `mimetypes` doesn't call images.
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".czi", ".jp2", ".j2k", ".dicom")
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8")
MIME_TYPES = mimetypes.MimeTypes()  # Python's own table, the same on every system
EXAMPLES = 3


def is_side_file(name: str) -> bool:
    """Whether a file is hidden or written by the operating system, or lies in such a folder."""
    return any(part.startswith(".") or part.lower() in SYSTEM_NAMES for part in name.split("/"))


def list_files(source: Path) -> list[str]:
    """Return the names of all files below `source`, at any depth, sorted folder by folder. Links are followed.

    Raises:
        PermissionError: A folder may not be read.
    """
    # Plain texts: a hundred thousand `Path` objects take half a minute.
    start = len(os.path.join(str(source), ""))
    return sorted((path[start:] for path in _walk(str(source), ())), key=lambda name: name.split("/"))


def list_visible(source: Path) -> list[str]:
    """Return what `list_files` does without hidden files and those of the operating system."""
    return [name for name in list_files(source) if not is_side_file(name)]


def find_as_spelled(path: str) -> str:
    """Return `path` in the Unicode form that it has on disk (é is one character or two), else `path` unchanged."""
    if path.isascii() or os.path.exists(path):
        return path
    folder, name = os.path.split(path)
    folder = find_as_spelled(folder) if name else ""
    if not os.path.isdir(folder):
        return path
    names = _list_by_form(folder, os.stat(folder).st_mtime_ns)
    return os.path.join(folder, names.get(normalize("NFC", name), name))


@lru_cache(maxsize=16)
def _list_by_form(folder: str, _changed: int) -> dict[str, str]:
    return {normalize("NFC", name): name for name in os.listdir(folder)}


def is_picture(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def count_unread(source: Path, read: Iterable[str]) -> dict[str, int]:
    """Return by kind, most first, how many files below `source` are not among the paths `read`.

    Kinds are `HIDDEN`, `PICTURES`, `OTHER_PICTURES` and the suffixes of other files.
    """
    read = {os.path.abspath(path) for path in set(read)}
    above = os.path.abspath(source)
    return count_kinds(source, [name for name in list_files(source) if f"{above}/{name}" not in read])


def tell_unread(kinds: dict[str, int], name: str) -> dict[str, int]:
    """Return `kinds`, the counts of a data set's files that aren't read, after logging them in one line."""
    if kinds:
        level = logging.WARNING if {PICTURES, OTHER_PICTURES} & set(kinds) else logging.INFO
        logger.log(level, "data set %r: %d files not read: %s", name, sum(kinds.values()), format_kinds(kinds))
    return kinds


def count_kinds(source: Path, names: Iterable[str]) -> dict[str, int]:
    """Return the number of files of each kind, most first."""
    return dict(Counter(_name_kind(source, name) for name in names).most_common())


def format_kinds(kinds: dict[str, int]) -> str:
    """Return counts by kind in words: `40 hidden or of the system, 6 .txt`."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def describe_files(source: Path, names: Sequence[str]) -> str:
    """Return what lies below a folder in a few words, for somebody who expected something else there."""
    if not names:
        return "it is empty"
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    where = f" (in {list_some(folders)})" if folders else ""
    return f"it holds {format_kinds(count_kinds(source, names))}{where}"


def list_some(names: Sequence[str], most: int = EXAMPLES) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    shown = [name if name.isprintable() else ascii(name)[1:-1] for name in names[:most]]
    return ", ".join(shown) + more


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield entry.path
            elif os.path.realpath(entry.path) not in above:  # else a link to a folder that it lies in
                yield from _walk(entry.path, above)


def _name_kind(source: Path, name: str) -> str:
    if is_side_file(name):
        return HIDDEN
    if is_picture(name):
        return PICTURES
    suffix = os.path.splitext(name)[1].lower()
    kind = MIME_TYPES.guess_type(os.path.basename(name))[0] or ""
    if kind.startswith("image/") or suffix in SLIDE_SUFFIXES or _looks_like_a_picture(source / name, suffix):
        return OTHER_PICTURES
    return suffix or "without a suffix"


def _looks_like_a_picture(path: Path, suffix: str) -> bool:
    """Whether a file whose name tells nothing holds a picture; DICOM files often end in the number of the slice."""
    if (suffix and not suffix[1:].isdigit()) or not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(132)
    return start.startswith(SIGNATURES) or start[128:] == b"DICM"
