"""Signals that ask a run to stop: in training they are obeyed at the end of the optimiser step, elsewhere at once."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# What schedulers and people send: SLURM and Kubernetes (SIGTERM), Ctrl-C (SIGINT), SLURM's --signal=USR1.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# 128 + SIGTERM, whatever the signal: schedulers take it for a job to be queued again.
EXIT_CODE = 128 + signal.SIGTERM
# A launcher and a scheduler may both pass on one and the same signal.
SAME_SIGNAL_SECONDS = 2.0


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """End the command in order with exit code 143 when a scheduler asks for it, whatever the block is doing.

    SIGINT is Python's own KeyboardInterrupt. Once one signal has come, the next one ends the process as the operating
    system does it, for the case that something on the way out hangs.
    """
    numbers = (signal.SIGTERM, signal.SIGUSR1)

    def end(number, frame):
        for other in numbers:
            signal.signal(other, signal.SIG_DFL)
        print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)  # noqa: T201
        raise SystemExit(EXIT_CODE)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals:
    """Notes stop signals while the `with` block runs: `received` is the first one, None before it.

    A second signal ends the process at once, in order: a checkpoint that isn't whole yet is not taken for one later.
    Afterwards the earlier handlers are back.
    """

    def __enter__(self):
        self.received: signal.Signals | None = None
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.received is None:
            self.received, self.since = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self.since > SAME_SIGNAL_SECONDS:
            raise SystemExit(EXIT_CODE)


@contextmanager
def ending_within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block once it has run for so long; only in the main thread, elsewhere without a limit.

    For code that comes with data or models and may loop. A single call of C code is not cut short.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ignore_stop_signals() -> None:
    """Let this process run on through stop signals; for data loader workers, which their parent ends.

    Schedulers signal all processes of a job. A worker that died of it would take the run with it before the save.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
