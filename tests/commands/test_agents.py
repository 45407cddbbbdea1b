"""What editors and coding agents are told is so: the schema has every key, and each command and path exists."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import trl
import yaml

from histolab_sft.commands import cli
from histolab_sft.commands.schema import build_schema
from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.external import ASKED, ExternalConfig
from histolab_sft.config.phase import PhaseConfig
from histolab_sft.config.recipe_file import read_recipe

jsonschema = pytest.importorskip("jsonschema", reason="needs the package jsonschema")
SCHEMA = build_schema()
PAGES = {name: Path(name).read_text(encoding="utf-8") for name in ("llms.txt", "SKILL.md")}


def name_keys(*kinds):
    return {entry.name for kind in kinds for entry in dataclasses.fields(kind) if entry.init}


def test_the_schema_has_the_keys_that_recipes_may_have():
    keys = SCHEMA["properties"]
    assert set(keys) == name_keys(HistoArguments, trl.SFTConfig, ModelConfig)
    assert set(keys["datasets"]["items"]["properties"]) == name_keys(DatasetConfig)
    assert set(keys["external"]["items"]["properties"]) == name_keys(ExternalConfig) - set(ASKED)
    assert set(keys["phases"]["items"]["properties"]) == name_keys(PhaseConfig)
    assert all(keys[name]["description"] for name in name_keys(HistoArguments))


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_fits_the_schema(path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(read_recipe(str(path)), SCHEMA)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"leraning_rate": 1},
        {"leaks": "maybe"},
        {"learning_rate": "fast"},
        {"lora_r": 0},
        {"datasets": [{"name": "a"}]},
    ],
)
def test_the_schema_refuses_what_a_recipe_must_not_have(change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(read_recipe("recipes/demo.yaml") | change, SCHEMA)


def test_the_command_prints_the_schema(capsys):
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_path_for_agents_exists(page):
    text = PAGES[page]
    parser = cli.build_parser()
    known = next(action.choices for action in parser._actions if action.dest == "command")
    commands = set(re.findall(r"histolab_sft ([a-z]+)", text))
    targets = set(re.findall(r"make ([a-z-]+)`", text))
    makefile = Path("Makefile").read_text(encoding="utf-8")
    assert commands <= set(known) and all(f"\n{target}:" in makefile for target in targets)
    links = set(re.findall(r"\]\(([^)]+)\)", text))
    folders = "recipes|accelerate_configs|docs|histolab_sft"
    paths = set(re.findall(rf"\b(?:{folders})/[\w/.]*\w", text)) - {"recipes/my_tissue.yaml"}
    assert [path for path in links | paths if not Path(path).exists()] == []
    assert commands or links
    for key in re.findall(r"`(?:--)?([a-z_]+)(?:: | )\w+`", text):
        assert key in SCHEMA["properties"] or key in ("make", "dry_run"), key


def test_the_skill_has_a_name_and_says_when_to_use_it():
    head = yaml.safe_load(PAGES["SKILL.md"].split("---")[1])
    assert set(head) == {"name", "description"} and "Use when" in head["description"]
