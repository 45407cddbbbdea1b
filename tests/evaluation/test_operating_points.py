"""Operating points are fixed on validation, scored on test or elsewhere, and say when they rest on little."""

import json

import numpy as np
import pandas as pd
import pytest

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.operating_points import fit_points, score_points, warn_points
from histolab_sft.evaluation.results import score_dataset
from histolab_sft.metrics.operating_points import AIMS, compute_predictive_values

CLASSES = ["Normal", "Tumor", "Stroma"]
STUDIES = 1000  # with 500, one of 25 exact intervals would seem to cover less than 93 or more than 97 of 100


def make_config(classes=2, **keys):
    return DatasetConfig("d", "x", class_names=dict(zip("abc", CLASSES[:classes], strict=False)), **keys)


def draw_answers(n_patients, seed, classes=2, patches=20, skill=1.5, spread=0.5, absent=()):
    """A table as of `predict`: log-likelihoods that are calibrated, but for patients of whom some are easier."""
    rng = np.random.default_rng(seed)
    n = n_patients * patches
    groups = np.repeat(np.arange(n_patients), patches)
    gold = rng.choice([k for k in range(classes) if k not in absent], size=n)
    scores = rng.normal(size=(n, classes))
    scores[np.arange(n), gold] += skill + rng.normal(0, spread, size=n_patients)[groups]
    return pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(n)],
            "group": groups.astype(str),
            "label": np.array(CLASSES)[gold],
            "log_likelihoods": list(scores * skill),
        }
    )


def test_a_threshold_comes_from_validation_and_test_only_measures_it():
    config = make_config(target_sensitivity=0.9, target_specificity=0.8)
    validation = draw_answers(20, 0)
    fitted = fit_points(config, validation, 1.0)
    assert [point["aim"] for point in fitted["thresholds"]] == list(AIMS)
    for point, target in zip(fitted["thresholds"], (0.9, 0.8), strict=True):
        assert target <= point["validation"][point["aim"]] < target + 0.01
    scores = np.array([np.exp(row[1]) / np.exp(row).sum() for row in validation["log_likelihoods"]])
    first = fitted["thresholds"][0]
    assert np.mean(scores[validation["label"] == "Tumor"] >= first["threshold"]) == first["validation"]["sensitivity"]
    for seed in (1, 2):
        test = draw_answers(20, seed)
        likeliest, *points = score_points(fitted, test)["points"]
        called = np.array([np.exp(row[1]) / np.exp(row).sum() for row in test["log_likelihoods"]])
        for point in points:
            hits = called >= point["threshold"]
            assert point["sensitivity"]["value"] == np.mean(hits[test["label"] == "Tumor"])
            assert point["ppv"]["value"] == np.mean(test["label"][hits] == "Tumor")
            assert point["specificity"]["ci95"][0] < point["specificity"]["value"] < point["specificity"]["ci95"][1]
        assert likeliest["sensitivity"]["value"] == np.mean((called > 0.5)[test["label"] == "Tumor"])


def test_a_fitted_point_goes_through_results_json_to_another_cohort():
    config = make_config(3, positive_class="Stroma", target_sensitivity=0.8, target_accuracy=0.7, prevalence=0.3)
    fitted = json.loads(json.dumps(fit_points(config, draw_answers(20, 0, 3), 1.1), allow_nan=False))
    cohort = draw_answers(12, 5, 3, absent=(0,))
    found = json.loads(json.dumps(score_points(fitted, cohort), allow_nan=False))
    assert found["n_positive"] + found["n_negative"] == len(cohort)
    assert found["points"][1]["threshold"] == fitted["thresholds"][0]["threshold"]
    assert found["abstention"]["threshold"] == fitted["abstention"]["threshold"]
    # A cohort without a single positive patch has no sensitivity and no curves, but a specificity.
    healthy = json.loads(json.dumps(score_points(fitted, draw_answers(12, 5, 3, absent=(2,))), allow_nan=False))
    assert healthy["curves"] is None and healthy["points"][1]["sensitivity"]["value"] is None
    assert 0 < healthy["points"][1]["specificity"]["value"] < 1


