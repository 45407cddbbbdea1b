"""Write the files that the FLARE challenge takes: the questions of a split as they are, with `Answer` filled in."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.flare import NO_QUESTIONS, FlareRecord, list_flare
from histolab_sft.data.formats.flare_answers import is_hidden, parse_options
from histolab_sft.data.pictures.decoding import read_size
from histolab_sft.files import replacing
from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks import multilabel, quantity, report
from histolab_sft.tasks.parsing import box_codecs

logger = logging.getLogger(__name__)

FORMAT = "flare"


def list_submitted(histo_args: HistoArguments) -> list[DatasetConfig]:
    """Return the recipe's data sets of FLARE.

    Raises:
        ValueError: There are none, or they have several sources, of which no file could be of all.
    """
    configs = [config for config in histo_args.datasets if config.format == FORMAT]
    if not configs:
        found = sorted({str(config.format) for config in histo_args.datasets})
        raise ValueError(
            f"no data set of format {FORMAT} in the recipe, found the formats {', '.join(found)}; a submission holds "
            "answers to FLARE's questions, so name a recipe with such data sets (recipes/flare.yaml)"
        )
    if len(sources := {config.source for config in configs}) > 1:
        raise ValueError(
            f"the data sets of FLARE have the sources {sorted(sources)}, expected one, since a file holds all "
            "questions of a split; give each source a recipe of its own"
        )
    return configs


def plan_files(ids: Iterable[str], histo_args: HistoArguments) -> dict[str, set[str]]:
    """Return FLARE's splits that the questions are of, and the folders of the data sets in each.

    Data sets of a split of which nothing is asked are named in the log.

    Raises:
        ValueError: A question is of FLARE's train split, or only some of a data set's questions are asked.
    """
    [config, *_] = list_submitted(histo_args)
    records = {record.id: record for record in list_flare(Path(histo_args.data_dir, config.source), config)}
    asked = {name: records[name] for name in ids}
    plan = {}
    for record in asked.values():
        plan.setdefault(record.split, set()).add(record.dataset)
    if taken := sum(record.split == "training" for record in asked.values()):
        raise ValueError(
            f"{taken} test questions are of FLARE's split training, expected those of a split to be submitted; "
            "name it by `splits`, as in `splits: {train: training, test: validation-hidden}`"
        )
    for split, datasets in plan.items():
        rest = {
            name: record.dataset for name, record in records.items() if record.split == split and name not in asked
        }
        if missing := [name for name, dataset in rest.items() if dataset in datasets]:
            raise ValueError(
                f"{len(missing)} questions aren't asked, such as {missing[0]}, expected all of a data set's; give "
                "each of its tasks an entry in the recipe, and mend pictures that were refused"
            )
        if rest:
            logger.warning("%s: the recipe doesn't ask %s", split, ", ".join(sorted(set(rest.values()))))
    return plan


def write_submissions(
    answers: dict[str, pd.DataFrame], histo_args: HistoArguments, folder: Path
) -> dict[Path, tuple[int, int]]:
    """Write `folder/<split>/predictions.json` of every split that was asked, all its data sets in one file.

    Args:
        answers (`dict`): Name of the data set's entry -> table of its test split from `predict_answers`.

    Returns:
        File -> how many answers are in it, and how many of them are empty.

    Raises:
        ValueError: As `plan_files` and `write_submission`.
    """
    configs = list_submitted(histo_args)
    source = Path(histo_args.data_dir, configs[0].source)
    asked = pd.concat([answers[config.name] for config in configs], ignore_index=True)
    read = [json.loads(text) for text in asked["predicted"]]
    filled = pd.DataFrame({"id": asked["id"], "answer": pd.Series(read, dtype=object)})
    written = {}
    for split, datasets in sorted(plan_files(filled["id"], histo_args).items()):
        ids = {r.id for r in list_flare(source, configs[0]) if r.split == split and r.dataset in datasets}
        part = filled[filled["id"].isin(ids)].reset_index(drop=True)
        path = folder / split / NO_QUESTIONS
        written[path] = (len(part), write_submission(part, source, configs[0], path, split, datasets))
    return written


def write_submission(
    answers: pd.DataFrame,
    source: Path,
    config: DatasetConfig,
    path: Path,
    split: str = "validation-hidden",
    datasets: set[str] | None = None,
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
        datasets (`set[str]`, *optional*): Folders of the data sets that shall be in the file, all if omitted.

    Returns:
        How many answers are empty because they couldn't be read.

    Raises:
        ValueError: A question has no answer or two, an id is none of the split's, or an answer is none that the
            question allows. Nothing is written then.
    """
    records = {
        record.id: record
        for record in list_flare(source, config)
        if record.split == split and (datasets is None or record.dataset in datasets)
    }
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
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(filled, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
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
