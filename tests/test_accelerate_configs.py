"""The launch files hold processes and strategy only, and are read by accelerate as they are."""

import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

CONFIGS = sorted(Path("accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_every_launch_file(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    assert config.use_cpu == (path.stem == "cpu")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_launch_file_repeats_what_the_recipe_says(path):
    config = yaml.safe_load(path.read_text())
    deepspeed = config.get("deepspeed_config", {})
    assert not {"gradient_accumulation_steps", "gradient_clipping", "train_micro_batch_size_per_gpu"} & set(deepspeed)
    assert path.read_text().startswith("# ")


def test_zero3_saves_whole_weights():
    config = yaml.safe_load(Path("accelerate_configs/deepspeed_zero3.yaml").read_text())
    assert config["deepspeed_config"]["zero3_save_16bit_model"] is True


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_precision_stands_in_the_recipe_alone(path):
    assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"


def test_what_no_gpu_has_run_is_marked_so():
    text = Path("accelerate_configs/fsdp2.yaml").read_text()
    assert text.startswith("# UNPROVEN") and yaml.safe_load(text)["fsdp_config"]["fsdp_version"] == 2


def test_the_document_on_scaling_names_every_launch_file():
    text = Path("docs/scaling.md").read_text()
    assert [path.name for path in CONFIGS if path.name not in text] == []
    assert "accelerate_configs/slurm.sbatch" in text


def test_the_slurm_script_is_sound_bash():
    assert subprocess.run(["bash", "-n", "accelerate_configs/slurm.sbatch"]).returncode == 0
