"""List the patches of one data set, whatever its layout on disk, without opening a single picture.

Every reader gives a table with one row a patch: `path` and `row` (where the picture lies: a file of its own has row
-1), `label`, `split` (empty where the data name none), `group` and `id`. Listings are sorted, so that a seeded shuffle
gives the same splits on every file system.
"""

import json
import logging
import os
import re
from pathlib import Path

import h5py
import pandas as pd
import pyarrow.parquet as pq

from histolab_sft.arguments import DatasetConfig
from histolab_sft.data.benchmarks import bach_official_splits

logger = logging.getLogger(__name__)

PATCH_SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".dcm"}
MANIFEST_SUFFIXES = {".csv", ".json", ".jsonl", ".parquet"}
PUBLISHED_SPLITS = {"bach_official": bach_official_splits}
# Taken for the patient or slide where the recipe has no group_by.
GROUP_COLUMNS = ("group", "patient_id", "slide_id", "wsi")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def load_source(config: DatasetConfig, data_dir: str = ".") -> pd.DataFrame:
    """Return the patches of a data set as a table with columns `path, row, label, split, group, id`.

    Raises:
        FileNotFoundError: The source, or a picture that its manifest names, isn't there.
        ValueError: The source holds no patch, or lacks a column that the recipe names.
    """
    source = Path(data_dir, config.source)
    if not source.exists():
        raise FileNotFoundError(f"data set {config.name!r}: {source} doesn't exist; correct `source` or `data_dir`")
    if source.is_file():
        patches = _read_manifest(source, config)
    elif any(source.glob("*_x.h5")):
        patches = _read_hdf5_pairs(source, config)
    elif manifests := _split_manifests(source, config):
        patches = pd.concat(
            [_read_manifest(path, config).assign(split=split) for split, path in manifests.items()], ignore_index=True
        )
    else:
        patches = _read_class_folders(source, config)
    if patches.empty:
        raise ValueError(
            f"data set {config.name!r}: no patch found in {source}; expected class folders with "
            f"{', '.join(sorted(PATCH_SUFFIXES))} files, a manifest, or PCam's *_x.h5 and *_y.h5"
        )
    patches["split"] = patches["split"].map(lambda name: _split_of(name, config))
    if isinstance(config.splits, str):
        patches["split"] = _published_splits(patches, config)
    patches["group"] = _groups(patches, config)
    base = source.parent if source.is_file() else source
    patches["id"] = [
        f"{config.name}/{Path(os.path.relpath(path, base)).as_posix()}" + (f"#{row}" if row >= 0 else "")
        for path, row in zip(patches["path"], patches["row"], strict=True)
    ]
    return patches


def _read_class_folders(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """`source/<LABEL>/*.tif`, or `source/<SPLIT>/<LABEL>/*.tif` where a folder of `source` is a split's name.

    A lone folder that is neither a split nor a label, as archives unpack to, is looked into.
    """
    folders = _subfolders(source)
    while len(folders) == 1 and folders[0].name not in config.class_names and not _split_of(folders[0].name, config):
        source, folders = folders[0], _subfolders(folders[0])
    splits = [folder for folder in folders if _split_of(folder.name, config)]
    rows = []
    for split, parent in [(folder.name, folder) for folder in splits] or [("", source)]:
        for folder in _subfolders(parent):
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in PATCH_SUFFIXES:
                    rows.append((str(path), -1, folder.name, split))
    return pd.DataFrame(rows, columns=["path", "row", "label", "split"])


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _split_manifests(source: Path, config: DatasetConfig) -> dict[str, Path]:
    """Manifests in `source` whose stem is the name of a split, such as `train.parquet` and `valid.parquet`."""
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in MANIFEST_SUFFIXES)
    return {path.stem: path for path in files if _split_of(path.stem, config)}


def _read_manifest(path: Path, config: DatasetConfig) -> pd.DataFrame:
    table = _read_columns(path)
    image_column = config.image_column or next((name for name in ("path", "image") if name in table.columns), None)
    missing = {image_column or "path", config.label_column} - set(table.columns)
    if missing:
        raise ValueError(
            f"data set {config.name!r}: {path} has columns {sorted(table.columns)}, expected {sorted(missing)} too; "
            "name yours with image_column and label_column"
        )
    if path.suffix == ".parquet" and not pd.api.types.is_string_dtype(table[image_column]):
        places, rows = [str(path)] * len(table), range(len(table))
    else:
        places, rows = [str(path.parent / place) for place in table[image_column]], [-1] * len(table)
        gone = [place for place in places if not Path(place).is_file()]
        if gone:
            raise FileNotFoundError(
                f"data set {config.name!r}: {path} names {len(gone)} pictures that aren't there, such as {gone[0]}; "
                "paths are relative to the manifest's folder"
            )
    split = table[config.split_column] if config.split_column in table.columns else ""
    patches = pd.DataFrame({"path": places, "row": rows, "label": table[config.label_column].astype(str)})
    patches["split"] = split
    for column in (config.group_by, *GROUP_COLUMNS):
        if column in table.columns:
            return patches.assign(group=table[column].astype(str))
    return patches