@pytest.mark.slow
def test_the_positive_class_decides_whose_sensitivity_it_is():
    validation, test = draw_answers(20, 0), draw_answers(20, 1)
    systems = {"baseline": test, "finetuned": test}
    held_out = dict.fromkeys(systems, validation)
    entries = {
        name: score_dataset(make_config(positive_class=name), systems, held_out, {}, "official")[0]["finetuned"]
        for name in CLASSES[:2]
    }
    default, _ = score_dataset(make_config(), systems, held_out, {}, "official")
    normal, tumour = entries.values()
    assert default["finetuned"] == tumour
    assert normal["sensitivity"] == tumour["specificity"] and normal["ppv"] == tumour["npv"]
    assert normal["auroc"]["value"] == pytest.approx(tumour["auroc"]["value"])
    assert normal["average_precision"]["value"] != tumour["average_precision"]["value"]
    points = normal["operating_points"]
    assert points["points"][0]["sensitivity"] == normal["sensitivity"] and points["n_positive"] == sum(
        test["label"] == "Normal"
    )


def test_many_classes_have_points_only_of_the_class_that_is_named():
    answers = draw_answers(20, 0, 3)
    assert score_points(fit_points(make_config(3), answers, 1.0), answers) == {}
    one = score_points(fit_points(make_config(3, positive_class="Normal"), answers, 1.0), answers)
    assert one["n_positive"] == sum(answers["label"] == "Normal") and len(one["points"]) == 1


@pytest.mark.slow
def test_a_prevalence_gives_predictive_values_by_bayes_and_moves_the_decision_curve():
    validation, test = draw_answers(20, 0, spread=0), draw_answers(100, 1, spread=0)
    found = {
        prevalence: score_points(fit_points(make_config(prevalence=prevalence), validation, 1.0), test)
        for prevalence in (None, 0.05)
    }
    point = found[0.05]["points"][0]
    ppv, npv = compute_predictive_values(point["sensitivity"]["value"], point["specificity"]["value"], 0.05)
    assert (point["ppv_at_prevalence"]["value"], point["npv_at_prevalence"]["value"]) == pytest.approx((ppv, npv))
    low, high = point["ppv_at_prevalence"]["ci95"]
    assert low < ppv < high < point["ppv"]["value"] and "ppv_at_prevalence" not in found[None]["points"][0]
    curves = {prevalence: part["curves"]["decision"] for prevalence, part in found.items()}
    assert curves[0.05]["prevalence"] == 0.05 and curves[None]["prevalence"] == np.mean(test["label"] == "Tumor")
    # To treat by a calibrated model is no worse than to treat everyone or nobody.
    for curve in curves.values():
        best = np.maximum(curve["treat_all"], 0)
        assert (np.array(curve["high"]) >= best - 1e-3).all()
        assert np.mean(np.array(curve["net_benefit"]) >= best - 0.01) > 0.9


def test_a_predictive_value_without_an_error_has_an_interval_with_a_width():
    right = draw_answers(20, 0, skill=30, spread=0)
    point = score_points(fit_points(make_config(prevalence=0.1), right, 1.0), right)["points"][0]
    assert point["ppv_at_prevalence"]["value"] == 1 and point["ppv_at_prevalence"]["ci95"][0] < 0.97


def test_curves_lie_inside_their_bands_and_the_bands_inside_the_square():
    answers = draw_answers(10, 0)
    curves = score_points(fit_points(make_config(), answers, 1.0), answers)["curves"]
    for kind, name in (("roc", "sensitivity"), ("precision_recall", "precision"), ("decision", "net_benefit")):
        low, value, high = (np.array(curves[kind][key]) for key in ("low", name, "high"))
        assert (low <= value + 1e-9).mean() > 0.95 and (value <= high + 1e-9).mean() > 0.95
        assert kind == "decision" or (low.min() >= 0 and high.max() <= 1)


