"""What every reader of records does with its rows: find the pictures, sort, and say what was left out."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.listing import find_as_spelled

logger = logging.getLogger(__name__)

COLUMNS = ["images", "split", "group", "id", "task", "ask", "answer", "inverted"]


def build_table(rows: list[dict], left_out: dict[str, list[str]], config: DatasetConfig) -> pd.DataFrame:
    """Return `rows` as a table with `COLUMNS`, sorted by id, and log how many were left out and why.

    Args:
        rows: Dicts with the keys `COLUMNS`, of which `inverted` may be left out.
        left_out: Reason -> names of the rows that it applies to.

    Raises:
        FileNotFoundError: A picture isn't there.
        ValueError: No row is left, or two have one id.
    """
    reasons = "; ".join(f"{len(names)} with {reason} ({names[0]} first)" for reason, names in left_out.items())
    if reasons:
        total = len(rows) + sum(map(len, left_out.values()))
        logger.warning("data set %r: rows left out of %d: %s", config.name, total, reasons)
    if not rows:
        raise ValueError(
            f"data set {config.name!r}: no row to learn from in {config.source} ({reasons or 'it is empty'}), "
            "expected at least one; correct the files or `source`"
        )
    rows = [row | {"images": [find_as_spelled(path) for path in row["images"]]} for row in rows]
    check_pictures((path for row in rows for path in row["images"]), config)
    # As objects: a column of texts or numbers alone would make NaN of None.
    rows = [{"inverted": False} | row for row in rows]
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object).sort_values("id", ignore_index=True)
    repeated = table.loc[table["id"].duplicated(), "id"]
    if len(repeated):
        raise ValueError(
            f"data set {config.name!r}: {len(repeated)} rows share their id with another, such as {repeated.iloc[0]}, "
            "expected each once; take the repeated rows out"
        )
    return table


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
