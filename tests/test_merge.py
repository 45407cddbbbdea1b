"""A merged model is only as good as the proof that it answers as the adapter does."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from tiny_models import load_tiny, paint_patches
from trl import ModelConfig

from histolab_sft.arguments import HistoArguments
from histolab_sft.data.patches import load_patches
from histolab_sft.models.load import load_base_model
from histolab_sft.publishing import merge
from histolab_sft.publishing.checks import PublishError
from histolab_sft.publishing.merge import check_merge_parity, compare_scores, load_merged, merge_adapter

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
    patches = Dataset.from_dict({"image": images, "prompt": [question] * 24, "dataset": ["crc"] * 24})
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
