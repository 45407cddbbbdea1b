"""An adapter that doesn't fit, or isn't only an adapter, is refused before any of it is loaded."""

import json
import math
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from histolab_sft.models.adapter_checks import MAX_RANK, AdapterError
from histolab_sft.models.load import load_adapter

pytestmark = pytest.mark.model

LAYER = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base_model(untrained_model):
    return AutoModelForImageTextToText.from_pretrained(untrained_model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, untrained_model):
    """Folder of an adapter of the language layers with random weights, saved by PEFT."""
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForImageTextToText.from_pretrained(untrained_model)
    config = LoraConfig(r=4, target_modules=r".*language_model\.layers\.\d+\.self_attn\.(q_proj|v_proj)")
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "adapter")


def change_config(folder, **keys):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def change_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_good_adapter_is_loaded_and_changes_the_language_layers_alone(adapter, base_model):
    expected = load_file(adapter / "adapter_model.safetensors")
    model = load_adapter(base_model, adapter)
    loaded = {name.replace(".default", ""): tensor for name, tensor in model.named_parameters() if "lora_" in name}
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    model.unload()


def move_layer(tensors):
    for part in ("A", "B"):
        tensors[f"{LAYER}x.lora_{part}.weight"] = tensors.pop(f"{LAYER}.lora_{part}.weight")


TENSORS = {
    "not a number": (lambda tensors: tensors[f"{LAYER}.lora_A.weight"].view(-1)[3:4].fill_(math.nan), "isn't finite"),
    "infinite": (lambda tensors: tensors[f"{LAYER}.lora_B.weight"].view(-1)[3:4].fill_(-math.inf), "isn't finite"),
    **{
        str(dtype): (
            lambda tensors, dtype=dtype: tensors.update({f"{LAYER}.lora_A.weight": torch.zeros(4, 128).to(dtype)}),
            "expected float32, bfloat16 or float16",
        )
        for dtype in (torch.int32, torch.float64, torch.float8_e4m3fn, torch.bool)
    },
    "wrong width": (lambda tensors: tensors.update({f"{LAYER}.lora_A.weight": torch.zeros(4, 64)}), r"expected \(4, "),
    "other rank": (lambda tensors: tensors.update({f"{LAYER}.lora_A.weight": torch.zeros(8, 128)}), r"shape \(8, "),
    "half a pair": (lambda tensors: tensors.pop(f"{LAYER}.lora_B.weight"), "lacks .*lora_B"),
    "unknown layer": (move_layer, "expected tensors lora_A"),
    "whole weights": (
        lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(2)}),
        "expected te",
    ),
    "nothing": (lambda tensors: tensors.clear(), "holds no tensor"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_do_not_fit_are_refused(adapter, base_model, kind):
    change, message = TENSORS[kind]
    change_tensors(adapter, change)
    with pytest.raises(AdapterError, match=message):
        load_adapter(base_model, adapter)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"base_model_name_or_path": "google/medgemma-27b-it"},
            "an adapter of google/medgemma-27b-it, expected one of",
        ),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"revision": "0" * 40}, "set model_revision: 0000"),
        ({"r": 0}, f"from 1 to {MAX_RANK}"),
        ({"r": MAX_RANK + 1}, f"from 1 to {MAX_RANK}"),
        ({"r": "4"}, "expected a whole number"),
        ({"peft_type": "IA3"}, "of 'IA3', expected LORA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "evil.module"}, "sets megatron_config, megatron_core"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights"),
        ({"layer_replication": [[0, 4], [2, 4]]}, "sets layer_replication"),
        ({"rank_pattern": {"q_proj": 99}}, "sets rank_pattern"),
        *[({"lora_alpha": alpha}, "above 0") for alpha in (math.nan, math.inf, -32, 0, 1e308, None, "32", True)],
        *[({"lora_dropout": dropout}, "from 0 to below 1") for dropout in (math.nan, -0.1, 1, "0.1")],
        *[({key: "yes"}, f"{key} 'yes', expected true or false") for key in ("use_rslora", "use_dora")],
        *[({"task_type": kind}, "expected CAUSAL_LM or none") for kind in ("SEQ_CLS", 7)],
        *[({"modules_to_save": names}, "expected a list of names") for names in ("lm_head", [1], {"a": 1})],
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(adapter, base_model, keys, message):
    change_config(adapter, **keys)
    with pytest.raises(AdapterError, match=message):
        load_adapter(base_model, adapter)


def test_a_pattern_in_the_configuration_is_never_run(adapter, base_model):
    # On the names of this model it would run for longer than the universe is old.
    change_config(adapter, target_modules=r"(([a-z._0-9]+)+)+!")
    load_adapter(base_model, adapter).unload()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", b"{"),
        ("adapter_config.json", b"[]"),
        ("adapter_model.safetensors", b"\x80\x04\x95"),
        ("adapter_model.safetensors", b""),
    ],
)
def test_a_file_of_another_kind_is_refused(adapter, base_model, name, content):
    adapter.joinpath(name).write_bytes(content)
    with pytest.raises(AdapterError, match="can't be read|expected LORA"):
        load_adapter(base_model, adapter)


def test_a_missing_configuration_is_told(adapter, base_model):
    adapter.joinpath("adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="can't be read"):
        load_adapter(base_model, adapter)


def test_a_trained_projector_is_part_of_an_adapter_if_its_configuration_says_so(adapter, base_model):
    projector = {
        f"base_model.model.model.multi_modal_projector.{name}": torch.zeros_like(parameter)
        for name, parameter in base_model.model.multi_modal_projector.named_parameters()
    }
    change_tensors(adapter, lambda tensors: tensors.update(projector))
    with pytest.raises(AdapterError, match="expected tensors lora_A"):
        load_adapter(base_model, adapter)
    change_config(adapter, modules_to_save=["multi_modal_projector"])
    model = load_adapter(base_model, adapter)
    trained = model.base_model.model.model.multi_modal_projector.modules_to_save["default"]
    assert not any(parameter.any() for parameter in trained.parameters())
    model.unload()
    change_tensors(adapter, lambda tensors: tensors.pop(min(projector)))
    with pytest.raises(AdapterError, match="lacks .*multi_modal_projector"):
        load_adapter(base_model, adapter)
