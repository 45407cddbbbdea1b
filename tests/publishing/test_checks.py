"""What must not be published is refused before anything is sent, and nothing is left behind."""

import json
import os

import pytest
from hub_server import TOKEN
from PIL import Image, PngImagePlugin
from published_run import write_adapter, write_evaluation, write_run

from histolab_sft.publishing.hub import build_publish_folder
from histolab_sft.publishing.push_gate import PublishError, find_leaks


@pytest.mark.slow
def test_a_missing_evaluation_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path)
    (tmp_path / "out" / "evaluation" / "results.json").unlink()
    with pytest.raises(PublishError, match="score the adapter first"):
        build_publish_folder(*arguments)


@pytest.mark.slow
def test_an_adapter_that_changed_after_its_evaluation_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path)
    write_adapter(tmp_path / "out", value=0.25)
    os.utime(tmp_path / "out" / "evaluation" / "results.json")
    with pytest.raises(PublishError, match="is of the adapter with SHA-256"):
        build_publish_folder(*arguments)


def test_an_evaluation_that_names_no_adapter_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path)
    path = tmp_path / "out" / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    del results["provenance"]
    path.write_text(json.dumps(results))
    with pytest.raises(PublishError, match="SHA-256 None"):
        build_publish_folder(*arguments)


def test_an_evaluation_older_than_the_adapter_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path)
    os.utime(tmp_path / "out" / "evaluation" / "results.json", (1, 1))
    with pytest.raises(PublishError, match="is older than"):
        build_publish_folder(*arguments)


def test_an_evaluation_of_other_data_sets_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path)
    arguments[0].datasets.pop()
    with pytest.raises(PublishError, match="is of the data sets"):
        build_publish_folder(*arguments)


def test_an_evaluation_with_other_classes_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path)
    names = arguments[0].datasets[1].class_names
    arguments[0].datasets[1].class_names = {"N": names["T"], "T": names["N"]}
    with pytest.raises(PublishError, match="has the classes"):
        build_publish_folder(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("record", ["run.json", "evaluation/results.json"])
def test_a_recipe_that_changed_after_the_run_is_refused(tmp_path, record):
    arguments, _ = write_run(tmp_path)
    path = tmp_path / "out" / record
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | {"recipe": {"lora_r": 16, "prompt_style": "generic"}}))
    build_publish_folder(*arguments)
    path.write_text(json.dumps(content | {"recipe": {"lora_r": 8, "prompt_style": "generic"}}))
    with pytest.raises(PublishError, match="'lora_r': 16}, expected {'lora_r': 8} as in"):
        build_publish_folder(*arguments)


def test_half_an_evaluation_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path)
    path = tmp_path / "out" / "evaluation" / "results.json"
    path.write_text(path.read_text()[:500])
    with pytest.raises(PublishError, match="isn't whole JSON"):
        build_publish_folder(*arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused(tmp_path, value):
    arguments, _ = write_run(tmp_path)
    write_adapter(tmp_path / "out", value=value)
    write_evaluation(tmp_path / "out")
    with pytest.raises(PublishError, match="aren't finite"):
        build_publish_folder(*arguments)


def test_a_score_that_is_not_finite_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path)
    path = tmp_path / "out" / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    results["datasets"]["ward"]["finetuned"]["auroc"]["value"] = float("nan")
    path.write_text(json.dumps(results))
    with pytest.raises(PublishError, match="datasets.ward.finetuned.auroc.value"):
        build_publish_folder(*arguments)


def test_a_cut_adapter_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path)
    adapter = tmp_path / "out" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-100])
    write_evaluation(tmp_path / "out")
    with pytest.raises(PublishError, match="can't be read"):
        build_publish_folder(*arguments)


def test_an_adapter_of_another_base_model_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path, model_name_or_path="google/gemma-3-4b-it")
    with pytest.raises(PublishError, match="expected google/gemma-3-4b-it"):
        build_publish_folder(*arguments)


def test_a_base_model_in_a_folder_of_this_machine_is_refused(tmp_path, monkeypatch):
    arguments, _ = write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google" / "medgemma-4b-it").mkdir(parents=True)
    with pytest.raises(PublishError, match="is a folder of this machine"):
        build_publish_folder(*arguments)


