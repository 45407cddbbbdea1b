"""Read the labels and groups of patches from manifests, HDF5 files and tar shards, without opening a picture.

Every reader gives a table in sorted order with the columns `path` and `row` (-1: the file is the picture), `label`,
`split` (the data's own name for it, empty where there is none) and, where the data have them, `column` (or key, that
holds the picture inside the file), `group`, and what parts the test split (`part_column`).
"""

import json
import tarfile
from pathlib import Path, PurePath

import h5py
import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.scoring import Part, list_parts
from histolab_sft.data.formats.listing import find_as_spelled, is_side_file, list_visible
from histolab_sft.data.formats.tables import (
    COLUMN_TABLES,
    TEXT_TABLES,
    list_picture_columns,
    read_columns,
    read_json,
    read_table,
)
from histolab_sft.data.formats.words import (
    GROUP_COLUMNS,
    find_split_column,
    read_group,
    read_label,
    read_word,
    split_of,
    suggest_block,
    words_of_files,
)
from histolab_sft.data.pictures.containers import index_tar, unpack_shard
from histolab_sft.data.pictures.hdf5_arrays import find_array, open_hdf5
from histolab_sft.data.pictures.hub_files import is_remote, reading
from histolab_sft.data.pictures.npz_arrays import LABELS, PICTURES, list_arrays, read_labels
from histolab_sft.errors import say_count

# Of a manifest, where the recipe has no image_column. `file_name` is the one of imagefolder's metadata.
PICTURE_COLUMNS = ("path", "image", "file_name")
MANIFEST_SUFFIXES = (*TEXT_TABLES, *COLUMN_TABLES)
HDF5_SUFFIXES = (".h5", ".hdf5")
NPZ = ".npz"
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
METADATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
# What `save_to_disk` writes beside the pictures.
SAVED_NOTES = ("state.json", "dataset_info.json")


def read_manifest(path: Path | str, config: DatasetConfig) -> pd.DataFrame:
    """Read a table that names files of pictures or holds the pictures; on disk, or a parquet file on the Hub."""
    table = _read_any(path, config)
    inside = list_picture_columns(path, table)
    # Where a row has both, the picture itself rather than the path of where it once lay.
    usual = [name for names in (inside, table.columns) for name in PICTURE_COLUMNS if name in names]
    image_column = config.image_column or next(iter(usual), None)
    label_column = [] if config.label_by else [config.label_column]
    missing = {image_column or "path", *label_column} - set(table.columns)
    if missing:
        raise ValueError(
            f"data set {config.name!r}: {path} has columns {sorted(table.columns)}, expected {sorted(missing)} too; "
            "name yours with image_column and label_column"
        )
    if image_column in inside:
        paths, rows = [str(path)] * len(table), range(len(table))
    elif is_remote(path):
        raise ValueError(
            f"data set {config.name!r}: {path} names its pictures by path, expected them inside the file to stream; "
            "set streaming: false"
        )
    else:
        paths, rows = _find_pictures(path, table[image_column], config), [-1] * len(table)
    table = table.assign(path=paths, row=list(rows), column=image_column)
    table["label"] = "" if config.label_by else [read_label(value, config) for value in table[config.label_column]]
    return _name_columns(table, config)


def list_metadata(folder: Path, config: DatasetConfig) -> list[Path]:
    """Return the files `metadata.csv` and the like anywhere below a folder that name pictures and their labels.

    That is the layout `imagefolder` of the library `datasets`: the table stands beside its pictures.
    """
    ends = tuple(f"metadata{suffix}" for suffix in METADATA_SUFFIXES)
    paths = [folder / name for name in list_visible(folder) if name.lower().endswith(ends)]
    return [path for path in paths if path.stem.lower() == "metadata" and lists_pictures(path, config)]


def lists_pictures(path: Path, config: DatasetConfig) -> bool:
    """Whether a table has the columns of a manifest, pictures and labels."""
    names = set(_read_any(path, config).columns)
    pictures = {config.image_column} if config.image_column else set(PICTURE_COLUMNS)
    return bool(names & pictures) and (config.label_by is not None or config.label_column in names)


