"""Scores of open answers for many weightings of the same rows at once, as a bootstrap needs them.

Each function returns a `Measure` (`metrics.weighted`): from weights of shape (rows, draws) to `{score: (draws,)}`, NaN
where a draw has no value. With weights of 1 they equal the scores of the `compute_` function of the same answers.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from histolab_sft.metrics.biomarkers import find_known
from histolab_sft.metrics.boxes import MAIN_THRESHOLD, THRESHOLDS, Box, count_matches, score_areas
from histolab_sft.metrics.classification import UNPARSED
from histolab_sft.metrics.masks import Outline, score_masks
from histolab_sft.metrics.multilabel import count_labels, example_f1
from histolab_sft.metrics.text import bleu_from_counts, count_ngrams, score_texts
from histolab_sft.metrics.weighted import Measure, classification_measure


def multilabel_measure(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str] | None]) -> Measure:
    """Measure the scores of `compute_multilabel`."""
    counts = count_labels(gold, predicted)
    exact = [
        answer is not None and {x.strip().casefold() for x in truth} == {x.strip().casefold() for x in answer}
        for truth, answer in zip(gold, predicted, strict=True)
    ]
    rows = {
        "example_f1": example_f1(gold, predicted),
        "exact_match": np.array(exact, dtype=float),
        "unparsed_rate": _unparsed(predicted),
    }

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        matched, missed, wrong = counts.T @ weights
        return _means(rows, weights) | {
            "micro_f1": _divide(2 * matched, 2 * matched + missed + wrong),
            "micro_precision": _divide(matched, matched + wrong),
            "micro_recall": _divide(matched, matched + missed),
        }

    return measure


def quantity_measure(gold: Sequence[float], predicted: Sequence[float | None], imputed: Sequence[float]) -> Measure:
    """Measure the scores of `compute_quantity`; `imputed` stands in, row by row, where there is no number."""
    truth, guesses = np.array(gold, dtype=float), np.array(imputed, dtype=float)
    answers = np.array([g if a is None else a for a, g in zip(predicted, guesses, strict=True)], dtype=float)
    rows = {
        "mae": np.abs(answers - truth),
        "mse": (answers - truth) ** 2,
        "unparsed_rate": _unparsed(predicted),
    }

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        means = _means(rows, weights)
        ranks = (_rank(values, weights) for values in (truth, answers))
        return {
            "mae": means["mae"],
            "rmse": np.sqrt(means["mse"]),
            "spearman": _correlate(*ranks, weights),
            "pearson": _correlate(truth[:, None], answers[:, None], weights),
            "unparsed_rate": means["unparsed_rate"],
        }

    return measure


def boxes_measure(
    gold: Sequence[Sequence[Box]], predicted: Sequence[Sequence[Box] | None], label_aware: bool
) -> Measure:
    """Measure the scores of `compute_boxes`."""
    counts = {threshold: count_matches(gold, predicted, threshold, label_aware) for threshold in THRESHOLDS}
    areas = score_areas(gold, predicted, label_aware)
    positive = [row for row, truth in enumerate(gold) if truth]
    negative = np.array([not truth for truth in gold], dtype=float)
    empty = np.array([answer is not None and not answer for answer in predicted], dtype=float)

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        sums = {threshold: count.T @ weights for threshold, count in counts.items()}
        f1 = {t: _divide(2 * n[0], 2 * n[0] + n[1] + n[2]) for t, n in sums.items()}
        matched, missed, wrong = sums[MAIN_THRESHOLD]
        total = weights[positive].sum(axis=0)
        return {
            "box_f1": f1[MAIN_THRESHOLD],
            "mean_box_f1": np.mean(list(f1.values()), axis=0),
            "box_precision": _divide(matched, matched + wrong),
            "box_recall": _divide(matched, matched + missed),
            **{name: _divide(values @ weights[positive], total) for name, values in areas.items()},
            "empty_accuracy": _divide((negative * empty) @ weights, negative @ weights),
            "unparsed_rate": _unparsed(predicted) @ weights / weights.sum(axis=0),
        }

    return measure


def masks_measure(
    gold: Sequence[Sequence[Outline]],
    predicted: Sequence[Sequence[Outline] | None],
    sizes: Sequence[tuple[int, int]],
    label_aware: bool,
) -> Measure:
    """Measure the scores of `compute_masks`."""
    scores = score_masks(gold, predicted, sizes, label_aware)
    positive = [row for row, truth in enumerate(gold) if truth]
    negative = np.array([not truth for truth in gold], dtype=float)
    empty = np.array([answer is not None and not answer for answer in predicted], dtype=float)

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights[positive].sum(axis=0)
        return {
            **{name: _divide(values @ weights[positive], total) for name, values in scores.items()},
            "empty_accuracy": _divide((negative * empty) @ weights, negative @ weights),
            "unparsed_rate": _unparsed(predicted) @ weights / weights.sum(axis=0),
        }

    return measure


def text_measure(references: Sequence[str], predictions: Sequence[str | None]) -> Measure:
    """Measure the scores of `compute_text`; words weigh in `cider_d` by all references, not by those drawn."""
    counts = count_ngrams(references, predictions)
    rows = score_texts(references, predictions) | {"unparsed_rate": _unparsed(predictions)}

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        sums = (counts.T @ weights).T
        return {"bleu4": np.array([bleu_from_counts(draw) for draw in sums])} | _means(rows, weights)

    return measure


def biomarkers_measure(
    gold: Sequence[Mapping],
    predicted: Sequence[Mapping | None],
    guesses: Sequence[Mapping],
    fields: Sequence[Mapping],
) -> Measure:
    """Measure the rates of `compute_biomarkers`, and the scores of each field as `FIELD_SCORE`.

    `mean_balanced_accuracy` is over the fields with words for values of which the truth holds two or more.

    Args:
        guesses: Field -> training median or majority for each row, None for a field that no training row has.
    """
    names = [field["name"] for field in fields]
    read = [answer or {} for answer in predicted]
    rates = {
        "json_rate": np.array([answer is not None for answer in predicted], dtype=float),
        "schema_rate": np.array([set(names) <= set(answer) for answer in read], dtype=float),
        "value_rate": np.array([all(a.get(name) is not None for name in names) for a in read], dtype=float),
        "unparsed_rate": _unparsed(predicted),
    }
    measures, words = {}, []
    for field in fields:
        name = field["name"]
        known = find_known(gold, name)
        truth, answers = [gold[row][name] for row in known], [read[row].get(name) for row in known]
        if not known or guesses[0].get(name) is None:
            continue
        if "values" in field:
            if len(set(truth)) < 2:
                continue
            words.append(f"{name}_balanced_accuracy")
            answers = [value if value in field["values"] else UNPARSED for value in answers]
            one = classification_measure(np.array(truth), np.array(answers), list(field["values"]))
            shown = ("balanced_accuracy", "macro_f1", "accuracy")
        else:
            answers = [value if isinstance(value, float | int) else None for value in answers]
            one = quantity_measure(truth, answers, [guesses[row][name] for row in known])
            shown = ("mae", "spearman", "pearson")
        measures[name] = (known, one, shown)

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        results = _means(rates, weights)
        for name, (known, one, shown) in measures.items():
            part = weights[known]
            drawn = part.sum(axis=0) > 0
            # A draw without any patient of whom the field is known has no score of it.
            scores = one(np.where(drawn, part, 1.0))
            results |= {f"{name}_{score}": np.where(drawn, scores[score], np.nan) for score in shown}
        if words:
            results["mean_balanced_accuracy"] = np.mean([results[score] for score in words], axis=0)
        return results

    return measure


def _unparsed(answers: Sequence) -> np.ndarray:
    return np.array([answer is None for answer in answers], dtype=float)


def _means(rows: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    total = weights.sum(axis=0)
    return {name: values @ weights / total for name, values in rows.items()}


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _rank(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean rank of each row in each draw, shape (rows, draws), as if each row occurred `weight` times."""
    _, codes = np.unique(values, return_inverse=True)
    sums = np.zeros((codes.max() + 1, weights.shape[1]))
    np.add.at(sums, codes, weights)
    return (np.cumsum(sums, axis=0) - sums / 2)[codes]


def _correlate(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each draw, NaN where one side is constant; shapes broadcast to (rows, draws)."""
    total = weights.sum(axis=0)
    first, second = (side - (side * weights).sum(axis=0) / total for side in (first, second))
    spread = np.sqrt((first**2 * weights).sum(axis=0) * (second**2 * weights).sum(axis=0))
    # Rounding leaves a trace of spread in a constant column.
    large = spread > 1e-9
    return np.divide((first * second * weights).sum(axis=0), spread, out=np.full(len(spread), np.nan), where=large)
