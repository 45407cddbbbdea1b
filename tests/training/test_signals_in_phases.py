"""A scheduler's signal ends a command within seconds and with 143 in every phase of it, and `run.json` says so."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import PCAM_CLASSES, write_class_folders
from steady_runs import ROOT, start_recipe, write_recipe

from histolab_sft.embedded.tiny_model import build_untrained_tiny_model
from histolab_sft.run_lock import HOLDER
from histolab_sft.signals import EXIT_CODE

pytestmark = [pytest.mark.model, pytest.mark.thorough]

PATIENCE = 240
SECONDS = 10  # in which a command must have ended
TRAIN, SCORE = "recipes/sft.py", "recipes/evaluate.py"
KEYS = {"per_device_eval_batch_size": 4, "save_steps": 1000, "max_steps": 300}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """So many patches that every phase takes a while, a model, and an adapter that may be scored."""
    folder = tmp_path_factory.mktemp("phases")
    write_class_folders(folder / "pcam", PCAM_CLASSES, per_class=600, size=16)
    build_untrained_tiny_model(folder / "model")
    process = start_recipe(write_recipe(folder, folder / "trained", max_steps=1), folder / "trained.log")
    process.join(PATIENCE)
    assert process.exitcode == 0, (folder / "trained.log").read_text()[-3000:]
    return folder


def begin(folder, script, output_dir, workers=0):
    """Start a command in an empty cache, with all that it says going to a log."""
    if script == SCORE:
        shutil.copytree(folder / "trained", output_dir, ignore=shutil.ignore_patterns("run.json"))
    keys = KEYS | {"dataloader_num_workers": workers, "vision_cache": str(output_dir.parent / "features")}
    recipe = write_recipe(folder, output_dir, **keys)
    environment = {"XDG_CACHE_HOME": str(output_dir.parent / "cache")}
    return start_recipe(recipe, output_dir.parent / "log", script=script, environment=environment)


def read_log(output_dir):
    log = output_dir.parent / "log"
    return log.read_text() if log.is_file() else ""


def is_reading(output_dir):
    return (output_dir / HOLDER).is_file()


def has_read(output_dir):
    return "refusals, " in read_log(output_dir)


def is_encoding(output_dir):
    return "encoding: " in read_log(output_dir)


def is_training(output_dir):
    return "{'loss'" in read_log(output_dir)


def is_scoring(output_dir):
    return "patches scored" in read_log(output_dir)


# Phase of a script: when it has begun, and how far the command must not have come.
PHASES = {
    (TRAIN, "reading"): (is_reading, has_read),
    (TRAIN, "loading"): (has_read, is_encoding),
    (TRAIN, "encoding"): (is_encoding, is_training),
    (TRAIN, "training"): (is_training, None),
    (SCORE, "reading"): (is_reading, has_read),
    (SCORE, "loading"): (has_read, is_encoding),
    (SCORE, "encoding"): (is_encoding, is_scoring),
    (SCORE, "scoring"): (is_scoring, None),
}


def wait_until(begun, process, output_dir):
    deadline = time.monotonic() + PATIENCE
    while not begun(output_dir):
        assert process.is_alive() and time.monotonic() < deadline, read_log(output_dir)[-3000:]
        time.sleep(0.005)


def check_end(process, output_dir, number, reason):
    """The command ends in time, with 143, without a traceback, and says why; a run says it in its record too."""
    os.kill(process.pid, number)
    start = time.monotonic()
    process.join(PATIENCE)
    took = time.monotonic() - start
    log = read_log(output_dir)
    assert process.exitcode == EXIT_CODE, log[-3000:]
    assert took <= SECONDS, f"{took:.1f} s\n{log[-3000:]}"
    assert "Traceback" not in log and "Exception ignored" not in log, log[-3000:]
    if (output_dir / "run.json").is_file():
        record = json.loads((output_dir / "run.json").read_text())
        assert re.fullmatch(reason, record["exit_reason"]), record["exit_reason"]
    else:
        assert re.search(reason, log)


@pytest.mark.parametrize(("script", "phase"), PHASES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_command_within_ten_seconds(folder, tmp_path, script, phase, number):
    begun, gone = PHASES[script, phase]
    output_dir = tmp_path / "out"
    process = begin(folder, script, output_dir)
    try:
        wait_until(begun, process, output_dir)
        training = phase == "training"
        check_end(
            *(process, output_dir, number),
            rf"{number.name} after step \d+" if training else f"stopped by {number.name}",
        )
    finally:
        process.kill()
    assert gone is None or not gone(output_dir)
    assert (output_dir / "checkpoint-1").is_dir() or any(output_dir.glob("checkpoint-*")) == training


def test_a_run_whose_workers_hang_ends_too_and_takes_them_with_it(folder, tmp_path):
    output_dir = tmp_path / "out"
    process = begin(folder, TRAIN, output_dir, workers=2)
    workers = []
    try:
        wait_until(is_training, process, output_dir)
        workers = psutil.Process(process.pid).children()
        for worker in workers:
            worker.suspend()
        steps = -1
        while steps != (steps := read_log(output_dir).count("{'loss'")):  # what is ahead is used up
            time.sleep(1)
        check_end(process, output_dir, signal.SIGTERM, "stopped by SIGTERM while it waited for pictures .* workers")
        assert workers and not any(worker.is_running() for worker in workers)
    finally:
        process.kill()
        for worker in workers:
            if worker.is_running():
                worker.kill()


def is_importing(process):
    return "libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.parametrize("script", [TRAIN, SCORE])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_command_that_still_imports(folder, tmp_path, script, number):
    recipe = write_recipe(folder, tmp_path / "out")
    process = subprocess.Popen([sys.executable, script, "--config", str(recipe)], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        while not is_importing(process):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(SECONDS) == EXIT_CODE
    finally:
        process.kill()
    assert process.stderr.read().decode() == f"stopped by {number.name}\n"
    assert not (tmp_path / "out").exists()