def read_metadata(path: Path, folder: Path, config: DatasetConfig) -> pd.DataFrame:
    """Return what `read_manifest` does; a table without a split column has the split of the folder it lies in."""
    table = read_manifest(path, config)
    folders = [name for name in path.relative_to(folder).parts[:-1] if split_of(name, config)]
    understood = table["split"].map(lambda word: split_of(word, config) != "")
    return table.assign(split=folders[0]) if folders and not understood.all() else table


def list_saved(folder: Path) -> dict[Path, dict[str, str]]:
    """Return the Arrow files of what `save_to_disk` wrote, with `split` where it was a `DatasetDict`.

    Raises:
        ValueError: It was saved in part, or the rows are in another order than in the files.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json")["splits"]
        return {path: {"split": split} for split in splits for path in list_saved(folder / split)}
    if not (folder / "state.json").is_file() or not any(folder.glob("*.arrow")):
        return {}
    state = read_json(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise ValueError(f"{folder} holds a selection of rows, expected whole files; save it again with `datasets`")
    return {folder / file["filename"]: {} for file in state["_data_files"]}


def list_tables(folder: Path) -> list[Path]:
    """Return the files in a folder that are tables by their names, sorted."""
    kinds = (*MANIFEST_SUFFIXES, *HDF5_SUFFIXES)
    paths = [path for path in folder.iterdir() if path.suffix.lower() in kinds and path.is_file()]
    return sorted(path for path in paths if not is_side_file(path.name))


def suggest_sources(folder: Path, config: DatasetConfig) -> str:
    """Return the end of an error about a folder that isn't read: files in it that may be the data set themselves."""
    paths = list_tables(folder)
    block = suggest_block([path.stem for path in paths], config) if len(paths) > 1 else ""
    parts = f"; or, if each file is a part, say of which split, such as {block}" if block else ""
    return f"; or name a file by source: {Path(config.source, paths[0].name)}{parts}" if paths else ""


def _read_any(path: Path | str, config: DatasetConfig) -> pd.DataFrame:
    try:
        with reading(path):
            return read_columns(path) if PurePath(path).suffix.lower() in COLUMN_TABLES else read_table(path)
    except ValueError as error:
        raise ValueError(f"data set {config.name!r}: {error}") from error


def _find_pictures(manifest: Path, names: pd.Series, config: DatasetConfig) -> list[str]:
    empty = names.isna() | (names == "")
    if empty.any():
        raise ValueError(
            f"data set {config.name!r}: {manifest} has {say_count(empty.sum(), 'row')} without a picture, expected "
            "one each; take them out"
        )
    paths = [find_as_spelled(str(manifest.parent / str(name))) for name in names]
    gone = [path for path in paths if not Path(path).is_file()]
    if gone:
        raise FileNotFoundError(
            f"data set {config.name!r}: {manifest} names {say_count(len(gone), 'picture')} not there, such as "
            f"{gone[0]}; paths are relative to the manifest's folder"
        )
    return paths


def read_hdf5_pairs(paths: list[Path], config: DatasetConfig) -> list[pd.DataFrame]:
    """PCam's `*_x.h5` (N, 96, 96, 3) and `*_y.h5` (N, 1, 1, 1); the split is the word before `_x.h5`.

    A label is a position in `class_names`. The slide is the column `wsi` of `*_meta.csv` where that file is there.
    """
    names, paths = list(config.class_names), sorted(paths)
    words = words_of_files([path.name.removesuffix("_x.h5").split("_")[-1] for path in paths], config)
    tables = []
    for path, split in zip(paths, words, strict=True):
        labels_path = path.with_name(path.name.replace("_x.h5", "_y.h5"))
        if not labels_path.exists():
            raise FileNotFoundError(f"data set {config.name!r}: {path} has no {labels_path.name} beside it; add it")
        with open_hdf5(path) as pictures, open_hdf5(labels_path) as answers:
            labels, count = find_array(answers, "y", whole=True)[()].reshape(-1), len(find_array(pictures, "x"))
        if len(labels) != count:
            raise ValueError(
                f"data set {config.name!r}: {path.name} holds {count} pictures and {labels_path.name} {len(labels)} "
                "labels, expected as many; download the pair again"
            )
        unknown = sorted(set(labels.tolist()) - {*range(-1, len(names))})
        if unknown:
            raise ValueError(
                f"data set {config.name!r}: {labels_path.name} holds the labels {unknown}, expected positions in "
                f"class_names (0 to {len(names) - 1}), or -1 for none; list every class, in the order of the labels"
            )
        named = [names[label] if label >= 0 else None for label in labels]
        table = pd.DataFrame({"path": str(path), "row": range(count), "label": named})
        table["column"] = "x"
        meta = path.with_name(path.name.replace("_x.h5", "_meta.csv"))
        if meta.exists():
            facts = pd.read_csv(meta, dtype=str)
            table["group"] = facts["wsi"].map(read_group)
            table = table.assign(**_name_parts(facts, config))
        tables.append(table.assign(split=split))
    return tables


