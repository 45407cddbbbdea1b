"""What a test set can show is told before it is scored, and what it could have shown afterwards."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.sample_size import (
    CORRELATION,
    count_needed,
    describe_detectable,
    format_plan,
    plan_test,
)
from histolab_sft.evaluation.uncertainty import bootstrap, difference, interval
from histolab_sft.metrics.weighted import classification_measure

CLASSES = ["Normal", "Tumor"]
CONFIG = DatasetConfig(name="ward", source="ward", class_names={"N": "Normal", "T": "Tumor"})
TOLERANCE = 0.15  # of a promised width, as a part of the mean width that the bootstrap gives
GAIN, SCORE = 0.06, 0.8


def make_units(n_units, size, uneven=False):
    """Classes and units of patches; with `uneven`, every third unit has five times as many."""
    sizes = [size * (5 if uneven and unit % 3 == 0 else 1) for unit in range(n_units)]
    units = np.repeat(np.arange(n_units), sizes)
    return np.array(CLASSES)[np.random.default_rng(0).integers(2, size=len(units))], units


def draw_right(units, chance, correlation, rng):
    """Whether each patch is right: with a chance of the root of the correlation it is as its unit is."""
    common = rng.random(units.max() + 1)[units]
    own = rng.random(len(units))
    return np.where(rng.random(len(units)) < np.sqrt(correlation), common, own) < chance


def score_study(labels, units, correlation, seed):
    """Return the estimates of both systems on one simulated study."""
    rng = np.random.default_rng(seed)
    other = np.where(labels == "Normal", "Tumor", "Normal")
    measures = {
        system: classification_measure(
            labels, np.where(draw_right(units, chance, correlation, rng), labels, other), CLASSES
        )
        for system, chance in (("finetuned", SCORE), ("baseline", SCORE - GAIN))
    }
    return bootstrap(measures, len(labels), units, draws=200, seed=seed)


@pytest.mark.thorough
@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(("n_units", "size", "uneven"), [(12, 20, False), (40, 10, False), (40, 6, True)])
def test_the_promised_widths_are_those_that_the_bootstrap_gives(n_units, size, uneven, correlation):
    labels, units = make_units(n_units, size, uneven)
    plan = plan_test(labels, units, SCORE, GAIN, correlation)
    widths = {"width": [], "gain_width": []}
    for seed in range(150):
        found = score_study(labels, units, correlation, seed)
        pair = [found[system]["balanced_accuracy"] for system in ("finetuned", "baseline")]
        for name, estimate in (("width", pair[0]), ("gain_width", difference(*pair))):
            low, high = interval(estimate)["ci95"]
            widths[name].append(high - low)
    for name, found in widths.items():
        assert plan[name] == pytest.approx(np.mean(found), rel=TOLERANCE), name


@pytest.mark.thorough
@pytest.mark.parametrize("correlation", [0.0, 0.2])
def test_as_many_units_as_are_said_to_be_needed_find_the_gain_in_four_of_five_studies(correlation):
    labels, units = make_units(60, 10)
    needed = plan_test(labels, units, SCORE, GAIN, correlation)["units_needed"]
    labels, units = make_units(needed, 10)
    found = 0
    for seed in range(400):
        both = score_study(labels, units, correlation, seed)
        low, high = interval(difference(*(both[s]["balanced_accuracy"] for s in ("finetuned", "baseline"))))["ci95"]
        found += low > 0
    assert 0.74 <= found / 400 <= 0.86


def test_independent_patches_of_one_class_each_have_the_width_of_a_proportion():
    labels = np.array(CLASSES * 200)
    plan = plan_test(labels, np.arange(400), 0.8, 0.05, 0.0)
    assert plan["width"] == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 400), rel=0.01)
    # Connor: (z + z)^2 (discordant - gain^2) / gain^2
    unlike = 0.8 * 0.25 + 0.75 * 0.2
    expected = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 * (unlike - 0.05**2) / 0.05**2
    assert plan["units_needed"] == pytest.approx(expected, rel=0.01)


def test_groups_of_equal_size_and_one_class_have_the_design_effect_of_kish():
    labels, units = np.array(["Tumor"] * 300), np.repeat(np.arange(30), 10)
    wide, narrow = (plan_test(labels, units, 0.8, 0.05, correlation)["width"] for correlation in (0.2, 0.0))
    assert wide / narrow == pytest.approx(np.sqrt(1 + 9 * 0.2))


def test_a_rarer_class_a_correlation_and_uneven_groups_each_widen_the_interval():
    even = np.array(CLASSES * 200)
    rare = np.array(["Normal"] * 390 + ["Tumor"] * 10)
    units = np.arange(400)
    assert plan_test(rare, units, 0.8, 0.05)["width"] > 2 * plan_test(even, units, 0.8, 0.05)["width"]
    groups, uneven = units // 10, np.r_[np.zeros(210, int), 1 + np.arange(190) // 5]
    widths = [
        plan_test(even, own, 0.8, 0.05, correlation)["width"]
        for own, correlation in ((groups, 0.0), (groups, 0.2), (uneven, 0.2))
    ]
    assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize("gain", [0.01, 0.05, 0.3])
def test_the_units_needed_are_the_fewest_that_find_the_gain(gain):
    def detect(count):
        error = 0.04 * np.sqrt(50 / count)
        return (stats.t.ppf(0.975, count - 1) + stats.t.ppf(0.8, count - 1)) * error

    needed = count_needed(0.04, 50, gain)
    assert detect(needed) <= gain and (needed == 2 or detect(needed - 1) > gain)
    assert count_needed(40.0, 50, gain) is None


def test_the_report_says_what_difference_the_test_set_could_have_shown():
    labels, units = make_units(40, 10)
    found = score_study(labels, units, 0.1, 0)
    entry = {"group_unit": "group", "n_groups": 40}
    told = describe_detectable(entry, found, 0.05)
    gain = interval(difference(found["finetuned"]["balanced_accuracy"], found["baseline"]["balanced_accuracy"]))
    # Both quantiles in place of one, of about half the interval's width.
    assert told["value"] == pytest.approx((gain["ci95"][1] - gain["ci95"][0]) / 2 * (2.02 + 0.85) / 2.02, rel=0.05)
    assert f"{round(100 * told['value'], 1):g} points or more in balanced accuracy" in told["text"]
    assert f"To find 5 points, about {told['units_needed']:,} patients or slides" in told["text"]
    # What was found has no part in it.
    shifted = {system: {"balanced_accuracy": found[system]["balanced_accuracy"]} for system in found}
    estimate = shifted["finetuned"]["balanced_accuracy"]
    shifted["finetuned"]["balanced_accuracy"] = type(estimate)(0.99, estimate.draws, estimate.degrees, estimate.scale)
    assert describe_detectable(entry, shifted, 0.05) == told


def test_where_draws_have_no_spread_nothing_is_said():
    labels, units = make_units(10, 5)
    measure = classification_measure(labels, labels, CLASSES)
    found = bootstrap({"finetuned": measure, "baseline": measure}, len(labels), units, draws=50)
    assert describe_detectable({"group_unit": "group"}, found, 0.05) is None


def test_preflight_says_widths_units_and_what_it_assumes():
    labels, units = make_units(40, 10)
    test = pd.DataFrame({"id": [str(i) for i in range(len(labels))], "group": units.astype(str), "label": labels})
    text = format_plan(CONFIG, test, 0.8, 0.05)
    plan = plan_test(labels, units, 0.8, 0.05)
    assert "400 test patches of 40 patients or slides. At a balanced accuracy of 80%" in text
    assert f"{100 * plan['width']:.1f} points wide" in text and f"({10 * plan['units_needed']:,} patches)" in text
    assert f"correlation within one of {CORRELATION}" in text
    assert "patches are independent" in format_plan(CONFIG, test.assign(group=None), 0.8, 0.05)
    assert "one alone gives no interval" in format_plan(CONFIG, test.assign(group="P1"), 0.8, 0.05)
    questions = DatasetConfig(name="captions", source="captions", format="captions")
    assert "isn't known before a run" in format_plan(questions, test, 0.8, 0.05)
