"""List the patches of one data set, whatever its layout on disk: where each lies, its label, split, group and id."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path, PurePath
from unicodedata import normalize

import pandas as pd
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.patterns import search
from histolab_sft.config.scoring import Part
from histolab_sft.data.formats.class_folders import read_class_folders
from histolab_sft.data.formats.listing import (
    count_unread,
    describe_files,
    find_as_spelled,
    is_side_file,
    list_some,
    list_visible,
    tell_unread,
)
from histolab_sft.data.formats.readers import (
    HDF5_SUFFIXES,
    MANIFEST_SUFFIXES,
    NPZ,
    SAVED_NOTES,
    SHARD_SUFFIXES,
    list_metadata,
    list_saved,
    list_tables,
    lists_pictures,
    read_hdf5,
    read_hdf5_pairs,
    read_manifest,
    read_metadata,
    read_npz,
    read_shards,
    suggest_sources,
)
from histolab_sft.data.formats.sites import read_parts
from histolab_sft.data.formats.tables import COLUMN_TABLES
from histolab_sft.data.formats.words import question_groups, split_of
from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES
from histolab_sft.data.pictures.hub_files import list_parquet
from histolab_sft.data.public.benchmarks import BENCHMARKS, bach_official_splits
from histolab_sft.hub_access import HubAccessError, explain_hub_errors
from histolab_sft.tasks.classification import NAME as CLASSIFICATION

logger = logging.getLogger(__name__)

PUBLISHED_SPLITS = {"bach_official": bach_official_splits}


def read_patches(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """Return one row a patch of a data set of classes, whatever its layout, with the columns of every reader.

    `answer` is the label and `group` the patient or slide, None where the data tell none; `split` is the data's own
    word, or the published split that the recipe names. `row` of a picture is -1 in a file of its own, else `column` is
    the column or key that holds it. Rows are in sorted order, so that a seeded shuffle gives the same splits on every
    file system. `attrs["not_read"]` counts by kind the files below a source that no row comes from.

    Raises:
        FileNotFoundError: The source, or a picture that its manifest names, isn't there.
        HubAccessError: A data set on the Hub can't be had.
        ValueError: The source holds no patch, or lacks a column that the recipe names.
    """
    patches, base = (_read_streamed if config.streaming else _read_on_disk)(source, config)
    not_read = patches.attrs.get("not_read", {})
    if isinstance(config.splits, str):
        patches["split"] = _published_splits(patches, config)
    places = _name_places(patches["path"].tolist(), base)
    if config.label_by:
        if (patches["row"] >= 0).any():
            raise ValueError(
                f"data set {config.name!r} has label_by and pictures inside of {patches['path'].iloc[0]}, expected "
                "pictures in files of their own; remove label_by and name the labels by label_column"
            )
        patches["label"] = _match_all(config.label_by, places, "label_by", "", "class", config)
    patches["group"] = _groups(patches, places, config)
    for column in ("label", "group"):  # pandas would make NaN, and of whole columns of it numbers, of what is None
        patches[column] = patches[column].astype(object).where(patches[column].notna(), None)
    question_groups(patches, config)

    def match(part: Part) -> list[str]:
        return _match_all(part.by, places, part.key, "is no column and ", part.name, config)

    parts = read_parts(patches, match, config)
    if "column" not in patches:
        patches["column"] = "image"
    patches["id"] = [
        f"{config.name}/{place}" + (f"#{row}" if row >= 0 else "")
        for place, row in zip(_find_places(patches["path"], base), patches["row"], strict=True)
    ]
    rows = patches[["split", "group", "id"]].assign(
        **parts,
        images=[[place] for place in patches[["path", "row", "column"]].to_dict("records")],
        task=CLASSIFICATION,
        ask=[{}] * len(patches),
        answer=patches["label"],
        inverted=False,
    )
    rows.attrs = {"not_read": not_read}
    return rows


def _read_on_disk(source: Path, config: DatasetConfig) -> tuple[pd.DataFrame, str]:
    """Return the patches as the reader of their layout lists them, and the folder that their ids start at."""
    source = _find_source(source, config)
    if source.is_file():
        return _read_file(source, config), str(source.parent)
    patches, tables = _read_folder(source, config)
    if patches.empty:
        raise ValueError(
            f"data set {config.name!r}: no patch found in {source}: {describe_files(source, list_visible(source))}; "
            f"expected class folders with {', '.join(IMAGE_SUFFIXES)} files, manifests named after the splits, tar "
            f"shards, parquet, HDF5 or .npz files, or PCam's *_x.h5 and *_y.h5{suggest_sources(source, config)}"
        )
    patches.attrs["not_read"] = tell_unread(count_unread(source, [*patches["path"], *map(str, tables)]), config.name)
    return patches, str(source)


def _read_file(path: Path, config: DatasetConfig) -> pd.DataFrame:
    suffix = path.suffix.lower()
    if path.name.lower().endswith(SHARD_SUFFIXES):
        return read_shards([path], config)
    if suffix in HDF5_SUFFIXES:
        return read_hdf5(path, config)
    if suffix == NPZ:
        return read_npz(path, config)
    if suffix in MANIFEST_SUFFIXES:
        return read_manifest(path, config)
    raise ValueError(
        f"data set {config.name!r}: source {path} is a {suffix or 'nameless'} file, expected a folder or one of "
        f"{', '.join((*MANIFEST_SUFFIXES, *HDF5_SUFFIXES, NPZ, *SHARD_SUFFIXES))}; unpack or convert it"
    )


def _read_folder(source: Path, config: DatasetConfig) -> tuple[pd.DataFrame, list[Path]]:
    """Return the patches of a folder, and the files beside theirs that were read for them."""
    folder = source
    while True:
        if listed := _read_listed(folder, config):
            tables, notes = listed
            return pd.concat(tables, ignore_index=True), notes
        folders = [path for path in folder.iterdir() if path.is_dir() and not is_side_file(path.name)]
        if len(folders) != 1 or folders[0].name in config.class_names or split_of(folders[0].name, config):
            return read_class_folders(source, config), []
        folder = folders[0]  # as archives unpack to


def _read_listed(folder: Path, config: DatasetConfig) -> tuple[list[pd.DataFrame], list[Path]] | None:
    """Return the patches that tables in a folder list or hold, and the files beside theirs; None without tables."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not is_side_file(path.name))
    if pairs := [path for path in files if path.name.endswith("_x.h5")]:
        return read_hdf5_pairs(pairs, config), [p for p in files if p.name.endswith(("_y.h5", "_meta.csv"))]
    if arrays := [path for path in files if path.suffix.lower() == NPZ]:
        return [read_npz(path, config) for path in arrays], []
    if shards := [path for path in files if path.name.lower().endswith(SHARD_SUFFIXES)]:
        return [read_shards(shards, config)], []
    if saved := list_saved(folder):
        return [read_manifest(path, config).assign(**given) for path, given in saved.items()], [
            path for path in files if path.suffix == ".json"
        ] + [path.parent / name for path in saved for name in SAVED_NOTES]
    if manifests := _split_manifests(folder, config):
        return [_read_file(path, config).assign(split=split) for path, split in manifests.items()], [*manifests]
    if metadata := list_metadata(folder, config):
        return [read_metadata(path, folder, config) for path in metadata], metadata
    return None


