"""Scores of boxes: F1 over all patches of a data set, with boxes matched one to one by overlap, and area scores."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from histolab_sft.metrics.areas import average_areas, compare_areas, divide_areas, fold_label
from histolab_sft.metrics.pairs import check_pairs

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
MAIN_THRESHOLD = 0.5


class Box(NamedTuple):
    """A box in pixels of the original picture, x to the right and y down; (x2, y2) is the corner that is outside."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str | None = None


def compute_boxes(
    gold: Sequence[Sequence[Box]], predicted: Sequence[Sequence[Box] | None], label_aware: bool = True
) -> dict:
    """Return the scores of one system on one data set, ready for JSON.

    Boxes whose labels are the ids of instances (chromosome `"17"`) give the instance F1: they match within one id.

    Args:
        gold: True boxes of each patch; no box is a legal truth.
        predicted: Boxes of each patch, None where the answer couldn't be read: every true box of it is then missed.
        label_aware (`bool`): Match equal labels only (case doesn't count; a box without a label matches only another
            without one). False ignores labels, for data sets that have none.

    Returns:
        `dict`: `box_f1`, `box_precision`, `box_recall` at an overlap of at least 0.5; `box_f1_by_threshold` and their
        mean `mean_box_f1`, 0.3 to 0.7; `box_area_dice` and `box_area_iou`, the means of `score_areas` over the patches
        with a true box; `empty_accuracy`, the share of patches without a true box whose answer is an
        empty list; `per_label` with `f1` at 0.5, `n_gold`, `n_predicted` (label-aware only); `unparsed_rate`,
        `n_gold`, `n_predicted`. What can't be divided is None, with `box_f1_reason` or `empty_accuracy_reason`.

    Raises:
        ValueError: Different numbers of patches, or none.
    """
    check_pairs(gold, predicted, "patches with true boxes", "an answer that can't be read")
    sums = {t: count_matches(gold, predicted, t, label_aware).sum(axis=0) for t in THRESHOLDS}
    matched, missed, wrong = (int(count) for count in sums[MAIN_THRESHOLD])
    by_threshold = {str(t): f1_from_counts(counts) for t, counts in sums.items()}
    no_boxes = by_threshold[str(MAIN_THRESHOLD)] is None
    negatives = [answer for truth, answer in zip(gold, predicted, strict=True) if not truth]
    results = {
        "box_f1": by_threshold[str(MAIN_THRESHOLD)],
        "box_precision": matched / (matched + wrong) if matched + wrong else None,
        "box_recall": matched / (matched + missed) if matched + missed else None,
        **average_areas(score_areas(gold, predicted, label_aware)),
        "mean_box_f1": None if no_boxes else float(np.mean(list(by_threshold.values()))),
        "box_f1_by_threshold": by_threshold,
        "empty_accuracy": float(np.mean([answer is not None and not answer for answer in negatives]))
        if negatives
        else None,
        "unparsed_rate": float(np.mean([answer is None for answer in predicted])),
        "n_gold": matched + missed,
        "n_predicted": matched + wrong,
    }
    if no_boxes:
        results["box_f1_reason"] = f"no box in the truth or the answers of {len(gold)} patches"
    if not negatives:
        results["empty_accuracy_reason"] = f"each of the {len(gold)} patches has a true box"
    if label_aware:
        results["per_label"] = compute_per_label(gold, predicted)
    return results


def compute_per_label(gold: Sequence[Sequence[Box]], predicted: Sequence[Sequence[Box] | None]) -> dict:
    """Return `{label: {"f1", "n_gold", "n_predicted"}}` at an overlap of 0.5, for every label that is not None."""
    found = {fold_label(box) for boxes in (*gold, *predicted) for box in boxes or []} - {None}
    table = {}
    for label in sorted(found):
        truths, answers = (
            [[b for b in boxes or [] if fold_label(b) == label] for boxes in side] for side in (gold, predicted)
        )
        counts = count_matches(truths, answers, MAIN_THRESHOLD).sum(axis=0)
        table[label] = {
            "f1": f1_from_counts(counts),
            "n_gold": int(counts[0] + counts[1]),
            "n_predicted": int(counts[0] + counts[2]),
        }
    return table


