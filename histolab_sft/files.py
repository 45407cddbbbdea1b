"""Files and folders that appear whole or not at all, and where the cache is on this machine."""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished-"
LOCK = ".lock"
JUST_MADE = 5.0  # seconds in which the process that made a folder may not have locked it yet


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/histolab_sft`, by default `~/.cache/histolab_sft`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "histolab_sft")


def measure_free_space(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or would be made."""
    folder = folder.absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


@contextmanager
def replacing(path: str | Path, synced: bool = False) -> Iterator[Path]:
    """Give the path of a file to write, which takes the place of `path` at the end of the block.

    If the block fails, or its process is killed, `path` is as it was before.

    Args:
        synced (`bool`): Whether the file must be on the disk afterwards, so that a power cut can't take it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if synced:
            sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if synced:
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole, in place of one that is there."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Bring the bytes of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def unfinished_folder(parent: str | Path, prefix: str = UNFINISHED) -> Iterator[Path]:
    """Make a folder below `parent` while the block runs, for files that are moved to their place when they are whole.

    What a killed process has left there under the prefix is deleted first: nobody holds the lock of it any more.
    """
    remove_abandoned(parent, prefix)
    with TemporaryDirectory(dir=parent, prefix=prefix) as folder, _locked(folder):
        try:
            yield Path(folder)
        finally:
            _empty(Path(folder))


def unpack_once(path: str | Path, name: str, size: int | None, write: Callable[[Path], None]) -> Path:
    """Return the place in the cache of what a file unpacks to, which is written there at the first call.

    Args:
        path: The file. Where it changes, it is unpacked anew.
        name: Which part of it, with the ending of the copy.
        size (`int`, *optional*): Bytes that the copy will take, if they are known before.
        write: Unpacks to the path that it is given.

    Raises:
        OSError: The disk has no room for `size` bytes.
    """
    status = os.stat(path)
    version = f"{os.path.realpath(path)} {status.st_size} {status.st_mtime_ns} {name}"
    target = cache_folder() / "unpacked" / (hashlib.sha256(version.encode()).hexdigest()[:32] + Path(name).suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            logger.info("%s is compressed: %s is unpacked once, to %s", path, name, target)
            free = shutil.disk_usage(target.parent).free
            if size is not None and size > free:
                raise OSError(
                    f"{target.parent}: found {free:,} bytes free, expected {size:,} to unpack {path}; make room, or "
                    "set XDG_CACHE_HOME to another disk"
                )
            with unfinished_folder(target.parent) as folder:
                write(Path(folder, "unpacked"))
                os.replace(Path(folder, "unpacked"), target)
    return target


def remove_abandoned(parent: str | Path, prefix: str = UNFINISHED) -> None:
    """Delete the folders of `unfinished_folder` whose process is gone: those with a lock that nobody holds."""
    for folder in Path(parent).glob(f"{prefix}*"):
        try:
            status = folder.lstat()
            if folder.is_symlink() or not folder.is_dir() or status.st_uid != os.getuid():
                continue
            if time.time() - status.st_mtime < JUST_MADE:
                continue
            if not folder.joinpath(LOCK).is_file():
                folder.rmdir()  # only if it is empty: of a process that was killed before it locked it
                continue
            with _locked(folder):
                _empty(folder)
                shutil.rmtree(folder)
        except OSError:  # somebody holds the lock, has just removed the folder, or has closed it to others
            continue
        logger.info("removed %s, which a process that was ended has left", folder)


def _empty(folder: Path) -> None:
    """Delete what is in a folder but its lock, by which the folder is known should a kill come in between."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink(missing_ok=True)


def _locked(folder: str | Path) -> FileLock:
    return FileLock(Path(folder, LOCK), timeout=0)
