"""Rows of data sets that bring their own questions: from a reader's records to what `SFTTrainer` and scoring read."""

import json
import logging
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import SPLITS, DatasetConfig
from histolab_sft.config.picture import choose_rendering
from histolab_sft.data.formats import READER_KEYS, READERS
from histolab_sft.data.formats.listing import OTHER_PICTURES, PICTURES, count_unread, tell_unread
from histolab_sft.data.formats.words import map_splits
from histolab_sft.data.pictures.decoding import open_patch
from histolab_sft.data.pictures.inspection import check_images
from histolab_sft.data.row_counts import FLOW
from histolab_sft.data.split_assignment import prepare_splits
from histolab_sft.files import cache_folder
from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks import TASKS
from histolab_sft.tasks.biomarkers import check_fields
from histolab_sft.tasks.boxes import place
from histolab_sft.tasks.parsing.box_geometry import move_boxes
from histolab_sft.tasks.parsing.final_text import check_target

logger = logging.getLogger(__name__)


def list_questions(config: DatasetConfig, histo_args: HistoArguments) -> pd.DataFrame:
    """Return one row a question of a data set.

    It has `images, rendering, split, group, id, task, ask, answer, dataset, cohort, protocol`: `images` are paths,
    `rendering` is what `open_patch` does to them, `ask` what the task needs to word the question, `answer` the truth
    in the task's own form, None where it is hidden; `split` is empty where the data name none. Rows of splits that a
    mapping in `splits` doesn't name are left out and counted.

    Raises:
        FileNotFoundError: The source, or a picture, isn't there.
        ValueError: An unknown format or task, several tasks in one data set, or splits without train.
    """
    for key, value, known in (("format", config.format, READERS), ("task", config.task or "report", TASKS)):
        if value not in known:
            raise ValueError(f"data set {config.name!r}: {key} is {value!r}, expected one of {', '.join(known)}")
    strange = set(config.reader_keys) - READER_KEYS.get(config.format, set())
    if strange:
        raise ValueError(
            f"data set {config.name!r}: format: {config.format} knows no {', '.join(sorted(strange))}, expected "
            "keys of that format alone; remove them"
        )
    try:
        check_fields(config.fields or ())
    except ValueError as error:
        raise ValueError(f"data set {config.name!r}: {error}") from error
    source = Path(histo_args.data_dir, config.source)
    if not source.exists():
        raise FileNotFoundError(f"data set {config.name!r}: {source} doesn't exist; correct `source` or `data_dir`")
    questions = _choose_task(READERS[config.format](source, config, **config.reader_keys), config)
    # Of a format, only its reader knows what the files beside the pictures are for.
    unread = count_unread(source, questions["images"].explode()) if source.is_dir() else {}
    not_read = tell_unread({kind: unread[kind] for kind in (PICTURES, OTHER_PICTURES) if kind in unread}, config.name)
    if histo_args.split_protocol == "official":
        own = questions["split"]
        questions["split"] = map_splits(own, config, "question")
        others = questions["split"].isna()
        if others.any():
            counts = own[others].value_counts().to_dict()
            logger.info("%s: left out, as `splits` names others: %s", config.name, counts)
        questions = questions[~others].reset_index(drop=True)
    questions = prepare_splits(questions, config, histo_args).reset_index(drop=True)
    questions = _render(questions, config).assign(dataset=config.name, cohort=config.cohort or config.name)
    questions.attrs = {"not_read": not_read, "left_out": []}
    return questions


def finish_questions(questions: pd.DataFrame, config: DatasetConfig) -> pd.DataFrame:
    """Do what waits for the splits of a data set: place its boxes, and refuse answers that are hidden outside of test.

    Raises:
        ValueError: A hidden answer outside of test.
    """
    questions = _place_boxes(questions, config)
    hidden = questions["answer"].isna() & (questions["split"] != "test")
    if hidden.any():
        raise ValueError(
            f"data set {config.name!r}: {hidden.sum()} rows outside of test have no answer, such as "
            f"{questions.loc[hidden, 'id'].iloc[0]}, expected hidden answers in test alone; name the splits by "
            "`splits`"
        )
    return questions


