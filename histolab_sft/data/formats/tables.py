"""Read tables: `.csv` with any separator, `.tsv`, `.json`, `.jsonl`, each also as `.gz`, `.parquet` and `.arrow`.

Text is UTF-8, or UTF-16 with its byte order mark; a `.csv` may also be Windows' cp1252. What can't be read is an error
with the file, the line and, where it is known, the column.
"""

import codecs
import csv
import gzip
import io
import json
import logging
import zlib
from pathlib import Path, PurePath

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

from histolab_sft.data.pictures.containers import open_arrow
from histolab_sft.data.pictures.hub_files import is_remote, open_remote
from histolab_sft.errors import say_count

logger = logging.getLogger(__name__)

TEXT_TABLES = (".csv", ".tsv", ".json", ".jsonl")
# Files with a table of which a column may hold the pictures themselves.
COLUMN_TABLES = (".parquet", ".arrow")
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
SEPARATORS = ",;\t|"
PACKED = ".gz"
MAX_UNPACKED = 2**30  # bytes; ten times what the largest published table of a data set takes


def read_table(path: Path) -> pd.DataFrame:
    """Return a text table, its cells as they are written: text of a `.csv` or `.tsv`, values of JSON.

    A `.json` file holds a list of objects, an object of columns, or an object a line as `.jsonl`.

    Raises:
        ValueError: It can't be read; the message names the file and the line.
    """
    suffix = Path(path.name.lower().removesuffix(PACKED)).suffix
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, "\t" if suffix == ".tsv" else None)
    content = _read_lines(path, read_text(path)) if suffix == ".jsonl" else read_json(path)
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return pd.DataFrame(content, dtype=object)
    if isinstance(content, dict) and content and all(isinstance(cells, list | dict) for cells in content.values()):
        try:
            return pd.DataFrame(content, dtype=object)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; expected a list of objects; write one object a picture") from error
    raise ValueError(f"{path} holds {type(content).__name__}, expected a list of objects; write one object a picture")


def read_columns(path: Path | str) -> pd.DataFrame:
    """Return the columns of a parquet file, here or on the Hub, or of an Arrow file that `save_to_disk` wrote.

    Columns of bytes, which are pictures, come out empty: their content isn't read here.

    Raises:
        ValueError: It can't be read; the message names the file.
    """
    try:
        if PurePath(path).suffix.lower() == ".arrow":
            table = open_arrow(str(path))
            schema, read = table.schema, table.select
        else:
            file = open_remote(path) if is_remote(path) else path
            schema = pq.read_schema(file)

            def read(columns):
                return pq.read_table(file, columns=columns)

        light = [name for name, kind in zip(schema.names, schema.types, strict=True) if "binary" not in str(kind)]
        # Columns as they are stored: pandas would make an index of some, and decimals of integers with a gap.
        table = read(light).to_pandas(ignore_metadata=True, integer_object_nulls=True)
    except pa.ArrowException as error:
        kind = PurePath(path).suffix
        raise ValueError(f"{path}: {error}; expected a whole {kind} file; download or write it again") from error
    for name, words in _class_labels(schema).items():
        table[name] = _name_classes(path, name, table[name], words)
    for name in set(schema.names) - set(light):
        table[name] = None  # the column is there; its pictures are read one by one later
    return table


def list_picture_columns(path: Path | str, table: pd.DataFrame) -> list[str]:
    """Return the columns of a table from `read_columns` that hold pictures."""
    if PurePath(path).suffix.lower() not in COLUMN_TABLES:
        return []
    return [name for name in table.columns if table[name].dtype == object and table[name].isna().all()]


