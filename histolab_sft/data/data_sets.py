"""The rows of one data set, whatever its format: which there are, of which split, and what is asked about each."""

import json
import logging
from pathlib import Path

import pandas as pd

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import CLASS_FOLDERS, DatasetConfig
from histolab_sft.config.picture import choose_rendering
from histolab_sft.data.formats import FORMATS
from histolab_sft.data.formats.listing import OTHER_PICTURES, PICTURES, count_unread, tell_unread
from histolab_sft.data.formats.words import leave_out, map_splits
from histolab_sft.data.pictures.inspection import check_images
from histolab_sft.data.split_assignment import prepare_splits, with_data_set_named
from histolab_sft.files import cache_folder
from histolab_sft.tasks import TASKS

logger = logging.getLogger(__name__)


def list_rows(config: DatasetConfig, histo_args: HistoArguments) -> pd.DataFrame:
    """Return the rows of a data set, capped, with the splits that the data bring.

    Columns:

    - `images`: a list of `{"path", "row", "column", "rendering"}`, each what `open_stored` takes;
    - `task`, a key of `TASKS`; `ask`, what the task needs to word the question; `answer`, the truth in the task's own
      form, None where it is hidden;
    - `options`: the answers that all rows of the data set choose from, None where each brings its own question;
      `label`: the answer where it is one of them, else None;
    - `dataset`, `cohort`, `group` (patient or slide, None if unknown), `id`;
    - `site`, None if unknown, and `subgroups`, JSON text of name -> word or null, by which test is scored apart;
    - `split`, empty where the recipe deals them, `protocol`, `found` and `given`, as `prepare_splits` gives them.

    `attrs["not_read"]` counts by kind the files below the source that no row comes from, `attrs["left_out"]` what
    `leave_out` left out.

    Raises:
        FileNotFoundError: The source, or a picture, isn't there.
        HubAccessError: A data set on the Hub can't be had.
        ValueError: An unknown format or task, several tasks in one data set, labels that aren't the recipe's, or
            splits that can't be understood; the message says what to do.
    """
    rows = load_source(config, histo_args.data_dir, anew=histo_args.split_protocol == "seed")
    not_read = rows.attrs["not_read"]
    rows, left_out = leave_out(rows, config, histo_args.unlabelled)
    if config.options:
        _check_labels(rows, config)
    rows = prepare_splits(rows, config, histo_args).reset_index(drop=True)
    left_out += rows.attrs["left_out"]
    if config.options:
        # Not before the caps are drawn, which go by the data's own words.
        rows["label"] = rows["answer"] = rows["label"].map(config.class_names)
        rows["ask"] = [{"options": config.options, "style": histo_args.prompt_style}] * len(rows)
    rows = rows.assign(options=[config.options] * len(rows), dataset=config.name, cohort=config.cohort or config.name)
    rows.attrs = {"not_read": not_read, "left_out": left_out}
    return rows


def load_source(config: DatasetConfig, data_dir: str = ".", anew: bool = False) -> pd.DataFrame:
    """Return all rows of a data set as its reader gives them, of one task, before anything is left out.

    Args:
        anew (`bool`): Whether the splits that the data bring are ignored.

    Returns:
        Columns as of `list_rows` but for those of splits and data sets; `answer` and `label` in the data's own words.
        `split` is empty where the data name none, and with `anew`; it is None for rows of a split that the
        recipe's `splits` doesn't name.

    Raises:
        FileNotFoundError, HubAccessError, ValueError: As `list_rows`.
    """
    for key, value, known in (("format", config.format or CLASS_FOLDERS, FORMATS), ("task", config.task, TASKS)):
        if value is not None and value not in known:
            raise ValueError(f"data set {config.name!r}: {key} is {value!r}, expected one of {', '.join(known)}")
    task = TASKS.get(config.task)
    if config.image_steps and task is not None and task.draw_answers is not None and task.count_cut is None:
        raise ValueError(
            f"data set {config.name!r}: task: {config.task} and image_steps, expected pictures as they are "
            f"stored, since {task.ANSWER_IS} aren't moved along with them; remove image_steps"
        )
    form = FORMATS[config.format or CLASS_FOLDERS]
    strange = set(config.reader_keys) - form.keys
    if strange:
        raise ValueError(
            f"data set {config.name!r}: format: {config.format} knows no {', '.join(sorted(strange))}, expected "
            "keys of that format alone; remove them"
        )
    for task in TASKS.values():
        if task.list_fields:
            with_data_set_named(config.name, task.list_fields, config)
    source = Path(data_dir, config.source)
    if not form.on_hub and not source.exists():
        raise FileNotFoundError(f"data set {config.name!r}: {source} doesn't exist; correct `source` or `data_dir`")
    rows = form.read(source, config, **config.reader_keys)
    not_read = rows.attrs.get("not_read")
    rows = _choose_task(rows, config)
    if not_read is None:
        # Of such a format, only its reader knows what the files beside the pictures are for.
        unread = count_unread(source, rows["images"].explode()) if source.is_dir() else {}
        not_read = {kind: unread[kind] for kind in (PICTURES, OTHER_PICTURES) if kind in unread}
        not_read = tell_unread(not_read, config.name)
    if anew and not isinstance(config.splits, str):
        rows["split"] = ""
    elif not isinstance(config.splits, str):
        rows["split"] = map_splits(rows["split"], config, "patch" if config.options else "question")
    rows["images"] = [_place(*row, config) for row in zip(rows["images"], rows["inverted"], strict=True)]
    # As objects: pandas would make NaN of what is None.
    for column in ("group", "answer", *(["site"] if config.options else [])):
        rows[column] = pd.Series([None if _is_missing(x) else x for x in rows[column]], rows.index, dtype=object)
    rows["label"] = rows["answer"] if config.options else None
    if not config.options:
        rows = rows.assign(site=None, subgroups="{}")
    rows = rows.drop(columns="inverted")
    rows.attrs = {"not_read": not_read}
    return rows


