"""One run in phases: each trains its own parts on its own data, from where the one before left the weights.

All phases share one adapter: LoRA where the recipe puts it and a whole copy of each other part that any phase trains.
A phase freezes what it doesn't train, so what goes from one to the next is always the same set of tensors, and a
second adapter is never put inside the first.
"""

import copy
import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState
from datasets import DatasetDict
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.phase import PROJECTOR, VISION, PhaseConfig, list_trained_parts
from histolab_sft.files import replacing
from histolab_sft.provenance import RunRecord, fingerprint_data, write_json
from histolab_sft.settings import hash_weight_files
from histolab_sft.training.checkpoints import CheckpointError, list_checkpoints

logger = logging.getLogger(__name__)

RECORD = "phase.json"


@dataclass
class Phase:
    """What is trained from when to when; a recipe without `phases` is one phase without a name.

    Attributes:
        config: The recipe's entry.
        parts: What it trains.
        all_parts: What any phase of the run trains.
        learning_rates: Part -> its own rate.
        start: Where the weights are that it starts from: a folder or an id on the Hub, None for the base model's.
        args: Of its trainer; `output_dir` is its own folder.
    """

    config: PhaseConfig | None
    parts: list[str]
    all_parts: list[str]
    learning_rates: dict[str, float]
    start: str | None
    args: SFTConfig


def plan_phases(histo_args: HistoArguments, training_args: SFTConfig) -> list[Phase]:
    """Return the phases of a recipe in their order, at least one.

    Raises:
        ValueError: There are several under ZeRO-3.
    """
    parts = list_trained_parts(histo_args)
    own = {PROJECTOR: histo_args.projector_learning_rate, VISION: histo_args.vision_learning_rate}
    rates = {part: rate for part, rate in own.items() if rate is not None}
    start = histo_args.adapter_name_or_path
    if not histo_args.phases:
        return [Phase(None, parts, parts, rates, start, training_args)]
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "phases with ZeRO-3, expected another strategy: it saves no weight that a phase has frozen, so the next "
            "one would lose it; launch with accelerate_configs/deepspeed_zero2.yaml"
        )
    phases = []
    for config in histo_args.phases:
        args = copy.copy(training_args)
        args.output_dir = str(Path(training_args.output_dir, f"phase-{config.name}"))
        if config.learning_rate is not None:
            args.learning_rate = config.learning_rate
        if config.num_train_epochs is not None:
            args.num_train_epochs, args.max_steps = config.num_train_epochs, -1
        if config.max_steps is not None:
            args.max_steps = config.max_steps
        phases.append(Phase(config, config.train, parts, rates, start, args))
        start = args.output_dir
    return phases


def select_rows(phase: Phase, patches: DatasetDict) -> DatasetDict:
    """Return the rows of the phase's data sets, without opening a picture."""
    if phase.config is None or phase.config.datasets is None:
        return patches
    chosen = set(phase.config.datasets)
    return DatasetDict(
        {
            split: rows.select([i for i, name in enumerate(rows.with_format(None)["dataset"]) if name in chosen])
            for split, rows in patches.items()
        }
    )


def begin_phase(phase: Phase, patches: DatasetDict) -> bool:
    """Say which phase comes, and return whether it is still to be run: a finished one isn't run again.

    Raises:
        CheckpointError: An earlier run has left this phase's folder, and it was another phase (keys, data, seed or the
            weights that it started from), or `resume_from_checkpoint` isn't set.
    """
    if phase.config is None:
        return True
    folder = Path(phase.args.output_dir)
    wanted = _describe(phase, patches)
    record = folder / RECORD
    found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
    if found is None:
        if list_checkpoints(folder):
            raise CheckpointError(
                f"{folder} has checkpoints and no {RECORD}, expected both; choose another output_dir"
            )
    elif phase.args.resume_from_checkpoint is None:
        raise CheckpointError(
            f"{folder} is of an earlier run, expected none at a fresh start; go on by resume_from_checkpoint: auto, "
            "or remove it, or choose another output_dir"
        )
    elif changed := [key for key in wanted if found[key] != wanted[key]]:
        raise CheckpointError(
            f"{record} was written with {changed[0]} {found[changed[0]]}, and this run has {wanted[changed[0]]}; "
            "undo the change, or start afresh in another output_dir"
        )
    elif found["weights"]:
        if found["weights"] != hash_weight_files(folder):
            raise CheckpointError(f"the weights in {folder} aren't those that the phase ended with; remove the folder")
        logger.info("phase %s is finished, and isn't run again", phase.config.name)
        return False
    # Every process has read the record before one writes it.
    PartialState().wait_for_everyone()
    if phase.args.should_save and found is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, wanted | {"weights": None})
    logger.info("phase %s", phase.config.name)
    return True


def finish_phase(phase: Phase, patches: DatasetDict) -> None:
    """Record the weights that the phase ended with. Call it in every process, when they are saved."""
    if phase.config is not None:
        folder = Path(phase.args.output_dir)
        if phase.args.should_save:
            write_json(folder / RECORD, _describe(phase, patches) | {"weights": hash_weight_files(folder)})
        # The next phase reads them in every process.
        PartialState().wait_for_everyone()


def describe_start(run: RunRecord, phase: Phase, trainer) -> None:
    """Put into the record of a run where a phase of it goes on from, and since which step which key is another one.

    What the phase does about rare classes goes there too.
    """
    entry = run if phase.config is None else run.setdefault("phases", {}).setdefault(phase.config.name, {})
    entry |= {"resumed_from": phase.args.resume_from_checkpoint, "changes": trainer.changes}
    if trainer.balance.described:
        entry["class_balance"] = trainer.balance.described
    run.begin()


def describe_phase(run: dict, phase: Phase, trainer) -> None:
    """Put into the record of a run how a phase of it ended."""
    entry = run if phase.config is None else run.setdefault("phases", {}).setdefault(phase.config.name, {})
    step = entry["steps"] = trainer.state.global_step
    if trainer.interrupted:
        run["exit_reason"] = f"{trainer.interrupted.name} after step {step}"
    else:
        finished = step >= trainer.state.max_steps
        run["exit_reason"] = "finished" if finished else f"early stopping after step {step}"


def copy_result(phase: Phase, output_dir: str | Path) -> None:
    """Copy what the last phase ended with into the run's own folder, each file at once, the weights last."""
    if phase.config is None or not phase.args.should_save:
        return
    files = [path for path in Path(phase.args.output_dir).iterdir() if path.is_file() and path.name != RECORD]
    for path in sorted(files, key=lambda path: path.suffix == ".safetensors"):
        with replacing(Path(output_dir, path.name)) as temporary:
            shutil.copyfile(path, temporary)


def _describe(phase: Phase, patches: DatasetDict) -> dict:
    rates = {"learning_rate": phase.args.learning_rate} | phase.learning_rates
    return {
        "phase": asdict(phase.config),
        "learning_rates": rates,
        "seed": phase.args.seed,
        "data_fingerprint": fingerprint_data({"train": patches["train"]}),
        "start": hash_weight_files(phase.start) if phase.start else {},
    }
