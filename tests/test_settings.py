"""Scoring says what is other than it was in training."""

import json

import pytest
from recipe_args import PCAM
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.settings import collect_settings, find_changes, hash_weight_files


def settle(output_dir, **keys):
    histo_args = HistoArguments(datasets=[PCAM], vision_tower_dtype=keys.pop("vision_tower_dtype", None))
    training_args = SFTConfig(output_dir=str(output_dir), use_cpu=True, bf16=keys.pop("bf16", False))
    return collect_settings(histo_args, training_args, ModelConfig("base", **keys))


@pytest.fixture
def output_dir(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    run = {"settings": settle(tmp_path), "weights": hash_weight_files(tmp_path)}
    (tmp_path / "run.json").write_text(json.dumps(run))
    return tmp_path


def test_a_run_that_is_scored_as_it_was_trained_has_no_changes(output_dir):
    assert find_changes(output_dir, settle(output_dir)) == []


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"bf16": True}, "bf16 was False in training and is True in scoring."),
        ({"vision_tower_dtype": "float16"}, "vision_tower_dtype was None in training and is float16 in scoring."),
        ({"load_in_4bit": True}, "load_in_4bit was False in training and is True in scoring."),
        ({"model_revision": "v2"}, "model_revision was main in training and is v2 in scoring."),
    ],
)
def test_a_key_that_changes_answers_is_told(output_dir, keys, sentence):
    assert find_changes(output_dir, settle(output_dir, **keys)) == [sentence]


def test_weights_that_training_did_not_write_are_told(output_dir):
    (output_dir / "adapter_model.safetensors").write_bytes(b"others")
    assert find_changes(output_dir, settle(output_dir)) == [
        "adapter_model.safetensors isn't the file that training wrote."
    ]


def test_a_run_that_has_no_record_is_told(tmp_path, output_dir):
    (output_dir / "run.json").write_text("{}")
    assert "may be of another run" in find_changes(output_dir, settle(output_dir))[0]
    (output_dir / "run.json").unlink()
    assert "has no run.json" in find_changes(output_dir, settle(output_dir))[0]
