import pytest

from histolab_sft.metrics.biomarkers import compute_biomarkers

FIELDS = [
    {"name": "level", "values": ["high", "low"]},
    {"name": "type", "values": ["A", "B", "C"]},
    {"name": "share", "range": [0, 1]},
]
TRAIN = [{"level": "low", "type": "A", "share": 0.2}, {"level": "low", "type": "A", "share": 0.4}] + [
    {"level": "high", "type": "B", "share": 0.9}
]


def records(levels, types=None, shares=None):
    n = len(levels)
    rows = zip(levels, types or ["A"] * n, shares or [0.5] * n, strict=True)
    return [dict(zip(("level", "type", "share"), row, strict=True)) for row in rows]


def test_rates_tell_json_from_schema_from_values():
    gold = records(["high", "low", "low", "high"])
    predicted = [
        {"level": "high", "type": "A", "share": 0.5},
        {"level": None, "type": "A", "share": 0.5},
        {"level": "low"},
        None,
    ]
    results = compute_biomarkers(gold, predicted, TRAIN, FIELDS)
    rates = [results[name] for name in ("json_rate", "schema_rate", "value_rate", "unparsed_rate")]
    assert rates == [0.75, 0.5, 0.25, 0.25]


def test_scores_of_words_by_hand():
    gold = records(["high"] * 2 + ["low"] * 4)
    answers = ["high", "low", "low", "low", "high", "unknown"]
    entry = compute_biomarkers(gold, records(answers), TRAIN, FIELDS)["fields"]["level"]
    assert entry["accuracy"] == pytest.approx(3 / 6)
    assert entry["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert entry["macro_f1"] == pytest.approx((2 * 1 / (2 + 2) + 2 * 2 / (4 + 3)) / 2)
    assert (entry["n"], entry["unknown_rate"], entry["unparsed_rate"]) == (6, pytest.approx(1 / 6), 0)
    assert "2" in entry["warning"] and "high" in entry["warning"]


def test_scores_of_numbers_by_hand():
    gold = records(["high"] * 4, shares=[0.1, 0.2, 0.3, 0.4])
    predicted = records(["high"] * 4, shares=[0.1, 0.4, None, "unknown"])
    entry = compute_biomarkers(gold, predicted, TRAIN, FIELDS)["fields"]["share"]
    assert entry["imputed_with"] == 0.4  # the training median
    assert entry["mae"] == pytest.approx((0 + 0.2 + 0.1 + 0) / 4)
    assert (entry["parse_rate"], entry["unknown_rate"]) == (0.5, 0.25)
    assert entry["median_floor"]["mae"] == pytest.approx((0.3 + 0.2 + 0.1 + 0) / 4)


def test_bug_15_unparsed_answers_are_wrong_not_dropped():
    gold = records(["high", "low"])
    entry = compute_biomarkers(gold, [{"level": "high"}, None], TRAIN, FIELDS)["fields"]["level"]
    assert (entry["accuracy"], entry["balanced_accuracy"], entry["unparsed_rate"]) == (0.5, 0.5, 0.5)


def test_bug_23_the_most_frequent_training_value_is_scored_beside_the_model():
    gold = records(["low"] * 6 + ["high"] * 3)
    entry = compute_biomarkers(gold, records(["high"] * 9), TRAIN, FIELDS)["fields"]["level"]
    assert entry["majority_floor"]["answer"] == "low"
    assert entry["majority_floor"]["accuracy"] == pytest.approx(6 / 9)
    assert entry["majority_floor"]["balanced_accuracy"] == 0.5
    assert entry["accuracy"] == pytest.approx(3 / 9)


def test_no_positives_in_the_test_split_are_named_not_scored():
    gold = records(["low"] * 94)
    entry = compute_biomarkers(gold, records(["low"] * 94), TRAIN, FIELDS)["fields"]["level"]
    assert entry["balanced_accuracy"] is None and entry["accuracy"] is None and entry["macro_f1"] is None
    assert entry["majority_floor"]["accuracy"] is None
    assert entry["absent"] == ["high"]
    assert entry["reason"] == "level: 0 of 94 test patients are high; not scored"


def test_a_value_of_many_that_no_test_patient_has_is_named():
    gold = records(["high", "low"], types=["A", "B"])
    entry = compute_biomarkers(gold, gold, TRAIN, FIELDS)["fields"]["type"]
    assert entry["absent"] == ["C"] and entry["balanced_accuracy"] == 1


def test_patients_without_a_truth_are_left_out_of_their_field_only():
    gold = records(["unknown", "low", "high"], types=["A", None, "B"], shares=[0.1, float("nan"), 0.3])
    fields = compute_biomarkers(gold, records(["low"] * 3), TRAIN, FIELDS)["fields"]
    assert [fields[name]["n"] for name in ("level", "type", "share")] == [2, 2, 2]


def test_a_field_of_which_nothing_is_known_says_so():
    gold = records(["unknown", "unknown"])
    entry = compute_biomarkers(gold, gold, TRAIN, FIELDS)["fields"]["level"]
    assert entry == {"n": 0, "reason": "0 test and 3 training patients have a known level; scoring needs both"}


def test_constant_numbers_have_no_correlation_and_say_why():
    gold = records(["high"] * 3, shares=[0.1, 0.2, 0.3])
    entry = compute_biomarkers(gold, records(["high"] * 3), TRAIN, FIELDS)["fields"]["share"]
    assert entry["spearman"] is None and "all 3 answers are 0.5" in entry["spearman_reason"]


def test_different_numbers_of_patients_are_refused():
    with pytest.raises(ValueError, match="1 true records and 0 answers"):
        compute_biomarkers(records(["low"]), [], TRAIN, FIELDS)
