"""Fetch one published file over https: resumed when interrupted, retried, and kept only if its checksum is right."""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx2
from tqdm import tqdm

from histolab_sft.data.public.benchmarks import RemoteFile
from histolab_sft.files import write_text

logger = logging.getLogger(__name__)

ATTEMPTS = 6
FIRST_DELAY = 1.0  # seconds, doubled after every failed attempt
LONGEST_DELAY = 120.0
RETRIED_STATUS = {429, 500, 502, 503, 504}
REDIRECT_STATUS = {301, 302, 303, 307, 308}
MAX_REDIRECTS = 5
LOOPBACK = "127.0.0.1"


def fetch(client: httpx2.Client, file: RemoteFile, path: Path) -> None:
    """Download `file` to `path` through `path`.part, resuming what an earlier attempt or call left there.

    Only https:// is spoken (http:// to 127.0.0.1 too). Cut connections, timeouts and the statuses 429, 500, 502, 503
    and 504 are tried again, `ATTEMPTS` times in all. Raises OSError when they are used up, ValueError on wrong bytes.
    """
    part = path.with_name(path.name + ".part")
    if path.exists():
        verify_file(path, file.bytes, file.checksum)
        return
    for attempt in range(ATTEMPTS):
        try:
            _receive(client, file, part)
            break
        except (httpx2.TransportError, RetryLater) as error:
            asked = error.delay if isinstance(error, RetryLater) else 0.0
            delay = min(max(FIRST_DELAY * 2**attempt, asked), LONGEST_DELAY)
            reason = str(error) or type(error).__name__
            logger.warning("%s: attempt %d of %d: %s", file.name, attempt + 1, ATTEMPTS, reason)
            if attempt + 1 == ATTEMPTS:
                raise OSError(
                    f"{file.url}: found {reason}, expected the file, after {ATTEMPTS} attempts; what came is kept in "
                    f"{part}: run the same command later and it goes on from there"
                ) from error
            time.sleep(delay)
    try:
        verify_file(part, file.bytes, file.checksum)
    except ValueError:
        _discard(part)
        raise
    os.replace(part, path)
    _notes(part).unlink()


def _receive(client: httpx2.Client, file: RemoteFile, part: Path) -> None:
    """Make one attempt: append what is missing to `part`, or start again where it may be of another file."""
    known = json.loads(_notes(part).read_text()) if part.exists() and _notes(part).exists() else {}
    # Without a checksum, only the server's ETag or date can tell that both parts are of one file.
    resumable = known.get("url") == file.url and (file.checksum or known.get("validator"))
    offset = part.stat().st_size if resumable else 0
    if offset and offset == known["total"]:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    if offset and known["validator"].startswith('"'):
        headers["If-Range"] = known["validator"]
    with _opened(client, file.url, headers) as response:
        if response.status_code in RETRIED_STATUS:
            asked = response.headers.get("retry-after", "")
            raise RetryLater(f"HTTP {response.status_code}", float(asked) if asked.isdecimal() else 0.0)
        validator = response.headers.get("etag") or response.headers.get("last-modified", "")
        if offset and response.status_code in (206, 416):
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("content-range", ""))
            if not span or (int(span[1]), int(span[2]), validator) != (offset, known["total"], known["validator"]):
                _discard(part)
                raise RetryLater("the file changed on the server, or its range is wrong: starting again")
            total = known["total"]
        elif response.status_code == 200:
            if offset:
                logger.warning("%s: the server sends the whole file again: starting again", file.name)
            offset = 0
            length = response.headers.get("content-length", "")
            total = int(length) if length.isdecimal() else file.bytes
            if file.bytes is not None and total != file.bytes:
                raise ValueError(_wrong(part, f"{total:,} bytes offered", f"{file.bytes:,}"))
            part.unlink(missing_ok=True)  # before its notes, which must never be of other bytes
            write_text(_notes(part), json.dumps({"url": file.url, "validator": validator, "total": total}))
        else:
            raise OSError(f"{file.url}: found HTTP {response.status_code}, expected 200; check the address by hand")
        written, limit = offset, total if total is not None else file.unpacked_limit
        bar = tqdm(total=total, initial=offset, unit="B", unit_scale=True, desc=file.name, disable=None)
        with part.open("ab") as out, bar:
            for chunk in response.iter_raw():
                written += len(chunk)
                if written > limit:
                    break
                out.write(chunk)
                bar.update(len(chunk))
            out.flush()
            os.fsync(out.fileno())
    if written > limit:
        _discard(part)
        raise ValueError(_wrong(part, f"more than {limit:,} bytes", f"at most {limit:,}"))
    if total is not None and written != total:
        raise RetryLater(f"the body ended at {written:,} of {total:,} bytes")


@contextmanager
def _opened(client: httpx2.Client, url: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
    """Give the response to a GET, after at most `MAX_REDIRECTS` redirects to addresses that are allowed."""
    _check_url(url)
    for _ in range(MAX_REDIRECTS + 1):
        with client.stream("GET", url, headers=headers) as response:
            if response.status_code not in REDIRECT_STATUS:
                yield response
                return
            target = urljoin(url, response.headers.get("location", ""))
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http":
            raise ValueError(f"Refused the redirect of {url} from https to http ({target}); expected https://")
        _check_url(target)
        url = target
    raise ValueError(f"Found more than {MAX_REDIRECTS} redirects, the last to {url}; check the address by hand")


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and (parts.scheme, parts.hostname) != ("http", LOOPBACK):
        raise ValueError(f"Refused the address {url}: found {parts.scheme}://, expected https://; correct the address")


def verify_file(path: Path, size: int | None, checksum: str | None) -> None:
    """Raise ValueError unless the file has this size (bytes) and this "algorithm:hex" checksum, where published."""
    found_size = path.stat().st_size
    if size is not None and found_size != size:
        raise ValueError(_wrong(path, f"{found_size:,} bytes", f"{size:,}"))
    if checksum is None:
        logger.warning("%s: UNVERIFIED, no published checksum", path.name.removesuffix(".part"))
        return
    algorithm, _, expected = checksum.partition(":")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if found != expected:
        raise ValueError(_wrong(path, f"{algorithm} {found}", expected))


def _wrong(path: Path, found: str, expected: str) -> str:
    return f"{path}: found {found}, expected {expected}; delete it if it is still there and run the download again"


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


class RetryLater(Exception):
    """A fault of the server or the line that may pass; `delay` is the wait (seconds) that the server asks for."""

    def __init__(self, reason: str, delay: float = 0.0):
        super().__init__(reason)
        self.delay = delay
