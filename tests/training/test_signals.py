"""A scheduler's signal ends a command in order and with one exit code, whatever the command is doing."""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from broken_recipes import ROOT, write_recipe

from histolab_sft import signals
from histolab_sft.signals import EXIT_CODE, StopSignals, ending_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_outside_of_training_ends_the_command_with_143(capsys, number):
    before, tidied = signal.getsignal(number), []
    with pytest.raises(SystemExit) as end, ending_on_signals():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            tidied.append(True)
            # Should the way out hang, the next signal has the operating system end the process.
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert end.value.code == EXIT_CODE == 143 and tidied
    assert capsys.readouterr().err == f"stopped by {number.name}\n"
    assert signal.getsignal(number) == before


def test_a_signal_that_was_lost_in_a_fork_is_raised_again(monkeypatch):
    monkeypatch.setattr(signals, "AGAIN_SECONDS", 0.1)
    with pytest.raises(SystemExit) as end, ending_on_signals():
        with suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert end.value.code == EXIT_CODE
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_signal_that_python_ignores_is_raised_again_at_once(monkeypatch, capsys):
    class Kills:
        def __del__(self):  # as in the hooks of a fork, nothing that is raised here gets out
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    monkeypatch.setattr(signals, "AGAIN_SECONDS", 3600)
    before = sys.unraisablehook
    with pytest.raises(SystemExit) as end, ending_on_signals():
        killing = Kills()
        del killing
        time.sleep(60)
        pytest.fail("it went on")
    assert end.value.code == EXIT_CODE
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
    assert sys.unraisablehook == before


def test_a_signal_in_training_is_noted_and_a_later_one_ends_the_process(monkeypatch):
    with pytest.raises(SystemExit) as end, StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        # A launcher that passes on the same signal doesn't break the save.
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGUSR1
        monkeypatch.setattr(signals, "SAME_SIGNAL_SECONDS", 0.0)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert end.value.code == EXIT_CODE


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_waits_for_its_workers_for_seconds_alone(monkeypatch):
    monkeypatch.setattr(signals, "WORKER_SECONDS", 0.1)
    with StopSignals() as stop:
        with stop.waiting_for_workers():
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # they came in time
        with pytest.raises(SystemExit) as end, stop.waiting_for_workers():
            time.sleep(5)
    assert end.value.code == EXIT_CODE and "SIGTERM while it waited for pictures" in str(end.value)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


SMALL = "mount -t tmpfs -o size=64k tmpfs /dev/shm && exec timeout 300 "


@pytest.mark.thorough
@pytest.mark.model
def test_training_with_workers_and_without_shared_memory_ends_well(tmp_path, untrained_model):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this user may not have a mount namespace of its own")
    recipe = write_recipe(tmp_path, model_name_or_path=str(untrained_model), max_steps=2, max_length=None)
    command = [sys.executable, "recipes/sft.py", "--config", str(recipe), "--dataloader_num_workers", "2"]
    script = SMALL + " ".join(map(shlex.quote, command))
    ended = subprocess.run(["unshare", "--mount", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "--shm-size" in ended.stderr