def _read_streamed(source: Path, config: DatasetConfig) -> tuple[pd.DataFrame, str]:
    """Return the patches in the parquet files of a data set on the Hub, and the address that their ids start at.

    Labels, splits and groups are read, and of the pictures nothing yet.
    """
    if source.exists():
        raise ValueError(
            f"data set {config.name!r}: {source} lies on this disk, expected a data set on the "
            "Hub to stream; remove streaming"
        )
    addresses = list_parquet(config.source)
    splits = {address: split for address, split in _name_splits(addresses, config).items() if split_of(split, config)}
    if not splits:
        raise ValueError(
            f"data set {config.name!r}: found {[PurePath(address).name for address in addresses]} on the Hub, "
            "expected parquet files named after their split, such as train-00000-of-00002.parquet; give their names "
            "by splits"
        )
    logger.info("data set %r: %d files are streamed from the Hub, nothing is kept on disk", config.name, len(splits))
    tables = [read_manifest(address, config).assign(split=split) for address, split in splits.items()]
    return pd.concat(tables, ignore_index=True), addresses[0].rpartition("/")[0]


def _find_source(source: Path, config: DatasetConfig) -> Path:
    """Return the source on disk; one that isn't there and reads as a Hub id has its parquet files downloaded."""
    source = Path(find_as_spelled(str(source)))
    if source.exists():
        return source
    try:
        validate_repo_id(config.source)
    except HFValidationError:
        hub_id = False
    else:
        hub_id = config.source.count("/") == 1 and not Path(config.source).parent.exists()
    if not hub_id:
        raise FileNotFoundError(
            f"data set {config.name!r}: {source} doesn't exist; {_say_where_from(source)}correct `source` or "
            "`data_dir`"
        )
    try:
        with explain_hub_errors(config.source, "dataset"):
            folder = Path(snapshot_download(config.source, repo_type="dataset", allow_patterns=["*.parquet"]))
    except HubAccessError as error:
        raise HubAccessError(
            f"data set {config.name!r}: {source} isn't on this disk, and on the Hub {error}"
        ) from None
    return folder / "data" if (folder / "data").is_dir() else folder


