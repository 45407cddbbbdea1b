"""Read MIMIC-CXR-JPG (Johnson et al. 2019) as published: pictures, official split, labels and free-text reports.

mimic-cxr-2.0.0-split.csv.gz, -metadata.csv.gz, -chexpert.csv.gz
files/p10/p10000032/s50414267/<dicom_id>.jpg
mimic-cxr-reports/files/p10/p10000032/s50414267.txt     (mimic-cxr-reports.zip of MIMIC-CXR, unpacked)
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

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
from histolab_sft.data.formats.indiana import MASK, drop_masks
from histolab_sft.data.formats.rows import build_table, check_columns, find_file, refuse_problems
from histolab_sft.data.formats.tables import read_table, read_text
from histolab_sft.tasks.multilabel import NAME as MULTILABEL
from histolab_sft.tasks.report import NAME as REPORT

SECTIONS = ("findings", "impression")
FRONTAL = ("PA", "AP")
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,-]+):(?=\s|$)", re.MULTILINE)
# Headings of each section. As in the data set's own parser, a heading that names both is an impression, and one that
# names only a view ("CHEST, TWO VIEWS") begins the findings.
_NAMES = {
    "impression": re.compile(r"IMPRESSION|CONCLUSION"),
    "findings": re.compile(r"FINDING|^(?:PORTABLE|FRONTAL|PA|AP|LATERAL|UPRIGHT|CHEST)\b(?!.*\bCOMPARISON)"),
}
_DEIDENTIFIED = re.compile(r"\w*__\w*")  # with letters that touch it: `___F`


class Study(NamedTuple):
    """One study: its patient, the data's word for its split, and its pictures in the order they are shown."""

    subject: str
    split: str
    pictures: list[str]


def read_mimic_cxr(
    source: Path,
    config: DatasetConfig,
    sections: list[str] | None = None,
    uncertain: str | None = None,
    views: str = "all",
) -> pd.DataFrame:
    """Return one row a study, with its pictures, the frontal ones (PA, AP) first; the patient is the group.

    The task is `report`, whose answer is made of the report's `sections`, or `multilabel`, for CheXpert's labels of
    it. `split` is the official one (`train`, `validate`, `test`).

    Args:
        sections (`list[str]`): For reports: which of `SECTIONS`, in the order that the answer has; one alone stands
            without its heading. A study without one of them is left out and counted. There is no default, as answers
            depend on it.
        uncertain (`str`): For labels: a key of `chest_labels.POLICIES`; there is no default either.
        views (`str`): `all`, or `frontal`, with which studies without a frontal picture are left out and counted.

    Raises:
        FileNotFoundError: A table, a report or a picture isn't there.
        ValueError: A key is missing or of the other task, or rows can't be understood; names file, line and column.
    """
    task = config.task or REPORT
    check_choice("task", task, (REPORT, MULTILABEL), config)
    check_choice("views", views, VIEWS, config)
    others = {"uncertain": uncertain} if task == REPORT else {"sections": sections}
    for key, value in others.items():
        if value is not None:
            raise ValueError(f"data set {config.name!r}: {key} with task: {task}, which has no use for it; remove it")
    if task == REPORT:
        _check_sections(sections, config)
    else:
        check_choice("uncertain", uncertain, tuple(POLICIES), config)
    problems, left_out = [], defaultdict(list)
    studies = _read_studies(source, config, views, problems)
    refuse_problems(problems, source, config)
    shown = {name: study for name, study in studies.items() if study.pictures}
    left_out["no frontal picture"] = [name for name in studies if name not in shown]
    if task == REPORT:
        answers = _read_reports(source, shown, sections, left_out, config)
    else:
        answers = _read_labels(source, shown, uncertain, left_out, config)
    rows = [
        {
            "images": study.pictures,
            "split": study.split,
            "group": study.subject,
            "id": f"{config.name}/p{study.subject}/s{name}",
            "task": task,
            "ask": answers[name][0],
            "answer": answers[name][1],
        }
        for name, study in shown.items()
        if name in answers
    ]
    return build_table(rows, config, {reason: names for reason, names in left_out.items() if names})


def read_sections(text: str) -> dict[str, str]:
    """Return `findings` and `impression` of a report, as far as it has them, each on one line.

    Of several with one name the last that isn't empty counts. What de-identification took out (`___`) is left out.
    """
    parts = _HEADING.split(text)
    found = {}
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        name = next((name for name, pattern in _NAMES.items() if pattern.search(heading)), None)
        body = drop_masks(_DEIDENTIFIED.sub(MASK, " ".join(body.split())))
        if name and re.search(r"\w", body):
            found[name] = body
    return found


