"""From the recipe's `datasets` to the rows that `SFTTrainer` and the scoring harness read."""

import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import SPLITS, DatasetConfig
from histolab_sft.config.picture import choose_rendering
from histolab_sft.data.audit.audit import audit_patches, explain_refusal, format_audit, write_audit
from histolab_sft.data.audit.copies import join_intake, leaking_rows, list_copies, tie_patches
from histolab_sft.data.audit.related import find_kin
from histolab_sft.data.formats.sources import load_source
from histolab_sft.data.formats.words import leave_out
from histolab_sft.data.pictures.decoding import open_stored
from histolab_sft.data.pictures.inspection import check_images
from histolab_sft.data.questions import finish_questions, format_questions, list_pictures, list_questions
from histolab_sft.data.row_counts import FLOW, count_flow
from histolab_sft.data.split_assignment import deal_patches, is_dealt, prepare_splits
from histolab_sft.errors import AuditRefusal
from histolab_sft.files import cache_folder
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
    return format_patches(audit_or_stop(histo_args, output_dir)[0], histo_args)


def audit_or_stop(
    histo_args: HistoArguments, output_dir: str | Path, deal: Callable | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the patches of `audit_recipe` and the intake table.

    Raises:
        AuditRefusal: As `load_audited_patches` does.
    """
    patches, audit, intake = audit_recipe(histo_args, output_dir, deal)
    logger.info("%s", format_audit(audit))
    if reason := explain_refusal(audit, intake, histo_args, output_dir):
        raise AuditRefusal(reason)
    return patches, intake


def audit_recipe(
    histo_args: HistoArguments, output_dir: str | Path, deal: Callable | None = None
) -> tuple[pd.DataFrame, dict, pd.DataFrame]:
    """Decode every picture, apply `refused_images` and `leaks`, audit what is left and write `audit.json`.

    Args:
        deal: Gives the patches, with `pixel_sha256` and beside the intake table, other splits before all of that.

    Returns:
        The patches that are left, with `pixel_sha256`; the audit; the intake table of all pictures.
    """
    patches = _list_datasets(histo_args)
    not_read = patches.attrs["not_read"]
    left_out = patches.attrs["left_out"]
    pictures = _list_pictures(patches)
    intake = _look_at(pictures)
    hashes = intake["pixel_sha256"].set_axis(pictures.index)
    patches["pixel_sha256"] = hashes.groupby(level=0).agg(list) if "images" in patches else hashes
    near, siblings = find_kin(pictures, intake, histo_args.find_siblings)
    patches = _complete(patches, tie_patches(pictures, intake, near), histo_args)
    if deal is not None:
        patches = deal(patches, intake)
    pictures, dropped = _list_pictures(patches), left_out
    if histo_args.refused_images == "quarantine":
        verdicts = join_intake(pictures, intake, ("path", "row"))["verdict"]
        refused = pictures.index[verdicts == "refused"].unique()
        reasons = pd.Series("refused picture", index=refused)
        patches, dropped = _drop(patches, reasons, "refused_images: quarantine", dropped)
        pictures = pictures.loc[patches.index]
    if histo_args.leaks == "drop":
        leaks = leaking_rows(pictures, intake, near)
        reasons = leaks.set_axis(pictures.index[leaks.index]).groupby(level=0).first()
        patches, dropped = _drop(patches, reasons, "leaks: drop", dropped)
        pictures = pictures.loc[patches.index]
    patches = patches.reset_index(drop=True)
    # Several questions about one picture make no copy of it.
    pictures = pictures.drop_duplicates(["path", "row", "dataset", "split"])
    class_names = {
        config.name: list(config.class_names.values()) for config in histo_args.datasets if config.format is None
    }
    audit = audit_patches(pictures, intake, near, class_names) | {"siblings": siblings}
    audit |= {"dropped": dropped, "not_read": not_read, "flow": count_flow(patches, left_out)}
    write_audit(audit, list_copies(pictures, intake, near), output_dir)
    return patches, audit, intake


def leave_out_refused(patches: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of which every picture can be used: refused pictures have no `pixel_sha256`."""
    hashes = patches["pixel_sha256"].explode()
    return patches.drop(index=hashes.index[hashes.isna()].unique())


def list_patches(histo_args: HistoArguments) -> pd.DataFrame:
    """Return one row a patch of all data sets.

    It has `path, row, column, rendering, label, dataset, cohort, split, group, id, protocol`, and those of
    `count_found`. Of data sets with a format it is one row a question, with the columns of `list_questions`. Pictures
    are decoded only if splits are dealt out, as copies have to be known for it.
    """
    patches, ties = _list_datasets(histo_args), None
    if is_dealt(patches):
        pictures = _list_pictures(patches)
        intake = _look_at(pictures)
        near, _ = find_kin(pictures, intake, histo_args.find_siblings)
        ties = tie_patches(pictures, intake, near)
    return _complete(patches, ties, histo_args).reset_index(drop=True)


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
    rows = patches.drop(columns=["path", "row", "column", "rendering", "cohort", *FLOW]).assign(
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
    patches = load_source(config, histo_args.data_dir, deal_anew=histo_args.split_protocol == "seed")
    patches, left_out = leave_out(patches, config, histo_args.unlabelled)
    found, expected = set(patches["label"]), set(config.class_names)
    if found != expected:
        raise ValueError(
            f"data set {config.name!r}: labels in the data {sorted(found)}, keys of class_names {sorted(expected)}; "
            f"only in the data {sorted(found - expected)}, only in the recipe {sorted(expected - found)}"
        )
    not_read = patches.attrs["not_read"]
    patches = prepare_splits(patches, config, histo_args)
    patches = patches[["path", "row", "column", "split", "group", "id", "protocol", *FLOW]].assign(
        rendering=choose_rendering(config),
        label=patches["label"].map(config.class_names),
        dataset=config.name,
        cohort=config.cohort or config.name,
    )
    patches.attrs = {"not_read": not_read, "left_out": left_out}
    return patches


def _list_datasets(histo_args: HistoArguments) -> pd.DataFrame:
    """Return the rows of all data sets, capped, with the splits that the data bring.

    `attrs["not_read"]` counts for each data set, by kind, the files below its source that no row comes from.
    """
    tables = [
        _list_dataset(config, histo_args) if config.format is None else list_questions(config, histo_args)
        for config in histo_args.datasets
    ]
    patches = pd.concat(tables, ignore_index=True)
    names = [config.name for config in histo_args.datasets]
    patches.attrs = {
        "not_read": {name: table.attrs["not_read"] for name, table in zip(names, tables, strict=True)},
        "left_out": [entry for table in tables for entry in table.attrs["left_out"]],
    }
    return patches


def _list_pictures(patches: pd.DataFrame) -> pd.DataFrame:
    return list_pictures(patches) if "images" in patches else patches


def _look_at(pictures: pd.DataFrame) -> pd.DataFrame:
    references = pictures.reindex(columns=["path", "row", "column", "rendering"], fill_value="").to_dict("records")
    return check_images(references, cache_folder=cache_folder() / "intake")


def _complete(patches: pd.DataFrame, ties: pd.Series | None, histo_args: HistoArguments) -> pd.DataFrame:
    """Deal out the splits that are open, do what waits for them, and tell what came of it."""
    ties = pd.Series(patches.index, index=patches.index) if ties is None else ties
    patches = deal_patches(patches, ties, histo_args)
    records, parts = "images" in patches, []
    for config in histo_args.datasets:
        part = patches[patches["dataset"] == config.name]
        part = finish_questions(part, config) if records else part
        counts = part["split"].value_counts()
        missing = [split for split in SPLITS if split not in counts]
        if missing and not records:
            raise ValueError(f"data set {config.name!r}: the cap leaves {missing} empty; raise max_samples")
        logger.info(
            "%s: train=%d validation=%d test=%d %s, %s groups%s, %s splits",
            config.name,
            *(counts.get(split, 0) for split in SPLITS),
            "questions" if records else "patches",
            part["group"].nunique() or "no",
            f" and {unknown} without one" if (unknown := part["group"].isna().sum()) and unknown < len(part) else "",
            part["protocol"].iloc[0] if len(part) else "no",
        )
        parts.append(part)
    return pd.concat(parts)


def _drop(patches: pd.DataFrame, reasons: pd.Series, key: str, dropped: list[dict]) -> tuple[pd.DataFrame, list[dict]]:
    """Leave out the rows that `reasons` names by index, and count them by key, reason, data set, split and class."""
    gone = patches.loc[reasons.index].assign(key=key, reason=reasons)
    gone["label"] = gone["label"] if "label" in gone else None
    counts = gone.groupby(["key", "reason", "dataset", "split", "label"], dropna=False, sort=False).size()
    entries = counts.rename("rows").reset_index().astype(object)
    return patches.drop(index=reasons.index), [
        *dropped,
        *entries.where(entries.notna(), None).to_dict("records"),
    ]


def _open_images(batch: dict) -> dict:
    """Turn the references of the rows that are being read into pictures."""
    if "image" in batch:
        batch["image"] = [open_stored(image) for image in batch["image"]]
    return batch
