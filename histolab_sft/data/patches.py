"""From the recipe's `datasets` to the rows that `SFTTrainer` and the scoring harness read."""

import logging
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict

from histolab_sft.arguments import HistoArguments
from histolab_sft.data.audit import audit_patches, format_audit, leaking_rows, write_audit
from histolab_sft.data.images import open_stored
from histolab_sft.data.intake import check_images
from histolab_sft.data.questions import format_questions, list_pictures, list_questions
from histolab_sft.data.sources import load_source
from histolab_sft.data.splits import cap_patches, split_patches
from histolab_sft.dataset_config import SPLITS, DatasetConfig
from histolab_sft.errors import AuditRefusal, say_count
from histolab_sft.folders import cache_folder
from histolab_sft.picture_config import choose_rendering
from histolab_sft.tasks import TASKS

logger = logging.getLogger(__name__)


def load_patches(histo_args: HistoArguments) -> DatasetDict:
    """Return the splits of all data sets of a recipe, ready for `SFTTrainer`, without looking at a picture.

    Each row has `image` (a PIL picture in RGB, opened when the row is read: the table holds only where it lies, so no
    pixel is copied to memory or to an Arrow cache), `prompt` and `completion` (message lists), and beside them `label`
    (class name), `dataset`, `group` (patient or slide, None if unknown), `id` and `protocol` (`official` where the
    data bring the test split, else `seed`). Rows of data sets with a format have `images`, a list of pictures, and in
    place of `label` what `format_questions` says.

    Raises:
        FileNotFoundError, ValueError: Whatever is wrong with the data, named before any model is loaded.
    """
    return format_patches(list_patches(histo_args), histo_args)


def load_audited_patches(histo_args: HistoArguments, output_dir: str | Path) -> DatasetDict:
    """Return what `load_patches` does after every picture was decoded once and the splits were audited.

    Writes `audit.json` to `output_dir`. Rows also have `pixel_sha256`, the hash of the decoded picture.

    Raises:
        AuditRefusal: A picture can't be used (`refused_images: quarantine` leaves such pictures out), or the audit
            refuses (`leaks: drop` takes leaking patches out of train, `leaks: allow` goes on).
    """
    patches, audit, intake = audit_recipe(histo_args, output_dir)
    logger.info("%s", format_audit(audit))
    refused = intake.loc[intake["verdict"] == "refused"]
    if len(refused) and histo_args.refused_images == "stop":
        listed = "\n".join(f"  {row.path}: {row.reason}" for row in refused.itertuples())
        raise AuditRefusal(
            f"{say_count(len(refused), 'picture')} can't be used:\n{listed}\nreplace or remove them, or leave "
            "them out by refused_images: quarantine"
        )
    if audit["refusals"] and histo_args.leaks == "stop":
        raise AuditRefusal(
            f"the audit of the splits refuses for {say_count(audit['refusals'], 'reason')} (see "
            f"{Path(output_dir, 'audit.json')}); "
            "mend the data, or take leaking patches out of train by leaks: drop"
        )
    return format_patches(patches, histo_args)


def audit_recipe(histo_args: HistoArguments, output_dir: str | Path) -> tuple[pd.DataFrame, dict, pd.DataFrame]:
    """Decode every picture, apply `refused_images` and `leaks`, audit what is left and write `audit.json`.

    Returns:
        The patches that are left, with `pixel_sha256`; the audit; the intake table of all pictures.
    """
    patches = list_patches(histo_args)
    pictures = list_pictures(patches) if "images" in patches else patches
    references = pictures.reindex(columns=["path", "row", "column", "rendering"], fill_value="").to_dict("records")
    intake = check_images(references, cache_folder=cache_folder() / "intake")
    hashes = intake["pixel_sha256"].set_axis(pictures.index)
    patches["pixel_sha256"] = hashes.groupby(level=0).agg(list) if "images" in patches else hashes
    quarantined = 0
    if histo_args.refused_images == "quarantine":
        refused = pictures.index[(intake["verdict"] == "refused").to_numpy()].unique()
        quarantined = len(refused)
        patches, pictures = patches.drop(index=refused), pictures.drop(index=refused)
    dropped = 0
    if histo_args.leaks == "drop":
        leaking = pictures.index[leaking_rows(pictures, intake)].unique()
        dropped = len(leaking)
        patches, pictures = patches.drop(index=leaking), pictures.drop(index=leaking)
    patches = patches.reset_index(drop=True)
    # Several questions about one picture make no copy of it.
    pictures = pictures.drop_duplicates(["path", "row", "dataset", "split"]) if "images" in patches else patches
    class_names = {
        config.name: list(config.class_names.values()) for config in histo_args.datasets if config.format is None
    }
    audit = audit_patches(pictures, intake, class_names)
    audit["quarantined"], audit["dropped_leaks"] = quarantined, dropped
    write_audit(audit, Path(output_dir, "audit.json"))
    return patches, audit, intake