def _check_sections(sections: object, config: DatasetConfig) -> None:
    given = sections if isinstance(sections, list) else []
    if not given or len(set(map(str, given))) < len(given) or not set(map(str, given)) <= set(SECTIONS):
        raise ValueError(
            f"data set {config.name!r}: sections is {sections!r}, expected a list of {' and '.join(SECTIONS)}, or of "
            "one of them; " + ("add it, as the answers depend on it" if sections is None else "correct it")
        )


def _read_studies(source: Path, config: DatasetConfig, views: str, problems: list[str]) -> dict[str, Study]:
    path, table = _read_table(source, "split", ("dicom_id", "study_id", "subject_id", "split"), config)
    _, metadata = _read_table(source, "metadata", ("dicom_id", "ViewPosition"), config)
    positions = dict(zip(metadata["dicom_id"], metadata["ViewPosition"], strict=True))
    studies, pictures = {}, defaultdict(list)
    for line, row in enumerate(table.to_dict("records"), 2):
        name, subject = row["study_id"], row["subject_id"]
        for column in ("study_id", "subject_id"):
            if not re.fullmatch(r"\d{3,}", row[column]):
                problems.append(f"{path}, line {line}, column {column!r}: {row[column]!r:.20}, expected a number")
        known = studies.setdefault(name, Study(subject, row["split"], []))
        if (known.subject, known.split) != (subject, row["split"]):
            problems.append(
                f"{path}, line {line}: study {name} is of patient {subject} in {row['split']}, expected "
                f"{known.subject} in {known.split} as in an earlier line"
            )
        picture = source / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{name}" / f"{row['dicom_id']}.jpg"
        lateral = positions.get(row["dicom_id"], "") not in FRONTAL
        if views == "all" or not lateral:
            pictures[name].append((lateral, str(picture)))
    return {
        name: study._replace(pictures=[picture for _, picture in sorted(pictures[name])])
        for name, study in studies.items()
    }


def _read_reports(
    source: Path, studies: dict[str, Study], sections: list[str], left_out: dict, config: DatasetConfig
) -> dict[str, tuple[dict, str]]:
    """Return study -> `ask` and `answer`."""
    folder = next((part for part in (source / "mimic-cxr-reports", source) if (part / "files").is_dir()), source)
    files = {
        name: folder / "files" / f"p{study.subject[:2]}" / f"p{study.subject}" / f"s{name}.txt"
        for name, study in studies.items()
    }
    gone = [path for path in files.values() if not path.is_file()]
    if gone:
        raise FileNotFoundError(
            f"data set {config.name!r}: {len(gone)} of {len(files)} reports aren't there, such as {gone[0]}; unpack "
            "mimic-cxr-reports.zip of MIMIC-CXR beside the pictures"
        )
    ask = {"style": sections[0] if len(sections) == 1 else "report"}
    answers = {}
    for name, path in files.items():
        found = read_sections(read_text(path))
        missing = [section for section in sections if section not in found]
        if missing:
            left_out[f"no {missing[0]} in the report"].append(name)
            continue
        texts = [f"{section.upper()}:\n{found[section]}" for section in sections]
        answers[name] = ask, found[sections[0]] if len(sections) == 1 else "\n\n".join(texts)
    return answers


def _read_labels(
    source: Path, studies: dict[str, Study], uncertain: str, left_out: dict, config: DatasetConfig
) -> dict[str, tuple[dict, list[str]]]:
    """Return study -> `ask` and `answer`."""
    names = choose_labels(OBSERVATIONS, config)
    path, table = _read_table(source, "chexpert", ("study_id", *names), config)
    answers, problems, n_uncertain = {}, [], 0
    for line, row in enumerate(table.to_dict("records"), 2):
        try:
            ask, answer, doubtful = read_labels(names, row, uncertain)
        except ValueError as error:
            problems.append(f"{path}, line {line}, {error}")
            continue
        if row["study_id"] in studies and ask["vocabulary"]:
            answers[row["study_id"]] = ask, answer
            n_uncertain += doubtful
        elif row["study_id"] in studies:
            left_out["no label that is certain"].append(row["study_id"])
    refuse_problems(problems, source, config)
    unknown = set(studies) - set(table["study_id"])
    left_out[f"no row in {path.name}"] = [name for name in studies if name in unknown]
    log_uncertain(n_uncertain, len(answers) * len(names), uncertain, config)
    return answers


def _read_table(source: Path, kind: str, columns: tuple[str, ...], config: DatasetConfig) -> tuple[Path, pd.DataFrame]:
    path = find_file(source, f"mimic-cxr-*-{kind}.csv*", config)
    table = read_table(path)
    check_columns(table.columns, columns, path, config)
    return path, table
