"""List the patches of one data set, whatever its layout on disk, without opening a single picture.

Every reader gives a table with one row a patch: `path` and `row` (where the picture lies: a file of its own has row
-1), `label`, `split` (empty where the data name none), `group` and `id`. Listings are sorted, so that a seeded shuffle
gives the same splits on every file system.
"""

import json
import os
import re
from pathlib import Path

import h5py
import pandas as pd
import pyarrow.parquet as pq

from histolab_sft.arguments import DatasetConfig

PATCH_SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".dcm"}
MANIFEST_SUFFIXES = {".csv", ".json", ".jsonl", ".parquet"}
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
    patches["group"] = _groups(patches, config)
    base = source.parent if source.is_file() else source
    patches["id"] = [
        f"{config.name}/{Path(os.path.relpath(path, base)).as_posix()}" + (f"#{row}" if row >= 0 else "")
        for path, row in zip(patches["path"], patches["row"], strict=True)
    ]
    return patches


def _read_class_folders(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """`source/<LABEL>/*.tif`, or `source/<SPLIT>/<LABEL>/*.tif` where a folder of `source` is a split's name."""
    folders = sorted(folder for folder in source.iterdir() if folder.is_dir())
    splits = [folder for folder in folders if _split_of(folder.name, config)]
    rows = []
    for split, parent in [(folder.name, folder) for folder in splits] or [("", source)]:
        for folder in sorted(folder for folder in parent.iterdir() if folder.is_dir()):
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in PATCH_SUFFIXES:
                    rows.append((str(path), -1, folder.name, split))
    return pd.DataFrame(rows, columns=["path", "row", "label", "split"])


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
    if config.group_by in table.columns:
        patches["group"] = table[config.group_by].astype(str)
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
    """PCam's `*_x.h5` (N, 96, 96, 3) and `*_y.h5` (N, 1, 1, 1); the split is the word before `_x.h5`."""
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
        table = pd.DataFrame({"row": range(count), "label": labels.astype(int).astype(str)})
        tables.append(table.assign(path=str(path), split=split))
    return pd.concat(tables, ignore_index=True)[["path", "row", "label", "split"]]


def _split_of(name: str, config: DatasetConfig) -> str:
    """Return `train`, `validation` or `test` for the data's own word for it, else an empty string."""
    if config.splits is not None:
        return next((split for split, own in config.splits.items() if own == name), "")
    return next((split for split, names in SPLIT_NAMES.items() if str(name).lower() in names), "")


def _groups(patches: pd.DataFrame, config: DatasetConfig) -> list[str | None]:
    """Return each patch's patient or slide, from the manifest's column or by the pattern on its path."""
    if config.group_by is None:
        return [None] * len(patches)
    if "group" in patches.columns:
        return patches["group"].tolist()
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
