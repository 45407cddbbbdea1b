"""Which keys of a recipe change what a run computes, and so must stay when it is resumed."""

import json
from collections.abc import Iterable
from dataclasses import fields

# Of the keys without an effect on what is trained, why they have none. Every other key computes.
REASONS = {
    "which rows it leaves, and in which words, is in the data fingerprint, which must stay": (
        *("datasets", "data_dir", "max_samples", "max_test_samples", "split_protocol", "split_seed"),
        *("validation_fraction", "test_fraction", "refused_images", "unlabelled", "leaks", "prompt_style"),
        *("folds", "fold"),
    ),
    "it is of the other trainings of a study": ("seeds",),
    "it is of scoring alone": (
        *("generate_answers", "max_new_tokens", "constrained_decoding", "sensitivity", "sensitivity_samples"),
        *("changed_split", "sensitivity_sides", "prior_correction", "expected_score", "expected_gain", "external"),
        *("encoders", "cnn"),
    ),
    "it is no key of a recipe": ("profile_notes", "written"),
    "the launcher sets it": ("local_rank",),
    "it says where results and messages go": (
        *("output_dir", "logging_nan_inf_filter", "log_on_each_node", "log_level", "log_level_replica"),
        *("disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id"),
        *("trackio_static_space_id", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
        *("hub_always_push", "hub_revision"),
    ),
    "it says how a run is resumed": ("resume_from_checkpoint", "resume_changes"),
    "saving draws no random number (with load_best_model_at_end it computes)": ("save_strategy", "save_steps"),
    "it says how many checkpoints stay": ("save_total_limit", "save_on_each_node"),
    "rows come in the same order from any number of workers": (
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    ),
    "it is read by scripts that aren't here": ("do_train", "do_eval", "do_predict"),
    "it counts and times what is computed": ("include_num_input_tokens_seen", "skip_memory_metrics", "ddp_timeout"),
}
NO_EFFECT = {key: reason for reason, keys in REASONS.items() for key in keys}
WITH_BEST_MODEL = ("save_strategy", "save_steps")
# They may differ between numbers of processes; what must stay then is their product, the rows of a step.
OF_PROCESSES = ("per_device_train_batch_size", "gradient_accumulation_steps")
# What can be changed in the middle of a run; the others would need another model or optimiser.
CHANGEABLE = (
    *("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "max_steps", "num_train_epochs"),
    *("lora_dropout", "augmentation"),
    *("early_stopping_patience", "early_stopping_threshold", "early_stopping_min_delta"),
)


class CheckpointError(RuntimeError):
    """A checkpoint can't be used or written, and the message says why."""


def describe_keys(*parsed) -> dict:
    """Return every key of the parsed arguments that changes what a run computes, with its value as JSON has it."""
    values = {entry.name: getattr(part, entry.name) for part in parsed for entry in fields(part)}
    skipped = set(NO_EFFECT) - (set(WITH_BEST_MODEL) if values.get("load_best_model_at_end") else set())
    computing = {key: value for key, value in values.items() if key not in skipped}
    return json.loads(json.dumps(computing, sort_keys=True, default=_write))


def compare_keys(
    saved: dict, run: dict, accepted: Iterable[str], checkpoint: str, processes_differ: bool
) -> list[dict]:
    """Return the changes of keys that a resumed run takes on purpose: `key`, `from`, `to`.

    Args:
        saved, run (`dict`): From `describe_keys`, when the checkpoint was saved and now.
        accepted: Keys that may differ.
        checkpoint: Its path, for the message.
        processes_differ (`bool`): Whether the checkpoint was saved by another number of processes.

    Raises:
        CheckpointError: Other keys differ, or one of `accepted` can't be changed within a run.
    """
    if fixed := sorted(set(accepted) - set(CHANGEABLE)):
        raise CheckpointError(
            f"resume_changes names {', '.join(fixed)}, expected keys that can change within a run: "
            f"{', '.join(CHANGEABLE)}; start afresh in another output_dir"
        )
    ignored = OF_PROCESSES if processes_differ else ()
    names = [key for key in sorted(saved.keys() | run.keys()) if key not in ignored]
    changes = [
        {"key": key, "from": saved.get(key), "to": run.get(key)} for key in names if saved.get(key) != run.get(key)
    ]
    refused = [change for change in changes if change["key"] not in accepted]
    if refused:
        listed = "; ".join(f"{change['key']} was {change['from']} and is {change['to']}" for change in refused)
        takeable = [change["key"] for change in refused if change["key"] in CHANGEABLE]
        advice = f", or take it on purpose by resume_changes: [{', '.join(takeable)}]" if takeable else ""
        raise CheckpointError(
            f"{checkpoint} is of a run with other keys: {listed}; undo the change{advice}, or start afresh in another "
            "output_dir"
        )
    return changes


def _write(value):
    return sorted(value) if isinstance(value, set) else str(value)