def format_questions(questions: pd.DataFrame, histo_args: HistoArguments) -> DatasetDict:
    """Return the rows of `list_questions` as one lazy `datasets.Dataset` a split.

    A row has `images` (PIL pictures in RGB, opened when the row is read), `prompt` and `completion` (message lists,
    None for a hidden answer), and beside them `dataset`, `group`, `id`, `protocol`, `task`, and `ask` and `answer` as
    JSON text (`null` for a hidden answer).
    """
    configs = {config.name: config for config in histo_args.datasets}
    prompts, completions = [], []
    for row in questions.itertuples():
        task, config = TASKS[row.task], configs[row.dataset]
        try:
            prompts.append([{"role": "user", "content": task.format_question(row.ask, config)}])
            hidden = row.answer is None
            target = None if hidden else check_target(task.format_answer(row.ask, row.answer, config))
        except ValueError as error:
            raise ValueError(f"data set {row.dataset!r}, {row.id}: {error}") from error
        completions.append(None if hidden else [{"role": "assistant", "content": target}])
    places = zip(questions["images"], questions["rendering"], strict=True)
    rows = questions.drop(columns=["rendering", "cohort", *FLOW]).assign(
        images=[[{"path": path, "rendering": rendering} for path in paths] for paths, rendering in places],
        prompt=prompts,
        completion=completions,
        ask=[json.dumps(ask, ensure_ascii=False) for ask in questions["ask"]],
        answer=[json.dumps(answer, ensure_ascii=False) for answer in questions["answer"]],
    )
    splits = DatasetDict()
    for split in SPLITS:
        part = rows.loc[rows["split"] == split].drop(columns="split")
        splits[split] = Dataset.from_pandas(part, preserve_index=False).with_transform(_open_images)
    return splits


def list_pictures(questions: pd.DataFrame) -> pd.DataFrame:
    """Return one row a picture, under the index of its question, with the columns that intake and audit read."""
    columns = ["images", "rendering", "dataset", "cohort", "split", "group"]
    pictures = questions[columns].explode("images").rename(columns={"images": "path"})
    # A picture may have several questions with answers of their own: it is of no class.
    return pictures.assign(row=-1, column="image", label=None)


def _render(questions: pd.DataFrame, config: DatasetConfig) -> pd.DataFrame:
    """Say in `rendering` how each row's pictures are shown."""
    looks = [choose_rendering(config, inverted) for inverted in questions["inverted"]]
    return questions.drop(columns="inverted").assign(rendering=looks)


def _place_boxes(questions: pd.DataFrame, config: DatasetConfig) -> pd.DataFrame:
    """Tell boxes where their picture is once the data set's steps were taken.

    A row outside of test of which a step cuts away a whole box is left out, as its answer would say less than is true.
    """
    if not config.image_steps or not (questions["task"] == "boxes").all():
        return questions
    references = [
        {"path": paths[0], "row": -1, "rendering": rendering}
        for paths, rendering in zip(questions["images"], questions["rendering"], strict=True)
    ]
    placements = check_images(references, cache_folder=cache_folder() / "intake")["placement"]
    asks = [
        # Of a refused picture nothing is known; whether that stops the run is for the audit to say.
        ask if placement is None else ask | {"placement": json.loads(placement)}
        for ask, placement in zip(questions["ask"], placements, strict=True)
    ]
    lost = [
        len(answer or []) - len(move_boxes([Box(*box) for box in answer or []], place(ask)))
        for ask, answer in zip(asks, questions["answer"], strict=True)
    ]
    questions = questions.assign(ask=asks)
    gone = (pd.Series(lost, index=questions.index) > 0) & (questions["split"] != "test")
    if sum(lost):
        logger.warning(
            "data set %r: image_steps cut away %d boxes; %d rows outside of test are left out for it",
            *(config.name, sum(lost), gone.sum()),
        )
    return questions[~gone]


def _choose_task(questions: pd.DataFrame, config: DatasetConfig) -> pd.DataFrame:
    found = sorted(set(questions["task"]))
    if config.task is not None:
        questions = questions[questions["task"] == config.task].reset_index(drop=True)
        if questions.empty:
            raise ValueError(
                f"data set {config.name!r}: no row of task {config.task}, expected one of those in it: "
                f"{', '.join(found)}; correct `task` or `source`"
            )
    elif len(found) > 1:
        raise ValueError(
            f"data set {config.name!r} holds the tasks {found}, expected one, since each has scores of its own; list "
            "the data set once for each, under different names, with `task`"
        )
    for column in ("group", "answer"):
        questions[column] = pd.Series([None if _is_missing(x) else x for x in questions[column]], dtype=object)
    return questions


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _open_images(batch: dict) -> dict:
    """Turn the references of the rows that are being read into pictures."""
    if "images" in batch:
        batch["images"] = [[open_patch(**image) for image in images] for images in batch["images"]]
    return batch
