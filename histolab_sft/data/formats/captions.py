"""Read captions: manifests of `{image, caption}` rows, one file, or a folder with one a split (`train.json`)."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.rows import build_table, check_columns, find_group
from histolab_sft.data.formats.tables import TEXT_TABLES, read_table
from histolab_sft.data.formats.words import split_of
from histolab_sft.tasks.report import NAME as REPORT

CAPTION_COLUMN = "caption"


def read_captions(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """Return one `report` question a row, asked in the style `caption`.

    Columns: `image` (or `image_column`), `caption` (or `label_column`), and where they are there `split_column` and a
    group. Paths are relative to the manifest's folder or the one above it, as captions are published as
    `dataset/train.json` beside `data/images`. A row without words is left out and counted.

    Raises:
        FileNotFoundError: There is no manifest, or a picture isn't there.
        ValueError: A manifest can't be read or lacks a column, or `group_by` doesn't match.
    """
    rows, left_out, repeats = [], defaultdict(list), Counter()
    for path in list_manifests(source, config):
        table = read_table(path)
        image = config.image_column or "image"
        caption = config.label_column if config.label_column in table else CAPTION_COLUMN
        if len(table):
            check_columns(table.columns, (image, caption), path, config)
        for row in table.to_dict("records"):
            name = f"{path.stem}/{row[image]}"
            flaw = _find_flaw(row[image], row[caption])
            if flaw:
                left_out[flaw].append(name)
                continue
            repeats[name] += 1
            rows.append(
                {
                    "images": [find_picture(path.parent, row[image])],
                    "split": find_split(row, path, config),
                    "group": find_group(row[image], config, drop_empty(row)),
                    "id": f"{config.name}/{name}" + (f"#{repeats[name]}" if repeats[name] > 1 else ""),
                    "task": REPORT,
                    "ask": {"style": "caption"},
                    "answer": row[caption].strip(),
                }
            )
    return build_table(rows, config, left_out)


def list_manifests(source: Path, config: DatasetConfig) -> list[Path]:
    """Return `source` where it is a file, else the manifests in it that are named after a split."""
    if source.is_file():
        return [source]
    paths = sorted(p for p in source.glob("*") if p.suffix.lower() in TEXT_TABLES and split_of(p.stem, config))
    if not paths:
        raise FileNotFoundError(
            f"data set {config.name!r}: no manifest named after a split, such as train.json, in {source}; name one "
            "file as `source`, or the files by `splits`"
        )
    return paths


def find_picture(folder: Path, name: str) -> str:
    """Return the path of a picture whose `name` is relative to the manifest's folder or the one above it."""
    below = folder / name
    return str(below if below.is_file() else folder.parent / name)


def _find_flaw(image, caption) -> str | None:
    if not isinstance(image, str) or not image.strip():
        return "no picture"
    return None if isinstance(caption, str) and re.search(r"\w", caption) else "no caption"


def drop_empty(row: dict) -> dict:
    """Return the cells of a row that hold something."""
    return {
        key: value for key, value in row.items() if isinstance(value, list | dict) or pd.notna(value) and value != ""
    }


def find_split(row: dict, path: Path, config: DatasetConfig) -> str:
    """Return the name of a row's split from its own column, else from the manifest's file name, else ''."""
    own = row.get(config.split_column)
    if isinstance(own, str) and own.strip():
        return own
    return path.stem if split_of(path.stem, config) else ""
