"""Scores of masks: how far the areas inside true and answered outlines agree, in pixels."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from histolab_sft.metrics.areas import average_areas, compare_areas, divide_areas

SIDE = 1024  # pixels; of a larger picture both masks are compared on a grid with this longest side


class Outline(NamedTuple):
    """A closed polygon around a thing, `[x1, y1, x2, y2, ...]` in pixels of the original picture."""

    points: list[float]
    label: str | None = None


def compute_masks(
    gold: Sequence[Sequence[Outline]],
    predicted: Sequence[Sequence[Outline] | None],
    sizes: Sequence[tuple[int, int]],
    label_aware: bool = True,
) -> dict:
    """Return the scores of one system on one data set, ready for JSON.

    Args:
        gold: True outlines of each patch; none is a legal truth.
        predicted: Outlines of each patch, None where the answer couldn't be read: it covers nothing then.
        sizes: (width, height) of each patch in pixels.
        label_aware (`bool`): Compare the area of each label apart and add the pixels up (case doesn't count).

    Returns:
        `dict`: `mask_dice` and `mask_iou`, the means of `score_masks` over the patches with a true outline;
        `empty_accuracy`, the share of the others whose answer is an empty list; `unparsed_rate`. What can't be divided
        is None, with `mask_dice_reason` or `empty_accuracy_reason`.

    Raises:
        ValueError: Different numbers of patches, or none.
    """
    if not len(gold) == len(predicted) == len(sizes) or not gold:
        raise ValueError(
            f"{len(gold)} patches with true outlines, {len(predicted)} answers and {len(sizes)} sizes, expected as "
            "many of each and at least one; keep an answer that can't be read as None"
        )
    scores = score_masks(gold, predicted, sizes, label_aware)
    negatives = [answer for truth, answer in zip(gold, predicted, strict=True) if not truth]
    results = average_areas(scores)
    results["empty_accuracy"] = float(np.mean([answer == [] for answer in negatives])) if negatives else None
    results["unparsed_rate"] = float(np.mean([answer is None for answer in predicted]))
    if len(negatives) == len(gold):
        results["mask_dice_reason"] = f"none of the {len(gold)} patches has a true outline"
    if not negatives:
        results["empty_accuracy_reason"] = f"each of the {len(gold)} patches has a true outline"
    return results


def score_masks(
    gold: Sequence[Sequence[Outline]],
    predicted: Sequence[Sequence[Outline] | None],
    sizes: Sequence[tuple[int, int]],
    label_aware: bool = True,
) -> dict[str, np.ndarray]:
    """Return `mask_dice` (2 |both| / (|true| + |answered|)) and `mask_iou` (|both| / |either|) in pixels.

    Of the patches with a true outline, float64, shape (those,). What several outlines hold counts once.
    """
    rows = [
        compare_areas(truth, answer, partial(_count_pixels, size=size), label_aware)
        for truth, answer, size in zip(gold, predicted, sizes, strict=True)
        if truth
    ]
    return {f"mask_{name}": values for name, values in divide_areas(rows).items()}


def draw_mask(outlines: Sequence[Outline], size: tuple[int, int]) -> np.ndarray:
    """Return which pixels lie in one of the outlines, or on it, bool, shape (height, width) of at most `SIDE`."""
    scale = min(1, SIDE / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    mask = Image.new("1", (width, height))
    canvas = ImageDraw.Draw(mask)
    for outline in outlines:
        canvas.polygon([coordinate * scale for coordinate in outline.points], fill=1, outline=1)
    return np.array(mask, dtype=bool)


def _count_pixels(first: Sequence[Outline], second: Sequence[Outline], size: tuple[int, int]) -> tuple[int, ...]:
    true, answered = draw_mask(first, size), draw_mask(second, size)
    return (true & answered).sum(), true.sum(), answered.sum()
