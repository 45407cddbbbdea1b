"""A finished adapter on a cohort from elsewhere: scored, compared with the internal split, nothing else changed."""

import json

import numpy as np
import pandas as pd
import pytest
from external_study import SITES, evaluate_study, write_study
from scipy import stats

from histolab_sft.evaluation import predictions
from histolab_sft.evaluation.external_tables import describe_cohort, say_change
from histolab_sft.evaluation.predictions import SYSTEMS
from histolab_sft.evaluation.screen import format_results
from histolab_sft.evaluation.uncertainty import Estimate, bootstrap, difference, independent_difference
from histolab_sft.metrics.weighted import classification_measure

CLASSES = ["Normal", "Tumor"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory, untrained_model):
    """What the run alone leaves, what it leaves with a cohort that came later, and how many rows that asked about."""
    folder, asked = tmp_path_factory.mktemp("external"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        entry, score = write_study(folder, untrained_model), predictions.score_parts
        alone = read(folder, evaluate_study(folder))
        patch.setattr(
            predictions, "score_parts", lambda *given: [asked.append(sum(map(len, given[5]))), score(*given)][1]
        )
        return alone, read(folder, evaluate_study(folder, entry)), asked


def read(folder, results):
    """Results, predictions of the run, predictions of cohorts, and the report."""
    place = folder / "out" / "evaluation"
    external = place / "external" / "predictions.parquet"
    tables = [pd.read_parquet(path) if path.exists() else None for path in (place / "predictions.parquet", external)]
    return results, *tables, (place / "report.html").read_text()


@pytest.mark.model
def test_both_systems_are_scored_on_all_rows_of_the_cohort(scored):
    _, (results, _, predicted, _), _ = scored
    entry = results["external"]["hospital"]
    assert (entry["n"], entry["n_groups"], entry["split_protocol"]) == (72, 36, "external")
    assert entry["external_of"] == "ward" and entry["classes_absent"] == ["Stroma"]
    assert entry["classes_compared"] == CLASSES
    for system in SYSTEMS:
        rows = predicted[predicted["system"] == system]
        answers = np.array(["Normal", "Stroma", "Tumor"])[np.stack(rows["log_likelihoods"]).argmax(axis=1)]
        if system == "finetuned":
            recalls = [(answers == name)[rows["label"] == name].mean() for name in CLASSES]
            assert entry[system]["balanced_accuracy"]["value"] == pytest.approx(np.mean(recalls))
        assert entry[system]["per_class"]["Stroma"]["support"] == 0
    assert {"majority", "mean_rgb", "colour_histogram", "linear_probe"} <= {n for n, f in entry["floors"].items() if f}
    assert any("no patch of Stroma" in warning for warning in entry["warnings"])


@pytest.mark.model
def test_the_sites_of_the_cohort_are_scored_apart(scored):
    _, (results, _, predicted, page), _ = scored
    sites = results["external"]["hospital"]["sites"]
    assert all(f'"{site}"' in json.dumps(sites) for site in SITES)
    assert predicted.groupby("site").size().to_dict() == dict.fromkeys(SITES, 2 * 24)
    assert "sites" not in results["datasets"]["ward"]


@pytest.mark.model
def test_nothing_is_fitted_or_chosen_on_the_cohort(scored):
    _, (results, *_), _ = scored
    internal, entry = results["datasets"]["ward"], results["external"]["hospital"]
    for system in SYSTEMS:
        assert entry[system]["temperature"] == internal[system]["temperature"]
        assert entry[system]["abstention_validation"] == internal[system]["abstention_validation"]
    assert entry["zero_shot"]["log_prior"] == internal["zero_shot"]["log_prior"]
    assert entry["zero_shot"]["headline"] == internal["zero_shot"]["headline"]


@pytest.mark.model
def test_the_change_is_external_minus_internal_over_the_classes_that_both_have(scored):
    _, (results, predicted, *_), _ = scored
    entry = results["external"]["hospital"]
    rows = predicted[(predicted["system"] == "finetuned") & predicted["label"].isin(CLASSES)]
    answers = np.array(["Normal", "Stroma", "Tumor"])[np.stack(rows["log_likelihoods"]).argmax(axis=1)]
    before = np.mean([(answers == name)[rows["label"] == name].mean() for name in CLASSES])
    assert entry["internal"]["finetuned"]["balanced_accuracy"]["value"] == pytest.approx(before)
    change = entry["change"]["finetuned"]["balanced_accuracy"]
    assert change["value"] == pytest.approx(entry["finetuned"]["balanced_accuracy"]["value"] - before)
    assert change["ci95"][0] < change["value"] < change["ci95"][1]
    gains = [part["difference"]["balanced_accuracy"]["value"] for part in (entry, entry["internal"], entry["change"])]
    assert gains[2] == pytest.approx(gains[0] - gains[1])
    assert entry["change"]["finetuned"]["ece"]["ci95"] is None


@pytest.mark.model
def test_a_cohort_that_comes_later_changes_nothing_of_the_runs_own_and_asks_about_its_own_rows_alone(scored):
    alone, (results, predicted, external, _), asked = scored
    for part in ("datasets", "overall", "data", "verdict"):
        assert results[part] == alone[0][part]
    pd.testing.assert_frame_equal(predicted, alone[1])
    assert asked == [72, 72] and len(external) == 2 * 72
    assert "external" not in alone[0] and alone[2] is None


@pytest.mark.model
def test_report_and_screen_tell_the_change_the_rows_and_the_labels(scored):
    alone, (results, _, _, page), _ = scored
    entry = results["external"]["hospital"]
    change = describe_cohort(entry)["headline"]["change"]["finetuned"]
    for text in (
        "External cohorts",
        change["value"],
        change["interval"],
        "24 left out of artefact",
        "has no patch of",
    ):
        assert text in page
    assert "“carcinoma”, “adenoma”: Tumor" in page and "“artefact”: left out" in page
    assert say_change(entry) in format_results(results)
    assert "External cohorts" not in alone[3]


@pytest.mark.model
def test_ids_and_patients_of_a_cohort_are_hashed(scored):
    _, (_, _, predicted, _), _ = scored
    text = " ".join(map(str, predicted.astype(str).to_numpy().ravel()))
    assert ".png" not in text and not any(f"Q{site}" in text.split() for site in SITES)


def draw_estimate(value, spread, degrees, scale="real"):
    """With the same seed for all, as scoring has."""
    return Estimate(value, np.random.default_rng(1).normal(value, spread, 2000), degrees, scale)


def test_a_difference_of_independent_samples_is_not_paired_by_equal_draws():
    one = draw_estimate(0.8, 0.02, 39.0)
    assert difference(one, one).draws.std() == 0
    low, high = independent_difference(one, one)["ci95"]
    assert high == -low == pytest.approx(stats.t.ppf(0.975, 78) * np.sqrt(2 * 40 / 39) * 0.02, rel=0.05)
    low, high = independent_difference(one, draw_estimate(0.8, 0.2, 4.0))["ci95"]
    assert high == pytest.approx(-low)
    # Five units and forty: little more than four degrees of freedom.
    assert stats.t.ppf(0.975, 5) < high / (0.2 * np.sqrt(5 / 4)) < 1.05 * stats.t.ppf(0.975, 4)


def test_a_change_is_as_skewed_as_the_score_of_the_smaller_sample_and_stays_within_what_can_be():
    many, few = draw_estimate(0.9, 0.001, 999.0, "unit"), draw_estimate(0.95, 0.03, 9.0, "unit")
    value, (low, high) = (independent_difference(few, many)[key] for key in ("value", "ci95"))
    assert value - low > 1.5 * (high - value) and high < 0.1
    other = independent_difference(many, few)["ci95"]
    assert other == pytest.approx([-high, -low], abs=1e-3)
    error, less = draw_estimate(0.3, 0.1, 9.0, "positive"), draw_estimate(0.2, 0.001, 999.0, "positive")
    assert independent_difference(error, less)["ci95"][0] > -0.2
    nothing = Estimate(np.nan, np.full(2000, np.nan), 9.0, "unit")
    assert independent_difference(few, nothing)["value"] is None
    assert independent_difference(few, draw_estimate(0.9, 0.1, 0.0, "unit"))["ci95"] is None


def draw_sample(n_patients, skill, rng, patches=12):
    """Labels, patients and probabilities of two systems of one hospital; some patients are easier than others."""
    groups = np.repeat(np.arange(n_patients), patches)
    gold = rng.integers(2, size=len(groups))
    ease = rng.normal(0, 0.6, size=n_patients)[groups]
    signal = (2 * gold - 1) * (skill + ease)
    scores = {
        "baseline": 0.6 * signal + rng.logistic(size=len(gold)),
        "finetuned": signal + rng.logistic(size=len(gold)),
    }
    return gold, groups, {name: np.stack([1 / (1 + np.exp(s)), 1 / (1 + np.exp(-s))], 1) for name, s in scores.items()}


def measure_sample(gold, probabilities):
    names = np.array(CLASSES)
    return {
        system: classification_measure(names[gold], names[scores.argmax(axis=1)], CLASSES, scores)
        for system, scores in probabilities.items()
    }


SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "brier", "nll")
SKILLS = {"internal": 1.6, "external": 0.9}
STUDIES = 2000  # with 500, one of 25 exact intervals would seem to cover less than 93 or more than 97 of 100


