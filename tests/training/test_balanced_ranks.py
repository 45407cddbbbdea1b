"""Several processes weigh and draw the rows of rare classes as one does, also where they go on within an epoch."""

import shutil

import pytest
import torch
from conftest import write_class_folders
from distributed_runs import LAYERS, read_log, run_ranks, write_recipe
from safetensors.torch import load_file
from steady_runs import hash_adapter

from histolab_sft.embedded.tiny_model import build_untrained_tiny_model

pytestmark = [pytest.mark.model, pytest.mark.distributed, pytest.mark.thorough]

CLASSES = {"a": "Fat", "b": "Invasive ductal carcinoma"}
PATCHES = {"train": 7, "validation": 2, "test": 2}
RARE = 3  # of class b in train: epochs of ten rows, three steps of four or fewer
KEYS = [{"class_weights": "inverse_frequency"}, {"class_sampling": "balanced"}]
SINGLE = {"config": "cpu", "launch": ["--num_processes", "1"]}
WAYS = {
    "accumulating": (SINGLE, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}),
    "two processes": ({}, {}),
    "ZeRO-2": ({"config": "deepspeed_zero2"}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for split, count in PATCHES.items():
        write_class_folders(folder / "ward" / split, CLASSES, per_class=count, size=16)
    for path in sorted((folder / "ward" / "train" / "b").iterdir())[RARE:]:
        path.unlink()
    build_untrained_tiny_model(folder / "model", num_hidden_layers=LAYERS)
    return folder


def train(folder, output_dir, options, **keys):
    entry = {"name": "ward", "source": "ward", "class_names": CLASSES, "splits": {split: split for split in PATCHES}}
    recipe = write_recipe(folder, output_dir, datasets=[entry], max_steps=5, save_steps=4, **keys)
    return run_ranks(recipe, output_dir.with_suffix(".log"), **options)


@pytest.mark.parametrize("keys", KEYS, ids=["weights", "sampling"])
@pytest.mark.parametrize("way", WAYS)
def test_however_the_rows_of_a_step_are_dealt_out_losses_and_adapter_are_the_same(folder, tmp_path, way, keys):
    options, own = WAYS[way]
    train(folder, tmp_path / "one", SINGLE, **keys | {"per_device_train_batch_size": 4})
    train(folder, tmp_path / "other", options, **keys | own)
    expected, found = (
        [entry["loss"] for entry in read_log(tmp_path / run) if "loss" in entry] for run in ("one", "other")
    )
    assert len(expected) == 5 and found == pytest.approx(expected, abs=1e-5)
    weights, others = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("one", "other"))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("keys", KEYS, ids=["weights", "sampling"])
def test_two_processes_go_on_within_the_second_epoch_with_the_rows_that_were_to_come(folder, tmp_path, keys):
    keys = keys | {"lora_dropout": 0.1}
    train(folder, tmp_path / "out", {}, **keys)
    undisturbed = hash_adapter(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-5")
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    said = train(folder, tmp_path / "out", {}, **keys)
    # Three steps are an epoch.
    assert "checkpoint-4" in said and hash_adapter(tmp_path / "out") == undisturbed
