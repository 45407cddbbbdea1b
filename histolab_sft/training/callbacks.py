"""Early stopping on an exponential moving average (EMA) of a logged value."""

import json
import logging
import math
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from histolab_sft.config.arguments import HistoArguments

logger = logging.getLogger(__name__)

STATE_FILE = "ema_early_stopping.json"


class EMAEarlyStoppingCallback(TrainerCallback):
    """Stop when the smoothed `metric` has met the rule for `patience` optimiser steps.

    `ema <- decay * ema + (1 - decay) * value`, started at the first value. A value is the mean over the optimiser
    steps since the last log (`logging_steps`), the same on every rank, and counts for that many steps: the decay is
    then `decay ** steps`. `logging_steps: 1` gives the rule step by step.

    The rules:
    - `threshold`: the EMA is below `threshold` (HistoLab's code, which counts micro-batches instead of steps);
    - `plateau`: the EMA has not improved on its best by at least `min_delta` (HistoLab's README).

    A value that isn't finite never counts as an improvement or as low. For a metric whose name ends in `accuracy`,
    higher is better, and `threshold` means above.

    A model first learns the words that all answers share, and the loss stays level while it still guesses the class.
    The plateau rule counts no step before the EMA has fallen below `guessing_level`.

    State is kept in the checkpoint as `ema_early_stopping.json` and read back on resume, so that a resumed run decides
    as the undisturbed one; a run that was stopped stays stopped.

    Args:
        mode (`str`): `threshold` or `plateau`.
        metric (`str`): Key of the log, such as `loss`, `answer_loss`, `answer_accuracy` or `eval_answer_loss`.
        patience (`int`): Optimiser steps.
        threshold, min_delta, decay (`float`): See above.
        guessing_level (`float`, *optional*): Value of the metric for a model that guesses.
    """

    def __init__(
        self,
        mode: str,
        metric: str,
        patience: int,
        threshold: float,
        min_delta: float,
        decay: float,
        guessing_level: float | None = None,
    ):
        # User-provided rule
        self.mode = mode
        self.metric = metric
        self.patience = patience
        self.threshold = threshold
        self.min_delta = min_delta
        self.decay = decay
        self.guessing_level = guessing_level
        # Internal state
        self.ema: float | None = None
        self.best: float | None = None
        self.steps_met = 0
        self.last_step = 0
        self.stopped = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.last_step = state.global_step
        if state.global_step > 0 and args.resume_from_checkpoint:
            self._load(Path(args.resume_from_checkpoint))
        # Trainer clears the stop just before, so a stopped run would train on after a resume.
        if self.stopped:
            control.should_training_stop = True

    def on_log(self, args, state, control, logs, **kwargs):
        if self.metric not in logs or state.global_step == self.last_step:
            return
        steps, self.last_step = state.global_step - self.last_step, state.global_step
        self.update(logs[self.metric], steps)
        if self.stopped:
            logger.info(
                "early stopping at step %d: ema_%s=%.4g met the rule %s for %d steps",
                *(state.global_step, self.metric, self.ema, self.mode, self.steps_met),
            )
            control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            folder.joinpath(STATE_FILE).write_text(json.dumps(self.state()))

    def update(self, value: float, steps: int = 1) -> None:
        """Take in the mean `value` of the last `steps` optimiser steps, and decide."""
        if math.isfinite(value):
            weight = self.decay**steps
            self.ema = value if self.ema is None else weight * self.ema + (1 - weight) * value
        self.steps_met = self.steps_met + steps if self._is_met(value) else 0
        self.stopped = self.steps_met >= self.patience

    def state(self) -> dict:
        """Return what a checkpoint must hold for the same decisions after a resume."""
        return {
            "ema": self.ema,
            "best": self.best,
            "steps_met": self.steps_met,
            "last_step": self.last_step,
            "stopped": self.stopped,
        }

    def _is_met(self, value: float) -> bool:
        if self.ema is None or not math.isfinite(value):
            return False
        # From here on, lower is better.
        sign = -1 if self.metric.endswith("accuracy") else 1
        ema = sign * self.ema
        if self.mode == "threshold":
            return ema < sign * self.threshold
        if self.best is None or ema < self.best - self.min_delta:
            self.best = ema
            return False
        return self.guessing_level is None or ema < sign * self.guessing_level

    def _load(self, checkpoint: Path) -> None:
        path = checkpoint / STATE_FILE
        if not path.is_file():
            logger.warning("%s isn't there: early stopping starts afresh", path)
            return
        saved = json.loads(path.read_text())
        self.ema, self.best, self.steps_met = saved["ema"], saved["best"], saved["steps_met"]
        self.last_step, self.stopped = saved["last_step"], saved["stopped"]


def build_early_stopping(histo_args: HistoArguments, guessing_level: dict[str, float]) -> EMAEarlyStoppingCallback:
    """Build the callback from a recipe's keys.

    Args:
        guessing_level (`dict`): `answer_loss` and `answer_accuracy` of a model that guesses, from the trainer.
    """
    level = guessing_level.get(histo_args.early_stopping_metric.removeprefix("eval_"))
    if level is not None:
        # A tenth of the way from guessing to certainty, so that noise about that level isn't taken for learning.
        certain = 1.0 if histo_args.early_stopping_metric.endswith("accuracy") else 0.0
        level += 0.1 * (certain - level)
    return EMAEarlyStoppingCallback(
        mode=histo_args.early_stopping,
        metric=histo_args.early_stopping_metric,
        patience=histo_args.early_stopping_patience,
        threshold=histo_args.early_stopping_threshold,
        min_delta=histo_args.early_stopping_min_delta,
        decay=histo_args.ema_decay,
        guessing_level=level,
    )
