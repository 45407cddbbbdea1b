"""The launch files hold processes and strategy only, and are read by accelerate as they are."""

import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from transformers import Gemma3ForConditionalGeneration

from histolab_sft.models.geometry import build_medgemma_4b_config

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


@pytest.mark.model
def test_fsdp2_names_layers_that_gemma_has_and_all_of_them():
    config = yaml.safe_load(Path("accelerate_configs/fsdp2.yaml").read_text())["fsdp_config"]
    assert config["fsdp_version"] == 2
    names = config["fsdp_transformer_layer_cls_to_wrap"].split(",")
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(build_medgemma_4b_config())
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy=config["fsdp_auto_wrap_policy"], transformer_cls_names_to_wrap=names
    )
    wraps = fsdp2_prepare_auto_wrap_policy(plugin, model)
    wrapped = [name for name, module in model.named_modules() if wraps(module)]
    assert len(wrapped) == 34 + 27


def test_the_document_on_scaling_names_every_launch_file():
    text = Path("docs/scaling.md").read_text()
    assert [path.name for path in CONFIGS if path.name not in text] == []
    assert "accelerate_configs/slurm.sbatch" in text


def test_the_slurm_script_is_sound_bash():
    assert subprocess.run(["bash", "-n", "accelerate_configs/slurm.sbatch"]).returncode == 0
