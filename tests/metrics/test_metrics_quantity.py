import pytest

from histolab_sft.metrics.quantity import compute_quantity


def test_errors_and_correlations_by_hand():
    results = compute_quantity([1, 2, 3, 4], [2, 2, 5, 4], train_median=2)
    assert results["mae"] == pytest.approx((1 + 0 + 2 + 0) / 4)
    assert results["rmse"] == pytest.approx((5 / 4) ** 0.5)
    # Deviations (-1.5, -.5, .5, 1.5) and (-1.25, -1.25, 1.75, .75): 4.5 / sqrt(5 * 6.75)
    assert results["pearson"] == pytest.approx(4.5 / (5 * 6.75) ** 0.5)
    # Ranks 1 2 3 4 and 1.5 1.5 4 3: 3.5 / sqrt(5 * 4.5)
    assert results["spearman"] == pytest.approx(3.5 / (5 * 4.5) ** 0.5)
    assert results["median_floor"] == {"mae": 1, "rmse": pytest.approx((6 / 4) ** 0.5)}
    assert results["parse_rate"] == 1


def test_bug_15_unparsed_numbers_are_imputed_with_the_train_median_not_dropped():
    results = compute_quantity([10, 20, 30, 40], [10, None, 30, None], train_median=25)
    assert results["mae"] == pytest.approx((0 + 5 + 0 + 15) / 4)
    assert (results["parse_rate"], results["unparsed_rate"], results["imputed_with"]) == (0.5, 0.5, 25)


@pytest.mark.parametrize("predicted", [[5, 5, 5], [None, None, None]])
def test_constant_answers_have_no_correlation_and_say_why(predicted):
    results = compute_quantity([1, 2, 3], predicted, train_median=5)
    assert results["spearman"] is None and results["pearson"] is None
    assert results["spearman_reason"] == "all 3 answers are 5; constant answers correlate with nothing"


def test_a_constant_truth_and_too_few_patches_say_why_too():
    assert "true numbers are 1" in compute_quantity([1, 1, 1], [1, 2, 3], 1)["pearson_reason"]
    assert compute_quantity([1, 2], [1, 2], 1)["pearson_reason"] == "2 patches; a correlation needs 3"


def test_numbers_that_are_not_finite_are_refused_by_row():
    with pytest.raises(ValueError, match="row 1: truth nan"):
        compute_quantity([1, float("nan")], [1, 2], 1)
    with pytest.raises(ValueError, match="row 0: answer inf"):
        compute_quantity([1], [float("inf")], 1)
    with pytest.raises(ValueError, match="0 true numbers"):
        compute_quantity([], [], 1)
