"""Tensors on disk under names: checked, shared between processes, and whole even if a process is killed.

They lie in `FOLDER/*.safetensors`. A shard gets its name when it is complete, and its header holds a checksum for each
tensor that covers its name and the folder's too. So nothing torn, damaged or copied from another folder is served.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

logger = logging.getLogger(__name__)


class StoreWriteError(OSError):
    """Nothing can be written to the folder of a store: its disk is full, or it may only be read."""


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Raise StoreWriteError where the block can't write to `folder`; only writing belongs in the block."""
    try:
        yield
    except OSError as error:
        raise StoreWriteError(f"{folder} can't be written to ({error.strerror or error})") from error


class FeatureStore:
    """Features by key. It may be pickled, forked, and read and written by several processes at once.

    Raises:
        StoreWriteError: There is no such folder and it can't be made.
    """

    def __init__(self, folder: Path):
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._shards: dict[str, Path] = {}
        self._seen: set[tuple] = set()
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._shards

    def __len__(self) -> int:
        return len(self._shards)

    def features(self, keys: Sequence[str]) -> torch.Tensor:
        """Return the features under `keys`, stacked, on the CPU.

        Raises:
            KeyError: There are none under a key.
            RuntimeError: Features were damaged after the store was opened.
        """
        missing = [key for key in keys if key not in self]
        if missing:
            raise KeyError(
                f"no features of {len(missing)} of {len(keys)} pictures (first {missing[0]}) in {self.folder}, "
                f"expected all among its {len(self)}; build it with them, or set vision_cache: off if they change"
            )
        return torch.stack([self._read(key) for key in keys])

    def refresh(self) -> None:
        """Take up the shards written since the last time, but no features that fail their checksum."""
        for path in sorted(self.folder.glob("*.safetensors")):
            version = _name_version(path)
            if version in self._seen:
                continue
            try:
                with safe_open(path, framework="pt") as shard:
                    checksums, keys = shard.metadata() or {}, shard.keys()
                    good = [key for key in keys if checksums.get(key) == self._checksum(key, shard.get_tensor(key))]
            except SafetensorError as error:
                logger.warning("%s is damaged (%s): its features are made again", path, error)
                keys = good = []
            if len(good) < len(keys):
                logger.warning("%d features in %s fail their checksum: made again", len(keys) - len(good), path)
            self._shards.update(dict.fromkeys(good, path))
            # Not before: another thread would take the shard for read, and make its features again.
            self._seen.add(version)

    def write(self, features: dict[str, torch.Tensor], lock: str) -> None:
        """Write a shard whole or not at all, and take it up; `lock` names a lock that only the caller holds.

        Raises:
            StoreWriteError: The disk is full, or the folder may only be read.
        """
        temporary = self.folder / f"{lock}.tmp"
        checksums = {key: self._checksum(key, feature) for key, feature in features.items()}
        content = save({key: feature.contiguous() for key, feature in features.items()}, checksums)
        with writing_to(self.folder):
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                path = self.folder / f"{hash_parts(*(key.encode() for key in features))}.safetensors"
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        # It isn't read again to be checked: every feature is when it is used.
        self._shards.update(dict.fromkeys(features, path))
        self._seen.add(_name_version(path))

    def remove_leftovers(self) -> None:
        """Delete the shards that killed processes didn't finish; those of living ones are locked."""
        for temporary in self.folder.glob("*.tmp"):
            # Timeout, where somebody is at it, is an OSError too; what can't be deleted does no harm.
            with suppress(OSError), FileLock(temporary.with_suffix(".lock"), timeout=0):
                temporary.unlink()

    def _read(self, key: str) -> torch.Tensor:
        path = self._shards[key]
        try:
            with safe_open(path, framework="pt") as shard:
                feature, expected = shard.get_tensor(key), (shard.metadata() or {}).get(key)
        except SafetensorError as error:
            raise RuntimeError(f"{path} can't be read any more ({error}); delete it and run again") from error
        found = self._checksum(key, feature)
        if found != expected:
            raise RuntimeError(
                f"features {key} in {path}: found checksum {found}, expected {expected}; delete the file and run again"
            )
        return feature

    def _checksum(self, key: str, feature: torch.Tensor) -> str:
        kind = f"{self.folder.name} {key} {feature.dtype} {tuple(feature.shape)}"
        return hash_parts(kind.encode(), view_bytes(feature))


def _name_version(path: Path) -> tuple:
    status = path.stat()
    return path, status.st_ino, status.st_mtime_ns, status.st_size


def view_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor on the CPU."""
    return memoryview(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())


def hash_parts(*parts: bytes | memoryview) -> str:
    """Return 32 hexadecimal digits (BLAKE2b) that stand for the parts in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
