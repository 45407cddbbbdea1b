"""Nothing trains before the audit has passed, unless the recipe says so by name."""

import ast
import dataclasses
import inspect
import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import PCAM_CLASSES, write_class_folders
from PIL import Image
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments, read_recipe
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.scoring import TARGETS
from histolab_sft.data.audit.audit import format_audit
from histolab_sft.data.formats import FORMATS
from histolab_sft.data.rows import load_audited_patches, select_datasets


@pytest.fixture
def leaky(tmp_path, monkeypatch):
    """Split folders in which one training patch is also a test patch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split in ("train", "validation", "test"):
        write_class_folders(tmp_path / "pcam" / split, PCAM_CLASSES, per_class=6)
    for number, split in enumerate(("train", "validation", "test")):
        for path in (tmp_path / "pcam" / split).rglob("*.png"):
            picture = Image.open(path).point(lambda value, shift=number * 40: (value + shift) % 256)
            picture.save(path)
    shutil.copy(
        tmp_path / "pcam/test/Tumor/Tumor-S00-0000.png",
        tmp_path / "pcam/train/Tumor/Tumor-S00-0000.png",
    )
    return tmp_path


def prepare(folder, **keys):
    histo_args = HistoArguments(
        datasets=[{"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES}], data_dir=str(folder), **keys
    )
    return load_audited_patches(histo_args, folder / "out")


def test_a_copy_across_splits_is_refused_and_named(leaky):
    with pytest.raises(ValueError, match="leaks: drop"):
        prepare(leaky)
    audit = json.loads((leaky / "out" / "audit.json").read_text())
    refusal = next(finding for finding in audit["findings"] if finding["level"] == "refusal")
    assert refusal["check"] == "copies_across_splits"
    assert {patch["split"] for patch in refusal["examples"][0]} == {"train", "test"}


@pytest.mark.slow
def test_leaks_can_be_dropped_from_train_alone(leaky):
    patches = prepare(leaky, leaks="drop")
    assert {split: len(rows) for split, rows in patches.items()} == {"train": 11, "validation": 12, "test": 12}
    counted = {"key": "leaks: drop", "reason": "equal pixels", "dataset": "pcam", "split": "train", "label": "Tumor"}
    audit = json.loads((leaky / "out" / "audit.json").read_text())
    assert audit["dropped"] == [counted | {"rows": 1}]
    assert "leaks: drop left out 1 row of pcam's train split (Tumor 1; equal pixels 1)" in format_audit(audit)


@pytest.mark.slow
def test_leaks_can_be_allowed_by_name(leaky):
    assert len(prepare(leaky, leaks="allow")["train"]) == 12


def test_an_unreadable_picture_stops_the_run_with_its_path(leaky):
    victim = leaky / "pcam/train/Normal/Normal-S00-0000.png"
    victim.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=f"1 picture can't be used:\n  {victim}"):
        prepare(leaky, leaks="drop")


@pytest.mark.slow
def test_an_unreadable_picture_can_be_quarantined_and_is_counted(leaky):
    (leaky / "pcam/train/Normal/Normal-S00-0000.png").write_bytes(b"not a picture")
    patches = prepare(leaky, leaks="drop", refused_images="quarantine")
    assert len(patches["train"]) == 10
    dropped = json.loads((leaky / "out" / "audit.json").read_text())["dropped"]
    assert {entry["key"]: entry["rows"] for entry in dropped} == {"refused_images: quarantine": 1, "leaks: drop": 1}


@pytest.mark.slow
def test_the_split_protocol_seed_deals_out_all_patches_anew(leaky):
    official = prepare(leaky, leaks="drop")
    dealt = prepare(leaky, leaks="drop", split_protocol="seed", split_seed=1)
    assert {rows[0]["protocol"] for rows in official.values()} == {"official"}
    assert {rows[0]["protocol"] for rows in dealt.values()} == {"seed"}
    assert set(official["test"].with_format(None)["id"]) != set(dealt["test"].with_format(None)["id"])


@pytest.mark.slow
def test_rows_of_one_data_set_can_be_selected(leaky):
    patches = prepare(leaky, leaks="drop")
    assert len(select_datasets(patches["test"], "pcam")) == 12 and len(select_datasets(patches["test"], "other")) == 0


@pytest.mark.slow
def test_every_key_of_every_recipe_is_read_or_passed_on_to_trl():
    # The targets of scoring are read by their names.
    read = set(TARGETS)
    for path in [*Path("histolab_sft").rglob("*.py"), *Path("recipes").glob("*.py")]:
        if path.name not in ("arguments.py", "recipe_checks.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for name, form in FORMATS.items():
        # Handed over by name: a reader that didn't take one would raise a TypeError.
        assert form.keys <= set(inspect.signature(form.read).parameters), name
        read |= form.keys
    ours = {entry.name for entry in (*dataclasses.fields(HistoArguments), *dataclasses.fields(DatasetConfig))}
    assert ours <= read, f"keys without an effect: {sorted(ours - read)}"
    trl = {entry.name for kind in (SFTConfig, ModelConfig) for entry in dataclasses.fields(kind)}
    for recipe in Path("recipes").rglob("*.yaml"):
        assert set(read_recipe(str(recipe))) <= ours | trl
        for entry in yaml.safe_load(recipe.read_text())["datasets"]:
            assert set(entry) <= ours
