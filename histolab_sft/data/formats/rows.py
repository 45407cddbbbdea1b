"""What all readers of questions and answers share: one table of rows, its checks, and the group of a picture."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.patterns import search
from histolab_sft.data.formats.listing import find_as_spelled
from histolab_sft.data.formats.words import GROUP_COLUMNS, read_group
from histolab_sft.errors import say_count

logger = logging.getLogger(__name__)

COLUMNS = ["images", "split", "group", "id", "task", "ask", "answer", "inverted"]
MAX_LISTED = 10


def build_table(rows: list[dict], config: DatasetConfig, left_out: dict[str, list[str]] | None = None) -> pd.DataFrame:
    """Return `rows` as a table with `COLUMNS`, sorted by id, and log how many were left out and why.

    Args:
        rows: Dicts with the keys `COLUMNS`, of which `inverted` may be left out.
        left_out: Reason -> names of the rows that it applies to.

    Raises:
        FileNotFoundError: A picture isn't there.
        ValueError: No row is left, or two have one id.
    """
    left_out = left_out or {}
    reasons = "; ".join(f"{len(names)} with {reason} ({names[0]} first)" for reason, names in left_out.items())
    if reasons:
        total = len(rows) + sum(map(len, left_out.values()))
        logger.warning("data set %r: rows left out of %d: %s", config.name, total, reasons)
    if not rows:
        raise ValueError(
            f"data set {config.name!r}: no row to learn from in {config.source} ({reasons or 'it is empty'}), "
            "expected at least one; correct the files or `source`"
        )
    rows = [{"inverted": False} | row | {"images": [*map(find_as_spelled, row["images"])]} for row in rows]
    check_pictures((path for row in rows for path in row["images"]), config)
    # As objects: pandas would make NaN of None in a column of texts or numbers alone.
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object).sort_values("id", ignore_index=True)
    repeated = table.loc[table["id"].duplicated(), "id"]
    if len(repeated):
        raise ValueError(
            f"data set {config.name!r}: {len(repeated)} rows share their id with another, such as {repeated.iloc[0]}, "
            "expected each once; take the repeated rows out"
        )
    return table


def refuse_problems(problems: list[str], source: Path, config: DatasetConfig) -> None:
    """Raise one ValueError that lists the rows of `source` that can't be read, a line each, if there are any."""
    if problems:
        more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        listed = "\n".join(f"  {line}" for line in [*problems[:MAX_LISTED], *more])
        raise ValueError(
            f"data set {config.name!r}: {say_count(len(problems), 'row')} of {source} can't be understood:\n{listed}\n"
            "correct them or take them out"
        )


def check_pictures(paths: Iterable[str], config: DatasetConfig) -> None:
    """Raise `FileNotFoundError` with how many of `paths` aren't there, and the first of them."""
    gone = [path for path in dict.fromkeys(paths) if not Path(path).is_file()]
    if gone:
        raise FileNotFoundError(
            f"data set {config.name!r}: {config.source} names {len(gone)} pictures that aren't there, such as "
            f"{gone[0]}; add them or take their rows out"
        )


def check_columns(found: Iterable[str], expected: Iterable[str], path: Path, config: DatasetConfig) -> None:
    """Raise `ValueError` where the table at `path` lacks a column that the reader needs."""
    missing = set(expected) - set(found)
    if missing:
        raise ValueError(
            f"data set {config.name!r}: {path} has columns {sorted(found)}, expected {sorted(missing)} too; use the "
            "file as published"
        )


def find_file(source: Path, pattern: str, config: DatasetConfig) -> Path:
    """Return `source` itself where it is a file, else the first file of the folder that fits `pattern`."""
    if source.is_file():
        return source
    files = sorted(source.glob(pattern))
    if not files:
        raise FileNotFoundError(
            f"data set {config.name!r}: no {pattern} in {source}; add the file, or correct `source` or `data_dir`"
        )
    return files[0]


def find_group(picture: str, config: DatasetConfig, row: dict | None = None) -> str | None:
    """Return the patient or slide: that of the row's own column, or what `group_by` matches in `picture`, or None.

    Args:
        picture: Path below the source, so that no folder above it is taken for a patient.
        row: Cells of the row by column, where the data have a table.

    Raises:
        ValueError: `group_by` is no column of the row and doesn't match.
    """
    for key in (config.group_by, *GROUP_COLUMNS):
        if row and key in row:
            return read_group(row[key])
    if config.group_by is None:
        return None
    match = search(config.group_by, picture)
    if match is None:
        raise ValueError(
            f"group_by {config.group_by!r} is no key of the record and doesn't match {picture}, expected the slide or "
            "patient of every picture"
        )
    return match[1] if match.re.groups else match[0]
