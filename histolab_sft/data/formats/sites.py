"""The site and the subgroups of each patch, by which the scores of a test split are given apart."""

import json
from collections.abc import Callable

import pandas as pd

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.scoring import SITE, Part, list_parts
from histolab_sft.data.formats.readers import part_column
from histolab_sft.data.formats.words import read_group

MAX_PARTS = 200


def read_parts(patches: pd.DataFrame, match: Callable[[Part], list[str]], config: DatasetConfig) -> dict[str, list]:
    """Return `site`, a word or None for each patch, and `subgroups`, JSON text of name -> word or null.

    Args:
        patches: A reader's table, with what parts it where that is a column (`part_column`).
        match: Gives the words where that is a pattern on the path.

    Raises:
        ValueError: A cell that should be a number for bands isn't one, or there are too many parts to score apart.
    """
    words = {}
    for part in list_parts(config):
        column = part_column(part)
        cells = patches[column].tolist() if column in patches.columns else match(part)
        found = [read_group(cell) for cell in cells]
        if part.cuts:
            found = [_name_band(word, part, config) for word in found]
        count = len(set(found) - {None})
        if count > MAX_PARTS:
            raise ValueError(
                f"data set {config.name!r}: {part.key} gives {count} parts of {len(found)} patches, such as "
                f"{sorted(set(found) - {None})[:3]}, expected at most {MAX_PARTS}, each with many patches; correct it"
                + ("" if part.name == SITE else ", or give numbers `cuts`")
            )
        words[part.name] = found
    names = [name for name in words if name != SITE]
    return {
        "site": words.get(SITE, [None] * len(patches)),
        "subgroups": [
            json.dumps({name: words[name][row] for name in names}, ensure_ascii=False) for row in range(len(patches))
        ],
    }


def _name_band(word: str | None, part: Part, config: DatasetConfig) -> str | None:
    if word is None:
        return None
    try:
        number = float(word)
    except ValueError:
        raise ValueError(
            f"data set {config.name!r}: {part.key} has cuts and finds {word!r}, expected a number; remove cuts, or "
            "empty the cell where it isn't known"
        ) from None
    below = [cut for cut in part.cuts if cut <= number]
    above = [cut for cut in part.cuts if cut > number]
    if below and above:
        return f"{below[-1]:g} to under {above[0]:g}"
    return f"under {above[0]:g}" if above else f"{below[-1]:g} and over"
