"""The card can't lie: its numbers are those of the evaluation, its code runs, the Hub takes its metadata."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from hub_server import validate
from huggingface_hub import ModelCard
from PIL import Image
from published_run import DATASETS, REPO, write_evaluation, write_run

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.data.public.benchmarks import BACH, CRC
from histolab_sft.publishing.card import UNQUANTISED, estimate_carbon, format_card
from histolab_sft.publishing.hub import build_publish_folder
from histolab_sft.publishing.push_gate import PublishError, walk
from histolab_sft.tasks import classification

RUN = {
    "start": "2026-03-01T10:00:00+00:00",
    "end": "2026-03-01T12:30:00+00:00",
    "hardware": {"device": "NVIDIA A100-SXM4-80GB", "count": 2},
    "exit_reason": "finished",
}
LEAKS = [
    ("results.json", {"note": "jane.doe@hospital.org"}),
    ("results.json", {"data": "/home/jane/slides"}),
    ("results.json", {"patient": "TCGA-A6-2671"}),
    ("results.json", {"slide": "S21-123456"}),
    ("results.json", {"key": "hf_" + "q7W" * 12}),
    ("run.json", {"exit_reason": "killed by jane@ward.example.org"}),
    ("run.json", {"hardware": {"device": "x", "count": 1, "scratch": "/scratch/jane/run"}}),
    ("run.json", {"versions": {"torch": "C:\\Users\\jane\\torch"}}),
    ("audit.json", {"findings": [{"check": "MRN 00123456", "level": "warning", "count": 1}]}),
    ("recipe.yaml", {"datasets": [DATASETS[0], DATASETS[1] | {"question": "Patient ID 004711? {options}"}]}),
]


def write_card(folder, run=None, audit=None, **keys):
    """Give the card, its text without front matter, and the results that it is of."""
    arguments, _ = write_run(folder, **keys)
    results = json.loads((folder / "out" / "evaluation" / "results.json").read_text())
    figures = ["confusion_crc.png", "reliability.png"]
    content = format_card(results, run or {}, audit or {}, figures, REPO, *arguments)
    return content, ModelCard(content).text, results


def section(text, title):
    return re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def read_tables(text):
    """Give the cells of every table: [{(row, column): cell}]."""
    tables = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        header, _, *rows = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in block.splitlines()]
        tables.append({(row[0], name): cell for row in rows for name, cell in zip(header[1:], row[1:], strict=True)})
    return tables


def numbers(cell):
    return [float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?", cell)]


def expected_numbers(score):
    if not isinstance(score, dict):
        return [] if score is None else [round(score, 3)]
    values = [score["value"], *(score.get("ci95") or [])]
    return [round(value, 3) for value in values if value is not None]


@pytest.mark.parametrize("name", [dataset["name"] for dataset in DATASETS])
def test_every_cell_equals_the_evaluation(tmp_path, name):
    _, text, results = write_card(tmp_path)
    entry = results["datasets"][name]
    scores, written, floors, classes = read_tables(section(text, name))
    for (metric, system), cell in scores.items():
        assert numbers(cell) == expected_numbers(entry[system].get(metric)), (metric, system)
    for (metric, system), cell in written.items():
        assert numbers(cell) == expected_numbers(entry[system]["generation"][metric]), (metric, system)
    for (floor, metric), cell in floors.items():
        of = entry["finetuned"] if "finetuned" in floor else entry["floors"][floor]
        assert numbers(cell) == expected_numbers(of[metric]), (floor, metric)
    for (label, column), cell in classes.items():
        row = entry["finetuned"]["per_class"][label]
        limits = row.get(f"{column}_ci95")
        expected = {"value": row[column], "ci95": limits} if limits else row[column]
        assert numbers(cell) == expected_numbers(expected), (label, column)
    shown = {key for key, value in entry["finetuned"].items() if isinstance(value, dict) and "value" in value}
    assert {metric for metric, _ in scores} == shown
    assert {floor for floor, _ in floors} == {"majority", "mean_rgb", "colour_histogram", "**finetuned**"}


def test_the_results_hold_no_number_from_elsewhere(tmp_path):
    _, text, results = write_card(tmp_path)
    leaves = [value for _, value in walk(results) if isinstance(value, int | float)]
    # Sentences of results.json (warnings, the colour floor) bring numbers of their own.
    told = [number for _, value in walk(results) if isinstance(value, str) for number in numbers(value)]
    known = {round(value, 3) for value in leaves} | {float(f"{value:.3g}") for value in leaves} | {95.0, *told}
    found = numbers(text[text.index("## Results") : text.index("## Prompts")])
    assert len(found) > 100
    assert set(found) <= known


def test_model_index_holds_the_scores_unrounded(tmp_path):
    content, _, results = write_card(tmp_path)
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in ModelCard(content).data.eval_results}
    assert found == {
        (name, metric): score["value"]
        for name, entry in results["datasets"].items()
        for metric, score in entry["finetuned"].items()
        if isinstance(score, dict) and score.get("value") is not None
    }


@pytest.mark.parametrize("name", ["google/medgemma-4b-it", "google/gemma-3-4b-it", "other/model", "embedded"])
def test_the_metadata_are_valid_for_every_base_model(tmp_path, name):
    content, _, _ = write_card(tmp_path, model_name_or_path=name)
    status, answer = validate(None, json.dumps({"content": content}).encode())
    assert (status, answer["errors"]) == (200, [])
    data = yaml.safe_load(content.split("---\n")[1])
    assert data.get("base_model") == (None if name == "embedded" else name)


def test_the_terms_and_the_revision_of_the_base_model_are_named(tmp_path):
    content, text, _ = write_card(tmp_path, model_revision="290cda5")
    assert ModelCard(content).data.license_name == "health-ai-developer-foundations"
    assert "HAI-DEF is provided under and subject to the Health AI Developer Foundations Terms of Use" in text
    assert "revision `290cda5`" in text
    assert "For research only" in text


def test_prompts_stand_in_full(tmp_path):
    _, text, _ = write_card(tmp_path, prompt_style="dataset_specific")
    crc, ward = (list(dataset["class_names"].values()) for dataset in DATASETS)
    assert f"\n{classification.format_prompt('crc', crc, 'dataset_specific')}\n" in text
    assert f"\n{classification.format_prompt('ward', ward, 'dataset_specific')}\n" in text


def test_licences_are_those_of_the_public_data_and_never_guessed(tmp_path):
    bach = {"name": "bach", "source": "data/datasets/bach/Photos", "class_names": {"Benign": "B", "Normal": "N"}}
    painted = tmp_path / "data" / "synthetic" / "crc"
    painted.mkdir(parents=True)
    (painted / "synthetic.json").write_text("{}")
    impostor = {"name": "pcam", "source": str(painted), "class_names": {"0": "no", "1": "yes"}}
    arguments, _ = write_run(tmp_path, datasets=[*DATASETS, bach, impostor])
    results = json.loads((tmp_path / "out" / "evaluation" / "results.json").read_text())
    results["datasets"] |= {"bach": results["datasets"]["ward"], "pcam": results["datasets"]["ward"]}
    data = section(format_card(results, {}, {}, [], REPO, *arguments), "Data")
    lines = {line.split("**")[1]: line for line in data.splitlines() if line.startswith("- **")}
    assert CRC.licence in lines["crc"]
    assert BACH.licence in lines["bach"]
    assert "aren't recorded" in lines["ward"]
    assert "painted by code" in lines["pcam"]
    assert "CC" not in lines["ward"] + lines["pcam"]


def test_caveats_of_the_evaluation_stand_beside_the_scores(tmp_path):
    _, text, results = write_card(tmp_path)
    crc, ward = results["datasets"]["crc"], results["datasets"]["ward"]
    assert "unknown patients and slides" in section(text, "crc")
    assert f"of {ward['n_groups']} patients or slides" in section(text, "ward")
    assert "Split: drawn at random by the recipe." in section(text, "crc")
    assert "Split: the one published with the data." in section(text, "ward")
    assert len(crc["warnings"]) == 2
    for warning in crc["warnings"]:
        assert warning[1:] in section(text, "crc")
    assert f"McNemar's exact p, patches taken for independent: {crc['difference']['mcnemar_p']:.3g}" in section(
        text, "crc"
    )


def test_findings_of_the_audit_stand_in_the_card(tmp_path):
    finding = {"check": "copies_across_splits", "level": "warning", "count": 735, "examples": [["a.png"]]}
    _, text, _ = write_card(tmp_path, audit={"findings": [finding]})
    assert "- copies across splits (warning): 735" in text
    assert "a.png" not in text


def test_carbon_is_estimated_where_hardware_and_time_are_known():
    # 2.5 h x 2 x 400 W = 2 kWh
    assert "about 0.95 kg CO2, from 2.50 h x 2 x 400 W" in estimate_carbon(RUN)
    assert "= 2.00 kWh" in estimate_carbon(RUN)


@pytest.mark.parametrize("change", [{"hardware": "cpu"}, {"hardware": {"device": "cpu", "count": 1}}])
def test_carbon_is_not_guessed(change):
    assert "not estimated" in estimate_carbon(RUN | change)
    assert "not estimated" in estimate_carbon({key: RUN[key] for key in ("hardware", "start")})


@pytest.mark.slow
@pytest.mark.parametrize(("file", "leak"), LEAKS)
def test_a_leak_anywhere_is_refused(tmp_path, file, leak):
    keys = leak if file == "recipe.yaml" else {}
    arguments, _ = write_run(tmp_path, **keys)
    if file == "results.json":
        write_evaluation(tmp_path / "out", **leak)
    elif file != "recipe.yaml":
        (tmp_path / "out" / file).write_text(json.dumps({**RUN, **leak}))
    with pytest.raises(PublishError, match="expected no secret, path or identifier"):
        build_publish_folder(*arguments)


def test_a_whole_record_of_the_run_is_no_leak(tmp_path):
    arguments, _ = write_run(tmp_path)
    (tmp_path / "out" / "run.json").write_text(json.dumps(RUN | {"versions": {"torch": "2.13.0"}}))
    card = (build_publish_folder(*arguments) / "README.md").read_text()
    assert "| versions.torch | 2.13.0 |" in card
    assert "| exit reason | finished |" in card


@pytest.mark.model
@pytest.mark.parametrize("keys", [{}, pytest.param({"image_side": 32, "image_tokens": 4}, marks=pytest.mark.thorough)])
def test_the_loading_code_of_the_card_runs_as_it_stands(tmp_path, untrained_model, keys):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    arguments, recipe = write_run(tmp_path, **keys)
    model = AutoModelForImageTextToText.from_pretrained(untrained_model, dtype=torch.float32)
    lora = LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)", r=4, init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "google/medgemma-4b-it"} | keys
    (tmp_path / "out" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "out" / "README.md").unlink(missing_ok=True)
    write_evaluation(tmp_path / "out")
    published = build_publish_folder(*parse_recipe(["--config", str(recipe)]))
    card = (published / "README.md").read_text()

    # The names on the Hub are found as folders below the current one.
    place = tmp_path / "elsewhere"
    (place / "google").mkdir(parents=True)
    (place / "google" / "medgemma-4b-it").symlink_to(untrained_model)
    (place / REPO).parent.mkdir()
    (place / REPO).symlink_to(published)
    Image.new("RGB", (96, 96), "pink").save(place / "patch.png")
    (place / "use.py").write_text(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1])
    run = subprocess.run([sys.executable, "use.py"], cwd=place, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.model
def test_the_card_leaves_unquantised_what_training_leaves(tmp_path, untrained_model):
    from histolab_sft.models.load import build_quantization_config

    _, _, model_args = write_run(tmp_path, model_name_or_path=str(untrained_model))[0]
    assert sorted(build_quantization_config(model_args).llm_int8_skip_modules) == sorted(UNQUANTISED)
