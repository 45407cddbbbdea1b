"""Write the file that the FLARE challenge takes: the questions of a split as they are, with `Answer` filled in."""

import json
import logging
import os
from pathlib import Path

import pandas as pd

from histolab_sft.data.records.flare import FlareRecord, list_flare
from histolab_sft.data.records.flare_answers import is_hidden, parse_options
from histolab_sft.data.records.table import read_size
from histolab_sft.dataset_config import DatasetConfig
from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks import box_codecs, multilabel, quantity, report

logger = logging.getLogger(__name__)


def write_submission(
    answers: pd.DataFrame, source: Path, config: DatasetConfig, path: Path, split: str = "validation-hidden"
) -> int:
    """Write `predictions.json` in one step: a list of the split's questions, all their fields, each with an answer.

    An option is given by its letter where its question has letters, labels with `; ` between them, boxes in whole
    pixels of the original picture, by name where the question asks for names. What couldn't be read is "".

    Args:
        answers (`pandas.DataFrame`): `id` as `read_flare` gives it, and `answer` in the task's own form (option, list
            of labels, number, list of `[x1, y1, x2, y2, label or None]`, text), None for unparsed.
        source (`Path`): Root of the data.
        config (`DatasetConfig`): The data set's entry, for messages.
        path (`Path`): The file to write.
        split (`str`): The split as `read_flare` calls it.

    Returns:
        How many answers are empty because they couldn't be read.

    Raises:
        ValueError: A question has no answer or two, an id is none of the split's, or an answer is none that the
            question allows. Nothing is written then.
    """
    records = {record.id: record for record in list_flare(source, config) if record.split == split}
    if not records:
        raise ValueError(f"no question of the split {split!r} in {source}, expected some; correct `split` or `source`")
    given = answers["id"].tolist()
    problems = {
        "without an answer": sorted(set(records) - set(given)),
        "that are no question of the split": sorted(set(given) - set(records)),
        "given twice": sorted(answers.loc[answers["id"].duplicated(), "id"]),
    }
    found = "; ".join(f"{len(ids)} ids {what}, such as {ids[0]}" for what, ids in problems.items() if ids)
    if found:
        raise ValueError(f"{found}; expected one answer to each of {len(records)} questions; score the split again")
    by_id = dict(zip(given, answers["answer"], strict=True))
    filled = [record.values | {"Answer": _format(record, by_id[name])} for name, record in records.items()]
    unparsed = sum(is_hidden(answer) for answer in by_id.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(filled, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    logger.info("%d answers written to %s, %d of them empty because they couldn't be read", len(by_id), path, unparsed)
    return unparsed


def _format(record: FlareRecord, answer: object | None) -> str:
    """Return the answer as the challenge's files have it, always text."""
    if is_hidden(answer):
        return ""
    if record.kind == "classification":
        options = parse_options(record.values["Question"])
        letters = {option: letter for letter, option in options.items()}
        if options and answer not in letters:
            raise ValueError(f"{record.id}: answer {answer!r}, expected one of {list(letters)}; score it again")
        return letters.get(answer, answer)
    if record.kind == "multilabel":
        return multilabel.SEPARATOR.join(answer)
    if record.kind == "counting":
        return quantity.format_target("counting", answer)
    if record.kind == "regression":
        return str(float(answer))
    if record.kind == "report":
        return report.format_target(answer)
    return box_codecs.encode_pixels([Box(*box) for box in answer], read_size(record.images[0]))
