"""Scores of a model that took rare classes for frequent are put right, and the report says what that did."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from scipy.special import log_softmax, softmax

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.html_report import make_environment
from histolab_sft.evaluation.prior_correction import (
    AS_TRAINED,
    CORRECTED,
    correct,
    describe_imbalance,
    find_prior,
    score_imbalance,
)
from histolab_sft.metrics.calibration import compute_class_ece

CLASSES = ["Normal", "Tumor"]
CONFIG = DatasetConfig(name="ward", source="ward", class_names={"N": "Normal", "T": "Tumor"})
TRAIN = Dataset.from_dict({"dataset": ["ward"] * 600, "label": ["Normal"] * 590 + ["Tumor"] * 10})
BALANCE = {
    "Normal": {"rows": 590, "weight": 1.0, "drawn": 300.0},
    "Tumor": {"rows": 10, "weight": 1.0, "drawn": 300.0},
}


def draw_answers(count, learnt, seed):
    """Patches of which one in 60 is rare, and the exact log-posteriors of a model that learnt other shares."""
    rng = np.random.default_rng(seed)
    gold = (rng.random(count) < 1 / 60).astype(int)
    evidence = rng.normal(2 * gold - 1, 1)
    # Two normal distributions of unit variance at -1 and 1: the log-likelihood ratio is twice the value.
    scores = log_softmax(np.stack([-evidence, evidence], axis=1) + np.log(learnt), axis=1)
    return pd.DataFrame(
        {
            "id": [str(i) for i in range(count)],
            "group": None,
            "label": np.array(CLASSES)[gold],
            "log_likelihoods": list(scores),
        }
    )


def write_run(folder, **parts):
    folder.joinpath("run.json").write_text(json.dumps(parts))
    return folder


@pytest.fixture
def prior(tmp_path):
    return find_prior(CONFIG, TRAIN, write_run(tmp_path, class_balance={"ward": BALANCE}), "train")


def test_the_learnt_shares_are_weights_times_draws_and_the_wanted_ones_of_train(prior):
    assert prior["classes"]["Tumor"] | {"learnt": 0.5} == prior["classes"]["Tumor"]
    assert prior["classes"]["Tumor"]["wanted"] == pytest.approx(1 / 60)
    assert prior["log_correction"] == pytest.approx({"Normal": np.log(59 / 60 / 0.5), "Tumor": np.log(1 / 60 / 0.5)})
    assert prior["headline"] == CORRECTED and prior["target"] == "train"


@pytest.mark.parametrize(
    ("parts", "correction", "learnt", "wanted", "headline"),
    [
        ({"class_balance": {"ward": BALANCE}}, "none", 0.5, 1 / 60, AS_TRAINED),
        ({"class_balance": {"ward": BALANCE}}, {"ward": {"Normal": 0.9, "Tumor": 0.1}}, 0.5, 0.1, CORRECTED),
        ({"phases": {"one": {"class_balance": {"ward": BALANCE}}, "two": {}}}, "none", 0.5, 1 / 60, AS_TRAINED),
        ({}, {"ward": {"Normal": 0.9, "Tumor": 0.1}}, 1 / 60, 0.1, CORRECTED),
        ({"class_balance": {"ward": BALANCE}}, {"clinic": {"A": 0.9, "B": 0.1}}, 0.5, 1 / 60, AS_TRAINED),
    ],
)
def test_what_was_learnt_is_read_from_the_run_and_what_is_wanted_from_the_recipe(
    tmp_path, parts, correction, learnt, wanted, headline
):
    found = find_prior(CONFIG, TRAIN, write_run(tmp_path, **parts), correction)
    assert found["classes"]["Tumor"]["learnt"] == pytest.approx(learnt)
    assert found["classes"]["Tumor"]["wanted"] == pytest.approx(wanted)
    assert found["headline"] == headline


def test_where_nothing_was_done_and_nothing_is_wanted_nothing_is_corrected(tmp_path):
    assert find_prior(CONFIG, TRAIN, tmp_path, "none") is None


def test_a_class_that_was_never_learnt_cannot_be_given_a_share(tmp_path):
    only = Dataset.from_dict({"dataset": ["ward"] * 10, "label": ["Normal"] * 10})
    with pytest.raises(ValueError, match="no row of Tumor"):
        find_prior(CONFIG, only, tmp_path, {"ward": {"Normal": 0.9, "Tumor": 0.1}})


def test_the_correction_brings_the_calibration_back_that_balancing_took(prior):
    wrong, right = draw_answers(20_000, [0.5, 0.5], 0), draw_answers(20_000, [59 / 60, 1 / 60], 0)
    gold = (wrong["label"] == "Tumor").to_numpy(int)
    corrected = softmax(np.stack(correct(wrong, prior)["log_likelihoods"]), axis=1)
    np.testing.assert_allclose(corrected, softmax(np.stack(right["log_likelihoods"]), axis=1), atol=1e-12)
    before = compute_class_ece(softmax(np.stack(wrong["log_likelihoods"]), axis=1), gold, 1)
    assert before > 0.1 and compute_class_ece(corrected, gold, 1) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["none", "train"])
def test_both_readings_stand_beside_each_other_whichever_is_shown(tmp_path, correction):
    prior = find_prior(CONFIG, TRAIN, write_run(tmp_path, class_balance={"ward": BALANCE}), correction)
    tables = [correct(draw_answers(count, [0.5, 0.5], count), prior) for count in (3000, 1000)]
    scored = score_imbalance(*tables, CLASSES, prior)
    assert scored["rarest"] == "Tumor"
    assert scored[AS_TRAINED]["rarest_ece"]["value"] > 0.1 > 0.01 > scored[CORRECTED]["rarest_ece"]["value"]
    assert scored[AS_TRAINED]["nll"]["value"] > scored[CORRECTED]["nll"]["value"]
    assert scored[AS_TRAINED]["rarest_recall"]["value"] > scored[CORRECTED]["rarest_recall"]["value"]
    assert f"{scored[CORRECTED]['rarest_ece']['value']:.3f}" in scored["summary"]
    assert "drawn 30 times an epoch" in scored["summary"]
    json.dumps(scored, allow_nan=False)

    shown = describe_imbalance({"imbalance": scored})
    page = (
        make_environment()
        .get_template("report_imbalance.html.jinja")
        .render(dataset={"name": "ward", "imbalance": shown})
    )
    assert ("Corrected (shown)" in page) == (correction == "train") and scored["summary"][:20] in page
    assert "1.7 %" in page and ">30<" in page
