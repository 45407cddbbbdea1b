"""Download, verify and unpack public data sets.

A file gets its name, by a rename, only after its size and checksum are right. It is then unpacked and noted in
.verified.json, so that a second call only checks and downloads nothing. An interrupted download resumes.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
from filelock import FileLock, Timeout

from histolab_sft.data.pictures import archives
from histolab_sft.data.public.benchmarks import Benchmark, RemoteFile
from histolab_sft.data.public.fetch import fetch, verify_file
from histolab_sft.data.public.published_counts import check_folder, image_files
from histolab_sft.files import write_text

logger = logging.getLogger(__name__)

MARKER = ".verified.json"


def download(benchmark: Benchmark, folder: Path) -> None:
    """Bring `benchmark` whole and verified into `folder`; what is already there is checked and kept.

    Raises OSError (disk too small, server unreachable after all attempts), ValueError (wrong size, checksum, URL or
    counts), UnsafeArchiveError (a ValueError), FileNotFoundError (a data set to be placed by hand is not there).
    """
    logger.info("%s: %s", benchmark.name, benchmark.title)
    logger.info("  source: %s\n  licence: %s\n  protocol: %s", benchmark.source, benchmark.licence, benchmark.protocol)
    if not benchmark.files:
        _check_placed_by_hand(benchmark, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        for leftover in folder.glob(".extract-*"):
            shutil.rmtree(leftover)
        missing = [file for file in benchmark.files if not _in_place(file, folder)]
        if missing:
            _check_disk(missing, folder)
            with httpx2.Client(timeout=60, follow_redirects=False) as client:
                for file in missing:
                    fetch(client, file, folder / file.name)
                    _unpack(file, folder)
        check_folder(benchmark, folder)
    logger.info(
        "%s: %s, sizes and counts are as published",
        folder,
        "complete" if missing else "already here, nothing to download",
    )


def _in_place(file: RemoteFile, folder: Path) -> bool:
    """Whether `file` lies unpacked in `folder` as noted when it was verified. Raise ValueError if it changed since."""
    target = folder / file.unpacks_to
    if not target.exists():
        return False
    noted, found = _read_marker(folder).get(file.name), _measure(target)
    if noted is None:
        if target.is_dir():
            logger.warning("%s: UNVERIFIED, not unpacked by this command: only its counts are checked", target)
        else:
            verify_file(target, None, file.unpacked_checksum or (file.checksum if _is_plain(file) else None))
        _note(file, folder)
    elif found != {key: noted[key] for key in found}:
        raise ValueError(
            f"{target} changed since it was verified: found {found}, expected {noted}; move it away and rerun"
        )
    return True


def _check_disk(missing: Sequence[RemoteFile], folder: Path) -> None:
    """Raise OSError unless the largest archive and everything unpacked fit: each archive is deleted once unpacked."""
    still_to_come = [
        (file.bytes or file.unpacked_limit)
        - sum(p.stat().st_size for p in folder.glob(f"{file.name}*") if p.is_file())
        for file in missing
        if not _is_plain(file)
    ]
    needed = sum(file.unpacked_limit for file in missing) + max(0, *still_to_come)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder.absolute()}: found {free:,} bytes free, expected {needed:,} (download and unpacked together); "
            "make room or choose another disk with --folder"
        )


def _unpack(file: RemoteFile, folder: Path) -> None:
    """Unpack the verified file, note it and remove the archive."""
    archive, target = folder / file.name, folder / file.unpacks_to
    if archive.name.endswith(archives.ARCHIVE_SUFFIXES):
        archives.extract(archive, folder, file.unpacks_to, file.unpacked_limit)
    elif not _is_plain(file):
        with tempfile.TemporaryDirectory(prefix=".extract-", dir=folder) as temporary:
            unpacked = Path(temporary, target.name)
            archives.gunzip(archive, unpacked, file.unpacked_limit)
            verify_file(unpacked, None, file.unpacked_checksum)
            os.replace(unpacked, target)
    _note(file, folder)
    if not _is_plain(file):
        archive.unlink()


def _is_plain(file: RemoteFile) -> bool:
    return file.name == file.unpacks_to


def _note(file: RemoteFile, folder: Path) -> None:
    entry = {"checksum": file.checksum} | _measure(folder / file.unpacks_to)
    write_text(folder / MARKER, json.dumps(_read_marker(folder) | {file.name: entry}, indent=2))


def _read_marker(folder: Path) -> dict[str, dict]:
    marker = folder / MARKER
    return json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}


def _measure(target: Path) -> dict[str, int]:
    """Number and bytes of the images below a folder, or of the one file."""
    files = image_files(target) if target.is_dir() else [target]
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def _check_placed_by_hand(benchmark: Benchmark, folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Found no folder {folder}; {benchmark.title} cannot be fetched without its host's consent. "
            f"By hand, from {benchmark.source}: {benchmark.manual} in {folder}, then run this again"
        )
    check_folder(benchmark, folder)
    logger.info("%s: counts are as published", folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".download.lock", timeout=0):
            yield
    except Timeout as error:
        raise OSError(f"Found another download at work in {folder}, expected none; wait for it to end") from error
