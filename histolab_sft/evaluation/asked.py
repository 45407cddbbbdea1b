"""One data set, or one external cohort, of an evaluation: its rows, what both systems say about them, its scores."""

from dataclasses import dataclass, field

import pandas as pd
from datasets import Dataset

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.floors import measure_floors
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


def score_asked(given: Asked, reading: str | None = None) -> tuple[dict, dict]:
    """Return the entry of `results.json`, and `{system: {score: Estimate}}`.

    Args:
        reading (`str`, *optional*): The base model's reading that is the baseline, as in `choose_reading`.
    """
    config, protocol = given.config, given.rows["test"].with_format(None)["protocol"][0]
    if config.options:
        floors = measure_floors(given.rows, config) | {"linear_probe": given.probe}
        return score_dataset(config, given.test, given.validation, floors, protocol, reading)
    return score_written(config, given.test, given.validation, given.rows["train"], protocol)
