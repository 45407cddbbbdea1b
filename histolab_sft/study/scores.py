"""From the answers of a study to its scores: of a single model, of the ensemble of seeds, and of the base model."""

import numpy as np

from histolab_sft.evaluation.results import OVERALL, warn_of_rows
from histolab_sft.evaluation.uncertainty import bootstrap, describe_units
from histolab_sft.evaluation.zero_shot import READINGS, SCORE
from histolab_sft.metrics.classification import compute_classification
from histolab_sft.metrics.weighted import Measure, classification_measure, mean_defined
from histolab_sft.study.answers import StudyAnswers
from histolab_sft.study.spread import (
    Spread,
    average_spreads,
    describe_spread,
    spread_constant,
    spread_ensemble,
    spread_mean,
    subtract_spreads,
)

BASELINE, SINGLE, ENSEMBLE = SYSTEMS = ("baseline", "single", "ensemble")
DIFFERENCES = ((SINGLE, BASELINE), (ENSEMBLE, BASELINE), (ENSEMBLE, SINGLE))
# Models of several folds have scales of their own, so that ranking their patches together would compare what can't be
# (Forman and Scholz 2010, SIGKDD Explorations 12:49): these are means over the folds.
BY_FOLD = ("auroc", "average_precision")
FEW_SEEDS = 3


def score_study(answers: dict[str, StudyAnswers]) -> dict:
    """Return `datasets` and `overall` of a study's results, the latter None for a single data set.

    An entry has `systems` (`baseline`, `single`: the mean over the models of all seeds, `ensemble`: their mean
    probability as one answer) and `differences` (such as `single - baseline`), each score as from `describe_spread`.
    """
    entries, spreads = {}, {}
    for name, given in answers.items():
        entries[name], spreads[name] = score_answers(given)
    if len(entries) < 2:
        return {"datasets": entries, "overall": None}
    means = {
        system: {score: average_spreads([found[system][score] for found in spreads.values()]) for score in OVERALL}
        for system in SYSTEMS
    }
    return {"datasets": entries, "overall": _describe(means)}


def score_answers(answers: StudyAnswers) -> tuple[dict, dict[str, dict[str, Spread]]]:
    """Return the entry of one data set, and the spread of each score of each system."""
    numbers, folds = answers.table["fold"].to_numpy(), sorted(set(answers.table["fold"]))
    shares = np.array([(numbers == fold).mean() for fold in folds])
    seeds = list(answers.finetuned)
    given = {f"baseline_{reading}": answers.baseline[reading] for reading in READINGS}
    given |= {f"seed_{seed}": probabilities for seed, probabilities in answers.finetuned.items()}
    given[ENSEMBLE] = _average(answers, seeds)
    if len(seeds) > 1:
        for seed in seeds:
            given[f"without_{seed}"] = _average(answers, [other for other in seeds if other != seed])
    measures = {system: measure_folds(answers, probabilities) for system, probabilities in given.items()}
    groups = answers.groups
    estimates = bootstrap(measures, len(numbers), groups)
    by_fold = {system: _score_folds(answers, probabilities) for system, probabilities in given.items()}

    reading = max(READINGS, key=lambda reading: estimates[f"baseline_{reading}"][SCORE].value)
    spreads: dict[str, dict[str, Spread]] = {system: {} for system in SYSTEMS}
    for score in OVERALL:
        # Means over the folds count each fold alike, scores over all patches by its part of them.
        parts = np.full(len(folds), 1 / len(folds)) if score in BY_FOLD else shares
        own = [estimates[f"seed_{seed}"][score] for seed in seeds]
        single = spread_mean(own, np.stack([by_fold[f"seed_{seed}"][score] for seed in seeds], axis=1), parts)
        without = [f"without_{seed}" for seed in seeds] if len(seeds) > 1 else []
        left = [estimates[system][score] for system in without]
        folds_left = np.stack([by_fold[system][score] for system in without], axis=1) if without else None
        spreads[SINGLE][score] = single
        spreads[ENSEMBLE][score] = spread_ensemble(
            estimates[ENSEMBLE][score], left, by_fold[ENSEMBLE][score], folds_left, parts
        )
        spreads[BASELINE][score] = spread_constant(estimates[f"baseline_{reading}"][score], single)
    units = describe_units(len(numbers), groups)
    answered = np.array(answers.classes)[given[ENSEMBLE].argmax(axis=1)]
    entry = {
        "n": len(numbers),
        "classes": answers.classes,
        "n_groups": units["n_groups"],
        "folds": len(folds),
        "seeds": seeds,
        "split_protocol": answers.protocol,
        "baseline_reading": reading,
        "warnings": [*warn_of_rows("patches", units, answers.protocol), *_warn(len(folds), len(seeds))],
        "confusion_matrix": compute_classification(answers.labels, answered, answers.classes)["confusion_matrix"],
        "by_training": {str(seed): _list_folds(by_fold[f"seed_{seed}"], len(folds)) for seed in seeds},
        "baseline_by_fold": _list_folds(by_fold[f"baseline_{reading}"], len(folds)),
    }
    return entry | _describe(spreads), spreads


