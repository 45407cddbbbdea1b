"""Intervals, differences and tests: against theory, against scipy, and by how often the truth is covered."""

import numpy as np
import pytest
from drawn_answers import draw_answers
from scipy import stats

from histolab_sft.evaluation.uncertainty import (
    bootstrap,
    bootstrap_interval,
    compute_mcnemar,
    describe_units,
    difference,
    interval,
    macro_mean,
    score_systems,
)
from histolab_sft.metrics.classification import UNPARSED, compute_classification
from histolab_sft.metrics.weighted import classification_measure


def mean_of(values):
    values = np.asarray(values, dtype=float)
    return lambda weights: values @ weights / weights.sum(axis=0)


@pytest.mark.slow
def test_only_the_clustered_interval_covers_the_truth_as_often_as_it_says():
    # 60 patients of 10 patches; each patient's accuracy is drawn from a beta distribution of mean 0.75
    n_groups, n_patches, trials = 60, 10, 500
    groups = np.repeat(np.arange(n_groups), n_patches)
    generator = np.random.default_rng(0)
    covered = {"clustered": 0, "unclustered": 0}
    for trial in range(trials):
        ability = np.repeat(generator.beta(3, 1, size=n_groups), n_patches)
        right = mean_of(generator.random(len(groups)) < ability)
        for name, known in (("clustered", groups), ("unclustered", None)):
            low, high = bootstrap_interval(right, len(groups), known, draws=400, seed=trial)["ci95"]
            covered[name] += low <= 0.75 <= high
    assert 0.93 <= covered["clustered"] / trials <= 0.97
    assert covered["unclustered"] / trials < 0.85


@pytest.mark.slow
def test_interval_stays_honest_with_ten_groups():
    groups, generator, covered = np.repeat(np.arange(10), 20), np.random.default_rng(0), 0
    for trial in range(500):
        ability = np.repeat(generator.beta(6, 2, size=10), 20)
        right = mean_of(generator.random(200) < ability)
        low, high = bootstrap_interval(right, 200, groups, draws=400, seed=trial)["ci95"]
        covered += low <= 0.75 <= high
    assert covered / 500 >= 0.92


def test_interval_of_a_mean_agrees_with_students_t():
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap_interval(mean_of(values), 400, draws=4000)["ci95"]
    expected = stats.t.interval(0.95, 399, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_groups_of_one_patch_are_patches():
    values = np.random.default_rng(0).normal(size=100)
    plain = bootstrap_interval(mean_of(values), 100, seed=3)
    grouped = bootstrap_interval(mean_of(values), 100, np.arange(100, 200), seed=3)
    assert plain["ci95"] == pytest.approx(grouped["ci95"])
    assert (plain["unit"], plain["n_groups"]) == ("patch", None)
    assert (grouped["unit"], grouped["n_groups"]) == ("group", 100)


def test_a_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).normal(size=100)
    first, again, other = (bootstrap_interval(mean_of(values), 100, seed=seed)["ci95"] for seed in (1, 1, 2))
    assert first == again != other


def test_draws_in_several_blocks_have_the_spread_of_draws_in_one(monkeypatch):
    values = np.random.default_rng(0).normal(size=200)
    one = bootstrap_interval(mean_of(values), 200, draws=3000)["ci95"]
    monkeypatch.setattr("histolab_sft.evaluation.uncertainty._CHUNK", 200 * 7)
    np.testing.assert_allclose(bootstrap_interval(mean_of(values), 200, draws=3000)["ci95"], one, atol=0.02)


def test_few_groups_are_warned_of():
    assert "29 groups" in describe_units(290, np.arange(290) % 29)["warning"]
    assert "warning" not in describe_units(300, np.arange(300) % 30)
    assert "12 patches" in describe_units(12)["warning"]


def test_one_group_gives_a_value_without_interval():
    found = bootstrap_interval(mean_of([1, 0, 1, 1]), 4, ["a"] * 4)
    assert (found["value"], found["ci95"]) == (0.75, None)


def test_an_interval_without_width_is_warned_of():
    found = bootstrap_interval(mean_of(np.ones(50)), 50)
    assert found["ci95"] == [1.0, 1.0]
    assert "same value" in found["warning"]


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_a_patch_without_group_is_refused_with_its_row(missing):
    with pytest.raises(ValueError, match="row 2: no group"):
        bootstrap_interval(mean_of(np.ones(4)), 4, ["a", "b", missing, "c"])


