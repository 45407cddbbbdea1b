"""What the page can ask of data sets with a format: the questions of their rows, without the rows."""

import json

import pandas as pd

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.data_sets import list_rows
from histolab_sft.tasks import choose_limit

MAX_WORDINGS = 30  # of a data set
KEYS = ("format", "instruction", "codec", "fields", "intensity_window", "image_steps", "multi_scale")
# What an `ask` says of the one picture that it is about.
OF_A_PICTURE = ("size", "placement")


def describe_questions(config: DatasetConfig, histo_args: HistoArguments) -> dict:
    """Return the fields of `demo.records.RecordSet` for a data set without options; reads its rows, but no picture.

    Raises:
        FileNotFoundError, ValueError: As `list_rows`.
    """
    questions = list_rows(config, histo_args)
    task = questions["task"].iloc[0]
    given = {key: getattr(config, key) for key in KEYS}
    return {
        "name": config.name,
        "task": task,
        "asks": list_wordings(questions),
        "max_new_tokens": choose_limit(task, config.max_new_tokens, histo_args.max_new_tokens),
        "keys": {key: value for key, value in given.items() if value is not None},
    }


def list_wordings(questions: pd.DataFrame) -> list[dict]:
    """Return the distinct `ask` of rows from `list_rows`, the most frequent first, without the picture's size.

    A free question that is asked about one case alone may tell something about it, and fits no other picture: it is
    left out. Where nothing else is left, one with an empty question stands there, to be filled in.
    """
    cases = {}
    for row in questions.itertuples():
        ask = {key: value for key, value in row.ask.items() if key not in OF_A_PICTURE}
        cases.setdefault(json.dumps(ask, ensure_ascii=False), set()).add(row.group or row.images[0]["path"])
    asks = [json.loads(text) for text in sorted(cases, key=lambda text: -len(cases[text]))]
    shared = [ask for ask in asks if "question" not in ask or len(cases[json.dumps(ask, ensure_ascii=False)]) > 1]
    return shared[:MAX_WORDINGS] or [asks[0] | {"question": ""}]
