"""Read CheXpert (Irvin et al. 2019) as published: `train.csv`, `valid.csv` and, where it is there, `test.csv`.

Pictures are at `<split>/patient00001/study1/view1_frontal.jpg` beside the tables, whatever folder `Path` begins with.
"""

import re
from collections import defaultdict
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.chest_labels import (
    OBSERVATIONS,
    POLICIES,
    VIEWS,
    check_choice,
    choose_labels,
    log_uncertain,
    read_labels,
)
from histolab_sft.data.formats.rows import build_table, check_columns, refuse_problems
from histolab_sft.data.formats.tables import read_table
from histolab_sft.tasks.multilabel import NAME as MULTILABEL

TABLES = ("train.csv", "valid.csv", "test.csv")
_PATH = re.compile(r"(?:^|/)([^/]+/(patient\d+)/(study\d+)/view(\d+)_(frontal|lateral)\.\w+)$")


def read_chexpert(
    source: Path, config: DatasetConfig, uncertain: str | None = None, views: str = "all"
) -> pd.DataFrame:
    """Return one `multilabel` row a study, with its pictures, the frontal ones first; the patient is the group.

    `source` is the folder with the tables or the one above it. `split` is the table's name. The labels asked for are
    the 14 observations, or those of `class_names`. A label that a report doesn't mention counts as absent.

    Args:
        uncertain (`str`): A key of `chest_labels.POLICIES`; there is no default, as answers depend on it.
        views (`str`): `all`, or `frontal`, with which studies without a frontal picture are left out and counted.

    Raises:
        FileNotFoundError: A table, or a picture that it names, isn't there.
        ValueError: Rows can't be understood; names file, line and column of the first ones and what was found.
    """
    if config.task not in (None, MULTILABEL):
        raise ValueError(
            f"data set {config.name!r}: task {config.task!r}, expected 'multilabel'; CheXpert's pictures come with "
            "labels alone, so take the task out"
        )
    check_choice("uncertain", uncertain, tuple(POLICIES), config)
    check_choice("views", views, VIEWS, config)
    names = choose_labels(OBSERVATIONS, config)
    rows, left_out, problems, n_uncertain, n_labels = [], defaultdict(list), [], 0, 0
    for table in _list_tables(source, config):
        for study, (labels, pictures) in _read_studies(table, names, config, problems).items():
            name = f"{table.stem}/{study}"
            shown = [path for view, _, path in sorted(pictures) if views == "all" or view == "frontal"]
            ask, answer, doubtful = read_labels(names, labels, uncertain)
            n_uncertain, n_labels = n_uncertain + doubtful, n_labels + len(names)
            reason = None if ask["vocabulary"] else "no label that is certain"
            reason = reason if shown else "no frontal picture"
            if reason:
                left_out[reason].append(name)
                continue
            row = {"images": shown, "split": table.stem, "group": study.partition("/")[0]}
            row |= {"id": f"{config.name}/{name}", "task": MULTILABEL, "ask": ask, "answer": answer}
            rows.append(row)
    refuse_problems(problems, source, config)
    log_uncertain(n_uncertain, n_labels, uncertain, config)
    return build_table(rows, config, left_out)


def _list_tables(source: Path, config: DatasetConfig) -> list[Path]:
    for folder in (source, *sorted(source.glob("CheXpert-v1.0*"))):
        found = [folder / name for name in TABLES if (folder / name).is_file()]
        if found:
            return found
    raise FileNotFoundError(
        f"data set {config.name!r}: none of {', '.join(TABLES)} in {source}, expected CheXpert's folder as published; "
        "correct `source` or `data_dir`"
    )


def _read_studies(
    path: Path, names: dict[str, str], config: DatasetConfig, problems: list[str]
) -> dict[str, tuple[dict, list[tuple[str, int, str]]]]:
    """Return study -> its cells, and (view, its number, path) of each picture; what can't be read goes to `problems`.

    The labels are those of the report, so all pictures of a study have the same.
    """
    table = read_table(path)
    check_columns(table.columns, ("Path", *names), path, config)
    studies, lines = {}, {}
    for line, row in enumerate(table.to_dict("records"), 2):
        match = _PATH.search(row["Path"])
        cells = {label: row[label] for label in names}
        try:
            if match is None:
                raise ValueError(
                    f"column 'Path': {row['Path']!r:.80}, expected .../train/patient00001/study1/view1_frontal.jpg"
                )
            read_labels(names, cells, "zeros")
            below, patient, number, view, kind = match.groups()
            study = f"{patient}/{number}"
            known, pictures = studies.setdefault(study, (cells, []))
            if known != cells:
                label = next(label for label in names if known[label] != cells[label])
                raise ValueError(
                    f"column {label!r}: {cells[label]!r}, expected {known[label]!r} as in line {lines[study]}, of the "
                    "same study"
                )
            lines.setdefault(study, line)
            pictures.append((kind, int(view), str(path.parent / below)))
        except ValueError as error:
            problems.append(f"{path}, line {line}, {error}")
    return studies
