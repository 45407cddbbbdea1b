"""Record what a result was made from and how its run ended: `run.json`, fingerprint of the data, file hashes."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from datasets import Dataset

from histolab_sft.files import replacing
from histolab_sft.secrets import mask_secrets
from histolab_sft.signals import StoppedBySignal

RUNNING = "running"
ATTEMPT = ("start", "end", "exit_reason", "git_commit")
PACKAGES = (
    *("histolab_sft", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets"),
    *("safetensors", "tokenizers", "huggingface_hub", "deepspeed", "numpy", "scipy", "scikit-learn", "pillow"),
)
# What of a row decides what is learnt from it; where its file lies doesn't.
ROW_COLUMNS = ("dataset", "id", "label", "prompt", "completion", "pixel_sha256")


class RunRecord(dict):
    """What `run.json` is to hold; `begin` says that from now on there is something to tell of this run."""

    def __init__(self, path: Path, content: Mapping, write: bool, previous: dict | None):
        super().__init__(content)
        self._path, self._write, self._previous = path, write, previous

    def begin(self) -> None:
        """Replace the record of an earlier run by this one's."""
        self._previous = None
        self.save()

    def save(self) -> None:
        """Write the record; of a run that hasn't begun, its end alone, to the record of the run before it."""
        if not self._write:
            return
        if self._previous is None:
            write_json(self._path, dict(self))
        elif self["end"] is not None:
            idle = {key: self[key] for key in ATTEMPT}
            write_json(self._path, self._previous | {"idle": [*self._previous.get("idle", []), idle]})


@contextmanager
def record_run(
    path: str | Path, recipe: Mapping, seed: int, write: bool = True, go_on: bool = False
) -> Iterator[RunRecord]:
    """Keep `run.json` while the block runs: rewritten at its end whatever ends it.

    The record holds `recipe`, `seed`, `versions`, `git_commit`, `hardware`, `start`, `end` (ISO 8601, UTC) and
    `exit_reason`, and whatever the block puts into it (`data_fingerprint`, `steps`, `changes`). `exit_reason` is what
    the block says, else `finished`, or what ended it. After a `kill -9` it is still `running`.

    A record that is already there is of the run that made what lies beside it. It stays until the block says by
    `begin` that this run trains; the end of one that never did is added to its list `idle`.

    Args:
        path: The file.
        recipe: Keys and values as the run reads them.
        write (`bool`): Whether this process is the one that writes.
        go_on (`bool`): Whether the attempts of a record that is already there are kept under `earlier`.
    """
    path = Path(path)
    if write:
        make_folder(path.parent)
    previous = json.loads(path.read_text(encoding="utf-8")) if write and path.is_file() else None
    content = {
        "recipe": dict(recipe),
        "seed": seed,
        "data_fingerprint": None,
        "versions": collect_versions(),
        "git_commit": find_commit(),
        "hardware": describe_hardware(),
        "start": _now(),
        "end": None,
        "exit_reason": RUNNING,
        "earlier": [*previous["earlier"], {key: previous[key] for key in ATTEMPT}] if previous and go_on else [],
    }
    record = RunRecord(path, content, write, previous)
    try:
        # Within: a signal may come as soon as the file is there.
        record.save()
        yield record
    finally:
        error = sys.exception()
        if error is not None:
            record["exit_reason"] = mask_secrets(_describe_end(error))
        elif record["exit_reason"] == RUNNING:
            record["exit_reason"] = "finished"
        record["end"] = _now()
        record.save()