def _say_where_from(source: Path) -> str:
    """Return how data that this project can bring are had, for a source that lies where they would."""
    if source.parent.name == "datasets" and source.name in BENCHMARKS:
        return f"download it by `make data DATASETS={source.name}`, or "
    if source.parent.name == "synthetic":
        return f"paint it by `python recipes/paint_patches.py {source.parent}`, or "
    return ""


def _split_manifests(source: Path, config: DatasetConfig) -> dict[Path, str]:
    """Return the tables in `source` that belong to a split, with the data's word for it.

    They are named after it, such as `train.csv` or `valid-00000-of-00002.parquet`, or hold pictures and lie in its
    folder, such as `train/0000.parquet`.

    Raises:
        ValueError: Beside them is a file of pictures whose split nothing tells.
    """
    files = list_tables(source)
    named = {path: split for path, split in _name_splits(files, config).items() if split_of(split, config)}
    holders = (*COLUMN_TABLES, *HDF5_SUFFIXES)
    for folder in source.iterdir():
        if folder.is_dir() and split_of(folder.name, config):
            inside = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in holders]
            named |= {path: folder.name for path in inside if not is_side_file(path.name)}
    strange = []
    if named and not isinstance(config.splits, dict):
        others = [path for path in files if path not in named]
        strange = [path.name for path in others if path.suffix.lower() in holders or lists_pictures(path, config)]
    if strange:
        raise ValueError(
            f"data set {config.name!r}: {source} has {list_some(strange)} beside "
            f"{list_some([path.name for path in named])}, and nothing says of which split; name the files of every "
            "split by `splits`, and what it doesn't name is left out"
        )
    return named


def _name_splits(files: list[Path] | list[str], config: DatasetConfig) -> dict[Path | str, str]:
    """Return the data's word for the split of each file: its name, where that is one, else up to the first `-`."""
    stems = {file: PurePath(file).stem for file in files}
    return {file: stem if split_of(stem, config) else stem.split("-")[0] for file, stem in stems.items()}


def _published_splits(patches: pd.DataFrame, config: DatasetConfig) -> list[str]:
    """Return the split that the publishers gave each patch, or empty strings where the data are not the whole set."""
    try:
        return PUBLISHED_SPLITS[config.splits](patches["path"].tolist())
    except ValueError as error:
        logger.warning("data set %r: %s; its splits are dealt out by seed instead", config.name, error)
        return [""] * len(patches)


def _groups(patches: pd.DataFrame, places: list[str], config: DatasetConfig) -> list[str | None]:
    """Return each patch's patient or slide, from the manifest's column or by the pattern on its path."""
    if "group" in patches.columns:
        return patches["group"].tolist()
    if config.group_by is None:
        return [None] * len(patches)
    return _match_all(config.group_by, places, "group_by", "is no column and ", "slide or patient", config)


def _match_all(
    pattern: str, places: list[str], key: str, no_column: str, meaning: str, config: DatasetConfig
) -> list[str]:
    """Return what the first group of `pattern`, or the whole of it, matches in each path below the source."""
    matches = [search(pattern, normalize("NFC", place)) for place in places]
    found = [match and (match[1] if match.re.groups else match[0]) for match in matches]
    strange = [place for place, value in zip(places, found, strict=True) if value is None]
    if strange:
        raise ValueError(
            f"data set {config.name!r}: {key} {pattern!r} {no_column}doesn't match {len(strange)} of {len(places)} "
            f"paths below source, such as {strange[0]}; every patch needs its {meaning}, so correct {key}, or move "
            "what isn't meant elsewhere"
        )
    return found


def _name_places(paths: list[str], base: str) -> list[str]:
    """Return each path as patterns see it: below `base`, or those outside of it below the folder that they share."""
    places = dict(zip(paths, _find_places(paths, base), strict=True))
    outside = [path for path, place in places.items() if place.startswith("../")]
    if outside:
        shared = os.path.commonpath([os.path.dirname(path) for path in outside])
        places |= dict(zip(outside, _find_places(outside, shared), strict=True))
    return [places[path] for path in paths]


def _find_places(paths: Iterable[str], base: str) -> list[str]:
    """Return paths as seen from the folder `base`."""
    start = os.path.join(base, "")
    return [
        path.removeprefix(start) if path.startswith(start) and ".." not in path else os.path.relpath(path, base)
        for path in paths
    ]
