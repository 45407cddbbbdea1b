"""The answers of all trainings of a study, put together: each test patch once for each seed."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import softmax

from histolab_sft.data.frozen_split import EARLIER, read_split
from histolab_sft.evaluation.groups import name_units
from histolab_sft.evaluation.predictions import BASELINE, FINETUNED
from histolab_sft.study.plan import StudyError, Training


@dataclass
class StudyAnswers:
    """What a study says about one data set whose rows have options.

    Attributes:
        table: One row a test patch: `id`, `group` (hashes), `label`, `fold` (1 for all without folds).
        baseline: `raw` and `corrected` (less the leaning that each fold's validation split shows) -> probabilities,
            float64, shape (patches, classes).
        finetuned: Seed -> probabilities.
        positive: From `find_positive`.
    """

    classes: list[str]
    positive: int
    protocol: str
    table: pd.DataFrame
    baseline: dict[str, np.ndarray]
    finetuned: dict[int, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        return self.table["label"].to_numpy(str)

    @property
    def groups(self) -> np.ndarray | None:
        return name_units(self.table)


def read_results(training: Training) -> dict:
    """Return the `results.json` of a training."""
    return json.loads((training.folder / "evaluation" / "results.json").read_text(encoding="utf-8"))


def find_positive(results: dict, name: str) -> int:
    """Return the place of the class that scores of two classes are about: the recipe's, else the second."""
    own = next((entry for entry in results["recipe"].get("datasets", ()) if entry["name"] == name), {})
    positive = own.get("positive_class")
    return 1 if positive is None else results["datasets"][name]["classes"].index(positive)


def collect_answers(trainings: list[Training]) -> dict[str, StudyAnswers]:
    """Return data set -> the answers of all trainings, of the data sets whose rows have options.

    Raises:
        StudyError: The trainings of one fold were scored on different patches, or a patch of the data is the test of
            no fold, or of several.
    """
    tables = {t: pd.read_parquet(t.folder / "evaluation" / "predictions.parquet") for t in trainings}
    results = {training: read_results(training) for training in trainings}
    datasets = results[trainings[0]]["datasets"]
    folds = sorted({training.fold or 1 for training in trainings})
    found = {}
    for name, entry in datasets.items():
        if "task" in entry:
            continue
        parts = []
        for fold in folds:
            own = [training for training in trainings if (training.fold or 1) == fold]
            parts.append(_collect_fold(name, own, tables, results).assign(fold=fold))
        table = pd.concat(parts, ignore_index=True)
        if trainings[0].fold is not None:
            _check_cover(name, table, trainings)
        seeds = dict.fromkeys(training.seed for training in trainings)
        found[name] = StudyAnswers(
            entry["classes"],
            find_positive(results[trainings[0]], name),
            entry["split_protocol"],
            table[["id", "group", "label", "fold"]],
            {reading: np.stack(table[reading]) for reading in ("raw", "corrected")},
            {seed: np.stack(table[str(seed)]) for seed in seeds},
        )
    return found


def _collect_fold(name: str, trainings: list[Training], tables: dict, results: dict) -> pd.DataFrame:
    """Return the test patches of one fold with a column of probabilities for each reading and seed."""
    first, collected = trainings[0], None
    for training in trainings:
        table = tables[training]
        systems = {
            system: table[(table["dataset"] == name) & (table["system"] == system)].reset_index(drop=True)
            for system in (BASELINE, FINETUNED)
        }
        rows = systems[BASELINE][["id", "group", "label"]]
        if collected is None:
            prior = np.array(list(results[training]["datasets"][name]["zero_shot"]["log_prior"].values()))
            scores = np.stack(systems[BASELINE]["log_likelihoods"])
            collected = rows.assign(raw=list(softmax(scores, axis=1)), corrected=list(softmax(scores - prior, axis=1)))
        elif not rows.equals(collected[["id", "group", "label"]]):
            raise StudyError(
                f"{name}: {first.folder} and {training.folder} were scored on different patches, though they "
                "differ in the seed alone: the data have changed between them; undo that, or delete the older folder"
            )
        collected[str(training.seed)] = list(softmax(np.stack(systems[FINETUNED]["log_likelihoods"]), axis=1))
    return collected


def _check_cover(name: str, table: pd.DataFrame, trainings: list[Training]) -> None:
    twice = int(table.duplicated("id").sum())
    for training in trainings:
        rows = read_split(training.folder).rows
        expected = int(((rows["dataset"] == name) & (rows["split"] != EARLIER)).sum())
        if twice or expected != len(table):
            raise StudyError(
                f"{name}: the tests of all folds hold {len(table)} patches, {twice} of them twice, and "
                f"{training.folder} knows {expected}, expected each patch in the test of one fold: the data "
                "have changed between trainings; undo that, or delete the older folders"
            )
