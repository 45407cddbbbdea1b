"""Write, verify, choose and remove checkpoints.

A checkpoint is whole when its `manifest.json` is there, names every file beside it and no other, and each has the
size and the SHA-256 that the manifest says. The manifest is written last, after everything else has reached the disk,
and in one rename. A run that is killed, or a disk that fills up, may leave an unfinished folder, which never counts.
"""

import json
import logging
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from histolab_sft.files import sync
from histolab_sft.hub_access import resolve_commit
from histolab_sft.provenance import compute_sha256, write_json
from histolab_sft.training.run_keys import CheckpointError, compare_keys

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# Written before anything else of a checkpoint: which run it is of, also when its save was cut off.
BEGUN = "begun.json"
# What tells one run from another, beside its keys.
IDENTITY = ("data_fingerprint", "base_model", "revision", "seed", "effective_batch", "compiled_layers")
STATE = "trainer_state.json"
# DeepSpeed's pointer to its shards, one a process: they can't be dealt out to another number of processes.
DEEPSPEED_MARKER = "latest"
MIB = 2**20
# What torch.save says, in a RuntimeError, when the disk says no: in the middle, at the end, after an earlier failure.
TORCH_WRITER = ("PytorchStreamWriter", "iostream error", "unexpected pos")


def choose_checkpoint(
    wish: str | None, output_dir: str | Path, run: dict, accepted: Iterable[str] = ()
) -> tuple[str | None, list[dict]]:
    """Return the checkpoint that a run goes on from, None for a fresh start. Nothing else decides this.

    - `None` starts afresh, and refuses to do so among the checkpoints of an earlier run.
    - `auto` takes the newest checkpoint in `output_dir` that is whole, and tells which it skips and why. Where none
      is whole it starts afresh if all that is there are saves of this run that were cut off; else it stops.
    - A path takes that checkpoint, if it is whole.

    The run must be the one that wrote the checkpoint: `IDENTITY` and each key that computes (`run_keys`) is the same.
    Another number of processes is allowed while the effective batch stays: the rows of a step are then the same, but
    are dealt out to other processes, whose random numbers (dropout) aren't those of the undisturbed run. Shards of
    DeepSpeed can't be dealt out anew, so there the number of processes must stay.

    Args:
        run (`dict`): `IDENTITY`, `keys` (from `describe_keys`), `processes`, and `id`, by which the run knows its own.
        accepted: Keys that may have another value than in the checkpoint.

    Returns:
        `tuple`: The checkpoint, and the changes of keys that are taken on purpose (see `compare_keys`).

    Raises:
        CheckpointError: The wish can't be fulfilled.
    """
    found = list_checkpoints(output_dir)
    if wish is None:
        if found:
            whole = find_whole_checkpoint(output_dir)
            advice = "go on with it by resume_from_checkpoint: auto, or " if whole else ""
            raise CheckpointError(
                f"{output_dir} holds {found[-1].name} of an earlier run, expected no checkpoint at a fresh start; "
                f"{advice}move it away, or choose another output_dir"
            )
        return None, []
    folder = find_whole_checkpoint(output_dir) if wish == "auto" else Path(wish)
    if folder is None:
        _check_left(found, output_dir, run)
        logger.info("no whole checkpoint in %s: training starts afresh", output_dir)
        return None, []
    manifest = verify_checkpoint(folder)
    changes = _check_run(folder, manifest["run"], run, accepted)
    for later in found:
        if _step(later) > _step(folder) and any(later.iterdir()) and find_owner(later) != manifest["run"]["id"]:
            raise CheckpointError(
                f"{later} isn't of the run that goes on from {folder.name} and may need that name; move it away, or "
                "choose another output_dir"
            )
    logger.info("training goes on from %s", folder)
    return str(folder), [{"step": manifest["step"]} | change for change in changes]


def find_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the newest checkpoint that verifies, and log every newer one with the reason why it doesn't."""
    for folder in reversed(list_checkpoints(output_dir)):
        if reason := _explain_unusable(folder):
            logger.warning("skipped a checkpoint: %s", reason)
        else:
            return folder
    return None


