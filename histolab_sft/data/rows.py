"""From the recipe's `datasets` to the rows that `SFTTrainer` and the scoring harness read."""

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import joblib
import pandas as pd
from datasets import Dataset, DatasetDict
from tqdm import tqdm

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import SPLITS, DatasetConfig
from histolab_sft.data.audit.audit import audit_patches, explain_refusal, format_audit, write_audit
from histolab_sft.data.audit.copies import find_leaking_rows, join_inspected, list_copies, tie_patches
from histolab_sft.data.audit.related import find_related
from histolab_sft.data.data_sets import finish_rows, list_rows
from histolab_sft.data.pictures.decoding import hash_pixels, open_stored
from histolab_sft.data.pictures.inspection import check_images
from histolab_sft.data.pictures.steps import list_cells
from histolab_sft.data.row_counts import FLOW, count_flow
from histolab_sft.data.split_assignment import assign_splits, has_open_splits
from histolab_sft.errors import AuditRefusal
from histolab_sft.files import cache_folder
from histolab_sft.tasks import TASKS
from histolab_sft.tasks.parsing.final_text import check_target

logger = logging.getLogger(__name__)


def load_patches(histo_args: HistoArguments) -> DatasetDict:
    """Return the splits of all data sets of a recipe, ready for `SFTTrainer`, without looking at a picture.

    Each row has `images` (a list of PIL pictures in RGB, opened when the row is read: the table holds only where they
    lie, so no pixel is copied to memory or to an Arrow cache), `prompt` and `completion` (message lists, None for a
    hidden answer), and beside them `task`, `ask` and `answer` (JSON text, `null` for a hidden answer), `options` and
    `label` (None where the row has no options), `dataset`, `group` (patient or slide, None if unknown), `id` and
    `protocol` (`official` where the data bring the test split, else `seed`). `list_rows` says what each is.

    Raises:
        FileNotFoundError, ValueError: Whatever is wrong with the data, named before any model is loaded.
    """
    return format_patches(list_patches(histo_args), histo_args)


def load_audited_patches(histo_args: HistoArguments, output_dir: str | Path) -> DatasetDict:
    """Return what `load_patches` does after every picture was decoded once and the splits were audited.

    Writes `audit.json` to `output_dir`. Rows also have `pixel_sha256`, the hashes of the decoded pictures.

    Raises:
        AuditRefusal: A picture can't be used (`refused_images: quarantine` leaves such pictures out), or the audit
            refuses (`leaks: drop` takes leaking patches out of train, `leaks: allow` goes on).
    """
    return format_patches(audit_or_stop(histo_args, output_dir)[0], histo_args)


