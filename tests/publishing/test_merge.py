"""A merged model is only as good as the proof that it answers as the adapter does."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_class_folders
from datasets import Dataset
from hub_server import TOKEN, start_hub
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from published_run import DATASETS, REPO, write_evaluation, write_run
from safetensors import safe_open
from tiny_models import load_tiny, paint_patches

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.data.rows import load_patches
from histolab_sft.models.load import load_base_model
from histolab_sft.publishing import merge, publish_merged
from histolab_sft.publishing.hub import PublishArguments, list_files
from histolab_sft.publishing.merge import check_merge_parity, compare_scores, load_merged, merge_adapter
from histolab_sft.publishing.push_gate import PublishError

LORA = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
CLASSES = {"a": "Adipose", "t": "Tumor", "s": "Stroma", "m": "Mucus"}


def scores(values):
    """Give the same scores for all three systems."""
    return {name: np.array(values, dtype=float) for name in ("training_precision", "bfloat16", "merged")}


def test_equal_scores_pass():
    parity = compare_scores(scores([[-1, -3], [-4, -2]]))
    assert parity["passed"]
    assert parity["pairs"]["bfloat16/merged"] == {"agreement": 1.0, "largest_gap": 0.0}
    assert parity["n_patches"] == 2


def test_a_gap_beyond_the_tolerance_is_refused_even_where_labels_agree():
    systems = scores([[-1, -3], [-4, -2]])
    systems["merged"][1, 0] -= merge.MAX_GAP + 0.01
    parity = compare_scores(systems)
    assert parity["pairs"]["bfloat16/merged"]["agreement"] == 1.0
    assert parity["pairs"]["bfloat16/merged"]["largest_gap"] == pytest.approx(merge.MAX_GAP + 0.01)
    assert not parity["passed"]


def test_a_gap_to_the_quantised_weights_is_reported_and_no_reason_to_refuse():
    systems = scores([[-1, -3], [-4, -2]])
    systems["training_precision"][:] *= 2
    parity = compare_scores(systems)
    assert parity["pairs"]["training_precision/merged"]["largest_gap"] == 4.0
    assert parity["passed"]


def test_other_labels_than_on_the_weights_of_training_are_refused():
    systems = scores([[-1, -3]] * 10)
    systems["training_precision"][0] = [-3, -1]
    parity = compare_scores(systems)
    assert parity["pairs"]["training_precision/merged"]["agreement"] == 0.9
    assert not parity["passed"]


@pytest.mark.parametrize("broken", [np.nan, -np.inf, np.inf])
def test_scores_that_are_not_finite_are_refused(broken):
    systems = scores([[-1, -3], [-4, -2]])
    systems["merged"][0, 1] = broken
    assert not compare_scores(systems)["passed"]


def test_labels_that_a_patch_lacks_are_left_out():
    parity = compare_scores(scores([[-1, -3, -np.inf], [-4, -2, -1]]))
    assert parity["passed"]
    assert parity["pairs"]["bfloat16/merged"]["largest_gap"] == 0.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny base model with an adapter that changes its answers, and patches to compare on."""
    folder = tmp_path_factory.mktemp("merge")
    model, _ = load_tiny(folder / "base")
    model.save_pretrained(folder / "base")
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=LORA, r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(folder / "out")
    question = [{"role": "user", "content": "What type of tissue is shown?"}]
    images = paint_patches(24)
    patches = Dataset.from_dict(
        {"images": [[image] for image in images], "prompt": [question] * 24, "dataset": ["crc"] * 24}
    )
    histo_args = HistoArguments(datasets=[{"name": "crc", "source": "x", "class_names": CLASSES}])
    model_args = ModelConfig(str(folder / "base"), load_in_4bit=True, dtype="bfloat16")
    return folder, patches, histo_args, model_args


@pytest.fixture
def output_dir(trained, tmp_path):
    return shutil.copytree(trained[0] / "out", tmp_path / "out")


def keys(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}


@pytest.mark.model
def test_a_merged_model_has_the_names_of_the_hub_and_passes(trained, output_dir):
    folder, patches, histo_args, model_args = trained
    merged = merge_adapter(model_args, output_dir)
    assert keys(merged) == keys(folder / "base")
    assert {"processor_config.json", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in merged.iterdir()
    }
    parity = check_merge_parity(patches, histo_args, model_args, output_dir)
    assert {pair["agreement"] for pair in parity["pairs"].values()} == {1.0}
    assert parity["pairs"]["bfloat16/merged"]["largest_gap"] < merge.MAX_GAP / 2
    assert json.loads((output_dir / "merge_parity.json").read_text()) == parity
    assert list(parity["merged_sha256"]) == ["model.safetensors"]


@pytest.mark.model
def test_patches_of_a_recipe_can_be_compared(trained, output_dir, histolab_folders):
    source = histolab_folders / "data" / "datasets" / "pcam"
    config = {"name": "pcam", "source": str(source), "class_names": {"Normal": "Normal", "Tumor": "Tumor"}}
    histo_args = HistoArguments(datasets=[config])
    merge_adapter(trained[3], output_dir)
    patches = load_patches(histo_args)["validation"]
    assert check_merge_parity(patches, histo_args, trained[3], output_dir)["n_patches"] == len(patches)


@pytest.mark.model
def test_merging_changes_the_answers_of_the_base_model(trained, output_dir):
    _, _, _, model_args = trained
    merged, base = load_merged(merge_adapter(model_args, output_dir)), load_merged(trained[0] / "base")
    changed = [
        name
        for (name, value), other in zip(base.named_parameters(), merged.parameters(), strict=True)
        if not torch.equal(value, other)
    ]
    assert len(changed) == 4 * 7
    assert all("language_model.layers" in name for name in changed)


