"""Read the index of patches, labels and groups out of each layout on disk, without opening a picture.

Every reader gives a table with `path` and `row` (where the picture lies: a file of its own has row -1), `label`,
`split` (the data's own word, empty where there is none) and, where the data name it, `group`. Listings are sorted.
"""

import json
import tarfile
from pathlib import Path, PurePath

import h5py
import pandas as pd
import pyarrow.parquet as pq

from histolab_sft.data.containers import IMAGE_SUFFIXES, index_tar
from histolab_sft.data.hub_files import is_remote, open_remote, reading
from histolab_sft.dataset_config import DatasetConfig

MANIFEST_SUFFIXES = {".csv", ".json", ".jsonl", ".parquet"}
# Taken for the patient or slide where the recipe has no group_by.
GROUP_COLUMNS = ("group", "patient_id", "slide_id", "wsi")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def split_of(name: str, config: DatasetConfig) -> str:
    """Return `train`, `validation` or `test` for the data's own word for it, else an empty string."""
    if isinstance(config.splits, dict):
        return next((split for split, own in config.splits.items() if own == name), "")
    return next((split for split, names in SPLIT_NAMES.items() if str(name).lower() in names), "")


def read_class_folders(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """`source/<LABEL>/*.tif`, or `source/<SPLIT>/<LABEL>/*.tif` where a folder of `source` is a split's name.

    A lone folder that is neither a split nor a label, as archives unpack to, is looked into.
    """
    folders = _subfolders(source)
    while len(folders) == 1 and folders[0].name not in config.class_names and not split_of(folders[0].name, config):
        source, folders = folders[0], _subfolders(folders[0])
    splits = [folder for folder in folders if split_of(folder.name, config)]
    rows = []
    for split, parent in [(folder.name, folder) for folder in splits] or [("", source)]:
        for folder in _subfolders(parent):
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    rows.append((str(path), -1, folder.name, split))
    return pd.DataFrame(rows, columns=["path", "row", "label", "split"])


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_manifest(path: Path | str, config: DatasetConfig) -> pd.DataFrame:
    """A manifest on disk, or the address of a parquet file on the Hub, which has its pictures inside."""
    with reading(path):
        table = _read_columns(path)
    image_column = config.image_column or next((name for name in ("path", "image") if name in table.columns), None)
    missing = {image_column or "path", config.label_column} - set(table.columns)
    if missing:
        raise ValueError(
            f"data set {config.name!r}: {path} has columns {sorted(table.columns)}, expected {sorted(missing)} too; "
            "name yours with image_column and label_column"
        )
    if PurePath(path).suffix == ".parquet" and not pd.api.types.is_string_dtype(table[image_column]):
        places, rows = [str(path)] * len(table), range(len(table))
    elif is_remote(path):
        raise ValueError(
            f"data set {config.name!r}: {path} names its pictures by path, expected them inside the file to stream; "
            "set streaming: false"
        )
    else:
        places, rows = [str(path.parent / place) for place in table[image_column]], [-1] * len(table)
        gone = [place for place in places if not Path(place).is_file()]
        if gone:
            raise FileNotFoundError(
                f"data set {config.name!r}: {path} names {len(gone)} pictures that aren't there, such as {gone[0]}; "
                "paths are relative to the manifest's folder"
            )
    table = table.assign(path=places, row=list(rows), label=table[config.label_column].astype(str))
    return _name_columns(table, config)


def _read_columns(path: Path | str) -> pd.DataFrame:
    """Read a manifest, but of a parquet file with pictures inside only the columns beside them."""
    if PurePath(path).suffix == ".parquet":
        file = open_remote(path) if is_remote(path) else path
        schema = pq.read_schema(file)
        light = [name for name, kind in zip(schema.names, schema.types, strict=True) if not _holds_bytes(kind)]
        table = pq.read_table(file, columns=light).to_pandas()
        for name, words in _class_labels(schema).items():
            table[name] = [words[value] for value in table[name]]
        for name in set(schema.names) - set(light):
            table[name] = None  # present, and read picture by picture when it is needed
        return table
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    if path.suffix == ".jsonl":
        return pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line])
    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))


def _class_labels(schema) -> dict[str, list[str]]:
    """Return the words of the columns that the library `datasets` stores as numbers (`ClassLabel`)."""
    info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = info.get("info", {}).get("features", {})
    return {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}


def _holds_bytes(kind) -> bool:
    return "binary" in str(kind)


def read_hdf5_pairs(source: Path, config: DatasetConfig) -> pd.DataFrame:
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


def read_shards(paths: list[Path], config: DatasetConfig) -> pd.DataFrame:
    """Tar shards in WebDataset's style: `KEY.png` beside `KEY.cls` (the label) or `KEY.json` (label, group, split).

    A number in `KEY.cls` is a position in `class_names`. The split is the shard's name up to the first `-`, where that
    is one (`train-000.tar`), or the JSON's.
    """
    tables = []
    for path in sorted(paths):
        facts = _read_shard_facts(path, config)
        rows = []
        for row, (name, _, _) in enumerate(index_tar(str(path))):
            key = str(PurePath(name).with_suffix(""))
            if config.label_column not in facts.get(key, {}):
                raise ValueError(
                    f"data set {config.name!r}: {name} in {path} has no label, expected {key}.cls or {key}.json with "
                    f"{config.label_column!r}; write the shard again"
                )
            rows.append({"path": str(path), "row": row, **facts[key]})
        table = pd.DataFrame(rows)
        table["label"] = table[config.label_column].astype(str)
        if config.split_column not in table:
            table[config.split_column] = path.name.split("-")[0]
        tables.append(_name_columns(table, config))
    return pd.concat(tables, ignore_index=True)


def _read_shard_facts(path: Path, config: DatasetConfig) -> dict[str, dict]:
    names, facts = list(config.class_names), {}
    with tarfile.open(path, "r:") as shard:
        for member in shard:
            suffix = PurePath(member.name).suffix.lower()
            if member.isreg() and suffix in (".cls", ".txt", ".json"):
                text = shard.extractfile(member).read().decode()
                entry = facts.setdefault(str(PurePath(member.name).with_suffix("")), {})
                if suffix == ".json":
                    entry |= json.loads(text)
                else:
                    label = text.strip()
                    position = int(label) if label.isdigit() and label not in names else -1
                    entry[config.label_column] = names[position] if 0 <= position < len(names) else label
    return facts


def _name_columns(table: pd.DataFrame, config: DatasetConfig) -> pd.DataFrame:
    """Return the columns that all readers share, under their common names."""
    patches = table[["path", "row", "label"]].copy()
    patches["split"] = table[config.split_column] if config.split_column in table.columns else ""
    for column in (config.group_by, *GROUP_COLUMNS):
        if column in table.columns:
            return patches.assign(group=table[column].astype(str))
    return patches
