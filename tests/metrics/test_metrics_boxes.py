import numpy as np
import pytest

from histolab_sft.metrics.boxes import (
    Box,
    compute_boxes,
    compute_iou,
    count_matches,
    f1_from_counts,
    match_boxes,
    score_areas,
)

UNIT = Box(0, 0, 10, 10)


def shifted(x, label=None):
    """A box of 10 x 10 moved to the right by x: it shares (10 - x) / (10 + x) with UNIT."""
    return Box(x, 0, 10 + x, 10, label)


def test_overlap_is_shared_area_over_the_area_of_both():
    boxes = [UNIT, shifted(5), shifted(10), Box(2, 2, 4, 4), Box(3, 3, 3, 9)]
    assert np.allclose(compute_iou([UNIT], boxes), [[1, 1 / 3, 0, 0.04, 0]])
    assert compute_iou([], [UNIT]).shape == (0, 1)


def test_scores_are_counted_over_all_patches():
    gold = [[UNIT, Box(50, 50, 60, 60)], [UNIT], []]
    predicted = [[UNIT], [shifted(6)], [UNIT]]  # one right; one that shares 4/16; one where nothing is
    results = compute_boxes(gold, predicted, label_aware=False)
    assert results["box_f1"] == pytest.approx(2 / (2 + 2 + 2))
    assert (results["box_precision"], results["box_recall"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (results["n_gold"], results["n_predicted"]) == (3, 3)
    assert results["empty_accuracy"] == 0


def test_the_mean_runs_over_five_thresholds():
    # 10 - x over 10 + x: 0.6 at x = 2.5
    results = compute_boxes([[UNIT]], [[shifted(2.5)]])
    assert results["box_f1_by_threshold"] == {"0.3": 1, "0.4": 1, "0.5": 1, "0.6": 1, "0.7": 0}
    assert results["mean_box_f1"] == pytest.approx(0.8)


def test_an_overlap_of_exactly_the_threshold_counts():
    assert match_boxes([Box(0, 0, 10, 10)], [Box(0, 0, 10, 5)], 0.5) == [(0, 0)]
    assert match_boxes([Box(0, 0, 10, 10)], [Box(0, 0, 10, 3)], 0.3) == [(0, 0)]


def test_each_box_is_matched_once_and_the_best_overlap_first():
    # In the order of the list the first answer would take the truth and leave the perfect one over.
    assert match_boxes([UNIT], [shifted(2), UNIT], 0.5) == [(0, 1)]
    assert match_boxes([UNIT, UNIT], [UNIT], 0.5) == [(0, 0)]
    assert match_boxes([UNIT, shifted(3)], [shifted(1), UNIT], 0.5) == [(0, 1), (1, 0)]


def test_a_label_matches_only_itself_and_none_only_none():
    named = Box(0, 0, 10, 10, "Nodule")
    assert match_boxes([named], [Box(0, 0, 10, 10, " nodule")], 0.5) == [(0, 0)]
    assert match_boxes([named], [Box(0, 0, 10, 10, "mass")], 0.5) == []
    assert match_boxes([named], [UNIT], 0.5) == []
    assert match_boxes([UNIT], [named], 0.5) == []
    assert match_boxes([UNIT], [named], 0.5, label_aware=False) == [(0, 0)]


def test_instances_match_within_their_id():
    gold = [[shifted(0, "1"), shifted(100, "1"), shifted(200, "X")]]
    swapped = [[shifted(0, "1"), shifted(100, "X"), shifted(200, "X")]]
    results = compute_boxes(gold, swapped)
    assert results["box_f1"] == pytest.approx(2 / 3)
    assert results["per_label"] == {
        "1": {"f1": pytest.approx(2 / 3), "n_gold": 2, "n_predicted": 1},
        "x": {"f1": pytest.approx(2 / 3), "n_gold": 1, "n_predicted": 2},
    }


def test_bug_15_an_unparsed_answer_misses_every_true_box():
    results = compute_boxes([[UNIT, shifted(50)], [UNIT]], [None, [UNIT]])
    assert results["box_f1"] == pytest.approx(2 / (2 + 2))
    assert results["unparsed_rate"] == 0.5
    assert compute_boxes([[]], [None])["empty_accuracy"] == 0


def test_a_patch_without_boxes_on_either_side_adds_nothing():
    assert compute_boxes([[UNIT], []], [[UNIT], []])["box_f1"] == 1
    results = compute_boxes([[], []], [[], []])
    assert results["box_f1"] is None and results["mean_box_f1"] is None
    assert "no box in the truth" in results["box_f1_reason"]
    assert results["empty_accuracy"] == 1


def test_empty_accuracy_without_an_empty_patch_says_why_it_is_none():
    results = compute_boxes([[UNIT]], [[]])
    assert results["empty_accuracy"] is None and "has a true box" in results["empty_accuracy_reason"]
    assert results["box_precision"] is None and results["box_f1"] == 0


def test_counts_of_any_choice_of_patches_give_its_f1():
    gold, predicted = [[UNIT], [UNIT], []], [[UNIT], [], [UNIT]]
    counts = count_matches(gold, predicted, 0.5)
    assert counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert f1_from_counts(counts.sum(axis=0)) == compute_boxes(gold, predicted)["box_f1"]
    assert f1_from_counts(counts[[0, 0, 1]].sum(axis=0)) == pytest.approx(0.8)


def test_different_numbers_of_patches_are_refused():
    with pytest.raises(ValueError, match="1 patches with true boxes and 0 answers"):
        compute_boxes([[UNIT]], [])


@pytest.mark.parametrize(
    ("truth", "answer", "dice", "iou"),
    [
        ([UNIT], [UNIT], 1, 1),
        ([UNIT], [shifted(5)], 0.5, 1 / 3),
        ([UNIT], [shifted(10)], 0, 0),
        ([UNIT], [], 0, 0),
        ([UNIT], None, 0, 0),
        # One box in two halves, or twice the same: the area is what it is.
        ([UNIT], [Box(0, 0, 5, 10), Box(5, 0, 10, 10)], 1, 1),
        ([UNIT, UNIT], [UNIT], 1, 1),
        ([UNIT, shifted(5)], [Box(0, 0, 15, 10)], 1, 1),
        ([UNIT, Box(20, 0, 30, 10)], [UNIT], 2 / 3, 1 / 2),
        ([Box(0.5, 0, 1.5, 1)], [Box(1, 0, 2, 1)], 0.5, 1 / 3),
        ([Box(3, 3, 3, 9)], [UNIT], 0, 0),
    ],
)
def test_dice_and_iou_compare_what_boxes_cover(truth, answer, dice, iou):
    results = compute_boxes([truth], [answer], label_aware=False)
    assert (results["box_area_dice"], results["box_area_iou"]) == (pytest.approx(dice), pytest.approx(iou))


def test_areas_are_those_of_a_raster():
    generator = np.random.default_rng(0)
    for _ in range(20):
        sides = []
        for _ in range(2):
            corners = generator.integers(0, 20, (4, 2))
            sides.append([Box(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, corners[::-1] + 1, strict=True)])
        rasters = np.zeros((2, 50, 50), dtype=bool)
        for raster, boxes in zip(rasters, sides, strict=True):
            for box in boxes:
                raster[box.y1 : box.y2, box.x1 : box.x2] = True
        scores = score_areas([sides[0]], [sides[1]])
        assert scores["box_area_iou"][0] == pytest.approx(rasters.all(axis=0).sum() / rasters.any(axis=0).sum())
        assert scores["box_area_dice"][0] == pytest.approx(2 * rasters.all(axis=0).sum() / rasters.sum())


def test_areas_of_other_labels_are_not_shared():
    truth, answer = [shifted(0, "mass"), shifted(20, "nodule")], [shifted(0, "Mass"), shifted(20, "effusion")]
    assert compute_boxes([truth], [answer])["box_area_iou"] == pytest.approx(1 / 3)
    assert compute_boxes([truth], [answer], label_aware=False)["box_area_iou"] == 1


def test_dice_and_iou_are_means_over_the_patches_with_a_true_box():
    results = compute_boxes([[UNIT], [], [UNIT]], [[UNIT], [UNIT], None])
    assert results["box_area_dice"] == results["box_area_iou"] == 0.5
    assert compute_boxes([[]], [[UNIT]])["box_area_dice"] is None
