"""`SFTTrainer` for patches: trainable weights in float32, a frozen tower at no cost, the answer's own loss."""

import logging
from collections.abc import Sequence
from pathlib import Path

from histolab_sft.config.phase import LANGUAGE
from histolab_sft.models.continued_adapter import load_adapter_weights
from histolab_sft.models.load import keep_quantized_layers_trainable
from histolab_sft.models.trainable import count_trained, set_learning_rates, train_parts
from histolab_sft.models.vision_tower import freeze_vision_tower
from histolab_sft.training.answer_tokens import (
    collect_answers,
    compute_guessing_level,
    find_branches,
    mask_deciding_tokens,
)
from histolab_sft.training.steady_trainer import SteadyTrainer
from histolab_sft.training.task_metric import collect_options, measure_balanced_accuracy

logger = logging.getLogger(__name__)


class PatchTrainer(SteadyTrainer):
    """`SteadyTrainer` that also logs `answer_loss` and `answer_accuracy`.

    Both are means over the tokens that tell the classes apart (see `answer_tokens`), in training and, with the prefix
    `eval_`, in evaluation. `guessing_level` holds what both would be for a model that only knows how frequent
    the classes are. Each evaluation of a data set with fixed answers also gives `eval_balanced_accuracy`, by label
    likelihood: use it as `metric_for_best_model` or `early_stopping_metric`.

    Args:
        parts: What is trained of `language`, `projector` and `vision`; the rest is frozen.
        learning_rates (`dict[str, float]`, *optional*): Part -> its own rate, in place of `args.learning_rate`.
        adapter_folder: Adapter whose weights training starts from, for which `peft_config` was made.
        candidate_batch_size: Answers whose logits are held at once for `eval_balanced_accuracy`.
    """

    def __init__(
        self,
        *,
        parts: Sequence[str] = (LANGUAGE,),
        learning_rates: dict[str, float] | None = None,
        adapter_folder: str | Path | None = None,
        candidate_batch_size: int = 96,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.parts = parts
        self.learning_rates = learning_rates or {}
        self.candidate_batch_size = candidate_batch_size
        keep_quantized_layers_trainable(self.model)
        train_parts(self.model, parts)
        if adapter_folder is not None:
            load_adapter_weights(self.model, adapter_folder)
        freeze_vision_tower(self.model)
        self._log_trained()
        answers = collect_answers(self.train_dataset, self.data_collator)
        self.branches = find_branches(answers)
        self.guessing_level = compute_guessing_level(answers)
        self.options = collect_options(self.train_dataset) if self.branches else {}

    def _log_trained(self) -> None:
        for part, count in count_trained(self.model).items():
            rate = self.learning_rates.get(part, self.args.learning_rate)
            logger.info("%s: %s", part, f"{count:,} parameters train at {rate:g}" if count else "frozen")

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if self.learning_rates:
            set_learning_rates(optimizer, self.model, self.learning_rates)
        return optimizer

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.options:
            output.metrics[f"{metric_key_prefix}_balanced_accuracy"] = measure_balanced_accuracy(
                self.model,
                self.data_collator.processor,
                self.eval_dataset,
                self.options,
                self.args.per_device_eval_batch_size,
                self.candidate_batch_size,
                self.accelerator,
            )
        return output

    def sum_tokens(self, labels, outputs):
        # The outputs stand one place to the left of the labels.
        deciding = mask_deciding_tokens(labels, self.branches)[:, 1:]
        count = deciding.sum()
        return super().sum_tokens(labels, outputs) | {
            "answer_loss": (-(outputs.log_probs * deciding).sum(), count),
            "answer_accuracy": ((outputs.is_top1 * deciding).sum(), count),
        }
