"""From the recipe's `datasets` to the rows that `SFTTrainer` and the scoring harness read."""

import logging

import pandas as pd
from datasets import Dataset, DatasetDict

from histolab_sft.arguments import SPLITS, DatasetConfig, HistoArguments
from histolab_sft.data.images import open_patch
from histolab_sft.data.sources import load_source
from histolab_sft.data.splits import cap_patches, split_patches
from histolab_sft.tasks import classification

logger = logging.getLogger(__name__)


def load_patches(histo_args: HistoArguments) -> DatasetDict:
    """Return the splits of all data sets of a recipe, ready for `SFTTrainer`.

    Each row has `image` (a PIL picture in RGB, opened when the row is read: the table holds only where it lies, so no
    pixel is copied to memory or to an Arrow cache), `prompt` and `completion` (message lists), and beside them `label`
    (class name), `dataset`, `group` (patient or slide, None if unknown) and `id`.

    Raises:
        FileNotFoundError, ValueError: Whatever is wrong with the data, named before any model is loaded.
    """
    tables = [_load_table(config, histo_args) for config in histo_args.datasets]
    patches = pd.concat(tables, ignore_index=True)
    splits = DatasetDict()
    for split in SPLITS:
        rows = patches.loc[patches["split"] == split].drop(columns="split").reset_index(drop=True)
        splits[split] = Dataset.from_pandas(rows, preserve_index=False).with_transform(_open_images)
    return splits


def format_rows(config: DatasetConfig, labels: pd.Series, prompt_style: str) -> pd.DataFrame:
    """Return the columns `prompt` and `completion` for the labels of one data set, in TRL's conversational form."""
    options = list(config.class_names.values())
    question = classification.format_prompt(config.name, options, prompt_style, config.question)
    names = labels.map(config.class_names)
    return pd.DataFrame(
        {
            "prompt": [[{"role": "user", "content": question}] for _ in names],
            "completion": [[{"role": "assistant", "content": classification.format_target(name)}] for name in names],
            "label": names,
        },
        index=labels.index,
    )


def _load_table(config: DatasetConfig, histo_args: HistoArguments) -> pd.DataFrame:
    patches = load_source(config, histo_args.data_dir)
    found, expected = set(patches["label"]), set(config.class_names)
    if found != expected:
        raise ValueError(
            f"data set {config.name!r}: labels in the data {sorted(found)}, keys of class_names {sorted(expected)}; "
            f"only in the data {sorted(found - expected)}, only in the recipe {sorted(expected - found)}"
        )
    test_given = (patches["split"] == "test").any()
    try:
        patches = split_patches(
            patches, histo_args.validation_fraction, histo_args.test_fraction, histo_args.split_seed
        )
    except ValueError as error:
        raise ValueError(f"data set {config.name!r}: {error}") from error
    patches = _cap(patches, config, histo_args, test_given)
    rows = format_rows(config, patches["label"], histo_args.prompt_style)
    counts = patches["split"].value_counts()
    missing = [split for split in SPLITS if split not in counts]
    if missing:
        raise ValueError(f"data set {config.name!r}: the cap leaves {missing} empty; raise max_samples")
    logger.info(
        "%s: train=%d validation=%d test=%d patches, %s groups",
        config.name,
        *(counts[split] for split in SPLITS),
        patches["group"].nunique() or "no",
    )
    images = [
        {"path": path, "row": row, "column": config.image_column or "image"}
        for path, row in zip(patches["path"], patches["row"], strict=True)
    ]
    return rows.assign(
        image=images, dataset=config.name, group=patches["group"], id=patches["id"], split=patches["split"]
    )


def _cap(patches: pd.DataFrame, config: DatasetConfig, histo_args: HistoArguments, test_given: bool) -> pd.DataFrame:
    """Apply `max_samples` to all splits, but not to a test split that the data bring: that one is scored whole.

    `max_test_samples` caps the test split in either case.
    """
    test, seed = patches["split"] == "test", histo_args.split_seed
    if max_samples := config.max_samples or histo_args.max_samples:
        if test_given:
            patches = pd.concat([cap_patches(patches[~test], max_samples, seed), patches[test]])
        else:
            patches = cap_patches(patches, max_samples, seed)
        test = patches["split"] == "test"
    if histo_args.max_test_samples:
        patches = pd.concat([patches[~test], cap_patches(patches[test], histo_args.max_test_samples, seed)])
    return patches


def _open_images(batch: dict) -> dict:
    """Turn the references of the rows that are being read into pictures."""
    if "image" in batch:
        batch["image"] = [open_patch(image["path"], image["row"], image["column"]) for image in batch["image"]]
    return batch
