"""The checklist for a paper has every item of CLAIM 2024 and TRIPOD+AI, and says only what the run knows."""

import csv
import re

import pytest
from fabricated_evaluation import fabricate_captions, fabricate_evaluation, list_synthetic_datasets

from histolab_sft.embedded.synthetic import write_synthetic_patches
from histolab_sft.evaluation.checklist import COLUMNS, ITEMS, fill_checklist, write_checklist

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fabricated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_synthetic_patches(folder / "patches", {"pcam": 40})
        return fabricate_evaluation(folder, list_synthetic_datasets(["pcam"]), max_samples=100)[0]


@pytest.fixture(scope="module")
def told(results):
    return {row["Item"]: row["What this run says"] for row in fill_checklist(results)}


def test_every_item_of_both_lists_is_there():
    claim = [int(number) for item in ITEMS for number in item.claim.split(", ") if number]
    assert sorted(claim) == list(range(1, 45))
    tripod = {int(number) for item in ITEMS for number in re.findall(r"\d+", item.tripod)}
    assert tripod == set(range(1, 28))


def test_each_row_says_something_or_leaves_it_to_the_author(results):
    assert all(row["What this run says"] or row["Left to the author"] for row in fill_checklist(results))


def test_numbers_are_those_of_the_results(results, told):
    entry, data = results["datasets"]["pcam"], results["data"]["datasets"]["pcam"]
    reached = f"fine-tuned {100 * entry['finetuned']['balanced_accuracy']['value']:.1f} %"
    assert reached in told["Performance with its uncertainty"]
    flow = told["Flow of patients and pictures"]
    assert f"found {data['found']:,}" in flow and f"test {data['splits']['test']['used']:,} of" in flow
    assert "split_seed 42" in told["Assignment to splits"] and "test_fraction 0.15" in told["Assignment to splits"]
    assert "patients or slides (group_by:" in told["Level at which splits are disjoint"]
    assert "max_samples 100" in told["Subsets"]
    assert results["provenance"]["adapter_sha256"] in told["Availability of model, code and data"]


def test_no_path_of_this_machine_is_in_it(results):
    moved = [{**entry, "source": "/home/jane/pcam"} for entry in results["recipe"]["datasets"]]
    keys = {"datasets": moved, "use_peft": True, "adapter_name_or_path": "/home/jane/adapter"}
    rows = fill_checklist(results | {"recipe": results["recipe"] | keys})
    assert "jane" not in str(rows) and "…/pcam, " in str(rows) and "…/adapter" in str(rows)


def test_what_a_run_did_not_do_is_not_claimed(told, results):
    assert told["Test on external data"] == told["Fairness: sites and subgroups"] == told["Robustness"] == ""
    changed = {"class_weights": "inverse_frequency", "early_stopping": "plateau", "unlabelled": "drop"}
    other = fill_checklist(results | {"recipe": results["recipe"] | changed})
    now = {row["Item"]: row["What this run says"] for row in other}
    assert "inverse_frequency" in now["Rare classes"] and "inverse_frequency" in now["Training"]
    assert "plateau" in now["Choice of the final model"] and "plateau" not in told["Choice of the final model"]
    assert "dropped" in now["Missing data"] and "stopped" in told["Missing data"]


def test_a_whole_model_is_named_by_its_files_and_has_no_adapter(results):
    origin = {"adapter_sha256": None, "model_sha256": {"model.safetensors": "beef"}}
    whole = results | {"provenance": results["provenance"] | origin}
    told = {row["Item"]: row["What this run says"] for row in fill_checklist(whole)}
    assert "model.safetensors beef" in told["Availability of model, code and data"]
    assert "adapter" not in told["Initial weights"] and "None" not in str(told)
    lora = fill_checklist(results | {"recipe": results["recipe"] | {"use_peft": True}})
    assert "a new adapter" in next(row["What this run says"] for row in lora if row["Item"] == "Initial weights")


def test_a_score_that_is_not_defined_stops_no_report(results):
    entry = results["datasets"]["pcam"] | {"headline": "mean_balanced_accuracy"}
    told = fill_checklist(results | {"datasets": {"pcam": entry}})
    assert "fine-tuned not defined" in str(told)


def test_written_answers_have_a_checklist_too(tmp_path):
    results = fabricate_captions(tmp_path, lambda true, i: true)[0]
    told = {row["Item"]: row["What this run says"] for row in fill_checklist(results)}
    assert "captions: " in told["Performance with its uncertainty"] and "captions" in told["Reference standard"]


def test_the_table_for_a_paper_is_the_same_in_three_files(results, tmp_path):
    rows = fill_checklist(results)
    rows[0]["Left to the author"] = "50 % of a_b & c | d"
    write_checklist(rows, tmp_path)
    with open(tmp_path / "checklist.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows
    lines = (tmp_path / "checklist.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(rows) + 2 and {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    tex = (tmp_path / "checklist.tex").read_text(encoding="utf-8")
    assert r"50 \% of a\_b \& c | d" in tex and tex.count(r"\begin{longtable}") == 1
