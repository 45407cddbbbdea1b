"""The baseline is read fairly: what a base model prefers whatever it sees is taken away where that scores better."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.results import score_dataset
from histolab_sft.metrics.calibration import fit_log_prior

NAMES = ["Benign colon", "Adenoma", "Squamous cell carcinoma", "Adenocarcinoma of the colon", "Lung"]
CONFIG = DatasetConfig(name="lc", source="x", class_names=dict(zip("abcde", NAMES, strict=True)))


def ask_base_model(n, seed, skill=0.0, shares=(0.15, 0.15, 0.15, 0.15, 0.4), nats_a_letter=1.5):
    """A table of `predict` of a model that likes short names, and the true class by `skill` nats more."""
    rng = np.random.default_rng(seed)
    gold = rng.choice(len(NAMES), size=n, p=shares)
    lengths = np.array([len(name) for name in NAMES])
    # The more tokens, the more an answer's likelihood moves with the picture.
    noise = rng.normal(size=(n, len(NAMES))) * np.sqrt(lengths / 10)
    scores = -nats_a_letter * lengths + noise + skill * np.eye(len(NAMES))[gold]
    table = pd.DataFrame({"id": [f"p{i}" for i in range(n)], "dataset": "lc", "label": np.array(NAMES)[gold]})
    return table.assign(group=None, log_likelihoods=list(scores))


def score(skill=0.0, **keys):
    test = {
        "baseline": ask_base_model(1500, 0, skill, **keys),
        "finetuned": ask_base_model(1500, 0, 3, nats_a_letter=0),
    }
    validation = {system: ask_base_model(400, 1, skill, **keys) for system in test}
    return score_dataset(CONFIG, test, validation, floors={}, protocol="official")[0]


@pytest.mark.slow
def test_a_pure_bias_for_length_is_at_chance_when_corrected_and_not_when_raw():
    zero_shot, chance = score()["zero_shot"], 1 / len(NAMES)
    # Lung, the shortest name, is also the most frequent class: naming it every time looks like skill.
    assert zero_shot["raw"]["accuracy"]["ci95"][0] > 0.35 > chance
    low, high = zero_shot["corrected"]["accuracy"]["ci95"]
    assert low <= chance <= high
    answers = {
        reading: np.sum(zero_shot[reading]["confusion_matrix"]["rows"], axis=0) for reading in ("raw", "corrected")
    }
    assert answers["raw"][4] == 1500
    assert (answers["corrected"][:5] > 0.1 * 1500).all()


@pytest.mark.slow
def test_skill_that_a_bias_hides_is_found_and_makes_the_gain_smaller():
    entry = score(skill=2.0)
    zero_shot, name = entry["zero_shot"], "balanced_accuracy"
    assert zero_shot["raw"][name]["value"] == pytest.approx(0.2, abs=0.01)
    assert zero_shot["corrected"][name]["value"] > 0.5 and zero_shot["headline"] == "corrected"
    assert "“Lung”" in zero_shot["reason"] and "corrected reading is the better one" in zero_shot["reason"]
    assert entry["baseline"][name] == zero_shot["corrected"][name]
    gain = entry["finetuned"][name]["value"] - zero_shot["corrected"][name]["value"]
    assert entry["difference"][name]["value"] == pytest.approx(gain)
    # Whatever else is said of the baseline is said of the same answers.
    assert entry["baseline"]["abstention"]["accuracy"][-1] == pytest.approx(entry["baseline"]["accuracy"]["value"])


@pytest.mark.slow
def test_a_model_without_a_bias_is_read_as_it_stands_where_that_is_better():
    entry = score(skill=2.0, nats_a_letter=0)
    zero_shot, name = entry["zero_shot"], "balanced_accuracy"
    best = max(("raw", "corrected"), key=lambda reading: zero_shot[reading][name]["value"])
    assert zero_shot["headline"] == best and entry["baseline"][name] == zero_shot[best][name]


@pytest.mark.slow
def test_answers_of_the_fine_tuned_model_are_never_corrected():
    assert score()["finetuned"]["accuracy"] == score(skill=2.0)["finetuned"]["accuracy"]


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("n_classes", [2, 5, 52])
def test_without_the_prior_every_class_has_the_same_mean_probability(n_classes, scale):
    rng = np.random.default_rng(n_classes)
    scores = scale * (rng.normal(size=n_classes) + rng.normal(size=(600, n_classes)))
    gold = rng.integers(n_classes, size=600)
    log_prior = fit_log_prior(scores, gold)
    assert np.exp(log_prior).sum() == pytest.approx(1)
    weights = 1 / np.bincount(gold, minlength=n_classes)[gold]
    means = weights @ softmax(scores - log_prior, axis=1) / weights.sum()
    np.testing.assert_allclose(means, 1 / n_classes, atol=0.005)


def test_the_prior_does_not_follow_how_frequent_a_class_is():
    rng = np.random.default_rng(0)
    gold = np.repeat([0, 1], [950, 50])
    scores = 4.0 * np.eye(2)[gold] + rng.normal(size=(1000, 2))
    log_prior = fit_log_prior(scores, gold)
    assert abs(log_prior[0] - log_prior[1]) < 0.5
