"""Read the patches of folders whose names, or whose files' names, say what the patches show."""

import logging
import os
import re
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

import pandas as pd

from histolab_sft.config.dataset import SPLITS, DatasetConfig
from histolab_sft.data.formats.listing import (
    OTHER_PICTURES,
    count_kinds,
    is_picture,
    list_some,
    list_visible,
)
from histolab_sft.data.formats.readers import suggest_sources
from histolab_sft.data.formats.words import split_of
from histolab_sft.errors import say_count

logger = logging.getLogger(__name__)

Paths = dict[str, tuple[str, ...]]
ELSEWHERE = (
    "if the class stands elsewhere in the path, tell it by label_by, such as label_by: '([^/]+)/[^/]+$' for the last "
    "folder"
)


def read_class_folders(source: Path, config: DatasetConfig) -> pd.DataFrame:
    """`LABEL/…/*.tif`, `SPLIT/LABEL/…/*.tif` or `LABEL/SPLIT/…/*.tif`, to any depth below the label.

    A folder that holds all the pictures and is neither a split nor a label, as archives unpack to, is looked into.
    With `label_by` pictures may lie anywhere, and labels are left for that pattern to find.

    Raises:
        ValueError: There are pictures here that no row would have: beside the class folders, in a folder beside those
            of the splits, or of another format; or no folder has the name of a class.
    """
    places = list_visible(source)
    pictures = [place for place in places if is_picture(place)]
    if not pictures:
        return pd.DataFrame(columns=["path", "row", "label", "split"])
    _refuse_other_pictures(source, places, config)
    _refuse_unreadable_names(source, pictures, config)
    folders = {place: tuple(place.split("/")) for place in pictures}
    base = () if config.label_by else _find_base(source, folders, config)
    _refuse_loose([place for place, parts in folders.items() if parts[: len(base)] != base], source, config)
    # Of each picture, what its path below the base is made of.
    paths = {place: parts[len(base) :] for place, parts in folders.items()}
    tops = sorted({parts[0] for parts in paths.values() if len(parts) > 1})
    splits = [top for top in tops if split_of(top, config)]
    if splits:
        paths = _leave_out_others(source, paths, splits, [top for top in tops if top not in splits], config)
    labels = [""] * len(paths) if config.label_by else _name_labels(source, paths, bool(splits), config)
    find_split = lru_cache(maxsize=None)(lambda names: next((name for name in names if split_of(name, config)), ""))
    start = os.path.join(str(source), "") if str(source) != "." else ""
    rows = [
        # The first folder that is a split's: above the class, or below it.
        (start + place, -1, label, find_split(paths[place][:-1]))
        for place, label in zip(paths, labels, strict=True)
    ]
    return pd.DataFrame(rows, columns=["path", "row", "label", "split"])


def _find_base(source: Path, folders: Paths, config: DatasetConfig) -> tuple[str, ...]:
    """Return the folders below `source`, one in the other, that the class folders or the splits lie in."""
    base = ()
    while True:
        depth = len(base)
        below = {parts[depth:][:3] for parts in folders.values() if parts[:depth] == base}
        tops = {parts[0] for parts in below if len(parts) > 1}
        lone = next(iter(tops)) if len(tops) == 1 else None
        known = lone is not None and (_is_class(lone, config) or split_of(lone, config))
        if lone is None or known or all(len(parts) < 3 for parts in below if parts[0] == lone):
            break
        base = (*base, lone)
    if base:
        logger.info("data set %r: reads the folders in %s", config.name, source.joinpath(*base))
    return base