def measure_folds(answers: StudyAnswers, probabilities: np.ndarray) -> Measure:
    """Return `classification_measure` over all patches, of which the scores in `BY_FOLD` are means over the folds."""
    folds = answers.table["fold"].to_numpy()
    whole = _measure(answers, probabilities, np.full(len(folds), True))
    if len(set(folds)) == 1:
        return whole
    tests = [folds == fold for fold in sorted(set(folds))]
    parts = [(rows, _measure(answers, probabilities, rows)) for rows in tests]

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        # A draw may hold no patch of some fold.
        with np.errstate(invalid="ignore", divide="ignore"):
            found = [part(weights[rows]) for rows, part in parts]
            means = {score: mean_defined(np.stack([part[score] for part in found])) for score in BY_FOLD}
            return whole(weights) | means

    return measure


def _measure(answers: StudyAnswers, probabilities: np.ndarray, rows: np.ndarray) -> Measure:
    own = probabilities[rows]
    answered = np.array(answers.classes)[own.argmax(axis=1)]
    return classification_measure(answers.labels[rows], answered, answers.classes, own, answers.positive)


def _score_folds(answers: StudyAnswers, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Return score -> float of shape (folds,), of each fold by itself."""
    folds = answers.table["fold"].to_numpy()
    found = []
    for fold in sorted(set(folds)):
        rows = folds == fold
        found.append(_measure(answers, probabilities, rows)(np.ones((rows.sum(), 1))))
    return {score: np.array([part[score][0] for part in found]) for score in OVERALL}


def _average(answers: StudyAnswers, seeds: list[int]) -> np.ndarray:
    return np.mean([answers.finetuned[seed] for seed in seeds], axis=0)


def _describe(spreads: dict[str, dict[str, Spread]]) -> dict:
    systems = {
        system: {score: describe_spread(spread) for score, spread in scores.items()}
        for system, scores in spreads.items()
    }
    differences = {
        f"{first} - {second}": {
            score: describe_spread(subtract_spreads(spread, spreads[second][score]))
            for score, spread in spreads[first].items()
        }
        for first, second in DIFFERENCES
    }
    return {"systems": systems, "differences": differences}


def _warn(n_folds: int, n_seeds: int) -> list[str]:
    warnings = []
    if n_seeds == 1:
        warnings.append(
            "one seed: what another training of the same patches would change isn't in the intervals; set seeds: 3"
        )
    elif n_folds * (n_seeds - 1) < FEW_SEEDS:
        warnings.append(
            f"{n_seeds} seeds tell little about the spread of training, and intervals are wide for it; set more seeds"
        )
    if n_folds > 1:
        warnings.append(
            "the trainings of the folds share most of their patients: what another set of patients to train on would "
            "change isn't in the intervals"
        )
    return warnings


def _list_folds(scores: dict[str, np.ndarray], n_folds: int) -> list[dict]:
    """Return the scores of each fold as JSON has them: None where one has no value."""
    return [
        {score: None if np.isnan(values[k]) else float(values[k]) for score, values in scores.items()}
        for k in range(n_folds)
    ]