def _read_columns(path: Path) -> pd.DataFrame:
    """Read a manifest, but of a parquet file with pictures inside only the columns beside them."""
    if path.suffix == ".parquet":
        schema = pq.read_schema(path)
        light = [name for name, kind in zip(schema.names, schema.types, strict=True) if not _holds_bytes(kind)]
        table = pq.read_table(path, columns=light).to_pandas()
        for name in set(schema.names) - set(light):
            table[name] = None  # present, and read picture by picture when it is needed
        return table
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    if path.suffix == ".jsonl":
        return pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line])
    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))


def _holds_bytes(kind) -> bool:
    return "binary" in str(kind)


def _read_hdf5_pairs(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """PCam's `*_x.h5` (N, 96, 96, 3) and `*_y.h5` (N, 1, 1, 1); the split is the word before `_x.h5`.

    A label is a position in `class_names`. The slide is the column `wsi` of `*_meta.csv` where that file is there.
    """
    names = list(config.class_names)
    tables = []
    for path in sorted(source.glob("*_x.h5")):
        labels_path = path.with_name(path.name.replace("_x.h5", "_y.h5"))
        if not labels_path.exists():
            raise FileNotFoundError(f"data set {config.name!r}: {path} has no {labels_path.name} beside it; add it")
        with h5py.File(path, "r") as pictures, h5py.File(labels_path, "r") as answers:
            labels, count = answers["y"][()].reshape(-1), len(pictures["x"])
        if len(labels) != count:
            raise ValueError(
                f"data set {config.name!r}: {path.name} holds {count} pictures and {labels_path.name} {len(labels)} "
                "labels, expected as many; download the pair again"
            )
        split = path.name.removesuffix("_x.h5").split("_")[-1]
        unknown = sorted(set(labels.tolist()) - set(range(len(names))))
        if unknown:
            raise ValueError(
                f"data set {config.name!r}: {labels_path.name} holds the labels {unknown}, expected positions in "
                f"class_names (0 to {len(names) - 1}); list every class, in the order of the labels"
            )
        table = pd.DataFrame({"path": str(path), "row": range(count), "label": [names[label] for label in labels]})
        meta = path.with_name(path.name.replace("_x.h5", "_meta.csv"))
        if meta.exists():
            table["group"] = pd.read_csv(meta, usecols=["wsi"], dtype=str)["wsi"]
        tables.append(table.assign(split=split))
    return pd.concat(tables, ignore_index=True)


def _split_of(name: str, config: DatasetConfig) -> str:
    """Return `train`, `validation` or `test` for the data's own word for it, else an empty string."""
    if isinstance(config.splits, dict):
        return next((split for split, own in config.splits.items() if own == name), "")
    return next((split for split, names in SPLIT_NAMES.items() if str(name).lower() in names), "")


def _published_splits(patches: pd.DataFrame, config: DatasetConfig) -> list[str]:
    """Return the split that the publishers gave each patch, or empty strings where the data are not the whole set."""
    try:
        return PUBLISHED_SPLITS[config.splits](patches["path"].tolist())
    except ValueError as error:
        logger.warning("data set %r: %s; its splits are dealt out by seed instead", config.name, error)
        return [""] * len(patches)


def _groups(patches: pd.DataFrame, config: DatasetConfig) -> list[str | None]:
    """Return each patch's patient or slide, from the manifest's column or by the pattern on its path."""
    if "group" in patches.columns:
        return patches["group"].tolist()
    if config.group_by is None:
        return [None] * len(patches)
    groups = []
    for path in patches["path"]:
        match = re.search(config.group_by, path)
        if match is None:
            raise ValueError(
                f"data set {config.name!r}: group_by {config.group_by!r} is no column and doesn't match {path}; "
                "every patch needs its slide or patient"
            )
        groups.append(match[1] if match.re.groups else match[0])
    return groups
