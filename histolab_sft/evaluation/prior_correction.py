"""What weights or balanced sampling did to the fine-tuned model's class scores, and the correction for it.

A model learns each class as frequent as it was weighed and drawn in training. Where that is more than the class is,
its probabilities are too high and its calibration is off, though it may rank patches as well. Adding the logarithm of
the wanted share over the learnt one to each class's log-likelihood puts the wanted shares in their place (Saerens et
al. 2002, Neural Computation 14:21, equation 2.4; Menon et al. 2021, arXiv 2007.07314).
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import softmax

from histolab_sft.config.class_balance import TRAIN
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.groups import name_units
from histolab_sft.evaluation.proportions import compute_proportion
from histolab_sft.evaluation.score_names import METRICS, format_score
from histolab_sft.evaluation.uncertainty import score_systems
from histolab_sft.metrics.calibration import apply_temperature, compute_class_ece, compute_ece, fit_temperature

READINGS = AS_TRAINED, CORRECTED = ("as_trained", "corrected")
RECIPE = "recipe"
SCORES = ("balanced_accuracy", "ece", "brier", "nll")


def find_prior(config: DatasetConfig, train: Dataset, output_dir: str | Path, correction: str | dict) -> dict | None:
    """Return how frequent the model learnt each class to be, and how frequent it is to take it for.

    Args:
        train (`Dataset`): Rows of the data set that were trained on.
        output_dir: Of the run, whose `run.json` has the weights and draws of training.
        correction (`str` or `dict`): The recipe's `prior_correction`.

    Returns:
        `dict`: `classes`, for each its train `rows`, their `weight`, how many are `drawn` in an epoch, the share
        `learnt` and the share `wanted`; `target`, where the wanted shares are from, `train` or `recipe`;
        `log_correction` (class -> nats, 0 for a class without train rows); `headline`, which of `READINGS` the
        scores are of. None where there is nothing to correct.

    Raises:
        ValueError: A share is wanted for a class without train rows.
    """
    plain = train.with_format(None)
    # Of an external cohort it is the data set that was trained on.
    name = plain["dataset"][0] if len(plain) else config.name
    balance = _read_balance(name, output_dir)
    wanted = correction.get(name) if isinstance(correction, dict) else None
    if balance is None and wanted is None:
        return None
    if balance is None:
        counts = pd.Series(plain["label"]).value_counts()
        balance = {label: {"rows": int(count), "weight": 1.0, "drawn": int(count)} for label, count in counts.items()}
    absent = {"rows": 0, "weight": 1.0, "drawn": 0}
    classes = {label: balance.get(label, absent) for label in config.options}
    empty = [label for label, row in classes.items() if not row["rows"]]
    if wanted is not None and empty:
        raise ValueError(
            f"prior_correction of data set {config.name!r} names shares, and train has no row of {', '.join(empty)}; "
            "remove it, a class that was never learnt can't be corrected"
        )
    learnt = np.array([row["weight"] * row["drawn"] for row in classes.values()], dtype=np.float64)
    rows = np.array([row["rows"] for row in classes.values()], dtype=np.float64)
    target = rows if wanted is None else np.array([wanted[label] for label in classes])
    learnt, target = learnt / learnt.sum(), target / target.sum()
    log_correction = np.log(np.where(rows > 0, target, 1.0)) - np.log(np.where(rows > 0, learnt, 1.0))
    shares = zip(classes.items(), learnt.tolist(), target.tolist(), strict=True)
    return {
        "classes": {label: row | {"learnt": own, "wanted": other} for (label, row), own, other in shares},
        "target": TRAIN if wanted is None else RECIPE,
        "log_correction": dict(zip(classes, log_correction.tolist(), strict=True)),
        "headline": CORRECTED if wanted is not None or correction == TRAIN else AS_TRAINED,
    }


def correct(table: pd.DataFrame, prior: dict) -> pd.DataFrame:
    """Return a table of `predict` as `prior["headline"]` reads it."""
    return _shift(table, prior) if prior["headline"] == CORRECTED else table


def score_imbalance(test: pd.DataFrame, validation: pd.DataFrame, classes: list[str], prior: dict) -> dict:
    """Return the entry `imbalance` of `results.json`: the fine-tuned model's scores with the correction and without.

    Args:
        test, validation: Tables of `predict`, as `correct` gives them.

    Returns:
        `dict`: What `find_prior` gives; `rarest`, the class with the fewest train rows; for each of `READINGS` the
        scores of `SCORES`, `rarest_recall`, `rarest_ece` (of its probability), and `ece_calibrated` after a
        temperature fitted on validation; and `summary`, all of it in a sentence or two.
    """
    rarest = min(classes, key=lambda label: prior["classes"][label]["rows"])
    sign = -1 if prior["headline"] == CORRECTED else 1
    other = {**prior, "log_correction": {label: sign * nats for label, nats in prior["log_correction"].items()}}
    tables = {prior["headline"]: (test, validation)}
    tables[next(reading for reading in READINGS if reading not in tables)] = (
        _shift(test, other),
        _shift(validation, other),
    )
    labels, groups = test["label"].to_numpy(str), name_units(test)
    gold, held_out = ([classes.index(label) for label in table["label"]] for table in (test, validation))
    answers, calibrated = {}, {}
    for reading, (table, fitted_on) in tables.items():
        scores = np.stack(table["log_likelihoods"])
        answers[reading] = np.array(classes)[scores.argmax(axis=1)], softmax(scores, axis=1)
        temperature = fit_temperature(np.stack(fitted_on["log_likelihoods"]), held_out)["temperature"]
        calibrated[reading] = {"value": compute_ece(apply_temperature(scores, temperature), gold), "ci95": None}
    scored, _ = score_systems(labels, answers, classes, groups)
    readings = {
        reading: {score: scored[reading][score] for score in SCORES}
        | {
            "rarest_recall": compute_proportion(answers[reading][0] == rarest, labels == rarest, groups),
            "rarest_ece": {"value": compute_class_ece(answers[reading][1], gold, classes.index(rarest)), "ci95": None},
            "ece_calibrated": calibrated[reading],
        }
        for reading in READINGS
    }
    return prior | {"rarest": rarest, **readings, "summary": _summarise(prior, rarest, readings)}


def describe_imbalance(entry: dict) -> dict | None:
    """Return what the report shows of the entry of a data set; None where nothing was done about rare classes."""
    imbalance = entry.get("imbalance")
    if imbalance is None:
        return None
    names = {score: METRICS[score] for score in ("balanced_accuracy", "ece", "ece_calibrated", "brier", "nll")}
    rarest = f"“{imbalance['rarest']}”"
    names = {
        "rarest_recall": (f"Recall of {rarest}, the rarest class", True),
        "rarest_ece": (f"Calibration error of the probability of {rarest} ↓", False),
    } | names
    return {
        "summary": imbalance["summary"],
        "headline": imbalance["headline"],
        "scores": [
            {"name": name} | {reading: format_score(imbalance[reading][score], percent) for reading in READINGS}
            for score, (name, percent) in names.items()
        ],
        "classes": [
            {
                "name": label,
                "rows": row["rows"],
                "weight": f"{row['weight']:.3g}",
                "drawn": f"{row['drawn'] / row['rows']:.3g}" if row["rows"] else "–",
                "learnt": f"{row['learnt']:.1%}".replace("%", " %"),
                "wanted": f"{row['wanted']:.1%}".replace("%", " %"),
            }
            for label, row in imbalance["classes"].items()
        ],
    }


def _read_balance(name: str, output_dir: str | Path) -> dict | None:
    """Return what the last phase that trained on a data set recorded about its classes."""
    path = Path(output_dir, "run.json")
    run = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    recorded = [part.get("class_balance", {}).get(name) for part in (run, *run.get("phases", {}).values())]
    return next((found for found in reversed(recorded) if found), None)


def _shift(table: pd.DataFrame, prior: dict) -> pd.DataFrame:
    shift = np.array(list(prior["log_correction"].values()))
    return table.assign(log_likelihoods=list(np.stack(table["log_likelihoods"]) + shift))


def _summarise(prior: dict, rarest: str, readings: dict) -> str:
    row = prior["classes"][rarest]
    done = []
    if row["drawn"] != row["rows"]:
        done.append(f"each of its rows was drawn {row['drawn'] / row['rows']:.3g} times an epoch")
    if row["weight"] != 1:
        done.append(f"each of its rows weighed {row['weight']:.3g}")
    head = f"“{rarest}” is the rarest class, {row['rows']:,} train rows" + (
        f"; {' and '.join(done)}. " if done else ". "
    )
    ece = {reading: readings[reading]["rarest_ece"]["value"] for reading in READINGS}
    recall = {reading: readings[reading]["rarest_recall"]["value"] for reading in READINGS}
    found = {reading: "–" if value is None else f"{value:.0%}" for reading, value in recall.items()}
    shares = "the train split's" if prior["target"] == TRAIN else "the recipe's"
    return (
        f"{head}As trained, the calibration error of its probability is {ece[AS_TRAINED]:.3f} and {found[AS_TRAINED]} "
        f"of the class are found; corrected to {shares} shares of the classes, {ece[CORRECTED]:.3f} and "
        f"{found[CORRECTED]}. All other scores here are of the model "
        f"{'as trained' if prior['headline'] == AS_TRAINED else 'corrected'}."
    )
