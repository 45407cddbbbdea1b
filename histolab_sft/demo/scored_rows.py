"""Rows of the test split as examples, each with its truth, read as scoring reads them; no picture is copied."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.data_sets import finish_rows, list_rows
from histolab_sft.data.frozen_split import FILE, FrozenSplit, read_split
from histolab_sft.data.pictures.containers import ImageRefused
from histolab_sft.data.pictures.decoding import open_stored
from histolab_sft.data.split_changes import find_test_rows
from histolab_sft.demo.examples import EXAMPLES, Example, shrink
from histolab_sft.demo.history import say_briefly, shorten
from histolab_sft.hub_access import HubAccessError

logger = logging.getLogger(__name__)

LONGEST = 40  # letters of a caption
TEST = "Examples are rows of the test split, with their truth; nothing was trained on them."


def read_test_rows(histo_args: HistoArguments, output_dir: Path) -> tuple[list[Example], list[str]]:
    """Return examples of the test split of each data set, and what is to be said about them.

    The test split is that which was frozen when the run was trained. Without one it is what the data themselves call
    so: splits that a recipe deals out aren't known before training.
    """
    frozen = read_split(output_dir)
    examples, missing = [], {}
    for config in histo_args.datasets:
        reason = f"none of {FILE} is in the data" if frozen else "their splits are dealt out by training"
        found = []
        try:
            rows = _list_test_rows(config, histo_args, frozen)
            found = [_make_example(row, config) for row in rows.to_dict("records")]
        except (FileNotFoundError, HubAccessError, ImageRefused, ValueError) as error:
            logger.warning("no examples of %s: %s", config.name, error)
            reason = "their data can't be read here"
        if not found:
            missing.setdefault(reason, []).append(config.name)
        examples += found
    lacking = [f"No test rows as examples of {', '.join(names)}: {reason}." for reason, names in missing.items()]
    return examples, ([TEST] if examples else []) + lacking


def choose_rows(rows: pd.DataFrame, config: DatasetConfig) -> pd.DataFrame:
    """Return up to `EXAMPLES` rows: of each option in turn, where there are any, else evenly spread over the split."""
    if not config.options:
        spread = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).round().astype(int)
        return rows.iloc[np.unique(spread)]
    turn = rows.groupby("label").cumcount()
    place = rows["label"].map({option: number for number, option in enumerate(config.options)})
    return rows.assign(turn=turn, place=place).sort_values(["turn", "place"], kind="stable").head(EXAMPLES)


def caption_truth(task: str, truth: object | None) -> str:
    """Return the truth in few words, of a longer one its beginning."""
    if truth is None:
        return "truth hidden"
    return shorten(say_briefly(task, truth), LONGEST)


def _list_test_rows(config: DatasetConfig, histo_args: HistoArguments, frozen: FrozenSplit | None) -> pd.DataFrame:
    rows = list_rows(config, histo_args)
    test = rows["split"] == "test" if frozen is None else find_test_rows(frozen.rows, rows)
    # A few, before steps are taken: pictures of all rows would be decoded for it.
    chosen = choose_rows(rows[test].assign(split="test"), config)
    return finish_rows(chosen, config)


def _make_example(row: dict, config: DatasetConfig) -> Example:
    open_pictures = partial(_open_all, row["images"])
    caption = caption_truth(row["task"], row["answer"])
    return Example(config.name, caption, shrink(open_pictures()[0]), open_pictures, row["ask"], row["answer"])


def _open_all(references: list[dict]) -> list:
    return [open_stored(reference) for reference in references]
