"""Read Indiana University's chest X-rays (Open-i): Open-i's XML reports, or the CSV files made of them on Kaggle.

The data set has no split and no patient: `group` is the study (`uid`). It has no boxes in any form either.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.rows import build_table, check_columns
from histolab_sft.tasks.report import NAME as REPORT

MASK = "XXXX"
# With the words that hyphens join to it: `x-XXXX` without the mask would be a lone `x`.
_MASKED = re.compile(rf"\b(?:\w+-)*{MASK}(?:-\w+)*\b")


class Study(NamedTuple):
    """One report: the names of its pictures, the frontal ones first where that is known, and its two sections."""

    uid: str
    pictures: list[str]
    findings: str
    impression: str


def read_indiana(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """Return one `report` row a study, with all its pictures; they may lie anywhere below the folder `source`.

    The folder has `indiana_reports.csv` and `indiana_projections.csv`, or `*.xml` reports (`ecgen-radiology`). The
    answer has the sections that the report has, FINDINGS before IMPRESSION, without the marks of de-identification.
    A study without a picture or without either section is left out and counted.

    Raises:
        FileNotFoundError: There is no report, or a picture isn't there.
        ValueError: A report can't be read, or boxes are asked for.
    """
    if config.task not in (None, REPORT):
        raise ValueError(
            f"data set {config.name!r}: task {config.task!r}, expected 'report'; Indiana's X-rays come with texts but "
            "without boxes or classes, so take the task out"
        )
    files = {path.name: str(path) for path in sorted(source.rglob("*.png"), reverse=True)}
    rows, left_out = [], defaultdict(list)
    for study in _read_studies(source, config):
        sections = {"FINDINGS": drop_masks(study.findings), "IMPRESSION": drop_masks(study.impression)}
        texts = [f"{title}:\n{text}" for title, text in sections.items() if re.search(r"\w", text)]
        if not texts or not study.pictures:
            left_out["no text" if study.pictures else "no picture"].append(study.uid)
            continue
        rows.append(
            {
                "images": [files.get(name, str(source / name)) for name in study.pictures],
                "split": "",
                "group": study.uid,
                "id": f"{config.name}/{study.uid}",
                "task": REPORT,
                "ask": {"style": "report"},
                "answer": "\n\n".join(texts),
            }
        )
    return build_table(rows, config, left_out)


def drop_masks(text: str) -> str:
    """Return a report without the words that de-identification replaced by `XXXX`, and what else they leave behind."""
    if MASK not in text:
        return text.strip()
    text = _MASKED.sub("", text)
    text = re.sub(r"\([\s.,;:/]*\)|(?<!\S)/(?!\S)", "", text)
    text = re.sub(r"\s+(?=[.,;:])", "", text)
    text = re.sub(r"[.,;:]{2,}", lambda marks: "." if "." in marks[0] else marks[0][0], text)
    return re.sub(r"\s+", " ", text).strip().lstrip(".,;: ")


def _read_studies(source: Path, config: DatasetConfig) -> list[Study]:
    if (source / "indiana_reports.csv").is_file():
        return _read_tables(source, config)
    reports = sorted(source.rglob("*.xml"))
    if not reports:
        raise FileNotFoundError(
            f"data set {config.name!r}: neither indiana_reports.csv nor *.xml in {source}, expected a folder with "
            "either; correct `source` or `data_dir`"
        )
    return [_read_xml(path) for path in reports]


def _read_tables(source: Path, config: DatasetConfig) -> list[Study]:
    columns = {
        "indiana_reports.csv": ["uid", "findings", "impression"],
        "indiana_projections.csv": ["uid", "filename", "projection"],
    }
    tables = []
    for name, expected in columns.items():
        table = pd.read_csv(source / name, dtype=str, keep_default_na=False)
        check_columns(table.columns, expected, source / name, config)
        tables.append(table)
    reports, views = tables
    views["lateral"] = views["projection"] != "Frontal"
    pictures = views.sort_values(["lateral", "filename"]).groupby("uid")["filename"].agg(list).to_dict()
    return [
        Study(row["uid"], pictures.get(row["uid"], []), row["findings"], row["impression"])
        for row in reports.to_dict("records")
    ]


def _read_xml(path: Path) -> Study:
    """Read one report of Open-i. Nothing outside the file is looked up: entities are refused or bounded by Expat."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: {error}, expected an XML report of Open-i; unpack it again") from error
    uid = root.find("uId")
    if uid is None or not uid.get("id"):
        raise ValueError(f"{path}: {root.tag!r} without <uId id=...>, expected a report of Open-i; take the file out")
    texts = {
        section.get("Label"): " ".join("".join(section.itertext()).split()) for section in root.iter("AbstractText")
    }
    pictures = [f"{picture.get('id')}.png" for picture in root.iter("parentImage")]
    return Study(uid.get("id"), list(dict.fromkeys(pictures)), texts.get("FINDINGS", ""), texts.get("IMPRESSION", ""))