def audit_or_stop(
    histo_args: HistoArguments, output_dir: str | Path, assign: Callable | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the patches of `audit_recipe` and the table of inspected pictures.

    Raises:
        AuditRefusal: As `load_audited_patches` does.
    """
    patches, audit, inspected = audit_recipe(histo_args, output_dir, assign)
    logger.info("%s", format_audit(audit))
    if reason := explain_refusal(audit, inspected, histo_args, output_dir):
        raise AuditRefusal(reason)
    return patches, inspected


def audit_recipe(
    histo_args: HistoArguments, output_dir: str | Path, assign: Callable | None = None
) -> tuple[pd.DataFrame, dict, pd.DataFrame]:
    """Decode every picture, apply `refused_images` and `leaks`, audit what is left and write `audit.json`.

    Args:
        assign: Gives the patches, with `pixel_sha256`, other splits before all of that; it is also given the table of
            inspected pictures.

    Returns:
        The patches that are left, with `pixel_sha256`; the audit; the table of all inspected pictures.
    """
    patches = _list_datasets(histo_args)
    not_read = patches.attrs["not_read"]
    left_out = patches.attrs["left_out"]
    pictures = list_pictures(patches)
    inspected = inspect_pictures(pictures)
    add_hashes(patches, inspected)
    near, siblings = find_related(pictures, inspected, histo_args.find_siblings)
    patches = _complete(patches, tie_patches(pictures, inspected, near), histo_args)
    if assign is not None:
        patches = assign(patches, inspected)
    pictures, dropped = list_pictures(patches), left_out
    if histo_args.refused_images == "quarantine":
        patches, dropped = drop_refused(patches, pictures, inspected, dropped)
        pictures = pictures.loc[patches.index]
    if histo_args.leaks == "drop":
        leaks = find_leaking_rows(pictures, inspected, near)
        reasons = leaks.set_axis(pictures.index[leaks.index]).groupby(level=0).first()
        patches, dropped = drop_rows(patches, reasons, "leaks: drop", dropped)
        pictures = pictures.loc[patches.index]
    patches = patches.reset_index(drop=True)
    # Several questions about one picture make no copy of it.
    pictures = pictures.drop_duplicates(["path", "row", "dataset", "split"])
    class_names = {config.name: config.options for config in histo_args.datasets if config.options}
    audit = audit_patches(pictures, inspected, near, class_names) | {"siblings": siblings}
    audit |= {"dropped": dropped, "not_read": not_read, "flow": count_flow(patches, left_out)}
    write_audit(audit, list_copies(pictures, inspected, near), output_dir)
    return patches, audit, inspected


def add_hashes(patches: pd.DataFrame, inspected: pd.DataFrame) -> None:
    """Add the column `pixel_sha256`, a list for the pictures of each row, from the table of `inspect_pictures`."""
    hashes = iter(inspected["pixel_sha256"])
    patches["pixel_sha256"] = [list(itertools.islice(hashes, len(images))) for images in patches["images"]]


def drop_refused(
    patches: pd.DataFrame, pictures: pd.DataFrame, inspected: pd.DataFrame, left_out: list[dict]
) -> tuple[pd.DataFrame, list[dict]]:
    """Return the rows without those that show a refused picture, and `left_out` with these counted."""
    verdicts = join_inspected(pictures, inspected, ("path", "row"))["verdict"]
    reasons = pd.Series("refused picture", index=pictures.index[verdicts == "refused"].unique())
    return drop_rows(patches, reasons, "refused_images: quarantine", left_out)


def leave_out_refused(patches: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of which every picture can be used: refused pictures have no `pixel_sha256`."""
    hashes = patches["pixel_sha256"].explode()
    return patches.drop(index=hashes.index[hashes.isna()].unique())


def list_patches(histo_args: HistoArguments) -> pd.DataFrame:
    """Return the rows of `data_sets.list_rows` of all data sets, every split dealt out.

    Pictures are decoded only if splits are dealt out, as copies have to be known for it.
    """
    patches, ties = _list_datasets(histo_args), None
    if has_open_splits(patches):
        pictures = list_pictures(patches)
        inspected = inspect_pictures(pictures)
        near, _ = find_related(pictures, inspected, histo_args.find_siblings)
        ties = tie_patches(pictures, inspected, near)
    return _complete(patches, ties, histo_args).reset_index(drop=True)


def format_patches(patches: pd.DataFrame, histo_args: HistoArguments) -> DatasetDict:
    """Return the rows of `list_patches` with prompts and completions, as one lazy `datasets.Dataset` a split."""
    rows = _word_rows(patches, {config.name: config for config in histo_args.datasets})
    return DatasetDict({split: _open_later(rows.loc[rows["split"] == split]) for split in SPLITS})


def format_rows(rows: pd.DataFrame, config: DatasetConfig) -> Dataset:
    """Return rows of one source, of one split, as `format_patches` does, asked as those of a data set of the run."""
    return _open_later(_word_rows(rows, dict.fromkeys(rows["dataset"], config)))


def select_datasets(rows: Dataset, *names: str) -> Dataset:
    """Return the rows of some data sets, in their order, without opening a picture."""
    return rows.select([i for i, dataset in enumerate(rows.with_format(None)["dataset"]) if dataset in names])


def _list_datasets(histo_args: HistoArguments) -> pd.DataFrame:
    """Return the rows of all data sets, capped, with the splits that the data bring.

    `attrs["not_read"]` counts for each data set, by kind, the files below its source that no row comes from.
    """
    tables = [list_rows(config, histo_args) for config in histo_args.datasets]
    patches = pd.concat(tables, ignore_index=True)
    names = [config.name for config in histo_args.datasets]
    patches.attrs = {
        "not_read": {name: table.attrs["not_read"] for name, table in zip(names, tables, strict=True)},
        "left_out": [entry for table in tables for entry in table.attrs["left_out"]],
    }
    return patches


def list_pictures(patches: pd.DataFrame) -> pd.DataFrame:
    """Return one row a picture, under the index of its row, with the columns that inspection and audit read."""
    rows = patches[["images", "label", "dataset", "cohort", "split", "group"]].explode("images")
    places = pd.DataFrame(rows["images"].tolist(), index=rows.index, columns=["path", "row", "column", "rendering"])
    return pd.concat([places, rows.drop(columns="images")], axis=1)


def inspect_pictures(pictures: pd.DataFrame) -> pd.DataFrame:
    """Return what `check_images` says of pictures of `list_pictures`; it keeps what it finds on this machine."""
    references = pictures.reindex(columns=["path", "row", "column", "rendering"], fill_value="").to_dict("records")
    return check_images(references, cache_folder=cache_folder() / "intake")


def _complete(patches: pd.DataFrame, ties: pd.Series | None, histo_args: HistoArguments) -> pd.DataFrame:
    """Deal out the splits that are open, do what waits for them, and tell what came of it."""
    ties = pd.Series(patches.index, index=patches.index) if ties is None else ties
    patches = assign_splits(patches, ties, histo_args)
    parts = []
    for config in histo_args.datasets:
        part = finish_rows(patches[patches["dataset"] == config.name], config)
        counts = part["split"].value_counts()
        missing = [split for split in SPLITS if split not in counts]
        if missing and config.options:
            raise ValueError(f"data set {config.name!r}: the cap leaves {missing} empty; raise max_samples")
        logger.info(
            "%s: train=%d validation=%d test=%d %s, %s groups%s, %s splits",
            config.name,
            *(counts.get(split, 0) for split in SPLITS),
            "patches" if config.options else "questions",
            part["group"].nunique() or "no",
            f" and {unknown} without one" if (unknown := part["group"].isna().sum()) and unknown < len(part) else "",
            part["protocol"].iloc[0] if len(part) else "no",
        )
        parts.append(part)
    return pd.concat(parts)


def drop_rows(
    patches: pd.DataFrame, reasons: pd.Series, key: str, dropped: list[dict]
) -> tuple[pd.DataFrame, list[dict]]:
    """Leave out the rows that `reasons` names by index, and count them by key, reason, data set, split and class."""
    gone = patches.loc[reasons.index].assign(key=key, reason=reasons)
    counts = gone.groupby(["key", "reason", "dataset", "split", "label"], dropna=False, sort=False).size()
    entries = counts.rename("rows").reset_index().astype(object)
    return patches.drop(index=reasons.index), [
        *dropped,
        *entries.where(entries.notna(), None).to_dict("records"),
    ]


def _word_rows(patches: pd.DataFrame, configs: dict[str, DatasetConfig]) -> pd.DataFrame:
    texts = {
        column: [json.dumps(value, ensure_ascii=False) for value in patches[column]] for column in ("ask", "answer")
    }
    # Rows of one question and answer are worded once.
    worded: dict[tuple[str, str, str], tuple[list, list | None]] = {}
    keys = list(zip(patches["dataset"], texts["ask"], texts["answer"], strict=True))
    for key, row in zip(keys, patches.itertuples(), strict=True):
        if key not in worded:
            worded[key] = _word(row, configs[row.dataset])
    rows = patches.drop(columns=["cohort", *FLOW]).assign(
        prompt=[worded[key][0] for key in keys], completion=[worded[key][1] for key in keys], **texts
    )
    return _add_crops(rows, configs)


def _open_later(rows: pd.DataFrame) -> Dataset:
    return Dataset.from_pandas(rows.drop(columns="split"), preserve_index=False).with_transform(_open_images)


def _word(row, config: DatasetConfig) -> tuple[list[dict], list[dict] | None]:
    """Return the messages that ask and answer a row; no answer where it is hidden."""
    task = TASKS[row.task]
    try:
        prompt = [{"role": "user", "content": task.format_question(row.ask, config)}]
        if row.answer is None:
            return prompt, None
        target = check_target(task.format_answer(row.ask, row.answer, config))
    except ValueError as error:
        raise ValueError(f"data set {row.dataset!r}, {row.id}: {error}") from error
    return prompt, [{"role": "assistant", "content": target}]


def _add_crops(rows: pd.DataFrame, configs: dict[str, DatasetConfig]) -> pd.DataFrame:
    """Let `multi_scale` follow each picture of a row by its crops.

    That is not done before the audit: crops show what their picture shows, and neither copies nor leaks of their own.
    """
    crops = [configs[name].multi_scale for name in rows["dataset"]]
    if not any(crops):
        return rows
    cells = [[None, *(list_cells(n) if n else ())] for n in crops]
    images = [
        [image | {"cell": cell} for image in row for cell in own]
        for row, own in zip(rows["images"], cells, strict=True)
    ]
    rows = rows.assign(images=images)
    if "pixel_sha256" in rows:
        # The cache of features knows a crop, as any picture, by its pixels.
        hashing = joblib.Parallel(n_jobs=-1, return_as="generator")
        hashed = hashing(joblib.delayed(_hash_crops)(row) for row in images)
        progress = tqdm(hashed, "Cutting crops", len(rows), unit="row", disable=None)
        rows["pixel_sha256"] = [
            [digest or next(whole) for digest in digests]
            for digests, whole in zip(progress, map(iter, rows["pixel_sha256"]), strict=True)
        ]
    return rows


def _hash_crops(references: list[dict]) -> list[str | None]:
    """Return the hash of each picture of a row that is a crop, None for whole ones."""
    return [hash_pixels(open_stored(reference)) if reference["cell"] else None for reference in references]


def _open_images(batch: dict) -> dict:
    """Turn the references of the rows that are being read into pictures."""
    if "images" in batch:
        batch["images"] = [list(map(open_stored, images)) for images in batch["images"]]
    return batch
