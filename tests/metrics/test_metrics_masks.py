import numpy as np
import pytest

from histolab_sft.metrics.masks import SIDE, Outline, compute_masks, draw_mask, score_masks

SIZE = (100, 50)


def rectangle(left, top, right, bottom, label=None):
    """An outline that holds (right - left + 1) * (bottom - top + 1) pixels, its border among them."""
    return Outline([left, top, right, top, right, bottom, left, bottom], label)


SQUARE = rectangle(0, 0, 9, 9)


@pytest.mark.parametrize(
    ("truth", "answer", "dice", "iou"),
    [
        ([SQUARE], [SQUARE], 1, 1),
        ([SQUARE], [rectangle(5, 0, 14, 9)], 0.5, 1 / 3),
        ([SQUARE], [rectangle(20, 0, 29, 9)], 0, 0),
        ([SQUARE], [], 0, 0),
        ([SQUARE], None, 0, 0),
        ([SQUARE], [rectangle(0, 0, 4, 9), rectangle(5, 0, 9, 9)], 1, 1),
        ([SQUARE, SQUARE], [SQUARE], 1, 1),
        ([rectangle(0, 0, 9, 9, "A")], [rectangle(0, 0, 9, 9, "a ")], 1, 1),
        ([rectangle(0, 0, 9, 9, "a")], [rectangle(0, 0, 9, 9, "b")], 0, 0),
        ([rectangle(200, 0, 209, 9)], [], 0, 0),
    ],
)
def test_dice_and_iou_count_the_pixels_that_both_hold(truth, answer, dice, iou):
    results = compute_masks([truth], [answer], [SIZE])
    assert (results["mask_dice"], results["mask_iou"]) == (pytest.approx(dice), pytest.approx(iou))


def test_a_mask_has_the_pixels_inside_its_outline():
    triangle = draw_mask([Outline([0, 0, 10, 0, 0, 10])], (20, 20))
    rows, columns = np.indices(triangle.shape)
    assert (triangle == (rows + columns <= 10)).all()
    assert draw_mask([SQUARE], SIZE).sum() == 100 and draw_mask([], SIZE).sum() == 0


def test_large_pictures_are_compared_on_a_smaller_grid():
    size = (4 * SIDE, 2 * SIDE)
    half = Outline([0, 0, size[0] / 2, 0, size[0] / 2, size[1], 0, size[1]])
    mask = draw_mask([half], size)
    assert mask.shape == (SIDE // 2, SIDE) and mask.mean() == pytest.approx(0.5, abs=0.002)


def test_means_are_over_the_patches_with_a_true_outline():
    results = compute_masks([[SQUARE], [], [SQUARE], []], [[SQUARE], [SQUARE], None, []], [SIZE] * 4)
    assert results["mask_dice"] == results["mask_iou"] == 0.5
    assert results["empty_accuracy"] == 0.5 and results["unparsed_rate"] == 0.25
    nothing = compute_masks([[]], [[]], [SIZE])
    assert nothing["mask_dice"] is None and "none of the 1 patches" in nothing["mask_dice_reason"]
    assert nothing["empty_accuracy"] == 1
    assert "has a true outline" in compute_masks([[SQUARE]], [[]], [SIZE])["empty_accuracy_reason"]


def test_labels_may_be_ignored():
    truth, answer = [[rectangle(0, 0, 9, 9, "a")]], [[rectangle(0, 0, 9, 9, "b")]]
    assert score_masks(truth, answer, [SIZE], label_aware=False)["mask_dice"].tolist() == [1]


def test_different_numbers_of_patches_are_refused():
    with pytest.raises(ValueError, match="1 patches with true outlines, 0 answers and 1 sizes"):
        compute_masks([[SQUARE]], [], [SIZE])
