"""The recipe of `make demo-real`, with a model of the same class at tiny size in place of the Hub's."""

import json

import numpy as np
import pytest
from recipe_commands import run
from tiny_models import SMOLVLM_TEMPLATE, build_idefics3

RECIPE = "recipes/smolvlm_pathmnist.yaml"
COUNTS = {"train": 72, "val": 18, "test": 27}

pytestmark = [pytest.mark.model, pytest.mark.thorough]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the model, as it would come from the Hub, and noise in the file that MedMNIST publishes."""
    folder = tmp_path_factory.mktemp("smolvlm")
    model, processor = build_idefics3(tiles=4)
    processor.chat_template = SMOLVLM_TEMPLATE
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8) for split, n in COUNTS.items()}
    arrays |= {f"{split}_labels": np.arange(n, dtype=np.uint8)[:, None] % 9 for split, n in COUNTS.items()}
    data = folder / "data/datasets/pathmnist_64"
    data.mkdir(parents=True)
    np.savez_compressed(data / "pathmnist_64.npz", **arrays)
    return folder


def test_the_recipe_runs_from_preflight_to_report(home, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    out = home / "out"
    flags = ["--config", RECIPE, "--model_name_or_path", home / "model", "--data_dir", home, "--output_dir", out]
    flags += ["--image_side", 32, "--max_steps", 2, "--max_test_samples", 18]
    assert run("preflight", flags, monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "Ready to train" in shown and "the loss of 72 rows is on the answer and its end of turn alone" in shown
    assert run("sft", flags, monkeypatch) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["image_side"], config["image_tokens"]) == (32, 4)
    assert run("evaluate", flags, monkeypatch) == 0
    results = json.loads((out / "evaluation/results.json").read_text())
    found = results["datasets"]["pathmnist"]
    assert found["n"] == 18 and found["split_protocol"] == "official"
    assert 0 <= found["finetuned"]["balanced_accuracy"]["value"] <= 1
    assert (out / "evaluation/report.html").is_file()
