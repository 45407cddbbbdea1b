"""`SFTTrainer` whose runs can be cut off anywhere and go on exactly."""

import json
import logging
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTConfig

from histolab_sft.models.load import restore_weights
from histolab_sft.provenance import fingerprint_data
from histolab_sft.run_lock import SAVING
from histolab_sft.signals import StopSignals, ending_workers
from histolab_sft.training.checkpoints import (
    MANIFEST,
    CheckpointError,
    begin_checkpoint,
    check_disk,
    choose_checkpoint,
    estimate_checkpoint,
    explain_failed_write,
    rotate_checkpoints,
    write_manifest,
)
from histolab_sft.training.even_trainer import EvenTrainer
from histolab_sft.training.run_keys import describe_keys

logger = logging.getLogger(__name__)

WINDOW_FILE = "log_window_{rank}.json"


class SteadyTrainer(EvenTrainer):
    """`SFTTrainer` with whole checkpoints, exact resume and stop signals; arguments as in `GuardedTrainer`.

    `resume_from_checkpoint` of `train` is None, `auto` or a path (see `choose_checkpoint`). After `train`,
    `interrupted` is the signal that ended the run before its time, None if it ran to its end.
    """

    def __init__(self, *, args: SFTConfig, keys: dict | None = None, resume_changes: Iterable[str] = (), **kwargs):
        # Before Trainer fills in what the recipe leaves open.
        self._keys = describe_keys(args) if keys is None else keys
        super().__init__(args=args, **kwargs)
        self.interrupted: signal.Signals | None = None
        splits = {"train": self.train_dataset, "validation": self.eval_dataset}
        self._data_fingerprint = fingerprint_data({name: rows for name, rows in splits.items() if rows is not None})
        self._resume_changes = resume_changes
        # By its id a run knows its own checkpoints; a run that goes on has the one of the run that began.
        self.run_id = uuid.uuid4().hex
        self.changes: list[dict] = []
        self.on_begin: Callable[[], None] = lambda: None
        # Compiled and plain layers round differently and draw other numbers for dropout.
        self.compiled_layers = False
        self._last_boundary = -1
        self._save_due = False
        self._open_checkpoint: Path | None = None
        self._master_weights: dict[str, torch.Tensor] = {}

    # What a run goes on from

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        run = self.describe_run()
        checkpoint, changes = choose_checkpoint(
            resume_from_checkpoint, self.args.output_dir, run, self._resume_changes
        )
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        # Trainer reads a whole model's file by the names inside the model, where files have those of the Hub: it would
        # find none of them, and say so in a warning.
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
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return not (isinstance(self.model, PeftModel) or sharded)

    def describe_run(self) -> dict:
        """Return what a checkpoint and the run that goes on from it must share (see `choose_checkpoint`)."""
        args = self.args
        peft = isinstance(self.model, PeftModel)
        return {
            "data_fingerprint": self._data_fingerprint,
            "id": self.run_id,
            "changes": self.changes,
            "keys": self._keys,
            "base_model": self.model.peft_config["default"].base_model_name_or_path if peft else None,
            "revision": self.model.peft_config["default"].revision if peft else None,
            "seed": args.seed,
            "effective_batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "processes": args.world_size,
            "compiled_layers": self.compiled_layers,
        }

    def describe_end(self) -> str:
        """Return why training is over: a signal, early stopping, or that it is `finished`."""
        step = self.state.global_step
        if self.interrupted:
            return f"{self.interrupted.name} after step {step}"
        return "finished" if step >= self.state.max_steps else f"early stopping after step {step}"

    def end(self) -> None:
        # A launcher ends the others when one process ends with an error: none leaves before all are done.
        self.accelerator.wait_for_everyone()
        super().end()

    def _run_epoch(self, **kwargs):
        # A run that had ended, by its steps or by early stopping, has nothing to add when it is resumed; the loop
        # of Trainer would make one more step before it looks.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        if self.control.should_training_stop:
            return
        checkpoint = kwargs["resume_from_checkpoint"]
        if checkpoint is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            self._load_log_window(Path(checkpoint))
        super()._run_epoch(**kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        rates = [group["initial_lr"] for group in self.optimizer.param_groups] if self.changes else []
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.changes:
            if not isinstance(self.lr_scheduler, LambdaLR):
                raise CheckpointError(
                    f"resume_changes with lr_scheduler_type {self.args.lr_scheduler_type} or DeepSpeed, expected a "
                    "schedule that follows the step alone; start afresh in another output_dir"
                )
            # What was saved is of the recipe before its change.
            self.lr_scheduler.base_lrs = rates
            lambdas = zip(self.optimizer.param_groups, rates, decays, self.lr_scheduler.lr_lambdas, strict=True)
            for group, rate, decay, schedule in lambdas:
                group |= {
                    "initial_lr": rate,
                    "weight_decay": decay,
                    "lr": rate * schedule(self.lr_scheduler.last_epoch),
                }
            self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def get_batch_samples(self, *args, **kwargs):
        # What this process prepares itself ends by itself.
        waits = self.args.dataloader_num_workers > 0
        with self.signals.waiting_for_workers() if waits else nullcontext():
            return super().get_batch_samples(*args, **kwargs)

    # The end of an optimiser step and of an epoch

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """Trainer calls this after every optimiser step, and once more when an epoch ends or is broken off."""
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
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if not more_to_come and not self.control.should_training_stop and self._is_told_to_stop():
            self._stop(model=args[2], trial=args[3])
        if self._open_checkpoint is not None:
            self._complete_checkpoint()

    def _is_told_to_stop(self) -> bool:
        told = torch.tensor([self.signals.received is not None], device=self.args.device)
        return bool(self.accelerator.gather(told).any())

    def _stop(self, model, trial) -> None:
        if self.state.global_step >= self.state.max_steps:
            return
        self.interrupted = self.signals.received or signal.SIGTERM
        logger.warning("%s: the run stops after step %d", self.interrupted.name, self.state.global_step)
        if self._open_checkpoint is None:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.control.should_training_stop = True

    # Checkpoints

    def _save_checkpoint(self, model, trial):
        args = self.args
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if args.should_save:
            with explain_failed_write(folder):
                begin_checkpoint(folder, self.describe_run())
        self.accelerator.wait_for_everyone()
        with explain_failed_write(folder):
            super()._save_checkpoint(model, trial)
            self._save_log_window(folder)
        # Callbacks add their files when Trainer calls on_save; then it is completed.
        self._open_checkpoint = folder

    def _complete_checkpoint(self) -> None:
        folder, self._open_checkpoint = self._open_checkpoint, None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with explain_failed_write(folder):
                size = write_manifest(folder, self.describe_run())
            logger.info("%s is whole: %d bytes", folder, size)
            best = self.state.best_model_checkpoint
            protected = {str(folder)} | ({best} if best else set())
            rotate_checkpoints(self.args.output_dir, self._limit, protected, self.run_id)

    def _save_log_window(self, folder: Path) -> None:
        """Keep what was gathered since the last log, so that the next one has the value of the undisturbed run."""
        content = {
            "loss_sum": self._tr_loss.item(),
            "last_logged_step": self._globalstep_last_logged,
            "metrics": self._metrics["train"],
            "tokens": self._total_train_tokens,
            "micro_batch": self.micro_batch,
        }
        folder.joinpath(WINDOW_FILE.format(rank=self.args.process_index)).write_text(json.dumps(content))

    def _load_log_window(self, folder: Path) -> None:
        path = folder / WINDOW_FILE.format(rank=self.args.process_index)
        if not path.is_file():
            logger.warning("%s isn't there (another number of processes): the next log starts at this step", path)
            return
        content = json.loads(path.read_text())
        self._tr_loss += content["loss_sum"]
        self._globalstep_last_logged = content["last_logged_step"]
        self._metrics["train"].update(content["metrics"])
        self._total_train_tokens = content["tokens"]
        self.micro_batch = content["micro_batch"]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Every process takes part in gathering them, and only one in `_save`.
        self._master_weights = self._gather_master_weights()
        super().save_model(output_dir, _internal_call)

    def _gather_master_weights(self) -> dict[str, torch.Tensor]:
        """Return the trained weights in float32 as DeepSpeed's optimiser holds them; those of the model are rounded.

        ZeRO-1 and 2 with `bf16: true` train on a copy in bfloat16. Without it, and under ZeRO-3, there are none.
        """
        if not self.is_deepspeed_enabled or is_deepspeed_zero3_enabled() or not self.args.bf16:
            return {}
        # An extra of the package, which no other run needs.
        from deepspeed.utils import safe_get_full_fp32_param

        model = self.accelerator.unwrap_model(self.model)
        gathered = {
            name: safe_get_full_fp32_param(parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        return {name: weight.cpu() for name, weight in gathered.items() if weight is not None}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the weights, each file at once or not at all, and with the final ones the processor.

        Left out of what Trainer writes: the pickled arguments, which hold a token if there is one, and the card.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        temporary = folder / SAVING
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if self._master_weights:
            state_dict = {**state_dict, **self._master_weights}
        model = self.accelerator.unwrap_model(self.model)
        # PEFT would ask the Hub whether the vocabulary of the base model was changed.
        options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
        model.save_pretrained(temporary, state_dict=state_dict, **options)
        if folder == Path(self.args.output_dir):
            self.processing_class.save_pretrained(temporary)
        # A card that PEFT fills with placeholders.
        temporary.joinpath("README.md").unlink(missing_ok=True)
        for path in sorted(temporary.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            os.replace(path, folder / path.name)
        temporary.rmdir()

    def create_model_card(self, *args, **kwargs) -> None:
        """Write nothing: the card is made from the scores, when the adapter is published."""
