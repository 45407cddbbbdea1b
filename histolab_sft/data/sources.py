"""List the patches of one data set, whatever its layout on disk: where each lies, its label, split, group and id."""

import logging
import os
import re
from pathlib import Path, PurePath

import pandas as pd
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from histolab_sft.data.benchmarks import BENCHMARKS, bach_official_splits
from histolab_sft.data.containers import IMAGE_SUFFIXES
from histolab_sft.data.hub_files import list_parquet
from histolab_sft.data.readers import (
    MANIFEST_SUFFIXES,
    read_class_folders,
    read_hdf5_pairs,
    read_manifest,
    read_shards,
    split_of,
)
from histolab_sft.dataset_config import DatasetConfig
from histolab_sft.hub_access import HubAccessError, explain_hub_errors

logger = logging.getLogger(__name__)

PUBLISHED_SPLITS = {"bach_official": bach_official_splits}


def load_source(config: DatasetConfig, data_dir: str = ".") -> pd.DataFrame:
    """Return the patches of a data set as a table with columns `path, row, label, split, group, id`.

    `row` is -1 for a picture in a file of its own, `split` is empty where the data name none. Rows are in sorted
    order, so that a seeded shuffle gives the same splits on every file system.

    Raises:
        FileNotFoundError: The source, or a picture that its manifest names, isn't there.
        HubAccessError: A data set on the Hub can't be had.
        ValueError: The source holds no patch, or lacks a column that the recipe names.
    """
    patches, base = (_read_streamed if config.streaming else _read_on_disk)(config, data_dir)
    patches["split"] = patches["split"].map(lambda name: split_of(name, config))
    if isinstance(config.splits, str):
        patches["split"] = _published_splits(patches, config)
    elif config.splits and (patches["split"] == "").all():
        logger.warning(
            "data set %r: nothing is named %s; its splits are dealt out by seed", config.name, config.splits
        )
    patches["group"] = _groups(patches, config)
    patches["id"] = [
        f"{config.name}/{Path(os.path.relpath(path, base)).as_posix()}" + (f"#{row}" if row >= 0 else "")
        for path, row in zip(patches["path"], patches["row"], strict=True)
    ]
    return patches


def _read_on_disk(config: DatasetConfig, data_dir: str) -> tuple[pd.DataFrame, str]:
    """Return the patches as the reader of their layout lists them, and the folder that their ids start at."""
    source = _find_source(config, data_dir)
    if source.is_file():
        patches = read_shards([source], config) if source.suffix == ".tar" else read_manifest(source, config)
    elif any(source.glob("*_x.h5")):
        patches = read_hdf5_pairs(source, config)
    elif shards := list(source.glob("*.tar")):
        patches = read_shards(shards, config)
    elif manifests := _split_manifests(source, config):
        patches = pd.concat(
            [read_manifest(path, config).assign(split=split) for path, split in manifests.items()], ignore_index=True
        )
    else:
        patches = read_class_folders(source, config)
    if patches.empty:
        raise ValueError(
            f"data set {config.name!r}: no patch found in {source}; expected class folders with "
            f"{', '.join(IMAGE_SUFFIXES)} files, a manifest, tar shards, or PCam's *_x.h5 and *_y.h5"
        )
    return patches, str(source.parent if source.is_file() else source)


def _read_streamed(config: DatasetConfig, data_dir: str) -> tuple[pd.DataFrame, str]:
    """Return the patches in the parquet files of a data set on the Hub, and the address that their ids start at.

    Labels, splits and groups are read, and of the pictures nothing yet.
    """
    if Path(data_dir, config.source).exists():
        raise ValueError(
            f"data set {config.name!r}: {Path(data_dir, config.source)} lies on this disk, expected a data set on the "
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


def _find_source(config: DatasetConfig, data_dir: str) -> Path:
    """Return the source on disk; one that isn't there and reads as a Hub id has its parquet files downloaded."""
    source = Path(data_dir, config.source)
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
        return f"paint it by `python -m histolab_sft.data.synthetic {source.parent}`, or "
    return ""


def _split_manifests(source: Path, config: DatasetConfig) -> dict[Path, str]:
    """Manifests in `source` named after a split, such as `train.parquet` or `valid-00000-of-00002.parquet`."""
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in MANIFEST_SUFFIXES)
    return {path: split for path, split in _name_splits(files, config).items() if split_of(split, config)}


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
