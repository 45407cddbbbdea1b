"""Signals that ask a run to stop: noted at once, obeyed at the end of the optimiser step."""

import signal

# What schedulers and people send: SLURM and Kubernetes (SIGTERM), Ctrl-C (SIGINT), SLURM's --signal=USR1.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# 128 + SIGTERM, whatever the signal: schedulers take it for a job to be queued again.
EXIT_CODE = 128 + signal.SIGTERM


class StopSignals:
    """Notes stop signals while the `with` block runs: `received` is the first one, None before it.

    A second signal changes nothing, so that a save in progress ends whole. Afterwards the earlier handlers are back.
    """

    def __enter__(self):
        self.received: signal.Signals | None = None
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.received = self.received or signal.Signals(number)


def ignore_stop_signals() -> None:
    """Let this process run on through stop signals; for data loader workers, which their parent ends.

    Schedulers signal all processes of a job. A worker that died of it would take the run with it before the save.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