def leave_out_refused(patches: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of which every picture can be used: refused pictures have no `pixel_sha256`."""
    hashes = patches["pixel_sha256"].explode()
    return patches.drop(index=hashes.index[hashes.isna()].unique())


def list_patches(histo_args: HistoArguments) -> pd.DataFrame:
    """Return one row a patch of all data sets.

    It has `path, row, column, rendering, label, dataset, cohort, split, group, id, protocol`.

    Of data sets with a format it is one row a question, with the columns of `list_questions`.
    """
    tables = [
        _list_dataset(config, histo_args) if config.format is None else list_questions(config, histo_args)
        for config in histo_args.datasets
    ]
    return pd.concat(tables, ignore_index=True)


def format_patches(patches: pd.DataFrame, histo_args: HistoArguments) -> DatasetDict:
    """Return the rows of `list_patches` with prompts and completions, as one lazy `datasets.Dataset` a split."""
    if "images" in patches:
        return format_questions(patches, histo_args)
    tasks = {config.name: TASKS[config.task] for config in histo_args.datasets}
    questions = {
        config.name: tasks[config.name].format_prompt(
            config.name, list(config.class_names.values()), histo_args.prompt_style, config.question
        )
        for config in histo_args.datasets
    }
    places = patches[["path", "row", "column", "rendering"]].to_dict("records")
    targets = [
        tasks[name].format_target(label) for name, label in zip(patches["dataset"], patches["label"], strict=True)
    ]
    rows = patches.drop(columns=["path", "row", "column", "rendering", "cohort"]).assign(
        image=places,
        prompt=[[{"role": "user", "content": questions[name]}] for name in patches["dataset"]],
        completion=[[{"role": "assistant", "content": target}] for target in targets],
    )
    splits = DatasetDict()
    for split in SPLITS:
        part = rows.loc[rows["split"] == split].drop(columns="split")
        splits[split] = Dataset.from_pandas(part, preserve_index=False).with_transform(_open_images)
    return splits


def select_dataset(rows: Dataset, name: str) -> Dataset:
    """Return the rows of one data set, without opening a picture."""
    return rows.select([i for i, dataset in enumerate(rows.with_format(None)["dataset"]) if dataset == name])


def _list_dataset(config: DatasetConfig, histo_args: HistoArguments) -> pd.DataFrame:
    if config.task not in TASKS:
        raise ValueError(f"data set {config.name!r}: task is {config.task!r}, expected one of {', '.join(TASKS)}")
    patches = load_source(config, histo_args.data_dir)
    found, expected = set(patches["label"]), set(config.class_names)
    if found != expected:
        raise ValueError(
            f"data set {config.name!r}: labels in the data {sorted(found)}, keys of class_names {sorted(expected)}; "
            f"only in the data {sorted(found - expected)}, only in the recipe {sorted(expected - found)}"
        )
    if histo_args.split_protocol == "seed":
        patches["split"] = ""
    test_given = (patches["split"] == "test").any()
    try:
        patches = split_patches(
            patches, histo_args.validation_fraction, histo_args.test_fraction, histo_args.split_seed
        )
    except ValueError as error:
        raise ValueError(f"data set {config.name!r}: {error}") from error
    patches = _cap(patches, config, histo_args, test_given)
    counts = patches["split"].value_counts()
    missing = [split for split in SPLITS if split not in counts]
    if missing:
        raise ValueError(f"data set {config.name!r}: the cap leaves {missing} empty; raise max_samples")
    logger.info(
        "%s: train=%d validation=%d test=%d patches, %s groups, %s splits",
        config.name,
        *(counts[split] for split in SPLITS),
        patches["group"].nunique() or "no",
        protocol := "official" if test_given else "seed",
    )
    return patches[["path", "row", "split", "group", "id"]].assign(
        column=config.image_column or "image",
        rendering=choose_rendering(config),
        label=patches["label"].map(config.class_names),
        dataset=config.name,
        cohort=config.cohort or config.name,
        protocol=protocol,
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
        batch["image"] = [open_stored(image) for image in batch["image"]]
    return batch
