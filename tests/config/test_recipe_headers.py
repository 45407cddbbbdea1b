"""What the headers of the recipes on records say about their data is so."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from encoded_pictures import make_dicom
from open_fixture import write_data
from PIL import Image

from histolab_sft.config.arguments import parse_recipe, read_recipe
from histolab_sft.data.rows import audit_recipe, format_patches, list_patches, load_patches
from histolab_sft.models.geometry import MEDGEMMA_4B_SIZED


def parse(recipe, home, *flags):
    """The recipe over the data in `home`; no rank, no model."""
    command = ["--config", f"recipes/{recipe}.yaml", "--data_dir", str(home), "--use_cpu", "true", "--bf16", "false"]
    return parse_recipe([*command, *map(str, flags)])[0]


@pytest.fixture
def write(tmp_path):
    """Write the data of a recipe and return where its sources begin."""

    def write(recipe):
        content = read_recipe(f"recipes/{recipe}.yaml")
        write_data(recipe, tmp_path, content["datasets"])
        return tmp_path / content.get("data_dir", "")

    return write


def test_captions_may_have_any_of_the_pictures_that_the_header_names(write):
    home = write("captioning")
    grey = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50
    pictures = home / "data/captioning/data/images"
    Image.fromarray(grey).save(pictures / "train0.png")
    Image.fromarray(grey).save(pictures / "train1.tif")
    Image.fromarray((grey // 257).astype(np.uint8)).save(pictures / "train2.tif")
    Image.fromarray((grey // 257).astype(np.uint8)).save(pictures / "train3.jpeg")
    (pictures / "train4.dcm").write_bytes(make_dicom(grey, "MONOCHROME2"))
    manifest = home / "data/captioning/dataset/train.json"
    rows = json.loads(manifest.read_text())
    for row, ending in zip(rows, (".png", ".tif", ".tif", ".jpeg", ".dcm"), strict=False):
        row["image"] = row["image"].replace(".png", ending)
    manifest.write_text(json.dumps(rows))
    train = load_patches(parse("captioning", home))["train"]
    assert all(row["images"][0].mode == "RGB" and row["images"][0].size == (40, 30) for row in train)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_captions_may_stand_in_tables_and_lines(write, suffix):
    home = write("captioning")
    before = list_patches(parse("captioning", home)).drop(columns="id")
    for path in (home / "data/captioning/dataset").glob("*.json"):
        table = pd.read_json(path)
        if suffix == ".csv":
            table.to_csv(path.with_suffix(suffix), index=False)
        else:
            table.to_json(path.with_suffix(suffix), orient="records", lines=True)
        path.unlink()
    assert list_patches(parse("captioning", home)).drop(columns="id").equals(before)


@pytest.mark.slow
@pytest.mark.parametrize("group_by", ["patient_id", r"train(\d)"])
def test_without_a_test_manifest_captions_are_dealt_out_by_patient(write, group_by):
    home = write("captioning")
    dataset = home / "data/captioning/dataset"
    (dataset / "test.json").unlink()
    (dataset / "val.json").unlink()
    rows = json.loads((dataset / "train.json").read_text())
    for i, row in enumerate(rows):
        row["image"] = rows[i]["image"]
        row["patient_id"] = "p"[: group_by == "patient_id"] + str(i % 7)
    if group_by != "patient_id":
        rows = [{key: row[key] for key in ("image", "caption")} for row in rows]
    (dataset / "train.json").write_text(json.dumps(rows))
    [entry] = read_recipe("recipes/captioning.yaml")["datasets"]
    flags = ["--datasets", json.dumps([entry | {"group_by": group_by}])]
    table = list_patches(parse("captioning", home, *flags))
    assert set(table["split"]) == {"train", "validation", "test"} and set(table["protocol"]) == {"seed"}
    assert (table.groupby("group")["split"].nunique() == 1).all() and table["group"].notna().all()
    assert list_patches(parse("captioning", home, *flags)).equals(table)


def test_a_second_manifest_with_an_instruction_makes_the_captions_bilingual(write):
    home = write("captioning")
    [entry] = read_recipe("recipes/captioning.yaml")["datasets"]
    text = open("recipes/captioning.yaml", encoding="utf-8").read()
    instruction = "Describa los hallazgos de esta imagen médica."
    assert f'instruction: "{instruction}"' in text
    both = [entry, entry | {"name": "spanish", "instruction": instruction}]
    train = load_patches(parse("captioning", home, "--datasets", json.dumps(both)))["train"].with_format(None)
    asked = {row["dataset"]: row["prompt"][0]["content"] for row in train}
    assert asked["spanish"] == instruction and asked["captions"].startswith("You are a medical imaging expert.")


@pytest.mark.slow
def test_flare_is_scored_on_a_validation_split_and_validated_on_cases_of_train(write):
    table = list_patches(parse("flare", write("flare")))
    named = {entry["name"]: entry["splits"]["test"] for entry in read_recipe("recipes/flare.yaml")["datasets"]}
    assert set(named.values()) <= {"validation-public", "validation-hidden"}
    for row in table.itertuples():
        folder = named[row.dataset] if row.split == "test" else "training"
        assert all(f"/{folder}/" in image["path"] for image in row.images)
    assert (table.groupby(["dataset", "group"])["split"].nunique() == 1).all()
    assert (table.groupby("dataset")["task"].nunique() == 1).all()


@pytest.mark.slow
def test_patients_of_padchest_gr_that_are_held_out_are_held_out_of_padchest_too(write):
    home = write("explainmyxray")
    table = list_patches(given := parse("explainmyxray", home))
    # The fixture gives both the same patients.
    ours, theirs = (table[table["dataset"] == name] for name in ("padchest", "padchest_gr"))
    both = ours.merge(theirs.drop_duplicates("group"), on="group")
    assert (both["split_x"] == both["split_y"]).all() and set(both["split_x"]) == {"train", "validation", "test"}
    patches, audit, _ = audit_recipe(given, home / "out")
    assert audit["dropped"] == [] and audit["refusals"] == 0
    assert (patches.groupby(["cohort", "group"])["split"].nunique() == 1).all()
    assert set(table["id"]) == set(patches["id"])
    # By patient, and by the master table.
    assert (table.groupby(["dataset", "group"])["split"].nunique() == 1).all()
    protocols = table.groupby("dataset")["protocol"].first().to_dict()
    assert protocols == {"padchest": "seed", "padchest_gr": "official", "indiana": "seed"}
    assert all(row["images"][0].size == (40, 40) for row in format_patches(patches, given)["train"])


def test_own_fields_of_biomarkers_need_no_code(write):
    home = write("immunopath")
    [entry] = read_recipe("recipes/immunopath.yaml")["datasets"]
    fields = [{"name": "immune_score", "range": [0, 1], "decimals": 2}]
    own = entry | {"style": "generic", "fields": fields}
    [row, *_] = load_patches(parse("immunopath", home, "--datasets", json.dumps([own])))["train"].with_format(None)
    assert "immune_score" in row["prompt"][0]["content"] and "cd274" not in row["prompt"][0]["content"].lower()
    assert json.loads(row["completion"][0]["content"].strip("`json\n")) == {"immune_score": 0.63}


# What the published run that a recipe follows says of itself, and what its header must tell of the one beside it.
FOLLOWED = {
    "histolab_5k": (
        {"model_name_or_path": "google/medgemma-4b-it", "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
        | {"learning_rate": 2e-5, "num_train_epochs": 1, "step": 4, "warmup_steps": 0.03, "weight_decay": 0.01}
        | {"early_stopping": "threshold", "early_stopping_patience": 50, "early_stopping_threshold": 0.001},
        ["early_stopping: plateau", "15,000", "7,272"],
    ),
    "immunopath": (
        {"model_name_or_path": "google/medgemma-1.5-4b-it", "lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.05}
        | {"learning_rate": 1e-4, "num_train_epochs": 3, "step": 16, "warmup_steps": 0.03, "weight_decay": 0.01}
        | {"lr_scheduler_type": "cosine", "eval_steps": 23, "early_stopping_patience": 2 * 23},
        ["2e-4", "10 %", "8 patients a step", "1536", "2048", "all-linear"],
    ),
    "captioning": (
        {"model_name_or_path": "google/medgemma-1.5-4b-it", "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
        | {"lora_target_modules": ["q_proj", "v_proj"], "dtype": "bfloat16", "learning_rate": 2e-4}
        | {"num_train_epochs": 3, "step": 4, "max_new_tokens": 256},
        ["float16", "512", "128"],
    ),
    "explainmyxray": (
        {"model_name_or_path": "google/medgemma-4b-it", "lora_r": 32, "lora_alpha": 64, "lora_dropout": 0.05}
        | {"lora_target_modules": ["q_proj", "v_proj"], "learning_rate": 5e-5, "step": 16, "warmup_steps": 0.15},
        ["rank 64, alpha 128", "dropout 0.1", "8 and 30 epochs"],
    ),
    "flare": (
        {"model_name_or_path": "google/medgemma-4b-it", "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.1}
        | {"learning_rate": 2e-5, "num_train_epochs": 3, "step": 32, "warmup_steps": 0.1, "weight_decay": 0.01}
        | {"lr_scheduler_type": "cosine", "max_grad_norm": 0.3},
        ["rank 64, alpha 16", "2048", "the first"],
    ),
}


def read_header(recipe):
    text = Path(f"recipes/{recipe}.yaml").read_text(encoding="utf-8")
    return " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))


def read_values(recipe, *flags):
    """Every key that a recipe runs with, and `step`, its rows a step."""
    parsed = parse_recipe(["--config", f"recipes/{recipe}.yaml", "--use_cpu", "true", "--bf16", "false", *flags])
    values = {name: value for part in reversed(parsed) for name, value in vars(part).items()}
    return values | {"step": values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]}


@pytest.mark.parametrize("recipe", FOLLOWED)
def test_a_recipe_has_the_published_hyper_parameters_that_its_header_says_it_follows(recipe):
    expected, beside = FOLLOWED[recipe]
    values = read_values(recipe)
    assert {key: values[key] for key in expected} == expected
    assert values["model_name_or_path"] in MEDGEMMA_4B_SIZED
    header = read_header(recipe)
    assert "Hyper-parameters" in header and all(words in header for words in beside)


def test_the_second_flare_baseline_is_the_command_line_that_the_header_gives():
    flags = shlex.split(re.search(r'ARGS="(.*?)"', read_header("flare"))[1])
    values = read_values("flare", *flags)
    expected = {"model_name_or_path": "google/medgemma-1.5-4b-it", "lora_alpha": 16, "lora_dropout": 0.05, "step": 16}
    expected |= {"lora_r": 16, "learning_rate": 2e-4, "lr_scheduler_type": "linear", "warmup_steps": 0.03}
    assert {key: values[key] for key in expected} == expected