def finish_rows(rows: pd.DataFrame, config: DatasetConfig) -> pd.DataFrame:
    """Do what waits for the splits of a data set: say where its pictures lie in what is shown, refuse hidden answers.

    Raises:
        ValueError: A hidden answer outside of test.
    """
    rows = _leave_out_cut(rows, config)
    hidden = rows["answer"].isna() & (rows["split"] != "test")
    if hidden.any():
        raise ValueError(
            f"data set {config.name!r}: {hidden.sum()} rows outside of test have no answer, such as "
            f"{rows.loc[hidden, 'id'].iloc[0]}, expected hidden answers in test alone; name the splits by "
            "`splits`"
        )
    return rows


def _check_labels(rows: pd.DataFrame, config: DatasetConfig) -> None:
    found, expected = set(rows["label"]), set(config.class_names)
    if found != expected:
        raise ValueError(
            f"data set {config.name!r}: labels in the data {sorted(found)}, keys of class_names {sorted(expected)}; "
            f"only in the data {sorted(found - expected)}, only in the recipe {sorted(expected - found)}"
        )


def _place(images: list, inverted: bool, config: DatasetConfig) -> list[dict]:
    """Return where each picture of a row lies, and how it is shown."""
    rendering = choose_rendering(config, inverted)
    places = [{"path": i, "row": -1, "column": "image"} if isinstance(i, str) else i for i in images]
    return [place | {"rendering": rendering} for place in places]


def _leave_out_cut(rows: pd.DataFrame, config: DatasetConfig) -> pd.DataFrame:
    """Tell tasks whose answers are places in a picture where that is once the data set's steps were taken.

    A row outside of test of which a step cuts away a whole place is left out, as its answer would say less than is
    true.
    """
    task = TASKS[rows["task"].iloc[0]] if len(rows) else None
    if not config.image_steps or task is None or task.count_cut is None:
        return rows
    references = [images[0] for images in rows["images"]]
    placements = check_images(references, cache_folder=cache_folder() / "intake")["placement"]
    asks = [
        # Of a refused picture nothing is known; whether that stops the run is for the audit to say.
        ask if placement is None else ask | {"placement": json.loads(placement)}
        for ask, placement in zip(rows["ask"], placements, strict=True)
    ]
    lost = [task.count_cut(*row) for row in zip(asks, rows["answer"], strict=True)]
    rows = rows.assign(ask=asks)
    gone = (pd.Series(lost, index=rows.index) > 0) & (rows["split"] != "test")
    if sum(lost):
        logger.warning(
            "data set %r: image_steps cut away %d %s; %d rows outside of test are left out for it",
            *(config.name, sum(lost), task.ANSWER_IS, gone.sum()),
        )
    return rows[~gone]


def _choose_task(rows: pd.DataFrame, config: DatasetConfig) -> pd.DataFrame:
    found = sorted(set(rows["task"]))
    if config.task is not None:
        rows = rows[rows["task"] == config.task].reset_index(drop=True)
        if rows.empty:
            raise ValueError(
                f"data set {config.name!r}: no row of task {config.task}, expected one of those in it: "
                f"{', '.join(found)}; correct `task` or `source`"
            )
    elif len(found) > 1:
        raise ValueError(
            f"data set {config.name!r} holds the tasks {found}, expected one, since each has scores of its own; list "
            "the data set once for each, under different names, with `task`"
        )
    return rows


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)
