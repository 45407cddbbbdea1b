"""Dice and IoU of areas: those that boxes cover, and those inside outlines."""

from collections.abc import Callable, Sequence

import numpy as np


def compare_areas(truth: Sequence, answer: Sequence | None, measure: Callable, label_aware: bool) -> np.ndarray:
    """Return |both|, |true| and |answered| of one patch, float64, shape (3,).

    Args:
        truth, answer: Things with a `label`; an answer that can't be read is None and covers nothing.
        measure: Gives these three of true and answered things, whose overlaps count once.
        label_aware (`bool`): Compare the areas of each label apart and add them up (case doesn't count).
    """
    sides = (truth, answer or [])
    if not label_aware:
        return np.array(measure(*sides), dtype=float)
    labels = {fold_label(thing) for side in sides for thing in side}
    parts = [measure(*([thing for thing in side if fold_label(thing) == label] for side in sides)) for label in labels]
    return np.sum(parts, axis=0, dtype=float)


def divide_areas(rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return `dice`, 2 |both| / (|true| + |answered|), and `iou`, |both| / |either|, of rows of `compare_areas`.

    Each is float64, shape (rows,), and 0 where neither side covers anything.
    """
    both, true, answered = np.array(rows, dtype=float).reshape(-1, 3).T
    total = true + answered
    return {
        "dice": np.divide(2 * both, total, out=np.zeros_like(total), where=total > 0),
        "iou": np.divide(both, total - both, out=np.zeros_like(total), where=total > 0),
    }


def average_areas(scores: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Return the mean of each score, None where no patch has it."""
    return {name: float(values.mean()) if len(values) else None for name, values in scores.items()}


def fold_label(thing) -> str | None:
    """Return the label of a box or an outline as labels are compared."""
    return None if thing.label is None else thing.label.strip().casefold()
