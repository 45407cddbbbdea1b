"""`PatchTrainer`, the `SFTTrainer` of this project: exact resume, losses by token, an early stop for broken runs.

What it adds is in the modules beside this one: `token_means` (losses), `guards` (numbers that aren't finite),
`out_of_memory`, `checkpoints`, `exact_resume` and `weight_files`. Here they are put where Trainer calls them.
"""

import json
import logging
import signal
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from transformers import set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTConfig, SFTTrainer

from histolab_sft.config.phase import LANGUAGE
from histolab_sft.data.class_balance import AS_THEY_COME, ClassBalance
from histolab_sft.models.continued_adapter import load_adapter_weights
from histolab_sft.models.load import keep_quantized_layers_trainable, restore_weights
from histolab_sft.models.trainable import count_trained, set_learning_rates, train_parts
from histolab_sft.models.vision_tower import freeze_vision_tower
from histolab_sft.provenance import fingerprint_data
from histolab_sft.signals import StopSignals, ending_workers
from histolab_sft.training.answer_tokens import read_answers
from histolab_sft.training.balanced_rows import build_sampler, watching_outputs
from histolab_sft.training.checkpoints import (
    MANIFEST,
    begin_checkpoint,
    check_disk,
    choose_checkpoint,
    estimate_checkpoint,
    explain_failed_write,
    rotate_checkpoints,
    write_manifest,
)
from histolab_sft.training.data_loader import DECIDING, ROWS, WEIGHTS, set_up_loader
from histolab_sft.training.exact_resume import apply_changed_keys, describe_run, load_log_window, save_log_window
from histolab_sft.training.guards import check_gradient, check_loss, check_weights
from histolab_sft.training.out_of_memory import explaining_out_of_memory, fit_micro_batch
from histolab_sft.training.run_keys import describe_keys
from histolab_sft.training.task_metric import collect_options, measure_balanced_accuracy
from histolab_sft.training.token_means import Sums, add_sums, mask_repeated_rows, pop_means, sum_tokens
from histolab_sft.training.weight_files import gather_master_weights, save_weights

logger = logging.getLogger(__name__)