def read_hdf5(path: Path, config: DatasetConfig) -> pd.DataFrame:
    """One HDF5 file with an array of pictures (N, H, W, 3) and arrays of N values, named as a manifest's columns.

    A number as label is a position in `class_names` where no class has that name.
    """
    pictures = config.image_column or "image"
    with open_hdf5(path) as file:
        arrays = {}
        file.visititems(lambda name, item: arrays.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        missing = [name for name in (pictures, config.label_column) if name not in arrays]
        if missing:
            found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "no array"
            raise ValueError(
                f"data set {config.name!r}: {path} holds {found}, expected {', '.join(missing)}; name the keys of "
                "pictures and labels with image_column and label_column"
            )
        shape, count = arrays[pictures].shape, len(arrays[config.label_column])
        if len(shape) != 4 or shape[0] != count:
            raise ValueError(
                f"data set {config.name!r}: {path} has {pictures} {shape} and {count} of {config.label_column}, "
                "expected pictures (N, height, width, 3) and N labels; correct image_column and label_column"
            )
        table = pd.DataFrame({name: _read_values(array) for name, array in arrays.items() if array.size == count})
    table["label"] = [read_label(name_label(value, config), config) for value in table[config.label_column]]
    table = table.assign(path=str(path), row=range(count), column=pictures)
    return _name_columns(table, config)


def read_npz(path: Path, config: DatasetConfig) -> pd.DataFrame:
    """MedMNIST's `SPLIT_images` (N, H, W, 3) or (N, H, W) and `SPLIT_labels` (N, 1) in one .npz file.

    A number as label is a position in `class_names` where no class has that name.
    """
    shapes, tables = list_arrays(path), []
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "no array"
    for pictures in [name for name in shapes if name.endswith(PICTURES)]:
        split = pictures.removesuffix(PICTURES)
        count, labels = shapes[pictures][0], shapes.get(split + LABELS)
        if labels not in ((count,), (count, 1)):
            raise ValueError(
                f"data set {config.name!r}: {path} holds {found}, expected one label a picture of {pictures} in "
                f"{split + LABELS}; take a data set with one label a picture, or correct the file"
            )
        values = read_labels(path, split + LABELS).reshape(-1).tolist()
        named = [read_label(name_label(value, config), config) for value in values]
        tables.append(pd.DataFrame({"label": named, "split": split}))
    if not tables:
        raise ValueError(
            f"data set {config.name!r}: {path} holds {found}, expected arrays as MedMNIST's: train{PICTURES}, "
            f"train{LABELS} and so on; name them so, or write HDF5"
        )
    table = pd.concat(tables, ignore_index=True)
    return table.assign(path=str(path), row=range(len(table)))


def _read_values(array: h5py.Dataset) -> list:
    array = find_array(array.file, array.name.strip("/"), whole=True)
    return (array.asstr() if h5py.check_string_dtype(array.dtype) else array)[()].reshape(-1).tolist()


def name_label(value: object, config: DatasetConfig) -> str:
    """Return the label that a value stands for: itself, or the class at that position where no class has its name."""
    names, text = list(config.class_names), str(value).strip()
    position = int(text) if text.isdecimal() and text not in names else len(names)
    return names[position] if position < len(names) else text


def read_shards(paths: list[Path], config: DatasetConfig) -> pd.DataFrame:
    """Tar shards in WebDataset's style: `KEY.png` beside `KEY.cls` (the label) or `KEY.json` (label, group, split).

    KEY is the name up to its last dot, or where nothing has that key up to the first, as WebDataset has it. A number
    in `KEY.cls` is a position in `class_names`. The split is the shard's name up to the first `-`, where that is one
    (`train-000.tar`), or the JSON's.
    """
    tables, paths = [], sorted(paths)
    words = words_of_files([path.name.split(".")[0].split("-")[0] for path in paths], config)
    for path, word in zip(paths, words, strict=True):
        rows = []
        try:
            facts = _read_shard_facts(path, config)
            names = [name for name, _, _ in index_tar(str(path))]
        except (OSError, ValueError, tarfile.TarError) as error:
            raise ValueError(f"data set {config.name!r}: {path}: {error}; write the shard again") from error
        for row, name in enumerate(names):
            keys = _name_keys(name)
            found = [facts[key] for key in keys if key in facts][:1]
            # A short key that several pictures share, with different facts, belongs to none of them.
            if len(found) != 1 or len(found[0]) != 1 or config.label_column not in found[0][0]:
                raise ValueError(
                    f"data set {config.name!r}: {name} in {path} has no label, expected {keys[0]}.cls or "
                    f"{keys[0]}.json with {config.label_column!r} (label_column); write the shard again, or unpack it "
                    "where its folders are the classes"
                )
            rows.append({"path": str(path), "row": row, **found[0][0]})
        table = pd.DataFrame(rows, columns=None if rows else ["path", "row", config.label_column])
        table["label"] = [read_label(value, config) for value in table[config.label_column]]
        if find_split_column(table, config) is None:
            table[config.split_column] = word
        tables.append(_name_columns(table, config))
    return pd.concat(tables, ignore_index=True)


def _name_keys(name: str) -> list[str]:
    """Return the keys that a member of a shard may have: its name up to the last dot, and up to the first."""
    path = PurePath(name)
    return list(dict.fromkeys([str(path.with_suffix("")), str(path.with_name(path.name.split(".")[0]))]))


def _read_shard_facts(path: Path, config: DatasetConfig) -> dict[str, list[dict]]:
    """Return key -> the facts in a shard; under a short key (`_name_keys`), those of each long key it stands for."""
    facts, long = {}, {}
    with tarfile.open(unpack_shard(str(path)), "r:") as shard:
        for member in shard:
            suffix = PurePath(member.name).suffix.lower()
            if member.isreg() and suffix in (".cls", ".txt", ".json"):
                text = shard.extractfile(member).read().decode()
                key = _name_keys(member.name)[0]
                told = json.loads(text) if suffix == ".json" else {config.label_column: name_label(text, config)}
                facts.setdefault(key, {}).update(told)
                long.setdefault(_name_keys(member.name)[-1], {})[key] = facts[key]
    merged = {key: list(told.values()) for key, told in long.items()}
    # Facts of one sample may be in several files, such as `KEY.label.cls` and `KEY.meta.json`.
    short = {key: _merge(told) for key, told in merged.items()}
    return short | {key: [told] for key, told in facts.items()}


def _merge(told: list[dict]) -> list[dict]:
    whole = {}
    for part in told:
        if any(key in whole and whole[key] != value for key, value in part.items()):
            return told
        whole |= part
    return [whole]


def _name_columns(table: pd.DataFrame, config: DatasetConfig) -> pd.DataFrame:
    """Return the columns of a reader's table (see the head of this file), from a table with the data's own columns."""
    patches = table[[name for name in ("path", "row", "column", "label") if name in table.columns]].copy()
    column = find_split_column(table, config)
    patches["split"] = "" if column is None else [read_word(value) or "" for value in table[column]]
    patches = patches.assign(**_name_parts(table, config))
    for column in (config.group_by, *GROUP_COLUMNS):
        if column in table.columns:
            return patches.assign(group=[read_group(value) for value in table[column]])
    return patches


def part_column(part: Part) -> str:
    """Return the column of a reader's table that holds what parts the test split."""
    return f"part {part.name}"


def _name_parts(table: pd.DataFrame, config: DatasetConfig) -> dict[str, list]:
    """Return the cells of sites and subgroups that a table has a column for."""
    return {part_column(part): table[part.by].tolist() for part in list_parts(config) if part.by in table.columns}