def test_groups_of_another_length_are_refused():
    with pytest.raises(ValueError, match="3 groups for 4 patches"):
        bootstrap_interval(mean_of(np.ones(4)), 4, ["a", "b", "c"])


def test_scores_carry_the_plain_value_and_an_interval_around_it():
    labels, predictions, classes, probabilities, _ = draw_answers(0)
    groups = np.random.default_rng(0).integers(40, size=len(labels))
    scores, _ = score_systems(labels, {"finetuned": (predictions, probabilities)}, classes, groups, draws=300)
    plain = compute_classification(labels, predictions, classes, probabilities)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "unparsed_rate", "auroc", "average_precision", "brier"):
        low, high = scores["finetuned"][name]["ci95"]
        assert scores["finetuned"][name]["value"] == pytest.approx(plain[name])
        assert low < plain[name] < high
    assert scores["finetuned"]["confusion_matrix"] == plain["confusion_matrix"]


def test_a_score_without_value_has_no_interval_and_says_why():
    probabilities = np.full((40, 2), 0.5)
    scores, _ = score_systems(["a"] * 40, {"baseline": (["a"] * 40, probabilities)}, ["a", "b"])
    assert scores["baseline"]["auroc"]["value"] is None and scores["baseline"]["auroc"]["ci95"] is None
    assert "absent" in scores["baseline"]["auroc"]["warning"]


def test_draws_without_the_rare_class_are_left_out_and_counted():
    labels = ["a"] * 40 + ["b"]
    probabilities = np.linspace([0.9, 0.1], [0.1, 0.9], 41)
    scores, estimates = score_systems(labels, {"finetuned": (labels, probabilities)}, ["a", "b"], draws=500)
    lacking = int(np.isnan(estimates["finetuned"]["auroc"].draws).sum())
    assert 130 < lacking < 240  # (40 / 41) ** 41 = 36 % of 500
    assert f"{lacking} draws" in scores["finetuned"]["auroc"]["warning"]
    assert scores["finetuned"]["balanced_accuracy"]["ci95"] == [1.0, 1.0]


def test_difference_of_a_system_from_itself_is_nothing_and_pairing_narrows_the_interval():
    labels, predictions, classes, _, _ = draw_answers(0)
    better = np.where(np.random.default_rng(0).random(len(labels)) < 0.3, labels, predictions)
    systems = {"baseline": (predictions, None), "finetuned": (better, None), "copy": (predictions, None)}
    _, estimates = score_systems(labels, systems, classes)
    accuracy = {system: estimates[system]["accuracy"] for system in systems}
    assert interval(difference(accuracy["copy"], accuracy["baseline"]))["ci95"] == [0.0, 0.0]
    gain = difference(accuracy["finetuned"], accuracy["baseline"])
    assert gain.value == pytest.approx(np.mean(better == labels) - np.mean(predictions == labels))
    unpaired = np.hypot(accuracy["finetuned"].draws.std(), accuracy["baseline"].draws.std())
    assert gain.draws.std() < 0.75 * unpaired


def test_overall_counts_each_data_set_once_and_draws_them_independently_even_with_one_seed():
    # the same values twice: draws of one seed would move both means together and widen the overall by sqrt(2)
    values = [np.random.default_rng(0).normal(size=200) + loc for loc in (0.0, 3.0)]
    parts = [
        bootstrap({"a": lambda w, v=v: {"mean": mean_of(v)(w)}}, 200, draws=4000, seed=5)["a"]["mean"] for v in values
    ]
    overall = macro_mean(parts)
    assert overall.value == pytest.approx((values[0].mean() + values[1].mean()) / 2)
    expected = np.hypot(stats.sem(values[0]), stats.sem(values[1])) / 2
    assert overall.draws.std() == pytest.approx(expected, rel=0.05)
    assert overall.degrees == pytest.approx(398, rel=0.05)


def test_overall_of_a_single_group_has_no_interval():
    part = bootstrap({"a": lambda w: {"mean": mean_of([1, 0])(w)}}, 2, ["x", "x"])["a"]["mean"]
    other = bootstrap({"a": lambda w: {"mean": mean_of(np.arange(50))(w)}}, 50)["a"]["mean"]
    assert interval(macro_mean([part, other]))["ci95"] is None