def count_matches(
    gold: Sequence[Sequence[Box]],
    predicted: Sequence[Sequence[Box] | None],
    threshold: float,
    label_aware: bool = True,
) -> np.ndarray:
    """Return matched, missed and wrong boxes of each patch, int, shape (patches, 3).

    Sums over any choice of rows give the micro F1 of that choice (`f1_from_counts`), which is what a bootstrap needs.
    """
    rows = []
    for truth, answer in zip(gold, predicted, strict=True):
        matched = len(match_boxes(truth, answer or [], threshold, label_aware))
        rows.append((matched, len(truth) - matched, len(answer or []) - matched))
    return np.array(rows, dtype=int).reshape(-1, 3)


def f1_from_counts(counts: np.ndarray) -> float | None:
    """Return the F1 of (matched, missed, wrong), None where there is no box at all."""
    matched, missed, wrong = counts
    return float(2 * matched / (2 * matched + missed + wrong)) if matched + missed + wrong else None


def match_boxes(
    gold: Sequence[Box], predicted: Sequence[Box], threshold: float, label_aware: bool = True
) -> list[tuple[int, int]]:
    """Return pairs (position in `gold`, position in `predicted`), best overlap first, each box in one pair at most."""
    overlap = compute_iou(gold, predicted)
    if label_aware:
        same = [[fold_label(truth) == fold_label(answer) for answer in predicted] for truth in gold]
        overlap = np.where(np.array(same, dtype=bool).reshape(overlap.shape), overlap, -1)
    pairs, rows, columns = [], set(), set()
    for index in np.argsort(-overlap, axis=None, kind="stable"):
        row, column = (int(i) for i in np.unravel_index(index, overlap.shape))
        if overlap[row, column] < threshold:
            break
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


def compute_iou(first: Sequence[Box], second: Sequence[Box]) -> np.ndarray:
    """Return intersection over union, float64, shape (len(first), len(second)); 0 where a box has no area."""
    a = np.array([box[:4] for box in first], dtype=float).reshape(-1, 1, 4)
    b = np.array([box[:4] for box in second], dtype=float).reshape(1, -1, 4)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    total = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - shared
    return np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)


def score_areas(
    gold: Sequence[Sequence[Box]], predicted: Sequence[Sequence[Box] | None], label_aware: bool = True
) -> dict[str, np.ndarray]:
    """Return Dice and IoU of the areas that boxes cover, of the patches with a true box, float64, shape (those,).

    What several boxes cover counts once, whatever their number, so neither says that things are told apart. With
    labels, the areas of each label are compared apart and added up. An answer that can't be read covers nothing.

    Returns:
        `box_area_dice` (2 |both| / (|true| + |answered|)) and `box_area_iou` (|both| / |either|).
    """
    rows = [
        compare_areas(truth, answer, _cover, label_aware)
        for truth, answer in zip(gold, predicted, strict=True)
        if truth
    ]
    return {f"box_area_{name}": values for name, values in divide_areas(rows).items()}


def _cover(first: Sequence[Box], second: Sequence[Box]) -> np.ndarray:
    """Return the areas that both cover, the first covers and the second covers, in square pixels."""
    corners = np.array([box[:4] for box in (*first, *second)], dtype=float).reshape(-1, 4)
    # Between two neighbouring sides of boxes an area is covered whole or not at all.
    xs, ys = np.unique(corners[:, ::2]), np.unique(corners[:, 1::2])
    covered = np.zeros((2, max(len(ys) - 1, 0), max(len(xs) - 1, 0)), dtype=bool)
    for number, (x1, y1, x2, y2) in enumerate(corners):
        rows, columns = (slice(*np.searchsorted(side, ends)) for side, ends in ((ys, (y1, y2)), (xs, (x1, x2))))
        covered[int(number >= len(first)), rows, columns] = True
    cells = np.outer(np.diff(ys), np.diff(xs))
    return np.array([(cells * part).sum() for part in (covered.all(axis=0), *covered)])
