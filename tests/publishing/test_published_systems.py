"""The table of the five published systems names what exists, and leaves no line open."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments, parse_recipe
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.hardware import PROFILES
from histolab_sft.data.formats import FORMATS
from histolab_sft.tasks import biomarkers
from histolab_sft.tasks.boxes import CODECS

PAGE = Path("docs/published_systems.md").read_text(encoding="utf-8")
SYSTEMS = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
ROWS = [
    (number, *(cell.strip() for cell in line.strip().strip("|").split("|")))
    for number, line in enumerate(PAGE.splitlines(), 1)
    if line.startswith("| ") and not line.startswith("| the document")
]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE))
KEYS = {
    field.name: field
    for kind in (HistoArguments, SFTConfig, ModelConfig, DatasetConfig)
    for field in dataclasses.fields(kind)
}
# Keys of a data set whose values its class doesn't list.
CHOICES = {"format": FORMATS, "codec": CODECS, "style": biomarkers.QUESTIONS, "hardware": PROFILES}
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in Path("histolab_sft").rglob("*.py"))
# Scores, fields and the like, as the code spells them in quotes.
WORDS = set(re.findall(r"[\"'`]([A-Za-z_][A-Za-z0-9_]*)[\"'`]", SOURCES))


def find_fault(name):
    """What is wrong with a name that stands between backticks in the second or third column, None if nothing is."""
    if "/" in name and " " not in name:
        return None if Path(name).exists() else "no such file"
    if re.fullmatch(r"[A-Z]+|[\w.]+\.(md|py|json|parquet|txt)", name):
        made = ("run.json", "results.json", "predictions.parquet")  # in output_dir
        return None if Path(name).exists() or name in made else "no such file"
    if name.startswith("make "):
        return None if name.split()[1] in TARGETS else "no such target"
    if name.startswith("hf "):
        return None
    key, separator, value = name.partition(": ")
    if separator:
        if key not in KEYS:
            return "no such key"
        choices = CHOICES.get(key) or KEYS[key].metadata.get("choices")
        return None if not choices or yaml.safe_load(value) in list(choices) else f"not one of {list(choices)}"
    return None if name in KEYS or name in WORDS else "no key, score or name of the code"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"line {row[0]}")
def test_every_line_has_a_place_that_exists_or_a_reason(row):
    _, said, here, why = row
    names = re.findall(r"`([^`]+)`", here)
    assert said and (names or (here == "–" and len(why) > 20))
    assert re.fullmatch(r"(`[^`]+`(, )?)+|–", here)
    named_as_reason = re.findall(r"`([^`]+)`", why)
    assert {name: fault for name in names + named_as_reason if (fault := find_fault(name))} == {}


def test_each_of_the_five_documents_has_its_lines():
    parts = re.split(r"^## .*$", PAGE, flags=re.MULTILINE)[1:]
    assert len(SYSTEMS) == 5 and all(part.count("\n| ") > 15 for part in parts)
    assert sum(part.count("\n| ") - 1 for part in parts) == len(ROWS)


@pytest.mark.parametrize(
    "name",
    [
        "recipes/no.yaml",
        "make nothing",
        "lora_rank: 16",
        "no_such_key",
        "format: tfrecord",
        "codec: xywh",
        "README.rst",
    ],
)
def test_a_name_that_does_not_exist_is_found(name):
    assert find_fault(name)


@pytest.mark.slow
def test_the_guides_configuration_is_a_command_that_the_parser_takes():
    flags = shlex.split(re.search(r'ARGS="(.*?)"', PAGE)[1])
    parsed = parse_recipe(["--config", "recipes/flare.yaml", "--use_cpu", "true", "--bf16", "false", *flags])
    values = {name: value for part in parsed for name, value in vars(part).items()}
    expected = {"load_in_8bit": True, "load_in_4bit": False, "lora_r": 64, "lora_alpha": 16, "max_steps": 4000}
    expected |= {"learning_rate": 1e-4, "lr_scheduler_type": "cosine", "warmup_steps": 100, "image_side": 448}
    expected |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "image_tokens": None}
    assert {key: values[key] for key in expected} == expected
