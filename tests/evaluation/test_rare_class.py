"""At 59 patches to one, weights and balanced sampling find the rare class, and the correction mends calibration."""

import json

import pytest
from rare_class import WAYS, score, train, write_patches, write_recipe

pytestmark = [pytest.mark.model, pytest.mark.thorough, pytest.mark.longest]

BALANCED = [way for way in WAYS if way != "natural"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder, way -> entry of `results.json`, and way -> what its training said."""
    folder = tmp_path_factory.mktemp("rare")
    write_patches(folder)
    recipes = {way: write_recipe(folder, way) for way in WAYS}
    said = {way: train(recipe) for way, recipe in recipes.items()}
    return folder, {way: score(recipe) for way, recipe in recipes.items()}, said


def recall(entry):
    return entry["finetuned"]["per_class"]["Tumor"]["recall"]


@pytest.mark.parametrize("way", BALANCED)
def test_the_rare_class_is_found_that_was_never_named_before(runs, way):
    _, entries, _ = runs
    assert recall(entries["natural"]) <= 0.2
    assert recall(entries[way]) >= 0.5
    gain = [entries[one]["finetuned"]["balanced_accuracy"]["value"] for one in ("natural", way)]
    assert gain[1] > gain[0] + 0.15


@pytest.mark.parametrize("way", BALANCED)
def test_calibration_suffers_and_the_correction_brings_it_back(runs, way):
    folder, entries, _ = runs
    found = entries[way]["imbalance"]
    trained, corrected = (found[reading]["rarest_ece"]["value"] for reading in ("as_trained", "corrected"))
    assert trained > 2 * corrected and corrected < 0.03
    assert found["corrected"]["nll"]["value"] < entries["natural"]["finetuned"]["nll"]["value"]
    assert found["corrected"]["nll"]["value"] < found["as_trained"]["nll"]["value"]
    page = (folder / way / "evaluation" / "report.html").read_text()
    assert "What was done about rare classes" in page and f"{trained:.3f}" in page and f"{corrected:.3f}" in page
    assert "imbalance" not in entries["natural"]


def test_what_each_class_weighs_and_how_often_it_comes_is_logged_and_recorded(runs):
    folder, _, said = runs
    assert "pcam, Tumor: 10 rows, each 1 times an epoch, with weight 30" in said["weighted"]
    assert "pcam, Tumor: 10 rows, each 30 times an epoch, with weight 1" in said["sampled"]
    run = json.loads((folder / "sampled" / "run.json").read_text())
    assert run["class_balance"]["pcam"]["Tumor"] == {"rows": 10, "weight": 1.0, "drawn": 300.0}


def test_the_recipe_chooses_which_reading_all_scores_are_of(runs):
    folder, entries, _ = runs
    corrected = score(write_recipe(folder, "weighted", prior_correction="train"))
    assert corrected["imbalance"]["headline"] == "corrected"
    for metric in ("nll", "ece", "brier", "balanced_accuracy"):
        expected = entries["weighted"]["imbalance"]["corrected"][metric]["value"]
        assert corrected["finetuned"][metric]["value"] == pytest.approx(expected)
    before, after = (entry["imbalance"]["as_trained"]["nll"]["value"] for entry in (entries["weighted"], corrected))
    assert before == pytest.approx(after)
    assert corrected["baseline"]["nll"] == entries["weighted"]["baseline"]["nll"]
