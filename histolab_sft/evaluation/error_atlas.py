"""Rows of the test split as a report shows them, without a name: the surest mistakes, and answers as read."""

import hashlib
import json

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import softmax

from histolab_sft.tasks import TASKS
from histolab_sft.tasks.answer_forms import SIDE as PICTURE_SIDE
from histolab_sft.tasks.answer_forms import encode_picture

PAIRS = 6  # most frequent confusions shown
MISTAKES = 4  # of each
SIDE = 160  # pixels
EXAMPLES = 8


def list_mistakes(table: pd.DataFrame, patches: Dataset, classes: list[str]) -> list[dict]:
    """Return the most frequent confusions of one system by label likelihood, with their most confident mistakes.

    Args:
        table (`pandas.DataFrame`): From `predict`.
        patches (`Dataset`): The same rows; only pictures that are shown get opened.

    Returns:
        `list[dict]`: `true`, `answer`, `n` and `mistakes`, each `id` (the hash that stands in `predictions.parquet`),
        `confidence` and `picture` (a data address).

    Raises:
        ValueError: The patches aren't those of the table.
    """
    check_rows(patches, table)
    probabilities = softmax(np.stack(table["log_likelihoods"]), axis=1)
    read = pd.DataFrame(
        {
            "true": table["label"].to_numpy(),
            "answer": np.array(classes)[probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
            "row": np.arange(len(table)),
        }
    )
    wrong = read[read["true"] != read["answer"]].sort_values("confidence", ascending=False, kind="stable")
    pairs = [(names, rows) for names, rows in wrong.groupby(["true", "answer"])]
    pairs.sort(key=lambda pair: len(pair[1]), reverse=True)
    return [
        {
            "true": true,
            "answer": answer,
            "n": len(rows),
            "mistakes": [
                {
                    "id": hash_id(table["id"].iloc[row.row]),
                    "confidence": row.confidence,
                    "picture": encode_picture(patches[row.row]["images"][0], SIDE),
                }
                for row in rows.head(MISTAKES).itertuples()
            ],
        }
        for (true, answer), rows in pairs[:PAIRS]
    ]


def list_examples(tables: dict[str, pd.DataFrame], questions: Dataset) -> list[dict]:
    """Return up to `EXAMPLES` questions, evenly spread: pictures, the question, the truth and both answers."""
    check_rows(questions, tables["baseline"])
    chosen = np.unique(np.linspace(0, len(questions) - 1, min(EXAMPLES, len(questions))).round().astype(int))
    examples = []
    for row in chosen.tolist():
        question, task = questions[row], TASKS[tables["baseline"]["task"].iloc[row]]
        truth = json.loads(tables["baseline"]["truth"].iloc[row])
        answers = {system: json.loads(table["predicted"].iloc[row]) for system, table in tables.items()}
        pictures = question["images"]
        if task.draw_answers:
            ask = json.loads(tables["baseline"]["ask"].iloc[row])
            pictures = [task.draw_answers(pictures[0], ask, {"truth": truth} | answers, PICTURE_SIDE)]
        examples.append(
            {
                "id": hash_id(question["id"]),
                "question": question["prompt"][0]["content"],
                "pictures": [encode_picture(picture) for picture in pictures],
                "drawn": task.draw_answers is not None,
                "truth": None if truth is None else task.describe_answer(truth),
                "answers": [
                    {
                        "system": system,
                        "read": None if answers[system] is None else task.describe_answer(answers[system]),
                        "written": table["answer"].iloc[row],
                        "truncated": bool(table["truncated"].iloc[row]),
                    }
                    for system, table in tables.items()
                ],
            }
        )
    return examples


def check_rows(rows: Dataset, table: pd.DataFrame) -> None:
    """Raise ValueError unless a table of answers is of these rows."""
    if list(rows.with_format(None)["id"]) != table["id"].tolist():
        raise ValueError(
            "the rows of the report aren't those that were scored, expected the same rows in the same order; score "
            "them again"
        )


def hash_id(name: str) -> str:
    """Return what stands for a patch in `predictions.parquet`: file names can name a patient."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]