class PatchTrainer(SFTTrainer):
    """`SFTTrainer` for pictures and answers.

    An optimiser step, in order:

    1. `get_batch_samples` collects the micro-batches. Rows that only fill up the last batch lose their labels.
    2. `training_step` runs each micro-batch forwards and backwards. If memory runs out, the run stops with advice or
       goes on in smaller parts (`oom`).
    3. `compute_loss`, within it, stops the run if the loss of any process isn't finite, and adds up the values to log.
    4. `_get_grad_norm` stops the run if the gradient isn't finite.
    5. Trainer moves the weights and the learning rate.
    6. `_maybe_log_save_evaluate` stops the run if a weight isn't finite, then lets Trainer log, evaluate and begin a
       checkpoint. After a stop signal to any process it saves too, and ends the run. Last it makes the checkpoint
       whole and removes old ones. Trainer calls it once more at the end of an epoch; the checkpoint of an epoch's
       last step is saved then.

    It logs `answer_loss` and `answer_accuracy`, with the prefix `eval_` in evaluation: means over the tokens that tell
    the classes apart (see `answer_tokens`). `guessing_level` holds what both would be for a model that only knows how
    frequent the classes are. Each evaluation of a data set with fixed answers also gives `eval_balanced_accuracy`, by
    label likelihood: use it as `metric_for_best_model` or `early_stopping_metric`.

    Args:
        args (`SFTConfig`): `logging_nan_inf_filter` is switched off: it shows the mean of earlier losses in place of
            NaN, so that a broken run looks like a good one.
        parts: What is trained of `language`, `projector` and `vision`; the rest is frozen.
        learning_rates (`dict[str, float]`, *optional*): Part -> its own rate, in place of `args.learning_rate`.
        adapter_folder: Adapter whose weights training starts from, for which `peft_config` was made.
        candidate_batch_size: Answers whose logits are held at once for `eval_balanced_accuracy`.
        balance: What training does about rare classes. Weights change the logged `loss`, and nothing in evaluations.
        oom (`str`): When memory runs out in training, `stop` with advice, or `halve` the micro-batch and accumulate
            twice as many: the same rows a step and the same loss, for one process. `micro_batch` then holds the rows
            that fit; a copy of the gradients is kept through each micro-batch, and dropout draws other numbers.
        keys (`dict`, *optional*): From `describe_keys`: what a resumed run must have the same; by default of `args`.
        resume_changes: Keys that may differ all the same.

    After `train`, `interrupted` is the signal that ended the run before its time, None if it ran to its end.
    """

    def __init__(
        self,
        *,
        args: SFTConfig,
        parts: Sequence[str] = (LANGUAGE,),
        learning_rates: dict[str, float] | None = None,
        adapter_folder: str | Path | None = None,
        candidate_batch_size: int = 96,
        balance: ClassBalance = AS_THEY_COME,
        oom: str = "stop",
        keys: dict | None = None,
        resume_changes: Iterable[str] = (),
        **kwargs,
    ):
        # Before Trainer fills in what the recipe leaves open.
        self.keys = describe_keys(args) if keys is None else keys
        # Trainer would copy the model to every GPU that one process sees.
        args._n_gpu = min(args.n_gpu, 1)
        # The first weights of an adapter are drawn before Trainer sets the seed.
        set_seed(args.seed)
        self.balance, self.sampler = balance, build_sampler(balance, args)
        super().__init__(args=args, **kwargs)
        args.logging_nan_inf_filter = False
        if oom == "halve" and (args.world_size > 1 or self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError(
                "oom is halve with several processes or DeepSpeed, expected one process: the others can't follow; "
                "set oom: stop and a smaller per_device_train_batch_size"
            )
        self.oom = oom
        self.micro_batch: int | None = None
        # Ids of the rows, and sums of what is logged, since the last optimiser step or since an evaluation began
        self._rows: list[str] = []
        self._sums: dict[str, Sums] = {"train": {}, "eval": {}}

        # What a run and its checkpoints are known by
        splits = {"train": self.train_dataset, "validation": self.eval_dataset}
        self.data_fingerprint = fingerprint_data({name: rows for name, rows in splits.items() if rows is not None})
        self._resume_changes = resume_changes
        # By its id a run knows its own checkpoints; a run that goes on has the one of the run that began.
        self.run_id = uuid.uuid4().hex
        self.changes: list[dict] = []
        # Compiled and plain layers round differently and draw other numbers for dropout.
        self.compiled_layers = False
        # Called when it is known what the run goes on from
        self.on_begin: Callable[[], None] = lambda: None
        self.interrupted: signal.Signals | None = None
        self._last_boundary, self._save_due = -1, False
        self._open_checkpoint: Path | None = None
        self._master_weights: dict[str, torch.Tensor] = {}

        # What is trained
        self.learning_rates = learning_rates or {}
        keep_quantized_layers_trainable(self.model)
        train_parts(self.model, parts)
        if adapter_folder is not None:
            load_adapter_weights(self.model, adapter_folder)
        freeze_vision_tower(self.model)
        for part, count in count_trained(self.model).items():
            rate = self.learning_rates.get(part, self.args.learning_rate)
            logger.info("%s: %s", part, f"{count:,} parameters train at {rate:g}" if count else "frozen")
        self.branches, self.guessing_level = read_answers(self.train_dataset, self.data_collator, balance.shares)
        self.options = collect_options(self.train_dataset) if self.branches else {}
        self.candidate_batch_size = candidate_batch_size

    # Model, optimiser and data, as Trainer sets them up

    def _move_model_to_device(self, model, device):
        """Leave the model where it was loaded: what isn't to be on the device at first would not fit there."""

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if self.learning_rates:
            set_learning_rates(optimizer, self.model, self.learning_rates)
        return optimizer

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        # `pixel_sha256` for rows that name their pictures in place of opening them, the last two for class weights.
        columns = ("id", "pixel_sha256", "dataset", "label")
        self._signature_columns += [name for name in columns if name not in self._signature_columns]

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler or super()._get_train_sampler(train_dataset)

    def _get_dataloader(self, *args, **kwargs):
        weights = self.balance.weights if kwargs.get("is_training") else {}
        return set_up_loader(super()._get_dataloader(*args, **kwargs), self._train_batch_size, weights, self.branches)

    # Both take a walk through all modules: at every step it would be 5 and 25 ms, for which a GPU waits.

    @cached_property
    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, weights) for name, weights in self.model.named_parameters() if weights.requires_grad]

    @cached_property
    def _operations_per_token(self) -> int:
        return 6 * self.accelerator.unwrap_model(self.model).num_parameters(exclude_embeddings=True)

    def floating_point_ops(self, inputs) -> int:
        return self._operations_per_token * inputs["input_ids"].numel()

    # Begin, resume and end of a run

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """Train; `resume_from_checkpoint` is None, `auto` or a path (see `choose_checkpoint`)."""
        run = describe_run(self)
        accepted = self._resume_changes
        checkpoint, changes = choose_checkpoint(resume_from_checkpoint, self.args.output_dir, run, accepted)
        if checkpoint is not None:
            saved = json.loads(Path(checkpoint, MANIFEST).read_text(encoding="utf-8"))["run"]
            self.run_id, self.changes = saved["id"], [*saved["changes"], *changes]
            for change in changes:
                logger.warning("%(key)s is %(to)s from step %(step)d on, and was %(from)s", change)
        # Callbacks read from it what they kept.
        self.args.resume_from_checkpoint = checkpoint
        if self.args.save_strategy != "no":
            # The last good checkpoint stays until the next one is whole.
            check_disk(self.args.output_dir, 2 * estimate_checkpoint(self.model))
        # Trainer would remove what isn't this run's.
        self._limit, self.args.save_total_limit = self.args.save_total_limit, None
        self.on_begin()
        with StopSignals() as self.signals, ending_workers():
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def end(self) -> None:
        # A launcher ends the others when one process ends with an error: none leaves before all are done.
        self.accelerator.wait_for_everyone()
        super().end()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        # Trainer looks for the model's own names in a whole model's file, which has those of the Hub, and finds none.
        if self._holds_whole_model():
            restore_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._holds_whole_model():
            restore_weights(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _holds_whole_model(self) -> bool:
        return not (isinstance(self.model, PeftModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _load_optimizer_and_scheduler(self, checkpoint):
        rates = [group["initial_lr"] for group in self.optimizer.param_groups] if self.changes else []
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.changes:
            apply_changed_keys(self.optimizer, self.lr_scheduler, rates, decays, self.args.lr_scheduler_type)

    def _run_epoch(self, **kwargs):
        # A run that had ended, by its steps or by early stopping, has nothing to add when it is resumed; the loop
        # of Trainer would make one more step first.
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if self.control.should_training_stop:
            return
        if self.sampler is not None:
            self.sampler.epoch = kwargs["epoch"]
        checkpoint = kwargs["resume_from_checkpoint"]
        if checkpoint is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            load_log_window(self, Path(checkpoint))
        super()._run_epoch(**kwargs)

    # A step, in the order of the class's docstring

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        state, size = self.accelerator.gradient_state, self.args.train_batch_size
        batches = (mask_repeated_rows(batch, size, state, self.args) for batch in epoch_iterator)
        # What this process prepares itself ends by itself.
        waits = self.args.dataloader_num_workers > 0
        with self.signals.waiting_for_workers() if waits else nullcontext():
            return super().get_batch_samples(batches, num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None):
        train = super().training_step
        # Without the number of tokens of the step, the losses of parts would not add up.
        halve = self.oom == "halve" and num_items_in_batch is not None
        return fit_micro_batch(self, lambda part: train(model, part, num_items_in_batch), inputs, halve)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rows, deciding = inputs.pop(ROWS), inputs.pop(DECIDING)
        with watching_outputs(self.model, inputs.pop(WEIGHTS, None)) as outputs:
            outcome = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = outcome[0] if return_outputs else outcome
        mode = "train" if self.model.training else "eval"
        self._rows += rows if mode == "train" else []
        check_loss(loss, self.state.global_step + 1, rows, self.accelerator)
        # TRL logs them as means over micro-batches.
        for name in ("entropy", "mean_token_accuracy"):
            self._metrics[mode][name].pop()
        with torch.no_grad():
            sums = sum_tokens(outputs[0], deciding)
            if mode == "eval":
                # In an evaluation the loss is the mean over the tokens of this batch.
                tokens = outputs[0].label_mask.sum()
                sums["loss"] = loss * tokens, tokens
            add_sums(self._sums[mode], sums)
        return outcome

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        check_gradient(norm, self.state.global_step + 1, self._rows)
        return norm

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """End an optimiser step; Trainer also calls this when an epoch ends or is broken off."""
        if self.interrupted:
            return
        after_step, self._last_boundary = self.state.global_step != self._last_boundary, self.state.global_step
        # What the end of an epoch brings (an evaluation, the random numbers that it draws) belongs into the checkpoint
        # of its last step: a run that goes on from there starts with the next epoch.
        more_to_come = after_step and (self.state.epoch.is_integer() or self.control.should_training_stop)
        if more_to_come:
            self._save_due, self.control.should_save = self.control.should_save, False
        else:
            self.control.should_save |= self._save_due
            self._save_due = False
        for name, mean in pop_means(self._sums["train"], self.accelerator).items():
            self._metrics["train"][name].append(mean)
        check_weights(self._trained, self.state.global_step, self._rows)
        self._rows = []
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if not more_to_come and not self.control.should_training_stop and self._is_told_to_stop():
            self._stop(model=args[2], trial=args[3])
        if self._open_checkpoint is not None:
            self._complete_checkpoint()

    def _is_told_to_stop(self) -> bool:
        received = self.signals.received is not None
        return bool(self.accelerator.gather(torch.tensor([received], device=self.args.device)).any())

    def _stop(self, model, trial) -> None:
        if self.state.global_step >= self.state.max_steps:
            return
        self.interrupted = self.signals.received or signal.SIGTERM
        logger.warning("%s: the run stops after step %d", self.interrupted.name, self.state.global_step)
        if self._open_checkpoint is None:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.control.should_training_stop = True

    # Evaluation

    def prediction_step(self, model, inputs, *args, **kwargs):
        inputs = mask_repeated_rows(inputs, self.args.eval_batch_size, self.accelerator.gradient_state, self.args)
        with explaining_out_of_memory(inputs, self.args, self.state.global_step, training=False):
            return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = pop_means(self._sums["eval"], self.accelerator)
        if "loss" in means:
            output.metrics[f"{metric_key_prefix}_loss"] = means.pop("loss")
        self._metrics["eval"].update({name: [mean] for name, mean in means.items()})
        if self.options:
            inputs = self.model, self.data_collator.processor, self.eval_dataset, self.options
            sizes = self.args.per_device_eval_batch_size, self.candidate_batch_size
            score = measure_balanced_accuracy(*inputs, *sizes, self.accelerator)
            output.metrics[f"{metric_key_prefix}_balanced_accuracy"] = score
        return output

    # Checkpoints and weights

    def _save_checkpoint(self, model, trial):
        folder = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with explain_failed_write(folder):
            if self.args.should_save:
                begin_checkpoint(folder, describe_run(self))
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            save_log_window(self, folder)
        # Callbacks add their files when Trainer calls on_save; then it is completed.
        self._open_checkpoint = folder

    def _complete_checkpoint(self) -> None:
        folder, self._open_checkpoint = self._open_checkpoint, None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with explain_failed_write(folder):
                size = write_manifest(folder, describe_run(self))
            logger.info("%s is whole: %d bytes", folder, size)
            protected = {str(folder), self.state.best_model_checkpoint} - {None}
            rotate_checkpoints(self.args.output_dir, self._limit, protected, self.run_id)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # With `bf16: true`, ZeRO-1 and 2 train on a copy in bfloat16. Every process takes part in gathering the
        # weights in float32, and only one in `_save`.
        rounded = self.is_deepspeed_enabled and not is_deepspeed_zero3_enabled() and self.args.bf16
        self._master_weights = gather_master_weights(self.accelerator.unwrap_model(self.model)) if rounded else {}
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the weights, and with the final ones the processor.

        Left out of what Trainer writes: the pickled arguments, which hold a token if there is one, and the card.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        if self._master_weights:
            state_dict = {**state_dict, **self._master_weights}
        processor = self.processing_class if folder == Path(self.args.output_dir) else None
        save_weights(self.accelerator.unwrap_model(self.model), folder, state_dict, processor)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write nothing: the card is made from the scores, when the adapter is published."""
