"""Publish a merged model: the folder that merging wrote, once it is proven, with scores, proof and card beside it."""

import shutil
from pathlib import Path

from datasets import Dataset
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.models.precision import read_precision
from histolab_sft.publishing.hub import check_unchanged, collect_evidence, list_files, write_evidence
from histolab_sft.publishing.merge import PARITY_FILE, check_merge_parity, merge_adapter
from histolab_sft.publishing.push_gate import (
    ADAPTER,
    ADAPTER_CONFIG,
    PublishError,
    check_adapter,
    check_base_model,
    check_leaks,
)

# The words of the base model's vocabulary, as it was published: among a quarter of a million some look like paths.
VOCABULARY = {"tokenizer.json", "tokenizer.model"}


def build_merged_folder(
    patches: Dataset, histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig
) -> tuple[Path, dict]:
    """Write `output_dir/merged`, ready to go up, and return it with what `check_merge_parity` found.

    The folder is written anew: the merged weights with configuration and processor, then, if they answer as the
    adapter does, `merge_parity.json`, `results.json`, figures and card.

    Args:
        patches (`Dataset`): Validation split, to compare on.

    Raises:
        PublishError: The evaluation isn't of this adapter, the merged model differs from it, or something leaks.
    """
    output_dir = Path(training_args.output_dir)
    if (output_dir / "merged").is_symlink():
        raise PublishError(f"{output_dir / 'merged'} is a link, expected a folder to write to; remove it")
    # All that can be refused at once is, before minutes of merging.
    if written := [config.name for config in histo_args.datasets if not config.options]:
        raise PublishError(
            f"{', '.join(written)} has a format, expected data sets of classes, whose probabilities prove that a "
            "merged model answers as the adapter does; publish the adapter"
        )
    evidence = collect_evidence(histo_args, training_args, model_args)
    check_adapter(output_dir / ADAPTER)
    check_base_model(output_dir / ADAPTER_CONFIG, model_args)

    folder = merge_adapter(model_args, output_dir)
    precision = read_precision(histo_args, training_args)
    parity = check_merge_parity(patches, histo_args, model_args, output_dir, precision)
    check_unchanged(output_dir / ADAPTER, evidence)
    shutil.copyfile(output_dir / PARITY_FILE, folder / PARITY_FILE)
    repo_id = name_repository(training_args) or folder.resolve().parent.name
    write_evidence(folder, evidence, repo_id, histo_args, training_args, model_args, parity)
    check_leaks(folder, [name for name in list_files(folder) if name not in VOCABULARY], repo_id)
    return folder, parity


def name_repository(training_args: SFTConfig) -> str | None:
    """Return where the merged model goes: the adapter's repository with `-merged` behind it, None without one."""
    return f"{training_args.hub_model_id}-merged" if training_args.hub_model_id else None
