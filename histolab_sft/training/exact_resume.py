"""What a checkpoint of Trainer lacks for a resumed run to be equal to the undisturbed one."""

import json
import logging
from pathlib import Path

from peft import PeftModel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from histolab_sft.training.run_keys import CheckpointError

logger = logging.getLogger(__name__)

# One file a process: the values gathered since the last log
WINDOW_FILE = "log_window_{rank}.json"


def describe_run(trainer) -> dict:
    """Return what a checkpoint and the run that goes on from it must share (see `choose_checkpoint`)."""
    args = trainer.args
    adapter = trainer.model.peft_config["default"] if isinstance(trainer.model, PeftModel) else None
    return {
        "data_fingerprint": trainer.data_fingerprint,
        "id": trainer.run_id,
        "changes": trainer.changes,
        "keys": trainer.keys,
        "base_model": adapter and adapter.base_model_name_or_path,
        "revision": adapter and adapter.revision,
        "seed": args.seed,
        "effective_batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "processes": args.world_size,
        "compiled_layers": trainer.compiled_layers,
    }


def save_log_window(trainer, folder: Path) -> None:
    """Write the values gathered since the last log, so that the next log is that of the undisturbed run."""
    content = {
        "loss_sum": trainer._tr_loss.item(),
        "last_logged_step": trainer._globalstep_last_logged,
        "metrics": trainer._metrics["train"],
        "tokens": trainer._total_train_tokens,
        "micro_batch": trainer.micro_batch,
    }
    folder.joinpath(WINDOW_FILE.format(rank=trainer.args.process_index)).write_text(json.dumps(content))


def load_log_window(trainer, folder: Path) -> None:
    """Read back what `save_log_window` wrote in the process of the same rank."""
    path = folder / WINDOW_FILE.format(rank=trainer.args.process_index)
    if not path.is_file():
        logger.warning("%s isn't there (another number of processes): the next log starts at this step", path)
        return
    content = json.loads(path.read_text())
    trainer._tr_loss += content["loss_sum"]
    trainer._globalstep_last_logged = content["last_logged_step"]
    trainer._metrics["train"].update(content["metrics"])
    trainer._total_train_tokens = content["tokens"]
    trainer.micro_batch = content["micro_batch"]


def apply_changed_keys(optimizer: Optimizer, scheduler, rates: list[float], decays: list[float], name: str) -> None:
    """Put the recipe's learning rates and weight decays in place of those that a checkpoint brought.

    Args:
        scheduler: Already at the step of the checkpoint.
        rates, decays: One for each group of the optimiser's parameters.
        name (`str`): `lr_scheduler_type`, for the message.

    Raises:
        CheckpointError: The schedule doesn't follow from the step alone.
    """
    if not isinstance(scheduler, LambdaLR):
        raise CheckpointError(
            f"resume_changes with lr_scheduler_type {name} or DeepSpeed, expected a "
            "schedule that follows the step alone; start afresh in another output_dir"
        )
    scheduler.base_lrs = rates
    for group, rate, decay, schedule in zip(optimizer.param_groups, rates, decays, scheduler.lr_lambdas, strict=True):
        group |= {"initial_lr": rate, "weight_decay": decay, "lr": rate * schedule(scheduler.last_epoch)}
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