def _leave_out_others(
    source: Path, paths: Paths, splits: list[str], others: list[str], config: DatasetConfig
) -> Paths:
    """Return the pictures in the folders of splits; others are left out only where `splits` chooses among them."""
    loose = [place for place, parts in paths.items() if len(parts) == 1]
    if loose:
        raise ValueError(
            f"data set {config.name!r}: {say_count(len(loose), 'picture')} beside the folders of splits in {source}, "
            f"such as {loose[0]}; move {'it' if len(loose) == 1 else 'them'} into a split or elsewhere"
        )
    if others and not isinstance(config.splits, dict):
        inside = sum(parts[0] in others for parts in paths.values())
        block = {split_of(name, config): name for name in splits}
        block = {split: block[split] for split in SPLITS if split in block}
        free = next((split for split in SPLITS if split not in block), "test")
        named = ", ".join(f"{split}: {name}" for split, name in (block | {free: others[0]}).items())
        raise ValueError(
            f"data set {config.name!r}: {say_count(len(others), 'folder')} with {inside} pictures beside "
            f"{' and '.join(splits)} in {source}, and nothing says of which split: {list_some(others)}; name every "
            f"split, such as splits: {{{named}}}; what `splits` doesn't name is left out"
        )
    return {place: parts for place, parts in paths.items() if parts[0] in splits}


def _name_labels(source: Path, paths: Paths, with_splits: bool, config: DatasetConfig) -> list[str]:
    """Return the name of the first folder, below its split's where there are splits, that each picture lies in."""
    depth = int(with_splits)
    loose = [place for place, parts in paths.items() if len(parts) < depth + 2]
    names = {parts[depth]: normalize("NFC", parts[depth]) for parts in paths.values()}
    folders = sorted({names[parts[depth]] for parts in paths.values() if len(parts) > depth + 1})
    if folders and not any(_is_class(folder, config) for folder in folders):
        raise ValueError(
            f"data set {config.name!r}: no folder in {source} has the name of a class: found {list_some(folders)}, "
            f"expected {list_some(list(config.class_names))}; correct class_names, name splits by `splits`, or "
            f"{ELSEWHERE}{suggest_sources(source, config)}"
        )
    _refuse_loose(loose, source, config)
    deep = [place for place, parts in paths.items() if len(parts) > depth + 2]
    if deep:
        logger.info(
            "data set %r: %d of %d pictures lie deeper than their class folder, such as %s",
            *(config.name, len(deep), len(paths), deep[0]),
        )
    return [names[parts[depth]] for parts in paths.values()]


def _refuse_loose(loose: list[str], source: Path, config: DatasetConfig) -> None:
    if loose:
        raise ValueError(
            f"data set {config.name!r}: {say_count(len(loose), 'picture')} in no class folder of {source}, such as "
            f"{loose[0]}; move {'it' if len(loose) == 1 else 'them'} into the folder of a class or elsewhere, or "
            f"{ELSEWHERE}{suggest_sources(source, config)}"
        )


def _refuse_other_pictures(source: Path, places: list[str], config: DatasetConfig) -> None:
    strange = [place for place in places if not is_picture(place) and OTHER_PICTURES in count_kinds(source, [place])]
    if strange:
        raise ValueError(
            f"data set {config.name!r}: {say_count(len(strange), 'picture')} in a format, or under a name, that isn't "
            f"read, such as {strange[0]}; expected .png, .jpg, .tif, .bmp, .webp or .dcm, so convert, rename or move "
            f"{'it' if len(strange) == 1 else 'them'}"
        )


def _refuse_unreadable_names(source: Path, pictures: list[str], config: DatasetConfig) -> None:
    # Python keeps bytes of a name that aren't UTF-8 as halves of surrogate pairs, which no table can hold.
    strange = [place for place in pictures if re.search("[\ud800-\udfff]", place)]
    if strange:
        raise ValueError(
            f"data set {config.name!r}: {say_count(len(strange), 'picture')} in {source} under a name that isn't "
            f"UTF-8, such as {list_some(strange)}; rename {'it' if len(strange) == 1 else 'them'}"
        )


def _is_class(name: str, config: DatasetConfig) -> bool:
    return normalize("NFC", name) in {normalize("NFC", label) for label in config.class_names}
