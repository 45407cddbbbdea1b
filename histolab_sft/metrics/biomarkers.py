"""Scores of JSON answers, field by field, with those of a constant answer for comparison."""

from collections.abc import Mapping, Sequence

import numpy as np

from histolab_sft.metrics.classification import UNPARSED, compute_classification
from histolab_sft.metrics.pairs import check_pairs
from histolab_sft.metrics.quantity import compute_quantity

UNKNOWN = "unknown"
FEW = 3
SHOWN = ("accuracy", "balanced_accuracy", "macro_f1")
Answer = Mapping[str, str | float | None] | None


def compute_biomarkers(
    gold: Sequence[Mapping], predicted: Sequence[Answer], train: Sequence[Mapping], fields: Sequence[Mapping]
) -> dict:
    """Return the scores of one system on one data set, ready for JSON, over all patients.

    Args:
        gold: Field name -> true value of each patient; absent, None and `"unknown"` have no truth and aren't scored.
        predicted: Field name -> value answered: None for a value that isn't legal, no key for a field that isn't
            there; None in place of the whole for an answer without JSON.
        train: As `gold`, of the training patients: where the constant answers of the floors come from.
        fields: `name` and `values` or `range` of each field.

    Returns:
        `dict`: `json_rate` (an object could be read, repaired or not), `schema_rate` (it has every field),
        `value_rate` (every field is legal), `unparsed_rate`; `fields` with the entry of each
        (`compute_category`, `compute_number`).

    Raises:
        ValueError: Different numbers of patients, none, or a true value that its field doesn't have.
    """
    check_pairs(gold, predicted, "true records", "an answer without JSON")
    names = [field["name"] for field in fields]
    read = [answer or {} for answer in predicted]
    table = {}
    for field in fields:
        name = field["name"]
        known = find_known(gold, name)
        truth, answers = [gold[row][name] for row in known], [read[row].get(name) for row in known]
        seen = [truth[name] for truth in train if _is_known(truth.get(name))]
        if not truth or not seen:
            reason = f"{len(truth)} test and {len(seen)} training patients have a known {name}; scoring needs both"
            table[name] = {"n": len(truth), "reason": reason}
        elif "values" in field:
            table[name] = compute_category(name, truth, answers, seen, list(field["values"]))
        else:
            table[name] = compute_number(truth, answers, seen)
    return {
        "json_rate": float(np.mean([answer is not None for answer in predicted])),
        "schema_rate": float(np.mean([set(names) <= set(answer) for answer in read])),
        "value_rate": float(np.mean([all(answer.get(name) is not None for name in names) for answer in read])),
        "unparsed_rate": float(np.mean([answer is None for answer in predicted])),
        "fields": table,
    }


def compute_category(name: str, gold: list[str], predicted: list, train: list[str], values: list[str]) -> dict:
    """Return the scores of a field with words for values; an answer that is none of them is wrong.

    Returns:
        `dict`: `n`; `unknown_rate` and `unparsed_rate` of the answers; `accuracy`, `balanced_accuracy` and `macro_f1`,
        the last two over the values present in `gold`; `per_class`; `absent`, the values that no test patient has;
        `warning` where a value has fewer than three; `majority_floor`, the scores of always answering the most
        frequent training value. With only one value in `gold` there is nothing to tell apart: the scores are None
        and `reason` names what is missing.
    """
    answers = np.array([value if value in values else UNPARSED for value in predicted], dtype=object)
    scores = compute_classification(np.array(gold, dtype=object), answers, values)
    # Equally frequent values: the one listed first.
    majority = max(values, key=list(train).count)
    floor = compute_classification(np.array(gold, dtype=object), np.full(len(gold), majority, dtype=object), values)
    support = {value: scores["per_class"][value]["support"] for value in values}
    results = {
        "n": len(gold),
        "unknown_rate": float(np.mean([value == UNKNOWN for value in predicted])),
        "unparsed_rate": float(np.mean([value is None for value in predicted])),
        **{key: scores[key] for key in SHOWN},
        "per_class": scores["per_class"],
        "absent": [value for value in values if not support[value]],
        "majority_floor": {"answer": majority, **{key: floor[key] for key in SHOWN}},
    }
    rare = {value: count for value, count in support.items() if 0 < count < FEW}
    if rare:
        counts = ", ".join(f"{count} {value}" for value, count in rare.items())
        results["warning"] = f"{name}: only {counts} among {len(gold)} test patients; a score over so few is chance"
    if len(results["absent"]) == len(values) - 1:
        results |= dict.fromkeys(SHOWN)
        results["majority_floor"] |= dict.fromkeys(SHOWN)
        results["reason"] = f"{name}: 0 of {len(gold)} test patients are {' or '.join(results['absent'])}; not scored"
    return results


def compute_number(gold: list[float], predicted: list, train: list[float]) -> dict:
    """Return `n`, `unknown_rate` and what `compute_quantity` does; "unknown" and what is no number are imputed."""
    numbers = [value if isinstance(value, float | int) else None for value in predicted]
    median = float(np.median(train))
    results = compute_quantity(gold, numbers, median)
    return {"n": len(gold), "unknown_rate": float(np.mean([value == UNKNOWN for value in predicted])), **results}


def find_known(gold: Sequence[Mapping], name: str) -> list[int]:
    """Return the positions of the patients whose field `name` has a known value."""
    return [row for row, truth in enumerate(gold) if _is_known(truth.get(name))]


def _is_known(value: object) -> bool:
    missing = value is None or (isinstance(value, float) and np.isnan(value))
    return not missing and value != UNKNOWN
