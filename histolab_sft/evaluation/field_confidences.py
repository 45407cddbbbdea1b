"""How far the confidences of JSON answers can be believed, field by field."""

import json

import numpy as np
import pandas as pd
from scipy.special import softmax

from histolab_sft.metrics.biomarkers import find_known
from histolab_sft.metrics.calibration import (
    apply_temperature,
    compute_brier,
    compute_ece,
    compute_nll,
    compute_reliability_bins,
    fit_temperature,
)
from histolab_sft.metrics.classification import compute_ranking
from histolab_sft.tasks.biomarkers import Field
from histolab_sft.tasks.parsing.field_places import list_options


def score_confidences(test: pd.DataFrame, validation: pd.DataFrame | None, field: Field) -> dict:
    """Return how well one system's confidences in one field with words for values fit the truth.

    A confidence comes from the model's own token probabilities of the values, "unknown" among them; the truth only
    judges it. An answer that doesn't give the field has none, and is counted.

    Args:
        test, validation: Tables from `predict_answers`; `validation`, None where the data have none, is for the
            temperature alone.

    Returns:
        `dict`: `n`, the test questions with a known truth and a confidence, and `n_without`, those without the second;
        `ece`, `brier`, `nll` and `auroc` (one value against the rest) of the probabilities, each with `value`;
        `reliability`; `temperature` as by `fit_temperature` with the number `n` of validation questions, and
        `ece_calibrated` and `nll_calibrated` after it. Without a validation question `temperature` is None and
        `temperature_reason` says so; without a test question there is a `reason` and no score.
    """
    scores, gold, n_without = _collect(test, field)
    counts = {"n": len(gold), "n_without": n_without}
    if not len(gold):
        return counts | {"reason": f"{field['name']}: none of {n_without} answers gives the field; no confidence"}
    probabilities = softmax(scores, axis=1)
    results = counts | {
        "ece": {"value": compute_ece(probabilities, gold)},
        "brier": {"value": compute_brier(probabilities, gold)},
        "nll": {"value": compute_nll(probabilities, gold)},
        "auroc": {"value": compute_ranking(gold, probabilities)["auroc"]},
        "reliability": compute_reliability_bins(probabilities, gold),
    }
    held_out, truth, missing = _collect(test.head(0) if validation is None else validation, field)
    if not len(truth):
        reason = f"{field['name']}: none of {missing} validation answers with a known truth gives the field"
        return results | {"temperature": None, "temperature_reason": reason}
    fitted = fit_temperature(held_out, truth)
    scaled = apply_temperature(scores, fitted["temperature"])
    return results | {
        "temperature": fitted | {"n": len(truth)},
        "ece_calibrated": {"value": compute_ece(scaled, gold)},
        "nll_calibrated": {"value": compute_nll(scaled, gold)},
    }


def _collect(table: pd.DataFrame, field: Field) -> tuple[np.ndarray, np.ndarray, int]:
    """Return log-probabilities and true column of the rows with a known truth, and how many lack the first."""
    # A hidden answer is null.
    truths = [json.loads(text) or {} for text in table["truth"]]
    known = find_known(truths, field["name"])
    given = [json.loads(table["log_confidences"].iloc[row]) for row in known]
    scored = [
        (row, scores[field["name"]]) for row, scores in zip(known, given, strict=True) if field["name"] in scores
    ]
    options = list_options(field)
    scores = np.array([values for _, values in scored]).reshape(-1, len(options))
    gold = np.array([options.index(truths[row][field["name"]]) for row, _ in scored], dtype=int)
    return scores, gold, len(known) - len(scored)
