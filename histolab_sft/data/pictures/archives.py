"""Unpack archives from the network without trusting them.

Every member is checked before the first byte is written. Members are then written one by one into a temporary folder,
and their bytes are counted against the size in the header. At the end the folder is renamed to the target.
"""

import gzip
import os
import re
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MAX_MEMBERS = 200_000  # the largest known archive holds 100,000 patches
MAX_RATIO = 100  # patches hardly shrink; DEFLATE reaches 1,032
RATIO_FLOOR = 1 << 20  # bytes: below this, a good ratio means an empty picture or a column of labels, not a bomb
CHUNK = 1 << 20
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
FILE_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFREG: "a file named like a folder",
    stat.S_IFDIR: "a folder named like a file",
}


def extract(archive: Path, folder: Path, wanted: str, max_bytes: int) -> None:
    """Unpack the folder `wanted` of a .zip, .tar, .tar.gz or .tgz into `folder / wanted`, which must not exist yet.

    All members are checked, those below `wanted` are written: at most `max_bytes` in all. A refusal leaves nothing.
    Raises UnsafeArchiveError naming archive, member and reason; OSError where the disk refuses.
    """
    if (folder / wanted).exists():
        raise FileExistsError(
            f"Found {folder / wanted}, expected nothing there: move it away before unpacking {archive}"
        )
    if not archive.name.endswith(ARCHIVE_SUFFIXES):
        _refuse(archive, "", f"its name ends in none of {', '.join(ARCHIVE_SUFFIXES)}")
    with tempfile.TemporaryDirectory(prefix=".extract-", dir=folder) as temporary, _damage_refused(archive):
        if archive.name.endswith(".zip"):
            _extract_zip(archive, Path(temporary), wanted, max_bytes)
        else:
            _extract_tar(archive, Path(temporary), wanted, max_bytes)
        if not Path(temporary, wanted).is_dir():
            _refuse(archive, "", f"it holds no folder {wanted}")
        (folder / wanted).parent.mkdir(parents=True, exist_ok=True)
        os.replace(Path(temporary, wanted), folder / wanted)


def gunzip(archive: Path, target: Path, max_bytes: int) -> None:
    """Decompress a .gz file in a stream into `target`: at most `max_bytes`. A refusal leaves no target."""
    limit = min(max_bytes, max(MAX_RATIO * archive.stat().st_size, RATIO_FLOOR))
    written = 0
    try:
        with _damage_refused(archive), gzip.open(archive) as source, target.open("xb") as out:
            while chunk := source.read(CHUNK):
                written += len(chunk)
                if written > limit:
                    _refuse(archive, target.name, f"it unpacks to more than {limit:,} bytes (bomb)")
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (UnsafeArchiveError, OSError):
        target.unlink(missing_ok=True)
        raise


def _extract_zip(archive: Path, target: Path, wanted: str, max_bytes: int) -> None:
    with zipfile.ZipFile(archive) as opened:
        plan = _checked(archive, _zip_members(archive, opened), wanted, max_bytes)
        for member in plan:
            _write(archive, member, target)


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> "Iterator[Member]":
    for info in opened.infolist():
        name = info.orig_filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.flag_bits & 0x2041:
            _refuse(archive, name, "it is encrypted")
        if kind not in (0, stat.S_IFDIR if name.endswith("/") else stat.S_IFREG):
            _refuse(archive, name, f"it is {FILE_KINDS.get(kind, 'of an unknown kind')}")
        if not 0 <= info.header_offset <= archive.stat().st_size - info.compress_size:
            _refuse(archive, name, "truncated or damaged: it lies outside the archive")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            _refuse(archive, name, f"compression method {info.compress_type} is not plain DEFLATE")
        if info.file_size > max(RATIO_FLOOR, MAX_RATIO * info.compress_size):
            _refuse(archive, name, f"{info.compress_size:,} bytes unpack to {info.file_size:,} (bomb)")
        yield Member(name, name.endswith("/"), info.file_size, lambda info=info: opened.open(info))


def _extract_tar(archive: Path, target: Path, wanted: str, max_bytes: int) -> None:
    with tarfile.open(archive, "r:" if archive.name.endswith(".tar") else "r:gz") as opened:
        plan = _checked(archive, _tar_members(archive, opened, target), wanted, max_bytes)
        # tarfile takes a header it cannot read for the end: only a block of zeros is one, with nothing behind it.
        opened.fileobj.seek(opened.offset)
        tail = opened.fileobj.read(CHUNK)
        if len(tail) < 512 or len(tail) == CHUNK or tail.strip(b"\0"):
            _refuse(archive, plan[-1].name if plan else "", "the archive does not end after it: truncated or damaged")
        for member in plan:
            _write(archive, member, target)


