"""Stop a run on SIGTERM, SIGINT or SIGUSR1: in training after the optimiser step in flight, elsewhere at once."""

import multiprocessing
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
# What a signal's handler raises is ignored while Python forks or deletes an object. So it is raised again: soon where
# Python tells that it ignored it, else when the command hasn't ended after some seconds.
SOON_SECONDS, AGAIN_SECONDS = 0.05, 3.0
# How long a run that is told to stop waits for data loader workers, which may hang.
WORKER_SECONDS = 5.0


class StoppedBySignal(SystemExit):
    """The command ends with exit code 143; the message says which signal ended it, for `run.json` too."""

    def __init__(self, message: str):
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """End the command in order with exit code 143 when a scheduler asks for it, whatever the block is doing.

    SIGINT is Python's own KeyboardInterrupt. Once one signal has come, the next one ends the process as the operating
    system does it, for the case that something on the way out hangs; what takes longer than `AGAIN_SECONDS` there is
    broken off.
    """
    numbers = (signal.SIGTERM, signal.SIGUSR1)

    def end(number, frame):
        for other in numbers:
            signal.signal(other, signal.SIG_DFL)
        stop = StoppedBySignal(f"stopped by {signal.Signals(number).name}")
        print(stop, file=sys.stderr)  # noqa: T201

        def end_again(number, frame):
            raise stop

        signal.signal(signal.SIGALRM, end_again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
        raise stop

    def raise_soon(unraisable):
        if isinstance(unraisable.exc_value, StoppedBySignal):
            signal.setitimer(signal.ITIMER_REAL, SOON_SECONDS, AGAIN_SECONDS)
        else:
            tell(unraisable)

    before = {number: signal.signal(number, end) for number in numbers}
    tell, sys.unraisablehook = sys.unraisablehook, raise_soon
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = tell
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals:
    """Notes stop signals while the `with` block runs: `received` is the first one, None before it.

    A second signal ends the process at once, in order: a checkpoint that isn't whole yet is not taken for one later.
    Afterwards the earlier handlers are back.
    """

    def __enter__(self):
        self.received: signal.Signals | None = None
        self.waiting = False
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.received is None:
            self.received, self.since = signal.Signals(number), time.monotonic()
            if self.waiting:
                self._wait_no_longer()
        elif time.monotonic() - self.since > SAME_SIGNAL_SECONDS:
            raise StoppedBySignal(f"stopped by {signal.Signals(number).name}, which followed {self.received.name}")

    @contextmanager
    def waiting_for_workers(self) -> Iterator[None]:
        """End the process in order where the block takes longer than `WORKER_SECONDS` after a stop signal."""
        before = signal.signal(signal.SIGALRM, self._end_waiting)
        self.waiting = True
        if self.received is not None:
            self._wait_no_longer()
        try:
            yield
        finally:
            self.waiting = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _wait_no_longer(self):
        signal.setitimer(signal.ITIMER_REAL, WORKER_SECONDS)

    def _end_waiting(self, number, frame):
        raise StoppedBySignal(f"stopped by {self.received.name} while it waited for pictures from its workers")


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


@contextmanager
def ending_workers() -> Iterator[None]:
    """Kill this process's workers where the block ends with an error.

    They ignore the signal by which Python ends them, and it would wait for one that hangs.
    """
    try:
        yield
    except BaseException:
        # PyTorch would raise in here that its workers died.
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join(1)
        signal.signal(signal.SIGCHLD, before)
        raise