def test_overall_of_a_score_that_one_data_set_lacks_has_no_value():
    part = bootstrap({"a": lambda w: {"auroc": np.full(w.shape[1], np.nan)}}, 50)["a"]["auroc"]
    other = bootstrap({"a": lambda w: {"auroc": mean_of(np.arange(50))(w)}}, 50)["a"]["auroc"]
    assert interval(macro_mean([part, other]))["value"] is None


def test_mcnemar_is_the_exact_binomial_test_on_the_answers_that_differ():
    labels = ["a"] * 20
    baseline = ["a"] * 10 + ["b"] * 8 + [UNPARSED] * 2
    finetuned = ["a"] * 9 + ["b"] + ["a"] * 9 + ["b"]
    found = compute_mcnemar(labels, baseline, finetuned)
    assert (found["only_baseline"], found["only_finetuned"]) == (1, 9)
    assert found["mcnemar_p"] == pytest.approx(2 * stats.binom.cdf(1, 10, 0.5))


def test_two_systems_with_the_same_errors_do_not_differ():
    assert compute_mcnemar(["a", "b"], ["a", "a"], ["a", "a"], groups=["x", "y"]) == {
        "only_baseline": 0,
        "only_finetuned": 0,
        "mcnemar_p": 1.0,
        "group_p": 1.0,
        "n_unlike_groups": 0,
    }


def test_a_gain_in_one_patient_alone_convinces_mcnemar_but_not_the_test_over_groups():
    labels, baseline = np.array(["a"] * 100), np.array(["a"] * 80 + ["b"] * 20)
    groups = np.repeat(["p1", "p2", "p3", "p4", "p5"], 20)
    found = compute_mcnemar(labels, baseline, labels, groups)
    assert found["mcnemar_p"] < 1e-4
    assert found["group_p"] == 1.0 and found["n_unlike_groups"] == 1


def test_a_gain_in_every_patient_convinces_the_test_over_groups():
    labels, baseline = np.array(["a"] * 100), np.array((["a"] * 8 + ["b"] * 2) * 10)
    found = compute_mcnemar(labels, baseline, labels, np.repeat(np.arange(10), 10))
    assert found["group_p"] == pytest.approx(2 / 2**10, abs=0.001)


def test_measures_of_all_systems_see_the_same_draws():
    seen = {"one": [], "two": []}

    def watch(name):
        def measure(weights):
            seen[name].append(weights.copy())
            return {"sum": weights.sum(axis=0)}

        return measure

    bootstrap({name: watch(name) for name in seen}, 30, np.arange(30) % 7, draws=50)
    for one, two in zip(seen["one"], seen["two"], strict=True):
        np.testing.assert_array_equal(one, two)
    drawn = seen["one"][1]
    assert drawn.shape == (30, 50)
    np.testing.assert_array_equal(drawn[:7], drawn[7:14])
    np.testing.assert_array_equal(drawn[:7].sum(axis=0), 7)


@pytest.mark.slow
def test_a_thousand_draws_of_a_large_test_split_keep_their_memory_bounded():
    n = 33_000
    labels = np.where(np.arange(n) % 2 == 0, "Normal", "Tumor")
    shapes = []
    measure = classification_measure(labels, labels, ["Normal", "Tumor"])

    def watched(weights):
        shapes.append(weights.shape)
        return measure(weights)

    estimates = bootstrap({"finetuned": watched}, n, draws=1000)
    assert estimates["finetuned"]["accuracy"].draws.shape == (1000,)
    assert max(rows * draws for rows, draws in shapes) <= 4_000_000


def test_a_score_that_goes_to_ten_has_an_interval_above_zero():
    values = np.random.default_rng(0).uniform(0, 3, 40)

    def measure(weights):
        return {"cider_d": values @ weights / weights.sum(axis=0)}

    for factor in (1, 0.1):
        values = values * factor
        low, high = interval(bootstrap({"a": measure}, 40)["a"]["cider_d"])["ci95"]
        assert 0 < low < values.mean() < high
        # On the logarithm, whatever the size of the score
        assert np.log(high / values.mean()) == pytest.approx(np.log(values.mean() / low))