def read_json(path: Path) -> object:
    """Return what a JSON file holds; a list, where it has an object a line.

    Raises:
        ValueError: It isn't JSON; the message names file, line and column.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # What several libraries write under this name. The first line is whole, or the error would be in it.
        if error.msg == "Extra data" and "\n" not in text[: error.pos].strip():
            return _read_lines(path, text)
        raise _name_place(path, error.lineno, error.colno, f"{error.msg}, expected JSON") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested deeper than can be read; export the file again") from error


def read_text(path: Path, fallback: str | None = None) -> str:
    """Return a text file in UTF-8, in UTF-16 with its mark, or else in the encoding `fallback`, which a warning tells.

    Raises:
        ValueError: Its bytes are none of them; the message names file, line and column. Or what is compressed can't
            be unpacked, or is too large.
    """
    data = _unpack(path) if path.suffix.lower() == PACKED else path.read_bytes()
    encoding = next((encoding for mark, encoding in MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding != "utf-16" and b"\0" in data:
        raise ValueError(f"{path} holds zero bytes, expected text; save it as UTF-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        failure = error
    if fallback and encoding == "utf-8":
        try:
            text = data.decode(fallback)
        except UnicodeDecodeError as error:
            failure = error
        else:
            logger.warning("%s isn't UTF-8: read as %s; if words are wrong, save it as UTF-8", path, fallback)
            return text
    before = data[: failure.start].decode(failure.encoding, errors="replace").removeprefix("\ufeff").split("\n")
    found = f"byte 0x{data[failure.start]:02x} isn't {failure.encoding.upper()}"
    raise _name_place(path, len(before), len(before[-1]) + 1, f"{found}, expected text in UTF-8")


def _unpack(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            data = file.read(MAX_UNPACKED + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: {error}; expected a whole {PACKED} file; download it again") from error
    if len(data) > MAX_UNPACKED:
        raise ValueError(
            f"{path}: more than {MAX_UNPACKED:,} bytes unpacked, expected a table; check where it is from"
        )
    return data


def _read_csv(path: Path, separator: str | None) -> pd.DataFrame:
    text = read_text(path, fallback="cp1252")
    if separator is None:
        header = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
        # The sign that makes most columns of the first line; of equals, the first of SEPARATORS.
        separator = max(SEPARATORS, key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))
    lines, names, rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), None, []
    try:
        for cells in lines:
            if not any(cells):
                continue
            if names is None:
                names = cells
                continue
            while len(cells) > len(names) and not cells[-1]:
                cells.pop()
            if len(cells) != len(names):
                found = f"{say_count(len(cells), 'cell')}, expected {len(names)} as in the first line"
                raise _name_place(path, lines.line_num, None, found)
            rows.append(cells)
    except csv.Error as error:
        raise _name_place(path, lines.line_num, None, f"{error}, expected a table") from error
    if names is None:
        raise ValueError(f"{path} is empty, expected a first line with the names of the columns")
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has several columns {repeated}, expected each name once; rename them")
    # A column without a name is what others number their rows in.
    return pd.DataFrame(rows, columns=names, dtype=str).loc[:, [bool(name) for name in names]]


def _read_lines(path: Path, text: str) -> list:
    rows = []
    # Only at line feeds: `splitlines` would also split at Unicode's line ends inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise _name_place(path, number, error.colno, f"{error.msg}, expected one object a line") from error
            except RecursionError as error:
                raise _name_place(path, number, None, "it is nested deeper than can be read") from error
    return rows


def _name_place(path: Path, line: int, column: int | None, found: str) -> ValueError:
    place = f"line {line}" + (f", column {column}" if column else "")
    return ValueError(f"{path}, {place}: {found}; correct the line, or export the file again")


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the words of the columns that the library `datasets` stores as numbers (`ClassLabel`)."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    features = Features.from_arrow_schema(schema)
    return {name: kind.names for name, kind in features.items() if isinstance(kind, ClassLabel)}


def _name_classes(path: Path | str, column: str, positions: pd.Series, words: list[str]) -> list[str | None]:
    """Return the words at the positions; None for rows without a label, which `datasets` writes as null or -1."""
    values = [None if value is None or value != value else int(value) for value in positions]
    strange = sorted({value for value in values if value is not None and value >= len(words)})
    if strange:
        raise ValueError(
            f"{path}: column {column!r} holds {strange}, expected positions in {words}; write the file again"
        )
    return [None if value is None or value < 0 else words[value] for value in values]
