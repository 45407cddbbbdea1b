"""Read manifests of questions and answers of any task: one file, or a folder with a file for each split."""

from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.captions import drop_empty, find_picture, find_split, list_manifests
from histolab_sft.data.formats.rows import build_table, check_columns, find_group, refuse_problems
from histolab_sft.data.formats.tables import read_table
from histolab_sft.data.formats.words import GROUP_COLUMNS
from histolab_sft.tasks import TASKS

ANSWER_COLUMN = "answer"


def read_questions(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """Return one question of the data set's `task` a row.

    Columns: `image` (or `image_column`), a path as in captions or a list of them; `answer` (or `label_column`), empty
    where it is hidden; where they are there `split_column` and a group. From all other columns (the row's `ask`) the
    task words its question.

    Raises:
        FileNotFoundError: There is no manifest, or a picture isn't there.
        ValueError: A manifest can't be read or lacks a column, the data set names no task, or the task can't word a
            row's question or answer.
    """
    if config.task is None:
        raise ValueError(
            f"data set {config.name!r}: format: questions and no task, expected one of {', '.join(TASKS)}; add it"
        )
    task = TASKS[config.task]
    image = config.image_column or "image"
    rows, problems = [], []
    for path in list_manifests(source, config):
        table = read_table(path)
        answer = config.label_column if config.label_column in table else ANSWER_COLUMN
        if len(table):
            check_columns(table.columns, (image, answer), path, config)
        for number, row in enumerate(table.to_dict("records"), 1):
            cells = drop_empty(row)
            used = {image, answer, config.split_column, config.group_by, *GROUP_COLUMNS}
            ask = {key: value for key, value in cells.items() if key not in used}
            try:
                names = [cells[image]] if isinstance(cells[image], str) else list(cells[image])
                task.format_question(ask, config)
                if answer in cells:
                    task.format_answer(ask, cells[answer], config)
                group = find_group(names[0], config, cells)
            except (KeyError, TypeError, ValueError) as error:
                problems.append(
                    f"{path}, row {number}: {type(error).__name__} {error}, expected what {config.task} asks"
                )
                continue
            rows.append(
                {
                    "images": [find_picture(path.parent, name) for name in names],
                    "split": find_split(row, path, config),
                    "group": group,
                    "id": f"{config.name}/{path.stem}/{number}",
                    "task": config.task,
                    "ask": ask,
                    "answer": cells.get(answer),
                }
            )
    refuse_problems(problems, source, config)
    return build_table(rows, config)