def merge_in_4bit(model_args, output_dir):
    model = PeftModel.from_pretrained(load_base_model(model_args), output_dir).merge_and_unload().dequantize()
    model.config.quantization_config = None
    return model


def merge_with_half_the_scale(model_args, output_dir):
    model = merge.load_trained(merge.in_bfloat16(model_args), output_dir)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] /= 2
    return model.merge_and_unload()


def merge_without_one_module(model_args, output_dir):
    model = merge.load_trained(merge.in_bfloat16(model_args), output_dir)
    last = [module for module in model.modules() if isinstance(module, LoraLayer)][-1]
    torch.nn.init.zeros_(last.lora_B["default"].weight)
    return model.merge_and_unload()


@pytest.mark.model
@pytest.mark.parametrize("break_it", [merge_in_4bit, merge_with_half_the_scale, merge_without_one_module])
def test_a_broken_merge_is_refused(trained, output_dir, break_it):
    _, patches, histo_args, model_args = trained
    break_it(model_args, output_dir).save_pretrained(output_dir / "merged")
    with pytest.raises(PublishError, match="the merged model differs from the adapter"):
        check_merge_parity(patches, histo_args, model_args, output_dir)
    parity = json.loads((output_dir / "merge_parity.json").read_text())
    assert not parity["passed"]
    assert parity["pairs"]["bfloat16/merged"]["largest_gap"] > merge.MAX_GAP


MERGED_FILES = {
    *("README.md", "results.json", "merge_parity.json", "figures/confusion_crc.png", "figures/reliability.png"),
    *("config.json", "generation_config.json", "model.safetensors"),
    *("chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A scored run of the embedded model on patches of two data sets: its folder, arguments and recipe."""
    folder = tmp_path_factory.mktemp("scored")
    for dataset in DATASETS:
        write_class_folders(folder / dataset["source"], dataset["class_names"], slides=8)
    arguments, recipe = write_run(folder, model_name_or_path="embedded", data_dir=str(folder))
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=LORA, r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(load_base_model(merge.in_bfloat16(arguments[2])), lora)
    model.peft_config["default"].base_model_name_or_path = "embedded"
    model.save_pretrained(folder / "out")
    write_evaluation(folder / "out")
    return folder, arguments, recipe


@pytest.mark.model
def test_the_command_publishes_exactly_the_proven_merge(scored):
    folder, _, recipe = scored
    (folder / "out" / "merged").mkdir(exist_ok=True)
    (folder / "out" / "merged" / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier merge")
    server = start_hub()
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_OFFLINE"] = "0"
    command = [sys.executable, "recipes/push_merged.py", "--config", str(recipe)]
    root = Path(__file__).parents[2]
    pushed = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    server.close()
    assert pushed.returncode == 0, pushed.stderr
    repo = server.repos[f"{REPO}-merged"]
    assert repo["private"] and len(repo["commits"]) == 1
    assert set(repo["files"]) == MERGED_FILES
    for name, content in repo["files"].items():
        assert content == (folder / "out" / "merged" / name).read_bytes()
    assert "bfloat16/merged: " in pushed.stdout and f"/{REPO}-merged/commit/" in pushed.stdout
    assert TOKEN not in pushed.stdout + pushed.stderr


@pytest.mark.model
def test_a_dry_run_writes_the_folder_whose_card_tells_the_proof_and_whose_code_runs(scored, tmp_path, capsys):
    folder, arguments, _ = scored
    push = runpy.run_path("recipes/push_merged.py")["main"]
    push(PublishArguments(dry_run=True), *arguments)  # a push would fail here, as offline is set
    written = folder / "out" / "merged"
    assert set(list_files(written)) == MERGED_FILES
    assert "dry run: nothing was sent" in capsys.readouterr().out
    parity, card = json.loads((written / "merge_parity.json").read_text()), (written / "README.md").read_text()
    pairs = parity["pairs"]
    assert f"On\n{parity['n_patches']} patches of the validation split" in card
    assert f"{100 * pairs['training_precision/merged']['agreement']:.1f} %" in card
    assert f"more than {pairs['bfloat16/merged']['largest_gap']:.3f} nats" in card
    assert "library_name: transformers" in card and "PeftModel" not in card

    (tmp_path / REPO).parent.mkdir()
    (tmp_path / f"{REPO}-merged").symlink_to(written)
    paint_patches(1)[0].save(tmp_path / "patch.png")
    (tmp_path / "use.py").write_text(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1])
    run = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.model
def test_a_broken_merge_gets_no_card_and_does_not_go_up(scored, monkeypatch):
    folder, arguments, _ = scored

    def merge_wrongly(model_args, output_dir):
        shutil.rmtree(output_dir / "merged", ignore_errors=True)
        merge_with_half_the_scale(model_args, output_dir).save_pretrained(output_dir / "merged")
        return output_dir / "merged"

    monkeypatch.setattr(publish_merged, "merge_adapter", merge_wrongly)
    push = runpy.run_path("recipes/push_merged.py")["main"]
    with pytest.raises(PublishError, match="the merged model differs from the adapter"):
        push(PublishArguments(), *arguments)
    assert not (folder / "out" / "merged" / "README.md").exists()


@pytest.mark.model
def test_a_stale_evaluation_is_refused_before_anything_is_merged(scored, monkeypatch):
    folder, arguments, _ = scored
    monkeypatch.setattr(publish_merged, "merge_adapter", None)
    results = folder / "out" / "evaluation" / "results.json"
    os.utime(results, (0, 0))
    try:
        with pytest.raises(PublishError, match="is older than"):
            publish_merged.build_merged_folder(None, *arguments)
    finally:
        os.utime(results)