@pytest.mark.longest
@pytest.mark.thorough
@pytest.mark.parametrize(("n_internal", "n_external"), [(40, 40), (60, 12), (12, 60), (15, 15)])
def test_intervals_of_the_change_cover_the_truth(n_internal, n_external):
    truth = {}
    for side, skill in SKILLS.items():
        gold, _, probabilities = draw_sample(20_000, skill, np.random.default_rng(99))
        truth[side] = {
            system: measure(np.ones((len(gold), 1))) for system, measure in measure_sample(gold, probabilities).items()
        }
    gap = {
        (system, score): truth["external"][system][score][0] - truth["internal"][system][score][0]
        for system in SYSTEMS
        for score in SCORES
    }
    gap |= {("difference", score): gap["finetuned", score] - gap["baseline", score] for score in SCORES}
    covered = dict.fromkeys(gap, 0)
    for trial in range(STUDIES):
        found = {}
        for side, n in (("internal", n_internal), ("external", n_external)):
            gold, groups, probabilities = draw_sample(
                n, SKILLS[side], np.random.default_rng([trial, n, side == "external"])
            )
            # Both sides with the seed that scoring has.
            found[side] = bootstrap(measure_sample(gold, probabilities), len(gold), groups, draws=400)
            found[side]["difference"] = {
                score: difference(found[side]["finetuned"][score], found[side]["baseline"][score]) for score in SCORES
            }
        for system, score in gap:
            change = independent_difference(found["external"][system][score], found["internal"][system][score])
            low, high = change["ci95"]
            covered[system, score] += low <= gap[system, score] <= high
    rates = {name: count / STUDIES for name, count in covered.items()}
    assert {name: rate for name, rate in rates.items() if not 0.93 <= rate <= 0.97} == {}
