"""Pictures that are shown whole and in crops: one row, several pictures, and one picture to the audit."""

import json
import re

import numpy as np
import pytest
from conftest import PCAM_CLASSES, write_class_folders
from PIL import Image
from recipe_commands import CPU, SMALL, run
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.contradictions import check_consistency
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.pictures.steps import show_scales
from histolab_sft.data.rows import load_audited_patches, load_patches
from histolab_sft.evaluation.sensitivity import build_variants


@pytest.fixture
def describe(tmp_path, monkeypatch):
    """Give the arguments of a recipe of 37 x 37 pixels and two classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_class_folders(tmp_path / "pcam", PCAM_CLASSES, per_class=12, size=37, slides=12)

    def describe(multi_scale=None, **keys):
        entry = {"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES, "group_by": r"-(S\d+)-"}
        entry |= {"multi_scale": multi_scale} if multi_scale else {}
        return HistoArguments(datasets=[entry], data_dir=str(tmp_path), **keys)

    return describe


@pytest.mark.slow
@pytest.mark.parametrize("crops", [2, 3])
def test_a_picture_is_followed_by_crops_that_make_it_up_again(describe, crops):
    plain, several = (load_patches(describe(n))["train"] for n in (None, crops))
    for row, alone in zip(several, plain, strict=True):
        whole, *parts = row["images"]
        assert len(parts) == crops**2 and whole.tobytes() == alone["images"][0].tobytes()
        lines = [np.hstack([*map(np.asarray, parts[crops * i : crops * (i + 1)])]) for i in range(crops)]
        assert (np.vstack(lines) == np.asarray(whole)).all()
        assert {key: row[key] for key in ("id", "prompt", "completion")} == {
            key: alone[key] for key in ("id", "prompt", "completion")
        }


@pytest.mark.slow
def test_the_audit_and_the_splits_are_those_of_the_pictures(describe, tmp_path):
    # A copy whose crops would be copies of others: there are as many findings with crops as without.
    victim = next((tmp_path / "pcam" / "Tumor").iterdir())
    Image.open(victim).save(victim.with_name("copy-S00-9999.png"))
    plain, several = (load_audited_patches(describe(n, leaks="allow"), tmp_path / str(n)) for n in (None, 2))
    audits = [json.loads((tmp_path / str(n) / "audit.json").read_text()) for n in (None, 2)]
    assert audits[0] == audits[1]
    for split in plain:
        assert plain[split].with_format(None)["id"] == several[split].with_format(None)["id"]
    names = several["train"].with_format(None)["pixel_sha256"]
    assert all(len(set(row)) == 5 for row in names)
    assert [row[0] for row in names] == [row[0] for row in plain["train"].with_format(None)["pixel_sha256"]]


@pytest.mark.slow
def test_a_changed_picture_is_changed_before_it_is_cut(describe, tmp_path):
    histo_args = describe(2, sensitivity="all", sensitivity_samples=4)
    test = load_audited_patches(histo_args, tmp_path / "out")["test"]
    variants = build_variants(test, histo_args.datasets[0], histo_args)
    changed = [row for row in variants if row["variant"].startswith("stain") or row["variant"].startswith("focus")]
    assert changed
    for row in changed:
        whole, *parts = row["images"]
        assert [part.tobytes() for part in show_scales(whole, 2)[1:]] == [part.tobytes() for part in parts]


@pytest.mark.parametrize("crops", [0, 1, 9, 2.5, "2", True])
def test_other_numbers_of_crops_are_refused(crops):
    with pytest.raises(ValueError, match="multi_scale is .*expected 2 to 8"):
        DatasetConfig("x", "x", PCAM_CLASSES, multi_scale=crops)


def test_crops_and_augmentation_exclude_each_other(describe, tmp_path):
    with pytest.raises(ValueError, match="augmentation: symmetries turns each picture by itself"):
        check_consistency(
            describe(2, augmentation="symmetries"), SFTConfig(output_dir=str(tmp_path), use_cpu=True), ModelConfig("x")
        )


def test_a_picture_with_less_pixels_than_crops_says_so():
    with pytest.raises(ValueError, match="3 x 3 pixels, expected at least 4"):
        show_scales(Image.new("RGB", (3, 3)), 4)


@pytest.mark.longest
@pytest.mark.model
@pytest.mark.thorough
def test_crops_go_the_whole_road_and_features_of_the_cache_are_those_of_their_pixels(
    describe, untrained_model, tmp_path, monkeypatch, capsys
):
    entries = [vars(entry) for entry in describe(2).datasets]
    entries = [{key: value for key, value in entry.items() if value is not None} for entry in entries]
    losses = {}
    for cache in ("off", tmp_path / "features"):
        out = tmp_path / f"out-{cache == 'off'}"
        flags = ["--config", "recipes/demo.yaml", "--model_name_or_path", untrained_model, "--data_dir", tmp_path]
        flags += ["--datasets", json.dumps(entries), "--output_dir", out, "--vision_cache", cache, *CPU, *SMALL]
        flags += [
            "--logging_steps",
            1,
            "--dataloader_num_workers",
            0,
            "--report_to",
            "none",
            "--max_new_tokens",
            4,
        ]
        assert run("preflight", flags, monkeypatch) == 0
        said = capsys.readouterr().out
        assert said.count("image tokens>") % 5 == 0 and said.count("image tokens>")
        assert run("sft", flags, monkeypatch) == 0
        losses[cache] = [float(loss) for loss in re.findall(r"{'loss': '([\d.]+)'", capsys.readouterr().out)]
        assert run("evaluate", flags, monkeypatch) == 0
        results = json.loads((out / "evaluation" / "results.json").read_text())
        assert results["recipe"]["datasets"][0]["multi_scale"] == 2
    assert len(losses["off"]) == 2
    np.testing.assert_allclose(*losses.values(), rtol=1e-3)  # as many digits as the log has
