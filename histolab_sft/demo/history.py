"""What was asked in one visit, as a table on the page and as files to keep; the server keeps it no longer."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import pandas as pd

from histolab_sft.demo.batch import format_csv
from histolab_sft.demo.data_set import DataSet, word_question
from histolab_sft.demo.systems import Answer
from histolab_sft.tasks import TASKS

MOST = 200  # cases; older ones go


def shorten(text: str, longest: int) -> str:
    """Return a text of at most `longest` letters: of a longer one its beginning."""
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"


def record_case(
    data_set: DataSet, ask: dict, answers: Mapping[str, Answer], truth: object | None, n_pictures: int
) -> dict:
    """Return one entry of the history: flat but for the answers in their task's own form, and without a picture."""
    entry = {
        "asked_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_set": data_set.name,
        "task": data_set.task,
        "pictures": n_pictures,
        "question": word_question(data_set, ask),
        "truth": truth,
    }
    for system, answer in answers.items():
        entry |= {
            system: answer.value,
            f"{system}_confidence": answer.confidence,
            f"{system}_withheld": answer.withheld,
            f"{system}_written": answer.text,
        }
    return entry


def write_history(entries: list[dict]) -> dict[str, bytes]:
    """Return the files by name: JSON with every answer in its task's own form, and CSV with that form as JSON text."""
    rows = [
        {
            key: value if isinstance(value, str | float | int | None) else json.dumps(value, ensure_ascii=False)
            for key, value in row.items()
        }
        for row in entries
    ]
    return {
        "history.csv": format_csv(pd.DataFrame(rows)).encode(),
        "history.json": json.dumps(entries, indent=2, ensure_ascii=False).encode(),
    }


def say_briefly(task: str, value: object | None) -> str:
    """Return an answer or a truth as it stands in one cell of a table."""
    form = TASKS[task].describe_answer(value)
    rows = [": ".join(row) for row in form.get("rows", form.get("sections", []))]
    return ", ".join(form["parts"] or rows) or form["text"]
