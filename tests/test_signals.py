"""A scheduler's signal ends a command in order and with one exit code, whatever the command is doing."""

import os
import signal
import time

import pytest

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
