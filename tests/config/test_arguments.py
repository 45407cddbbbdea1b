"""Recipes are strict: what is misspelt, missing or contradictory is named before anything is loaded."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from recipe_args import BASE, PCAM
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments, parse_recipe, read_recipe
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.dataset import DatasetConfig


def write_recipe(folder, **keys):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE | keys))
    return str(path)


def test_the_command_line_wins_over_the_recipe(tmp_path):
    recipe = write_recipe(tmp_path, learning_rate=2e-5, lora_r=8)
    _, training_args, model_args = parse_recipe(["--config", recipe, "--lora_r", "4"])
    assert (training_args.learning_rate, model_args.lora_r) == (2e-5, 4)


def test_data_sets_can_be_given_on_the_command_line(tmp_path):
    other = PCAM | {"name": "other"}
    histo_args, _, _ = parse_recipe(["--config", write_recipe(tmp_path), "--datasets", json.dumps([other])])
    assert [config.name for config in histo_args.datasets] == ["other"]


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("learning_rte", "learning_rate"),
        ("lora_alfa", "lora_alpha"),
        ("data_sets", "datasets"),
        ("per_device_train_batchsize", "per_device_train_batch_size"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_real_one(tmp_path, typo, meant):
    with pytest.raises(ValueError, match=f"{typo}.*did you mean '{meant}'"):
        parse_recipe(["--config", write_recipe(tmp_path, **{typo: 1})])
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        parse_recipe(["--config", write_recipe(tmp_path), f"--{typo}", "1"])


def test_an_unknown_key_of_a_data_set_is_refused_with_the_nearest_real_one():
    with pytest.raises(ValueError, match="clas_names.*did you mean 'class_names'"):
        HistoArguments(datasets=[PCAM | {"clas_names": {}}])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"class_names": {"Tumor": "Tumor"}}, "at least two"),
        ({"class_names": {"a": "Tumor", "b": "tumor"}}, "share one name"),
        ({"group_by": "-(S\\d+"}, "neither a column nor a regular expression"),
        ({"splits": {"val": "x"}}, "unknown key in splits"),
        ({"max_samples": 1}, "at least one patch"),
    ],
)
def test_a_data_set_that_cannot_work_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        DatasetConfig(**PCAM | keys)


def test_a_data_set_without_its_source_is_refused():
    with pytest.raises(ValueError, match="lacks \\['source'\\]"):
        HistoArguments(datasets=[{"name": "pcam", "class_names": {"a": "A", "b": "B"}}])


def test_two_data_sets_cannot_share_a_name():
    with pytest.raises(ValueError, match="share a name"):
        HistoArguments(datasets=[PCAM, PCAM])


def test_fractions_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ValueError, match="leave no patch"):
        HistoArguments(datasets=[PCAM], validation_fraction=0.9)


def test_every_shipped_recipe_parses():
    recipes = sorted(Path("recipes").rglob("*.yaml"))
    assert len(recipes) >= 2
    for recipe in recipes:
        assert parse_recipe(["--config", str(recipe), "--use_cpu", "true", "--bf16", "false"])[0].datasets


def test_no_shipped_recipe_repeats_a_default():
    defaults = {}
    for kind in (HistoArguments, SFTConfig, ModelConfig):
        defaults |= {entry.name: entry.default for entry in dataclasses.fields(kind)}
    for recipe in sorted(Path("recipes").rglob("*.yaml")):
        for key, value in read_recipe(str(recipe)).items():
            assert defaults[key] != value or isinstance(value, bool) and defaults[key] is not value, (recipe, key)
