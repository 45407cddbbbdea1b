"""Read LLaVA conversations: JSON lines (or one JSON list) of `{image, conversations: [{from, value}, ...]}`."""

import json
import os
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.rows import build_table, find_group, refuse_problems
from histolab_sft.data.formats.tables import read_json
from histolab_sft.data.formats.words import split_of
from histolab_sft.tasks import report
from histolab_sft.tasks.report import NAME as REPORT

MARKER = "<image>"
SUFFIXES = (".jsonl", ".json")
ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
SPLIT_KEY = "dataset_split"


def read_llava(source: Path, config: DatasetConfig, image_folder: str = "") -> pd.DataFrame:
    """Return one `report` row a question: the human's words without `<image>`, and the answer that follows them.

    A conversation of several turns gives one row a turn, each with the pictures and without the turns before it. A
    last question that nobody answered has the answer None. The split is the record's `dataset_split`, else the file's
    name where it is one (a folder of `train.jsonl`, `val.jsonl`).

    Args:
        image_folder (`str`): Folder of the pictures, from the folder of the file on.

    Raises:
        FileNotFoundError: Pictures are missing.
        ValueError: Conversations can't be understood; names file and position of the first ones and what was found.
    """
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.suffix in SUFFIXES)
    rows, problems = [], []
    for file in files:
        split = file.stem if split_of(file.stem, config) else ""
        for index, entry in _load_records(file, problems):
            try:
                images = _find_images(entry, file.parent / image_folder)
                turns = _read_turns(entry, len(images))
                group = find_group(os.path.relpath(images[0], file.parent), config, entry)
            except ValueError as error:
                problems.append(f"{file}[{index}]: {error}")
                continue
            for turn, (question, answer) in enumerate(turns):
                rows.append(
                    {
                        "images": images,
                        "split": str(entry.get(config.split_column) or entry.get(SPLIT_KEY) or split),
                        "group": group,
                        "id": f"{config.name}/{file.name}/{index}/{turn}",
                        "task": REPORT,
                        "ask": {"style": "question", "question": question},
                        "answer": answer,
                    }
                )
    refuse_problems(problems, source, config)
    return build_table(rows, config)


def _load_records(file: Path, problems: list[str]) -> list[tuple[int, object]]:
    """Return (position, record) of each record, adding to `problems` the lines that aren't JSON."""
    if file.suffix == ".json":
        found = read_json(file)
        if not isinstance(found, list):
            raise ValueError(
                f"{file} holds {type(found).__name__}, expected a list of conversations; correct `source`"
            )
        return list(enumerate(found))
    records = []
    for index, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n")):
        try:
            records += [(index, json.loads(line))] if line.strip() else []
        except ValueError as error:
            problems.append(f"{file}[{index}]: {error}, expected one JSON object a line")
    return records


def _find_images(entry: object, folder: Path) -> list[str]:
    names = entry.get("image") if isinstance(entry, dict) else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{entry!r:.80}, expected `image` with a file's name or a list of them")
    return [str(folder / name) for name in names]


def _read_turns(entry: dict, n_images: int) -> list[tuple[str, str | None]]:
    """Return (question, answer) of each turn."""
    turns = entry.get("conversations")
    shaped = isinstance(turns, list) and all(isinstance(t, dict) and isinstance(t.get("value"), str) for t in turns)
    roles = [ROLES.get(str(turn.get("from")).lower()) for turn in turns] if shaped else []
    if not roles or any(role != ("human", "gpt")[i % 2] for i, role in enumerate(roles)):
        found = [turn.get("from") for turn in turns] if shaped else turns
        raise ValueError(f"conversations {found!r:.80}, expected `from` and `value`, human and gpt by turns")
    marked = [turn["value"].count(MARKER) for turn in turns]
    # Without a marker the pictures stand before the words, as everywhere in this project.
    if sum(marked) not in (0, n_images) or marked[0] != sum(marked):
        raise ValueError(f"{MARKER} in turns {marked}, expected {n_images} in the first one, one a picture")
    words = [turn["value"].replace(MARKER, "").strip() for turn in turns]
    if not all(words):
        raise ValueError(f"turn {words.index('')} has no words, expected a question or an answer")
    answers = [report.format_target(text) for text in words[1::2]] + [None] * (len(words) % 2)
    return list(zip(words[::2], answers, strict=True))
