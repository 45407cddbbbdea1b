"""The shipped reference recipe, run as a user runs it, with overrides that fit it to a processor and a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.model

CPU = ["--use_cpu", "true", "--bf16", "false", "--dtype", "float32"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]


def run(*command):
    result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory, untrained_model):
    """Output folder and flags of two steps of histolab_5k.yaml over folders in HistoLab's layout."""
    from conftest import BACH_CLASSES, CRC_CLASSES, PCAM_CLASSES, write_class_folders

    folder = tmp_path_factory.mktemp("smoke")
    for name, classes in (("pcam", PCAM_CLASSES), ("bach", BACH_CLASSES)):
        write_class_folders(folder / "data/datasets" / name, classes)
    for split in ("NCT-CRC-HE-100K", "CRC-VAL-HE-7K"):
        write_class_folders(folder / "data/datasets/crc" / split, CRC_CLASSES, suffix=".tif")
    flags = ["--config", "recipes/histolab_5k.yaml", "--model_name_or_path", untrained_model, "--data_dir", folder]
    flags += ["--output_dir", folder / "out", "--max_steps", 2, "--max_new_tokens", 8, *CPU]
    run(*LAUNCH, "recipes/sft.py", *flags)
    return folder / "out", flags


def test_training_saves_an_adapter_on_the_language_layers_alone(trained):
    folder, _ = trained
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 16
    with safe_open(folder / "adapter_model.safetensors", "pt") as adapter:
        names = list(adapter.keys())
        assert all("language_model.layers" in name for name in names)
        projections = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in names}
        assert projections == {"q_proj", "k_proj", "v_proj", "o_proj"}
        assert all(adapter.get_tensor(name).isfinite().all() for name in names)
        # B starts at zero, so any other value was learnt.
        assert all(adapter.get_tensor(name).any() for name in names if "lora_B" in name)


def test_scoring_writes_results_of_both_systems_and_a_table(trained):
    folder, flags = trained
    table = run(sys.executable, "recipes/evaluate.py", *flags)
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    assert list(results["datasets"]) == ["crc", "pcam", "bach"]
    for name, entry in results["datasets"].items():
        assert name in table
        assert entry["n"] == sum(map(sum, entry["baseline"]["confusion_matrix"]["rows"]))
        assert set(entry["baseline"]) == set(entry["finetuned"])
    assert Path(folder, "evaluation", "predictions.parquet").is_file()


def test_scoring_without_an_adapter_says_so_before_anything_is_loaded(trained, tmp_path):
    _, flags = trained
    command = [sys.executable, "recipes/evaluate.py", *map(str, flags), "--output_dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0 and "train first" in result.stderr and "Loading weights" not in result.stderr
