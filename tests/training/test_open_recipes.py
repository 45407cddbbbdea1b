"""The shipped recipes on records, run as they are but for model, data and steps, from the look ahead to the card."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from open_fixture import WRITERS, write_data
from recipe_commands import CPU, SMALL, run

from histolab_sft.config.arguments import read_recipe

pytestmark = pytest.mark.model

SMALL += ["--dataloader_num_workers", 0, "--max_new_tokens", 4, "--save_strategy", "no", "--report_to", "none"]
TASKS = {
    "captioning": {"report"},
    "flare": {"classification", "multilabel", "quantity", "boxes", "report"},
    "explainmyxray": {"report", "boxes"},
    "chest_xrays": {"report", "multilabel"},
    "immunopath": {"biomarkers"},
}
# Whole answers, which the untrained model gives only where it can't do else.
WHOLE = {"immunopath": ["--constrained_decoding", "true", "--max_new_tokens", 160]}
# What the page shows of an answer in the task's own form
SHOWN = {"captioning": "Radiografía", "flare": "box", "explainmyxray": "Impression", "immunopath": "cd274_expression"}
SHOWN |= {"chest_xrays": "No acute process"}


def check_confidences(entry, table, page):
    assert entry["constrained_decoding"] and "limited to the fields' JSON" in page and "decoding was limited" in table
    for system in ("baseline", "finetuned"):
        assert {entry[system][rate]["value"] for rate in ("json_rate", "schema_rate", "value_rate")} == {1}
        fields = entry[system]["fields"]
        found = fields["cd274_expression"]["confidence"]
        assert (found["n"], found["n_without"], found["temperature"]["n"]) == (4, 0, 3)
        assert 0 < found["ece"]["value"] < 1 and found["temperature"]["temperature"] > 0
        assert found["ece_calibrated"]["value"] != found["ece"]["value"]
        # One value in the whole test split: named, not scored.
        assert set(fields["msi_status"]["confidence"]) == {"reason"} and "confidence" not in fields["til_fraction"]
    assert f"{fields['cd274_expression']['confidence']['ece']['value']:.3f}" in page
    assert "ECE (after temperature)" in table and "not scored" in table


def check_submission(folder, datasets, said):
    """Each split that is a test split has one file, with every question of its data sets and of all their tasks."""
    tests = [entry["splits"]["test"] for entry in datasets]
    assert {path.parent.name for path in folder.rglob("*")} == {"submission", *tests}
    for split in set(tests):
        rows = json.loads((folder / split / "predictions.json").read_text())
        assert len(rows) == 2 * tests.count(split) and all(isinstance(row["Answer"], str) for row in rows)
        assert f"{split}/predictions.json: {len(rows)} answers" in said
    rows = json.loads((folder / "validation-hidden" / "predictions.json").read_text())
    found = {row["TaskType"] for row in rows if "iugc" in np.atleast_1d(row["ImageName"])[0]}
    assert found == {"Classification", "Detection"}


# What these ask of tasks and report the others ask too; their readers have quick tests of their own.
LONG = ("captioning", "chest_xrays", "explainmyxray", "flare")
RECIPES = [pytest.param(name, marks=pytest.mark.thorough) if name in LONG else name for name in WRITERS]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_shipped_recipe_on_records_goes_the_whole_road(recipe, tmp_path, monkeypatch, capsys, caplog):
    path = f"recipes/{recipe}.yaml"
    datasets = read_recipe(path)["datasets"]
    write_data(recipe, tmp_path, datasets)
    # The limits of single data sets are for real answers.
    short = [{key: value for key, value in entry.items() if key != "max_new_tokens"} for entry in datasets]
    home = tmp_path / read_recipe(path).get("data_dir", "")
    out = tmp_path / "out"
    flags = ["--config", path, "--model_name_or_path", "embedded", "--data_dir", home, "--output_dir", out]
    flags += ["--datasets", json.dumps(short), *CPU, *SMALL, *WHOLE.get(recipe, [])]
    steps = {"max_steps": 2, "num_train_epochs": None}
    phases = [phase | steps for phase in read_recipe(path).get("phases", [])]
    flags += ["--phases", json.dumps(phases)] if phases else []

    assert run("preflight", flags, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "Ready to train." in said and all(f"\n{entry['name']}: " in said for entry in datasets)

    assert run("sft", flags, monkeypatch) == 0
    ran = json.loads((out / "run.json").read_text()).get("phases", {})
    assert {name: entry["steps"] for name, entry in ran.items()} == {phase["name"]: 2 for phase in phases}
    assert run("evaluate", flags, monkeypatch) == 0
    table = capsys.readouterr().out
    results = json.loads((out / "evaluation/results.json").read_text())
    assert set(results["datasets"]) == {entry["name"] for entry in datasets}
    assert {entry["task"] for entry in results["datasets"].values()} == TASKS[recipe]
    for name, entry in results["datasets"].items():
        assert name in table and entry["n"] > 0
        for system in ("baseline", "finetuned"):
            assert entry[system][entry["headline"]]["ci95"] is not None or entry["n_groups"] == 1
            assert {"truncated_rate", "unparsed_rate"} <= set(entry[system])
        assert entry["headline"] in entry["difference"] and entry["headline"] in entry["floors"]["constant"]
    page = (out / "evaluation/report.html").read_text()
    if recipe == "immunopath":
        check_confidences(results["datasets"]["immunopath"], table, page)
    assert SHOWN[recipe] in page and "://" not in page

    if recipe == "flare":
        # What the evaluation has asked isn't asked again.
        caplog.set_level("INFO")
        assert run("write_submission", flags, monkeypatch) == 0
        assert "answers written" in caplog.text and "patches scored" not in caplog.text
        check_submission(out / "submission", datasets, capsys.readouterr().out)
    else:
        assert run("write_submission", flags, monkeypatch) == 2
        assert "no data set of format flare" in capsys.readouterr().err

    # The folder that would go up, and nothing more
    assert run("push_adapter", [*flags, "--dry_run", "true"], monkeypatch) == 0
    card = (out / "publish/README.md").read_text()
    assert recipe != "chest_xrays" or all(words in card for words in ("Credentialed", "Research Use Agreement", "NIH"))
    assert all(f"### {entry['name']}" in card for entry in datasets) and "one patch of tissue" not in card
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["model-index"][0]["results"][0]["task"]["type"] == "image-text-to-text"
    assert not Path(out, "publish", "predictions.parquet").exists()
