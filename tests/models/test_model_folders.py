"""What `model_name_or_path` may be, and a model whose language part was read from a file of llama.cpp."""

import json
import re
from pathlib import Path

import pytest
import torch
from small_architectures import build_model_args, build_trainer
from tiny_models import build_llava

from histolab_sft.config.base_model import ModelConfig
from histolab_sft.hub_access import HubAccessError, check_model_name
from histolab_sft.models.load import check_recipe_model, load_base_model, load_processor

GGUF_MARK = {"quant_method": "gguf", "gguf_file": "model.gguf", "dequantize": False}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("empty", "a folder without config.json, expected"),
        ("llama", "a folder without config.json, with weights in the form of llama.cpp, expected"),
        ("llama/model.gguf", "a file, expected"),
        ("models/of/nobody", "neither a folder nor the form of an id on the Hub, expected"),
        ("./models", "neither a folder nor the form of an id on the Hub, expected"),
    ],
)
def test_a_base_model_that_is_none_is_refused_in_a_sentence(tmp_path, monkeypatch, name, found):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("llama").mkdir()
    Path("llama/model.gguf").touch()
    with pytest.raises(HubAccessError, match=re.escape(f"model_name_or_path {name} is {found}")):
        check_recipe_model(ModelConfig(name))


def test_a_folder_with_a_model_alone_has_no_processor(tmp_path):
    (tmp_path / "config.json").touch()
    check_model_name(str(tmp_path))
    with pytest.raises(HubAccessError, match="a folder without tokenizer_config.json, expected"):
        load_processor(str(tmp_path))


@pytest.mark.parametrize("name", ["google/medgemma-4b-it", "HuggingFaceTB/SmolVLM-256M-Instruct", "gpt2"])
def test_ids_on_the_hub_pass(name):
    check_model_name(name)


@pytest.mark.model
@pytest.mark.parametrize("part", ["text_config", None])
def test_plain_weights_that_came_from_a_gguf_file_are_trained_and_scored_as_plain(tmp_path, part):
    model, processor = build_llava()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    plain = load_base_model(build_model_args(folder)).state_dict()
    config = json.loads((folder / "config.json").read_text())
    (config[part] if part else config)["quantization_config"] = GGUF_MARK
    (folder / "config.json").write_text(json.dumps(config))

    args = build_model_args(folder)
    marked = load_base_model(args)
    assert "quantization_config" not in marked.config.to_json_string()
    assert all(torch.equal(plain[name], weight) for name, weight in marked.state_dict().items())
    trainer = build_trainer(args, load_processor(str(folder)), tmp_path / "out")
    trainer.train()
    assert trainer.state.global_step == 1