def test_a_token_in_the_metadata_of_the_adapter_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path)
    write_adapter(tmp_path / "out", metadata={"note": TOKEN})
    write_evaluation(tmp_path / "out")
    with pytest.raises(PublishError, match="metadata of adapter_model.safetensors") as refusal:
        build_publish_folder(*arguments)
    assert TOKEN not in str(refusal.value)


@pytest.mark.slow
def test_a_refused_folder_is_not_left_behind(tmp_path):
    arguments, _ = write_run(tmp_path)
    build_publish_folder(*arguments)
    write_evaluation(tmp_path / "out", note="doctor@hospital.org")
    with pytest.raises(PublishError, match="results.json, line .*: e-mail"):
        build_publish_folder(*arguments)
    assert [path.name for path in (tmp_path / "out").iterdir() if "publish" in path.name] == []


def test_the_recipe_with_its_paths_stays_here(tmp_path):
    arguments, _ = write_run(tmp_path)
    path = tmp_path / "out" / "evaluation" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": {"data_dir": "/home/jane/slides"}}))
    folder = build_publish_folder(*arguments)
    assert "recipe" not in json.loads((folder / "results.json").read_text())


def test_figures_go_up_as_pixels_alone(tmp_path):
    arguments, _ = write_run(tmp_path)
    note = PngImagePlugin.PngInfo()
    note.add_text("Author", "Jane Doe", zip=False)
    figure = tmp_path / "out" / "evaluation" / "figures" / "reliability.png"
    Image.new("RGB", (8, 8), "red").save(figure, pnginfo=note)
    published = build_publish_folder(*arguments) / "figures" / "reliability.png"
    assert b"Jane" in figure.read_bytes()
    assert b"Jane" not in published.read_bytes()
    with Image.open(published) as image:
        assert image.convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_a_file_that_only_pretends_to_be_a_figure_is_refused(tmp_path):
    arguments, _ = write_run(tmp_path)
    (tmp_path / "out" / "evaluation" / "figures" / "roc.png").write_text("patients.csv")
    with pytest.raises(PublishError, match="isn't a whole PNG"):
        build_publish_folder(*arguments)


@pytest.mark.parametrize(
    "text",
    [
        "hf_" + "a1B2" * 9,
        "ghp_" + "a1B2" * 9,
        "sk-" + "a1B2" * 9,
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "https://jane:secret@example.org",
        "jane.doe@hospital.org",
        "/home/jane/slides",
        "~/slides/a",
        '"C:\\\\Users\\\\jane"',
        "TCGA-A6-2671-01Z",
        "C3L-00004",
        "MRN: 00123456",
        '"patient_id": "P-004711"',
        "S21-12345",
        "1.2.840.113619.2.55.3.604688119",
        "078-05-1120",
        "DOB: 1960",
    ],
)
def test_leaks_are_found(text):
    assert len(find_leaks(f"first line\n{text}\n")) >= 1
    assert find_leaks(f"first line\n{text}\n")[0].startswith("line 2")


def test_innocent_texts_are_no_leaks():
    innocent = """
    https://zenodo.org/records/1214456 (doi 10.5281/zenodo.1214456), CC BY 4.0, arXiv 2409.11546
    ".*model\\\\.language_model\\\\.layers\\\\.\\\\d+\\\\.(.*\\\\.)?(q_proj|v_proj)"  data/datasets/crc
    n 7180, 50 patients, 0.8123456789, 2026-01-02T03:04:05, torch 2.13.0, 3.3e-05, commit 0123456789abcdef
    NVIDIA A100-SXM4-80GB H&E and/or 20x, train/validation/test, google/medgemma-4b-it, case: Tumor
    """
    assert find_leaks(innocent) == []


def test_scores_of_other_data_than_the_run_was_given_are_not_published(tmp_path):
    (arguments, _) = write_run(tmp_path)
    output_dir = tmp_path / "out"
    (output_dir / "run.json").write_text(json.dumps({"data_fingerprint": "f00d"}))
    write_evaluation(output_dir, data_fingerprint="beef")
    with pytest.raises(PublishError, match=r"fingerprint beef, expected f00d as in run.json.*changed_split: frozen"):
        build_publish_folder(*arguments)
    write_evaluation(output_dir, data_fingerprint="f00d")
    build_publish_folder(*arguments)