def test_few_patches_an_unmet_target_and_one_that_fails_on_test_are_told():
    config = make_config(target_sensitivity=0.9, target_accuracy=0.999)
    fitted = fit_points(config, draw_answers(2, 0, patches=10, skill=0.3), 1.0)
    told = " ".join(warn_points(score_points(fitted, draw_answers(20, 1))))
    assert "positive validation patches" in told and "for an accuracy of 99.9 % isn't possible" in told
    # Elsewhere tumours look different.
    fitted = fit_points(make_config(target_sensitivity=0.9), draw_answers(30, 0), 1.0)
    worse = draw_answers(30, 1).assign(label=lambda table: table["label"].to_numpy()[::-1])
    assert "doesn't hold on test: sensitivity" in " ".join(warn_points(score_points(fitted, worse)))
    normal = draw_answers(20, 0)
    normal = normal[normal["label"] == "Normal"]
    fitted = fit_points(make_config(target_sensitivity=0.9), normal, 1.0)
    assert "the validation split has no positive patch" in warn_points(score_points(fitted, draw_answers(5, 1)))[0]


@pytest.mark.parametrize(
    ("keys", "classes", "message"),
    [
        ({"positive_class": "b"}, 2, "expected one of the words of class_names: Normal, Tumor"),
        ({"target_sensitivity": 90}, 2, "target_sensitivity is 90, expected a part between 0 and 1"),
        ({"prevalence": 1}, 2, "prevalence is 1, expected a part"),
        ({"target_accuracy": "high"}, 2, "target_accuracy is 'high'"),
        ({"target_specificity": 0.9}, 3, "target_specificity and 3 classes, expected positive_class"),
    ],
)
def test_a_target_that_cannot_be_is_refused(keys, classes, message):
    with pytest.raises(ValueError, match=message):
        make_config(classes, **keys)


def test_targets_without_classes_are_refused():
    with pytest.raises(ValueError, match="target_accuracy and format: captions"):
        DatasetConfig("d", "x", format="captions", target_accuracy=0.9)


@pytest.mark.longest
@pytest.mark.thorough
@pytest.mark.parametrize("n_patients", [10, 30])
def test_intervals_at_a_threshold_cover_what_it_reaches_in_everyone(n_patients):
    """Of sensitivity, specificity and predictive values at a prevalence; thresholds from a validation split each."""
    everyone = draw_answers(8_000, 10_000)
    scores = np.array([1 / (1 + np.exp(row[0] - row[1])) for row in everyone["log_likelihoods"]])
    tumour = np.sort(scores[everyone["label"] == "Tumor"]), np.sort(scores[everyone["label"] == "Normal"])
    covered = dict.fromkeys((*AIMS, "ppv", "npv", "coverage", "accuracy"), 0)
    config = make_config(target_sensitivity=0.85, target_accuracy=0.9, prevalence=0.1)
    confidence = np.maximum(scores, 1 - scores)
    correct = (scores > 0.5) == (everyone["label"] == "Tumor")
    for trial in range(STUDIES):
        fitted = fit_points(config, draw_answers(15, 20_000 + trial), 1.0)
        scored = score_points(fitted, draw_answers(n_patients, trial))
        threshold = fitted["thresholds"][0]["threshold"]
        sensitivity = 1 - np.searchsorted(tumour[0], threshold) / len(tumour[0])
        specificity = np.searchsorted(tumour[1], threshold) / len(tumour[1])
        ppv, npv = compute_predictive_values(sensitivity, specificity, 0.1)
        answered = confidence >= fitted["abstention"]["threshold"]
        point, abstention = scored["points"][1], scored["abstention"]
        pairs = {
            "sensitivity": (sensitivity, point["sensitivity"]),
            "specificity": (specificity, point["specificity"]),
            "ppv": (ppv, point["ppv_at_prevalence"]),
            "npv": (npv, point["npv_at_prevalence"]),
            "coverage": (answered.mean(), abstention["coverage"]),
            "accuracy": (correct[answered].mean(), abstention["accuracy"]),
        }
        for name, (truth, found) in pairs.items():
            low, high = found["ci95"]
            covered[name] += low <= truth <= high
    rates = {name: count / STUDIES for name, count in covered.items()}
    assert {name: rate for name, rate in rates.items() if not 0.93 <= rate <= 0.97} == {}, rates
