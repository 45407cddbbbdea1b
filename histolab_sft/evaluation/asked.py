"""One data set, or one external cohort, of an evaluation: its rows, what both systems say about them, its scores."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from datasets import Dataset

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.floors import measure_floors
from histolab_sft.evaluation.predictions import FINETUNED
from histolab_sft.evaluation.prior_correction import correct, find_prior, score_imbalance
from histolab_sft.evaluation.results import score_dataset, score_written


@dataclass
class Asked:
    """Rows by split, and what each system said about them.

    Of an external cohort, train and validation are those of the data set that the run was trained on: floors are
    trained and temperatures fitted there.
    """

    config: DatasetConfig
    rows: dict[str, Dataset]
    test: dict[str, pd.DataFrame] = field(default_factory=dict)
    validation: dict[str, pd.DataFrame | None] = field(default_factory=dict)
    variants: dict[str, pd.DataFrame] = field(default_factory=dict)
    probe: dict | None = None
    rungs: dict[str, dict] = field(default_factory=dict)
    site_probe: dict | None = None
    prior: dict | None = None


def score_asked(given: Asked, reading: str | None = None) -> tuple[dict, dict]:
    """Return the entry of `results.json`, and `{system: {score: Estimate}}`.

    Args:
        reading (`str`, *optional*): The base model's reading that is the baseline, as in `choose_reading`.
    """
    config, protocol = given.config, given.rows["test"].with_format(None)["protocol"][0]
    if not config.options:
        return score_written(config, given.test, given.validation, given.rows["train"], protocol)
    floors = measure_floors(given.rows, config) | {"linear_probe": given.probe} | given.rungs
    entry, found = score_dataset(config, given.test, given.validation, floors, protocol, reading)
    if "sites" in entry:
        entry["sites"]["probe"] = given.site_probe
    if given.prior is not None:
        tables = given.test[FINETUNED], given.validation[FINETUNED]
        entry["imbalance"] = score_imbalance(*tables, config.options, given.prior)
    return entry, found


def correct_priors(asked: list[Asked], output_dir: str | Path, correction: str | dict) -> None:
    """Read the fine-tuned model's scores of options as `prior_correction` says, in all that follows.

    Args:
        output_dir: Of the run that trained it.
        correction (`str` or `dict`): The recipe's `prior_correction`.
    """
    for given in asked:
        if given.config.options:
            given.prior = find_prior(given.config, given.rows["train"], output_dir, correction)
        if given.prior is not None:
            for tables in (given.test, given.validation, given.variants):
                if FINETUNED in tables:
                    tables[FINETUNED] = correct(tables[FINETUNED], given.prior)
