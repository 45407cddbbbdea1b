"""Train and score every training of a study: one after the other, or one a GPU side by side."""

import json
import logging
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import torch
from filelock import FileLock

from histolab_sft.config.recipe_file import read_recipe
from histolab_sft.provenance import compute_sha256
from histolab_sft.run_lock import LOCK
from histolab_sft.settings import hash_weight_files
from histolab_sft.study.plan import RECORD, StudyError, Training

logger = logging.getLogger(__name__)

SCRIPTS = Path(__file__).resolve().parents[2] / "recipes"
STEPS = {"train": "sft.py", "evaluate": "evaluate.py"}
LOG = "log.txt"
PAUSE = 0.2  # seconds between two looks at the processes
SHOWN = 12  # last lines of a log in a message


def run_trainings(trainings: list[Training], devices: list[str | None]) -> None:
    """Do what is missing of every training, each step a process of its own whose output goes to `log.txt`.

    Where a step fails, no other training is begun, and those that run go on to their end.

    Args:
        devices: Names of GPUs as `CUDA_VISIBLE_DEVICES` has them, each for one training at a time; None for the
            processor, or for the one device there is.

    Raises:
        StudyError: A step has ended with an error.
    """
    waiting = deque(enumerate(trainings, start=1))
    running: dict[str | None, tuple[Training, str, subprocess.Popen]] = {}
    failed: list[tuple[Training, str, int]] = []
    try:
        while running or (waiting and not failed):
            for device in [device for device in devices if device not in running]:
                while waiting and not failed and device not in running:
                    number, training = waiting[0]
                    if step := find_missing(training):
                        logger.info("%s (%d of %d): %s", training.name, number, len(trainings), step)
                        running[device] = (training, step, _start(training, step, device))
                    else:
                        logger.info("%s (%d of %d): done", training.name, number, len(trainings))
                    waiting.popleft()
            time.sleep(PAUSE)
            for device, (training, step, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[device]
                following = find_missing(training)
                if process.returncode or following == step:
                    failed.append((training, step, process.returncode))
                elif following:
                    logger.info("%s: %s", training.name, following)
                    running[device] = (training, following, _start(training, following, device))
    finally:
        # A training that is told to stop saves first, and the next call goes on from there.
        for _, _, process in running.values():
            process.terminate()
        for _, _, process in running.values():
            process.wait()
    if failed:
        training, step, code = failed[0]
        lines = (training.folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        told = "\n".join(f"  {line}" for line in lines[-SHOWN:])
        raise StudyError(
            f"{step} of {training.name} ended with exit code {code}, expected 0; the end of {training.folder / LOG}:\n"
            f"{told}\nmend it and start the study again, which goes on where it stands"
        )


def find_missing(training: Training) -> str | None:
    """Return the step that a training lacks, `train` or `evaluate`, None for one that is done."""
    weights = hash_weight_files(training.folder)
    run = _read(training.folder / RECORD)
    # The record names the weights once they are whole.
    if not weights or run.get("weights") != weights:
        return "train"
    evaluation = training.folder / "evaluation"
    results = _read(evaluation / "results.json")
    scored = results.get("provenance", {})
    whole = {name: value for name, value in weights.items() if name.startswith("model")}
    adapter = training.folder / "adapter_model.safetensors"
    same = (
        scored.get("adapter_sha256") == compute_sha256(adapter)
        if adapter.is_file()
        else scored.get("model_sha256") == whole
    )
    parts = all((evaluation / name).is_file() for name in ("predictions.parquet", "report.html"))
    done = same and parts and results["recipe"] == read_recipe(str(training.recipe))
    return None if done else "evaluate"


def list_devices(use_cpu: bool) -> list[str | None]:
    """Return the GPUs that a study may use, by the names that `CUDA_VISIBLE_DEVICES` has; `[None]` without several."""
    count = 0 if use_cpu else torch.cuda.device_count()
    if count < 2:
        return [None]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(number) for number in range(count)]


def _start(training: Training, step: str, device: str | None) -> subprocess.Popen:
    lock = FileLock(training.folder / LOCK)
    if not _is_free(lock):
        logger.info("%s: waits for a process that an earlier study has left to end", training.name)
    with lock:
        pass
    environment = os.environ | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
    command = [sys.executable, str(SCRIPTS / STEPS[step]), "--config", str(training.recipe)]
    with (training.folder / LOG).open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _is_free(lock: FileLock) -> bool:
    try:
        with lock.acquire(timeout=0):
            return True
    except TimeoutError:
        return False


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