def _tar_members(archive: Path, opened: tarfile.TarFile, target: Path) -> "Iterator[Member]":
    for info in opened:
        kinds = {
            "a symbolic link": info.issym(),
            "a hard link": info.islnk(),
            "a character device": info.ischr(),
            "a block device": info.isblk(),
            "a FIFO": info.isfifo(),
            "a sparse file": info.issparse(),
            "of an unknown kind": not (info.isreg() or info.isdir()),
        }
        for kind in (kind for kind, found in kinds.items() if found):
            _refuse(archive, info.name, f"it is {kind}")
        _safe_parts(archive, info.name)  # before tarfile's own filter, which strips a leading slash in silence
        tarfile.data_filter(info, str(target))
        yield Member(info.name, info.isdir(), info.size, lambda info=info: opened.extractfile(info))


def _checked(archive: Path, members: "Iterable[Member]", wanted: str, max_bytes: int) -> "list[Member]":
    """The members to write, after all of them passed the checks that hold for every kind of archive."""
    plan, seen, files, total, told = [], set(), {}, 0, 0
    inside = tuple(wanted.split("/"))
    for count, member in enumerate(members, 1):
        if count > MAX_MEMBERS:
            _refuse(archive, member.name, f"the archive has more than {MAX_MEMBERS:,} members")
        parts = _safe_parts(archive, member.name)
        key = _key(parts)
        if parts and key in seen:
            _refuse(archive, member.name, "its name comes twice (upper and lower case count as the same)")
        seen.add(key)
        if not member.is_folder:
            files[key] = member.name
        told += member.size
        if told > max(RATIO_FLOOR, MAX_RATIO * archive.stat().st_size):
            _refuse(archive, member.name, f"{archive.stat().st_size:,} bytes unpack to {told:,} or more (bomb)")
        if parts[: len(inside)] == inside:
            total += member.size
            if total > max_bytes:
                _refuse(archive, member.name, f"with it the archive unpacks to {total:,} bytes, limit {max_bytes:,}")
            plan.append(member)
    for key in seen:
        for end in range(1, len(key)):
            if key[:end] in files:
                _refuse(archive, files[key[:end]], "it is both a file and a folder")
    return plan


def _key(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Names that some file system takes for the same have the same key."""
    return tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)


def _safe_parts(archive: Path, name: str) -> tuple[str, ...]:
    reasons = {
        "its name is empty": not name,
        "its name has a drive letter": re.match(r"[A-Za-z]:", name),
        "its name has a backslash": "\\" in name,
        "its name has a control character": re.search(r"[\x00-\x1f\x7f]", name),
        "its path is absolute": name.startswith("/"),
        "its path climbs to a parent folder": ".." in name.split("/"),
        "its name is too long": len(os.fsencode(name)) > 1000
        or any(len(os.fsencode(p)) > 255 for p in name.split("/")),
    }
    for reason in (reason for reason, found in reasons.items() if found):
        _refuse(archive, name, reason)
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _write(archive: Path, member: "Member", target: Path) -> None:
    path = target.joinpath(*_safe_parts(archive, member.name))
    if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with _damage_refused(archive, member.name), member.open() as source, path.open("xb") as out:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > member.size:
                break
            out.write(chunk)
    if written != member.size:
        _refuse(archive, member.name, f"its header tells {member.size:,} bytes, {written:,} or more came out")


@contextmanager
def _damage_refused(archive: Path, member: str = "") -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, struct.error, EOFError) as error:
        _refuse(archive, member, f"truncated or damaged: {error}", error)
    except (NotImplementedError, UnicodeError) as error:
        _refuse(archive, member, f"its format is not understood: {error}", error)


def _refuse(archive: Path, member: str, reason: str, cause: Exception | None = None) -> None:
    where = f"{archive}, member {member!r}" if member else str(archive)
    raise UnsafeArchiveError(
        f"Refused {where}: {reason}. Expected plain files and folders that stay inside the target; "
        "nothing was unpacked. Delete the archive and fetch it from its publisher"
    ) from cause


@dataclass(frozen=True)
class Member:
    """One entry of an archive: its name and size (bytes) as the header tells them, and how to read it."""

    name: str
    is_folder: bool
    size: int
    open: Callable[[], IO[bytes]]


class UnsafeArchiveError(ValueError):
    """An archive that was not unpacked, because of a member or because it is damaged."""
