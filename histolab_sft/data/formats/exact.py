"""What readers of other people's formats share: exact answers, refusals by record, groups, sizes of pictures."""

import os
import re
import struct
from pathlib import Path

import pandas as pd
from PIL import ExifTags, Image

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.rows import build_table
from histolab_sft.data.formats.words import GROUP_COLUMNS, read_group
from histolab_sft.data.pictures.containers import ImageRefused
from histolab_sft.data.pictures.decoding import DECODING_ERRORS, FORMATS

MAX_LISTED = 10


def build_exact_table(rows: list[dict], config: DatasetConfig) -> pd.DataFrame:
    """Return `build_table(rows)` with every answer as it is: a column of numbers alone would make NaN of None."""
    table = build_table(rows, {}, config)
    answers = {row["id"]: row["answer"] for row in rows}
    return table.assign(answer=pd.Series([answers[name] for name in table["id"]], dtype=object))


def refuse_records(problems: list[str], source: Path, config: DatasetConfig) -> None:
    """Raise one ValueError that names the records which can't be understood, if there are any."""
    if problems:
        more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        listed = "\n".join(f"  {line}" for line in [*problems[:MAX_LISTED], *more])
        raise ValueError(
            f"data set {config.name!r}: {len(problems)} records of {source} can't be understood:\n{listed}\n"
            "correct them or take them out"
        )


def find_group(picture: str, config: DatasetConfig, record: dict | None = None) -> str | None:
    """Return the patient or slide: the record's own, or what `group_by` matches in `picture`, or None.

    `picture` is a path below the source, so that nothing above it is taken for a patient.

    Raises:
        ValueError: `group_by` is no key of the record and doesn't match.
    """
    for key in (config.group_by, *GROUP_COLUMNS):
        if record and key in record:
            return read_group(record[key])
    if config.group_by is None:
        return None
    match = re.search(config.group_by, picture)
    if match is None:
        raise ValueError(
            f"group_by {config.group_by!r} is no key of the record and doesn't match {picture}, expected the slide or "
            "patient of every picture"
        )
    return match[1] if match.re.groups else match[0]


def read_size(path: str) -> tuple[int, int]:
    """Return width and height in pixels of the upright picture, as `open_patch` gives it, from the header.

    Raises:
        ImageRefused: There is no such file, or its header can't be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            size, turned = image.size, False
            # Pillow has turned TIFF files itself, and decodes a PNG to find its orientation.
            if image.format != "TIFF" and (image.format != "PNG" or _has_notes(path)):
                turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except (*DECODING_ERRORS, Image.DecompressionBombError) as error:
        reason = f"its size can't be read ({type(error).__name__}), expected a picture as {', '.join(FORMATS)}"
        raise ImageRefused(path, f"{reason}; export it again") from error
    return size[::-1] if turned else size


def _has_notes(path: str) -> bool:
    """Whether a PNG file has a chunk, anywhere, that could tell which way up it is."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(length + 4, os.SEEK_CUR)
    return False
