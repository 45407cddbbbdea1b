"""Lock a run's folder, so that no second run writes to it at the same time."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from histolab_sft.provenance import make_folder, write_json

LOCK, HOLDER = ".run.lock", ".run-holder.json"
SAVING = ".saving"  # weights that aren't whole yet


class FolderInUseError(RuntimeError):
    """Another run works in the folder."""


@contextmanager
def hold_folder(folder: str | Path, hold: bool = True) -> Iterator[None]:
    """Keep other runs out of `output_dir` while the block runs.

    The operating system holds the lock and lets go of it when the process ends, however it ends, so that a lock can't
    be left behind. Who holds it stands beside it, for the message.

    Args:
        hold (`bool`): Whether this process is the one of the run that does so.

    Raises:
        FolderInUseError: Another run holds it.
        OSError: Nothing can be written there.
    """
    if not hold:
        yield
        return
    folder = Path(folder)
    make_folder(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUseError(
            f"{folder} is in use by another run ({_describe_holder(folder / HOLDER)}), expected one run a folder; "
            "wait until it has ended, or choose another output_dir"
        ) from None
    try:
        # Of a run that was killed: nobody else writes here now.
        shutil.rmtree(folder / SAVING, ignore_errors=True)
        start = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / HOLDER, {"host": socket.gethostname(), "process": os.getpid(), "start": start})
        yield
    finally:
        folder.joinpath(HOLDER).unlink(missing_ok=True)
        lock.release()


def _describe_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return "it has only just begun"
    return f"process {holder['process']} on {holder['host']}, since {holder['start']}"
