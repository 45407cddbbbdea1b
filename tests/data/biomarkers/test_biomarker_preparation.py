import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from biomarker_fixture import (
    AT_40X,
    PATIENTS,
    SIZE,
    SPELT_IE_F,
    TWO_SLIDES,
    WITHOUT_SUBTYPE,
    paint_slide,
    write_patches,
    write_pyramid,
    write_tables,
)
from PIL import Image

from histolab_sft.config.arguments import HistoArguments, read_recipe
from histolab_sft.config.dataset import SPLITS, DatasetConfig
from histolab_sft.data.biomarkers.preparation import Preparation, find_stain_target, prepare_biomarkers
from histolab_sft.data.biomarkers.reinhard import fit_target, measure_moments, pool_moments
from histolab_sft.data.formats.biomarkers import read_biomarkers
from histolab_sft.data.formats.rows import COLUMNS
from histolab_sft.data.rows import load_audited_patches
from histolab_sft.data.slides.cutting import Cutting
from histolab_sft.tasks.biomarkers import FIELDS, format_target, parse

pytestmark = pytest.mark.slow

# By its path: with recipes/ among the places of imports, `evaluate` would be the script there, not the library.
_SPEC = importlib.util.spec_from_file_location(
    "script", Path(__file__).parents[3] / "recipes" / "prepare_biomarkers.py"
)
script = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(script)

CONFIG = DatasetConfig(name="immunopath", source="data/biomarkers", format="biomarkers")
SETTINGS = {"n_images": 3, "validation_fraction": 0.15, "test_fraction": 0.25}


def prepare(folder, output_dir, **changes):
    tables = {"expression": folder / "expression.tsv"}
    tables["clinical"] = [folder / name for name in ("metadata.csv", "annotation.tsv", "cbioportal.txt")]
    settings = {**tables, "patches": folder / "patches", "output_dir": output_dir, **SETTINGS, **changes}
    return prepare_biomarkers(Preparation(**settings))