def find_owner(folder: Path) -> str | None:
    """Return the `id` of the run that wrote a checkpoint, whole or not; None if it isn't of this project."""
    try:
        return json.loads(folder.joinpath(BEGUN).read_text(encoding="utf-8"))["run"]["id"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def begin_checkpoint(folder: Path, run: dict) -> None:
    """Make the folder of a checkpoint, in one step with the note whose it is.

    Raises:
        CheckpointError: Something that isn't of this run has its name.
    """
    remove_checkpoint(folder, run["id"])
    if folder.is_symlink() or (folder.exists() and any(folder.iterdir())):
        raise CheckpointError(
            f"{folder} isn't of this run or is read-only, expected nothing where a checkpoint is to be saved; move it "
            "away and go on by resume_from_checkpoint: auto"
        )
    temporary = folder.with_name(f".{folder.name}.begun")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_json(temporary / BEGUN, {"run": run})
    os.rename(temporary, folder)


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the folders `checkpoint-<step>`, whole or not, by step."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if _step(path) is not None and path.is_dir()]
    return sorted(folders, key=_step)


def verify_checkpoint(folder: str | Path) -> dict:
    """Return the manifest of a checkpoint that is whole.

    Raises:
        CheckpointError: Named in it is the first thing that is wrong.
    """
    folder = Path(folder)
    files = _list_files(folder)
    if not files:
        raise CheckpointError(f"{folder} is empty or isn't there; its save was cut off")
    if MANIFEST not in files:
        raise CheckpointError(f"{folder} has no {MANIFEST}; its save was cut off")
    try:
        manifest = json.loads(files.pop(MANIFEST).read_text(encoding="utf-8"))
        expected, step, _ = manifest["files"], manifest["step"], manifest["run"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} can't be read ({error!r}); it is damaged") from error
    if step != _step(folder):
        raise CheckpointError(f"{folder} is of step {step} by its {MANIFEST}; it was renamed or copied")
    if STATE not in expected:
        raise CheckpointError(f"{folder / MANIFEST} names no {STATE}; it isn't of a training checkpoint")
    for problem, names in (
        ("lacks", sorted(set(expected) - set(files))),
        ("holds beside what was saved", sorted(set(files) - set(expected))),
    ):
        if names:
            raise CheckpointError(f"{folder} {problem}: {', '.join(names)}")
    for name, path in files.items():
        size = path.stat().st_size
        if size != expected[name]["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes, expected {expected[name]['bytes']}")
    for name, path in files.items():
        if compute_sha256(path) != expected[name]["sha256"]:
            raise CheckpointError(f"{path} has another SHA-256 than when it was saved; its bytes were changed")
    return manifest


def write_manifest(folder: Path, run: dict) -> int:
    """Make a checkpoint whole: bring its files to the disk, then write the manifest. Return its bytes.

    Args:
        run (`dict`): As in `choose_checkpoint`.
    """
    files = _list_files(folder)
    files.pop(MANIFEST, None)
    entries = {}
    for name, path in files.items():
        sync(path)
        entries[name] = {"bytes": path.stat().st_size, "sha256": compute_sha256(path)}
    for inner in {path.parent for path in files.values()}:
        sync(inner)
    write_json(folder / MANIFEST, {"step": _step(folder), "run": run, "files": entries})
    sync(folder.parent)
    return sum(entry["bytes"] for entry in entries.values())


def rotate_checkpoints(output_dir: str | Path, limit: int | None, protected: set[str], owner: str) -> None:
    """Remove the oldest whole checkpoints of a run beyond `limit`, and every torn one of it; others stay.

    Call it when a new checkpoint is whole. Never removed are the `protected` (the new one and the best one): they
    count towards the limit.

    Args:
        owner (`str`): `id` of the run.
    """
    for leftover in Path(output_dir).glob(".checkpoint-*.removed"):
        shutil.rmtree(leftover, ignore_errors=True)
    whole = []
    for folder in list_checkpoints(output_dir):
        if find_owner(folder) == owner:
            if folder.joinpath(MANIFEST).is_file():
                whole.append(folder)
            else:
                remove_checkpoint(folder, owner)
    if limit:
        names = {Path(path).name for path in protected}
        loose = [folder for folder in whole if folder.name not in names]
        for folder in loose[: max(0, len(whole) - max(limit, len(names)))]:
            remove_checkpoint(folder, owner)


def remove_checkpoint(folder: Path, owner: str) -> None:
    """Remove a checkpoint if the run `owner` wrote it. It loses its name first, so that it is never seen torn.

    A link is taken away and what it leads to stays; so does a folder that its user has made read-only.
    """
    if find_owner(folder) != owner:
        return
    if folder.is_symlink():
        folder.unlink()
        return
    if not folder.stat().st_mode & stat.S_IWUSR:
        logger.warning("%s is read-only and stays", folder)
        return
    gone = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    try:
        os.rename(folder, gone)
        shutil.rmtree(gone)
    except OSError as error:
        logger.warning("%s could not be removed (%s) and stays", folder, error)


def estimate_checkpoint(model: nn.Module) -> int:
    """Return the bytes of a checkpoint: the trained weights, two float32 moments of each, a MiB for the rest."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(parameter.numel() * (parameter.element_size() + 8) for parameter in trained) + MIB


def check_disk(output_dir: str | Path, needed: int) -> None:
    """Raise a `CheckpointError` unless `needed` bytes are free where `output_dir` lies."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output_dir).free
    if free < needed:
        raise CheckpointError(
            f"{output_dir} has {free / MIB:.0f} MiB free, expected at least {needed / MIB:.0f} MiB; make room, or "
            "choose another output_dir"
        )


@contextmanager
def explain_failed_write(folder: Path) -> Iterator[None]:
    """Turn a full, read-only or broken disk under the block into a `CheckpointError` with path and bytes.

    The torn folder is removed as far as the disk lets it; older checkpoints aren't touched.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in TORCH_WRITER):
            raise
        written = sum(path.stat().st_size for path in _list_files(folder).values())
        shutil.rmtree(folder, ignore_errors=True)
        whole = [path.name for path in list_checkpoints(folder.parent) if path.joinpath(MANIFEST).is_file()]
        free = shutil.disk_usage(folder.parent).free
        raise CheckpointError(
            f"{folder} could not be written after {written} bytes ({error}), {free} bytes are free on its disk, "
            f"expected room for a whole checkpoint; {', '.join(whole) or 'no older checkpoint'} stays as it was: make "
            "room and go on by resume_from_checkpoint: auto"
        ) from error


def _explain_unusable(folder: Path) -> str | None:
    try:
        verify_checkpoint(folder)
    except CheckpointError as error:
        return str(error)
    return None


def _check_left(found: list[Path], output_dir: str | Path, run: dict) -> None:
    """Clear away saves of this run that were cut off; raise a `CheckpointError` if anything else is among `found`."""
    others = []
    for folder in found:
        if not any(folder.iterdir()):
            continue
        owner = find_owner(folder)
        if owner is None or folder.joinpath(MANIFEST).exists():
            others.append(folder)
            continue
        begun = json.loads(folder.joinpath(BEGUN).read_text(encoding="utf-8"))["run"]
        if _read_identity(begun) == {key: run[key] for key in IDENTITY} and begun.get("keys") == run["keys"]:
            remove_checkpoint(folder, owner)
        else:
            others.append(folder)
    if others:
        reasons = "\n".join(f"  {_explain_unusable(folder)}" for folder in others)
        raise CheckpointError(
            f"{output_dir} holds checkpoints and none that this run can go on from:\n{reasons}\nmove them away, or "
            "choose another output_dir"
        )


def _check_run(folder: Path, saved: dict, run: dict, accepted: Iterable[str]) -> list[dict]:
    """Return the changes that are taken on purpose; raise a `CheckpointError` for any other."""
    processes = saved["processes"], run["processes"]
    changes = compare_keys(saved.get("keys", {}), run["keys"], accepted, str(folder), processes[0] != processes[1])
    for key, before in _read_identity(saved).items():
        if before != run[key]:
            raise CheckpointError(
                f"{folder} is of a run with {key} {before}, expected {run[key]} as in this run; undo the change, or "
                "start afresh in another output_dir"
            )
    if processes[0] != processes[1]:
        change = f"{folder} was saved by {processes[0]} processes, and this run has {processes[1]}"
        if folder.joinpath(DEEPSPEED_MARKER).is_file():
            raise CheckpointError(f"{change}; DeepSpeed can't deal its shards out anew, so use {processes[0]}")
        logger.warning("%s: the rows of every step stay the same, the random numbers of dropout don't", change)
    return changes


def _read_identity(saved: dict) -> dict:
    """Return `IDENTITY` of the run that wrote a checkpoint."""
    found = {key: saved.get(key) for key in IDENTITY}
    if found["revision"] is not None:
        # Older ones name the branch, and the commit that it is at is what counts.
        found["revision"] = resolve_commit(found["base_model"], found["revision"])
    return found


def _list_files(folder: Path) -> dict[str, Path]:
    """Every file below `folder` by its relative path. Links count: what they lead to wasn't saved here."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}


def _step(folder: Path) -> int | None:
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None
