"""Read PadChest: one X-ray a row, its target a sectioned report made of the labels (BIMCV-PadChest, CSV of 2019).

The data set has no split of its own: `group` is the patient, so that splits drawn by seed keep patients apart.
"""

import ast
import logging
import re
from collections import defaultdict
from itertools import groupby
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.rows import build_table, check_columns, find_file
from histolab_sft.tasks.report import NAME as REPORT
from histolab_sft.tasks.report import NORMAL, format_sections, image_findings, read_sentence

logger = logging.getLogger(__name__)

PATTERN = "PADCHEST*.csv*"
PHOTOMETRIC = "PhotometricInterpretation_DICOM"
# Of 36 columns. Those that describe the patient aren't read: the model has no use for them.
COLUMNS = (
    *("ImageID", "ImageDir", "PatientID", "Projection", PHOTOMETRIC, "MethodLabel"),
    *("Labels", "LabelsLocalizationsBySentence"),
)
NO_VALUE = {"", "nan", "None"}
UNKNOWN = "unknown"


def read_padchest(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """Return one `report` row a picture; `source` is the CSV or its folder, `<ImageDir>/<ImageID>` lie beside it.

    The findings of a picture are its `Labels`; the sentences only add their locations. A picture of which nothing
    is known (no labels, `exclude`, only `unchanged`) is left out and counted, never taken for a normal one. A picture
    that was MONOCHROME1 is inverted: its PNG holds the DICOM file's values, where large means dark.

    Raises:
        FileNotFoundError: The CSV, or a picture that it names, isn't there.
        ValueError: The CSV lacks a column, or nothing is known of any picture.
    """
    path = find_file(source, PATTERN, config)
    table = read_columns(path, (*COLUMNS, config.split_column))
    check_columns(table.columns, COLUMNS, path, config)
    if config.split_column not in table:
        table[config.split_column] = ""
    rows, left_out, seen = [], defaultdict(list), set()
    for row in table.to_dict("records"):
        name = f"{row['ImageDir']}/{row['ImageID']}"
        reason = "their picture listed before" if name in seen else _find_flaw(row)
        seen.add(name)
        if reason:
            left_out[reason].append(name)
            continue
        rows.append(
            {
                "images": [str(path.parent / row["ImageDir"] / row["ImageID"])],
                "split": row[config.split_column],
                "group": row["PatientID"],
                "id": f"{config.name}/{name}",
                "task": REPORT,
                "ask": {"style": "sectioned", "projection": read_projection(row["Projection"])},
                "answer": format_sections(locate_findings(row["Labels"], row["LabelsLocalizationsBySentence"])),
                "inverted": row[PHOTOMETRIC] == "MONOCHROME1",
            }
        )
    _log_caveats(table, config)
    return build_table(rows, config, left_out)


def read_columns(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return those of `columns` that the CSV has, as text, an empty cell as an empty string."""
    wanted = set(columns)
    return pd.read_csv(path, usecols=lambda name: name in wanted, dtype=str, keep_default_na=False)


def read_projection(cell: str) -> str:
    """Return the projection as the table has it (`PA`, `AP_horizontal`, ...), `unknown` where it has none."""
    return UNKNOWN if cell.strip() in NO_VALUE else cell.strip()


def locate_findings(labels: str, sentences: str) -> list[tuple[str, list[str]]]:
    """Return (finding, its locations) of a picture from the cells `Labels` and `LabelsLocalizationsBySentence`.

    In the order of the sentences; the locations of one finding in several sentences are joined.
    """
    findings = image_findings(read_list(labels))
    if findings == [NORMAL]:
        return [(NORMAL, [])]  # a location beside it says what was looked at, not what is affected
    located = {}
    for sentence in read_sentences(sentences):
        for name, locations in read_sentence(sentence):
            located[name] = [*located.get(name, []), *locations]
    ordered = [name for name in located if name in findings] + [name for name in findings if name not in located]
    return [(name, list(dict.fromkeys(located.get(name, [])))) for name in ordered]


def read_sentences(cell: str) -> list[list[str]]:
    """Return the items of each sentence; items beside the lists, as rare rows have them, are a sentence too."""
    sentences = []
    for is_list, items in groupby(read_list(cell), key=lambda item: isinstance(item, list)):
        items = list(items)
        sentences += items if is_list else [items]
    # One cell may hold two locations: `loc  tracheal, loc  left`.
    return [[part for item in items for part in re.split(r",\s*(?=loc\s)", str(item))] for items in sentences]


def read_list(cell: str) -> list:
    """Return the list that a cell holds in Python's notation, `nan` in it as text; an empty cell is an empty list.

    Raises:
        ValueError: It is no list.
    """
    if cell.strip() in NO_VALUE:
        return []
    try:
        value = ast.literal_eval(re.sub(r"(?<=[\[,])(\s*)nan(?=\s*[\],])", r"\1'nan'", cell.strip()))
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{cell[:80]!r}, expected a list in Python's notation; restore the cell") from error
    if not isinstance(value, list):
        raise ValueError(f"{cell[:80]!r}, expected a list in Python's notation; restore the cell")
    return value


def _find_flaw(row: dict[str, str]) -> str | None:
    """Return why nothing can be learnt from a row, None where something can."""
    try:
        labels, _ = read_list(row["Labels"]), read_sentences(row["LabelsLocalizationsBySentence"])
    except ValueError:
        return "labels that can't be read"
    labels = {str(label).strip() for label in labels} - NO_VALUE
    if row["PatientID"].strip() in NO_VALUE:
        return "no PatientID"
    if not labels:
        return "no label"
    if "exclude" in labels:
        return "the label `exclude`"
    return None if image_findings(list(labels)) else "no finding beside `unchanged`"


def _log_caveats(table: pd.DataFrame, config: DatasetConfig) -> None:
    """Log how many rows a physician labelled, and how many pictures are inverted."""
    written = (table["MethodLabel"] == "Physician").sum()
    inverted = (table[PHOTOMETRIC] == "MONOCHROME1").sum()
    logger.info(
        "data set %r: physicians labelled %d of %d rows, a model the rest; %d pictures were MONOCHROME1 and are "
        "inverted",
        *(config.name, written, len(table), inverted),
    )