def make_folder(folder: Path) -> None:
    """Make `output_dir` before anything is computed for it; raise OSError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"output_dir {folder} can't be written to ({error.strerror}); choose another folder, or mend its "
            "owner and permissions"
        ) from error


def describe_result(
    adapter_folder: str | Path, data: Mapping[str, Dataset], seed: int, changes: Sequence[str] = ()
) -> dict:
    """Return what a score must tell of its origin: `provenance` in `results.json`.

    That is `base_model` and `revision` as the adapter names them (as the recipe, where a whole model was trained),
    `image_side` and `image_tokens` if the adapter names them, `adapter_sha256` (None there) or `model_sha256` (`{file:
    hash}`), `data_fingerprint` of the rows (training's among them), `changes` (what has changed in the data since
    training, a sentence each), `versions`, `git_commit`, `hardware` and `seed`.
    """
    folder = Path(adapter_folder)
    if folder.joinpath("adapter_config.json").is_file():
        adapter = json.loads(folder.joinpath("adapter_config.json").read_text(encoding="utf-8"))
        origin = {
            "base_model": adapter["base_model_name_or_path"],
            "revision": adapter.get("revision"),
            "adapter_sha256": compute_sha256(folder / "adapter_model.safetensors"),
            # Only of an adapter that was trained at another resolution than the base model's own.
            **{key: adapter[key] for key in ("image_side", "image_tokens") if key in adapter},
        }
    else:
        recipe = json.loads(folder.joinpath("run.json").read_text(encoding="utf-8"))["recipe"]
        origin = {
            "base_model": recipe["model_name_or_path"],
            "revision": recipe.get("model_revision"),
            "adapter_sha256": None,
            "model_sha256": {path.name: compute_sha256(path) for path in sorted(folder.glob("model*.safetensors"))},
        }
    return origin | {
        "data_fingerprint": fingerprint_data(data),
        "changes": list(changes),
        "versions": collect_versions(),
        "git_commit": find_commit(),
        "hardware": describe_hardware(),
        "seed": seed,
    }


def name_pixels(rows: Dataset) -> list[str | list[str]]:
    """Return what names each row's pictures in fingerprints and in the names of caches.

    It is the list of their hashes, and of rows with a label the one hash: as it was before they could have several, so
    that older runs and caches are still found.
    """
    plain = rows.with_format(None)
    pairs = zip(plain["label"], plain["pixel_sha256"], strict=True)
    return [hashes if label is None else hashes[0] for label, hashes in pairs]


def fingerprint_data(splits: Mapping[str, Dataset]) -> str:
    """Return one SHA-256 for the rows of all splits, in their order: what is asked, answered and seen.

    The same patches under another folder have the same fingerprint; another order, wording, label or pixel changes it.

    Args:
        splits: Split -> rows, with any of the columns `dataset`, `id`, `label`, `prompt`, `completion`,
            `pixel_sha256`.
    """
    digest = hashlib.sha256()
    for split, rows in splits.items():
        rows = rows.with_format(None)
        columns = [name for name in ROW_COLUMNS if name in rows.column_names]
        if "label" in columns and all(label is None for label in rows["label"]):
            columns.remove("label")
        digest.update(json.dumps([split, len(rows), columns]).encode())
        pixels = name_pixels(rows) if "pixel_sha256" in columns else None
        for number, row in enumerate(rows.select_columns(columns)):
            if pixels:
                row["pixel_sha256"] = pixels[number]
            digest.update(json.dumps([row[name] for name in columns], ensure_ascii=False).encode())
    return digest.hexdigest()


def compute_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file so that it is there whole or as it was before, a power cut included, and without secrets."""
    text = mask_secrets(json.dumps(content, indent=2, ensure_ascii=False, default=str)) + "\n"
    with replacing(path, synced=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def collect_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a result depends on."""
    installed = {
        distribution.name.lower().replace("-", "_"): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    versions = {name: installed[key] for name in PACKAGES if (key := name.replace("-", "_")) in installed}
    return {"python": platform.python_version()} | versions


def find_commit() -> str | None:
    """Return the commit of this package's checkout, with `-dirty` if its files were changed; None outside of one."""
    # No tag is looked at: the hash alone. Files that git doesn't track don't count as a change.
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def describe_hardware() -> dict:
    """Return `device` (the name that torch gives, else the processor), `count` (one a process) and the host's size."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} processor",
        "count": int(os.environ.get("WORLD_SIZE", "1")),
        "device_memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if cuda else None,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
    }


def _describe_end(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by SIGINT"
    return str(error) if isinstance(error, StoppedBySignal) else f"{type(error).__name__}: {error}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
