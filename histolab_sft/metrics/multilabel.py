"""Scores of sets of labels: findings of a report, classes that apply together."""

from collections.abc import Iterable, Sequence

import numpy as np

from histolab_sft.metrics.pairs import check_pairs


def compute_multilabel(gold: Sequence[Iterable[str]], predicted: Sequence[Iterable[str] | None]) -> dict:
    """Return the scores of one system on one data set, ready for JSON. Case doesn't count.

    Args:
        gold: True labels of each patch; none is a legal truth.
        predicted: Labels answered for each patch, words outside the vocabulary among them; None for unparsed, which
            misses every true label and is not the same as naming none.

    Returns:
        `dict`: `example_f1`, the mean over patches of 2 |both| / (|true| + |answered|), 1 where both are empty, 0
        where unparsed; `micro_f1`, `micro_precision`, `micro_recall` over all labels, None with `micro_f1_reason` (or
        without, for the two others) where there is nothing to divide by; `exact_match`; `unparsed_rate`; `per_label`
        with `f1`, `n_gold`, `n_predicted` for every label of the truth.

    Raises:
        ValueError: Different numbers of patches, or none.
    """
    check_pairs(gold, predicted, "true label sets", "an unparsed answer")
    truths = [_fold(labels) for labels in gold]
    answers = [None if labels is None else _fold(labels) for labels in predicted]
    pairs = list(zip(truths, answers, strict=True))
    counts = count_labels(gold, predicted)
    matched, missed, wrong = (int(n) for n in counts.sum(axis=0))
    total = matched + missed + wrong
    results = {
        "example_f1": float(np.mean(example_f1(gold, predicted))),
        "micro_f1": 2 * matched / (2 * matched + missed + wrong) if total else None,
        "micro_precision": matched / (matched + wrong) if matched + wrong else None,
        "micro_recall": matched / (matched + missed) if matched + missed else None,
        "exact_match": float(np.mean([truth == answer for truth, answer in pairs])),
        "unparsed_rate": float(np.mean([answer is None for answer in answers])),
        "per_label": {},
    }
    if not total:
        results["micro_f1_reason"] = f"no label in the truth or the answers of {len(gold)} patches"
    for label in sorted(set().union(*truths)):
        n_gold = sum(label in truth for truth in truths)
        n_predicted = sum(label in (answer or ()) for answer in answers)
        both = sum(label in truth and label in (answer or ()) for truth, answer in pairs)
        results["per_label"][label] = {"f1": 2 * both / (n_gold + n_predicted), "n_gold": n_gold} | {
            "n_predicted": n_predicted
        }
    return results


def example_f1(gold: Sequence[Iterable[str]], predicted: Sequence[Iterable[str] | None]) -> np.ndarray:
    """Return the F1 of each patch, float64, shape (patches,); see `compute_multilabel`."""
    scores = []
    for truth, answer in zip(gold, predicted, strict=True):
        if answer is None:
            scores.append(0.0)
            continue
        truth, answer = _fold(truth), _fold(answer)
        scores.append(2 * len(truth & answer) / (len(truth) + len(answer)) if truth or answer else 1.0)
    return np.array(scores)


def count_labels(gold: Sequence[Iterable[str]], predicted: Sequence[Iterable[str] | None]) -> np.ndarray:
    """Return matched, missed and wrong labels of each patch, int, shape (patches, 3), to be summed by a bootstrap."""
    rows = []
    for truth, answer in zip(gold, predicted, strict=True):
        truth, answer = _fold(truth), _fold(answer or ())
        rows.append((len(truth & answer), len(truth - answer), len(answer - truth)))
    return np.array(rows, dtype=int).reshape(-1, 3)


def _fold(labels: Iterable[str]) -> set[str]:
    return {label.strip().casefold() for label in labels}