def read_files(folder):
    """All that a preparation wrote, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_tables(folder)
    write_patches(folder / "patches")
    return folder


@pytest.fixture(scope="module")
def prepared(inputs, tmp_path_factory):
    """Output folder of a preparation, and its summary."""
    folder = tmp_path_factory.mktemp("prepared") / "out"
    return folder, prepare(inputs, folder)


def test_the_manifest_becomes_a_row_for_each_patient(prepared):
    folder, summary = prepared
    rows = read_biomarkers(folder, CONFIG)
    assert rows.columns.tolist() == COLUMNS
    # All patches of one patient were cut at 0.25 µm/px.
    assert rows["group"].tolist() == sorted(set(PATIENTS) - {AT_40X})
    assert rows["id"].is_unique and rows["split"].value_counts().to_dict() == summary["patients"]
    row = rows.set_index("group").loc["TCGA-22-1000"]
    assert row["task"] == "biomarkers" and len(row["images"]) == 3
    assert all(Image.open(image).size == (SIZE, SIZE) for image in row["images"])
    assert row["ask"] == {"style": "training", "values": {"cancer_type": "lung squamous cell carcinoma"}}
    names = [field["name"] for field in FIELDS]
    for answer in rows["answer"]:
        assert list(answer) == names and parse(format_target(answer)).values.keys() == set(names)


def test_the_shipped_recipe_takes_what_the_preparation_writes(prepared, tmp_path):
    folder, summary = prepared
    [entry] = read_recipe("recipes/immunopath.yaml")["datasets"]
    rows = load_audited_patches(HistoArguments(datasets=[entry | {"source": str(folder)}]), tmp_path)
    assert {split: len(part) for split, part in rows.items()} == summary["patients"]
    row = rows["train"][0]
    assert len(row["images"]) == 3 and "CD274" in row["prompt"][0]["content"]
    assert parse(row["completion"][0]["content"]).values.keys() == {field["name"] for field in FIELDS}


def test_unknown_and_other_spellings_arrive(prepared):
    answers = read_biomarkers(prepared[0], CONFIG).set_index("group")["answer"]
    assert answers[WITHOUT_SUBTYPE]["tme_subtype"] == "unknown"
    assert answers[SPELT_IE_F]["tme_subtype"] == "IE/F"


def test_both_slides_of_a_patient_are_in_one_row(prepared):
    rows = read_biomarkers(prepared[0], CONFIG).set_index("group")
    patches = pd.read_csv(prepared[0] / "patches.csv").query("patient == @TWO_SLIDES")
    assert patches["slide"].nunique() == 2 and patches["image"].notna().sum() == 3
    assert all(TWO_SLIDES in image for image in rows.loc[TWO_SLIDES, "images"])


def test_what_is_left_out_is_counted(prepared):
    folder, summary = prepared
    assert summary["patients_left_out"] == {"no usable patch": [AT_40X]}
    assert summary["patches"] == {"cut at 0.25 µm/px instead of 0.5": 10, "usable": 230}
    assert summary["samples_left_out"] == [f"{PATIENTS[0]}-11A-11R"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert len(pd.read_csv(folder / "patches.csv")) == 240


def test_no_positive_in_the_test_split_is_said(prepared):
    n_test = prepared[1]["patients"]["test"]
    assert f"test: 0 of {n_test} patients have msi_status MSI-H; no score can speak of it" in prepared[1]["warnings"]


def test_the_order_of_files_and_rows_changes_nothing(prepared, tmp_path):
    write_tables(tmp_path)
    table = pd.read_csv(tmp_path / "expression.tsv", sep="\t", index_col=0, dtype=str)
    table.iloc[::-1, ::-1].to_csv(tmp_path / "expression.tsv", sep="\t")
    write_patches(tmp_path / "patches", order=-1)
    prepare(tmp_path, tmp_path / "out")
    expected, found = read_files(prepared[0]), read_files(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} == {"summary.json"}  # the hash of the table


def test_another_seed_gives_another_split(prepared, inputs, tmp_path):
    prepare(inputs, tmp_path / "out", cutting=Cutting(seed=7), stain_target="none")
    split = read_biomarkers(tmp_path / "out", CONFIG).set_index("group")["split"]
    assert not split.equals(read_biomarkers(prepared[0], CONFIG).set_index("group")["split"])
    assert set(split) == set(SPLITS)
    # Without a target the pictures are the patches.
    row = pd.read_csv(tmp_path / "out" / "patches.csv").dropna(subset="image").iloc[0]
    original = inputs / "patches" / row["slide"] / f"{row['name']}.png"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / row["image"])), np.asarray(Image.open(original)))


def test_statistics_of_another_split_are_refused_and_those_of_the_same_one_applied(prepared, inputs, tmp_path):
    folder, _ = prepared
    with pytest.raises(ValueError, match="held-out ones among them, expected none; fit on the training patients only"):
        prepare(inputs, tmp_path / "leak", cutting=Cutting(seed=7), fitted=folder / "fitted.json")
    assert not (tmp_path / "leak/manifest.jsonl").exists()
    prepare(inputs, tmp_path / "out", fitted=folder / "fitted.json")
    assert read_files(tmp_path / "out") == read_files(folder)


def test_the_stain_target_is_the_mean_of_the_training_slides_alone(prepared, inputs):
    split = read_biomarkers(prepared[0], CONFIG).set_index("group")["split"]
    slides = {name: [] for name in SPLITS}
    for folder in sorted((inputs / "patches").iterdir()):
        if folder.name[:12] in split.index:
            moments = [measure_moments(Image.open(path)) for path in sorted(folder.glob("*.png"))]
            slides[split[folder.name[:12]]].append(pool_moments(moments))
    found = json.loads((prepared[0] / "fitted.json").read_text())["stain_target"]
    expected, everyone = fit_target(slides["train"]), fit_target([slide for some in slides.values() for slide in some])
    for name in ("mean", "std"):
        assert np.allclose(found[name], expected[name]) and not np.allclose(found[name], everyone[name])


def test_a_stain_target_of_held_out_patients_is_refused_and_a_given_one_taken(prepared, tmp_path):
    published = {"mean": [148.60, 169.30, 105.97], "std": [41.56, 9.01, 14.67]}
    split = read_biomarkers(prepared[0], CONFIG).set_index("group")["split"]
    trained = json.loads((prepared[0] / "fitted.json").read_text())["stain_target"]
    assert len(trained["patients"]) == (split == "train").sum()
    assert find_stain_target("train", trained, split.index[split != "train"]) == trained
    target = tmp_path / "target.json"
    target.write_text(json.dumps(trained))
    for choice in ("train", str(target)):
        with pytest.raises(ValueError, match="held-out ones among them"):
            find_stain_target(choice, trained, split.index)
    target.write_text(json.dumps(published))
    assert find_stain_target(str(target), trained, split.index) == published
    target.write_text(json.dumps({"mean": [1, 2], "std": [1, 2, 3]}))
    with pytest.raises(ValueError, match="expected `mean` and `std` of L"):
        find_stain_target(str(target), trained, split.index)


def test_the_reader_refuses_a_manifest_dealt_out_anew(prepared, tmp_path):
    folder, _ = prepared
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for line in lines:
        line["split"] = "test" if line["split"] == "train" else "train"
        line["images"] = [str(folder / image) for image in line["images"]]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read_biomarkers(tmp_path, CONFIG)  # nothing known about its labels
    (tmp_path / "fitted.json").write_text((folder / "fitted.json").read_text())
    with pytest.raises(ValueError, match="held-out ones among them"):
        read_biomarkers(tmp_path / "manifest.jsonl", CONFIG)


def test_the_reader_names_what_is_wrong(prepared, tmp_path):
    folder, _ = prepared
    manifest, lines = tmp_path / "manifest.jsonl", (folder / "manifest.jsonl").read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines))
    with pytest.raises(FileNotFoundError, match="'immunopath': .* names 69 pictures that aren't there"):
        read_biomarkers(tmp_path, CONFIG)
    for text, error in (("{", "line 1: Expecting"), ("[]\n", "line 1: '\\[\\]"), (lines[0] * 2, "share their id")):
        manifest.write_text(text.replace('"images/', f'"{folder}/images/'))
        with pytest.raises(ValueError, match=error):
            read_biomarkers(manifest, CONFIG)
    with pytest.raises(FileNotFoundError, match="manifest.jsonl"):
        read_biomarkers(tmp_path / "nowhere", CONFIG)


def test_values_are_those_that_the_question_has_a_place_for(prepared):
    assert read_biomarkers(prepared[0], CONFIG, style="card")["ask"][0] == {"style": "card", "values": {}}
    config = DatasetConfig(name="x", source="s", format="biomarkers", instruction="Was ist es?\n{fields}")
    assert read_biomarkers(prepared[0], config)["ask"][0]["values"] == {}


def test_a_finished_preparation_is_not_written_over(prepared, inputs):
    with pytest.raises(FileExistsError, match="holds a manifest already"):
        prepare(inputs, prepared[0])


def test_slides_or_patches_are_wanted_not_both(inputs, tmp_path):
    with pytest.raises(ValueError, match="expected one of the two"):
        prepare(inputs, tmp_path / "out", slides=inputs)


def test_the_script_cuts_slides_and_says_what_came_of_it(inputs, tmp_path, capsys):
    pytest.importorskip("openslide", reason="needs the extra `slides`")
    (tmp_path / "slides").mkdir()
    for number, patient in enumerate(PATIENTS):
        mpp = 0.25 if patient == AT_40X else 0.5
        for slide in (1, 2) if patient == TWO_SLIDES else (1,):
            path = tmp_path / "slides" / f"{patient}-01Z-00-DX{slide}.tif"
            write_pyramid(path, paint_slide(10 * number + slide, mpp), mpp if number else 1.0)
    command = ["--expression", inputs / "expression.tsv", "--slides", tmp_path / "slides", "--patch_size", SIZE]
    command += ["--clinical", *(inputs / name for name in ("metadata.csv", "annotation.tsv", "cbioportal.txt"))]
    command += ["--output_dir", tmp_path / "out", "--n_images", 2, "--max_patches", 5]
    script.main(script.parse_preparation([str(word) for word in command]))
    said = capsys.readouterr().out
    assert "patients: " in said and "patches: 120 usable" in said  # 24 slides, five of each
    assert f"slide refused: {PATIENTS[0]}-01Z-00-DX1: 1 x 1 µm per pixel" in said
    assert "left out: 1 patients, no patches" in said and "warning: test: 0 of " in said
    rows = read_biomarkers(tmp_path / "out", CONFIG).set_index("group")
    assert len(rows) == 23 and len(rows.loc[AT_40X, "images"]) == 2
    assert {Image.open(image).size for image in rows.loc[AT_40X, "images"]} == {(SIZE, SIZE)}
