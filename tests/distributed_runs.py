"""Runs of several processes on one machine: started as `accelerate launch` does, by a server that has imported all."""

import json
import os
import socket
import time
from pathlib import Path

import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from conftest import write_class_folders
from steady_runs import LAYERS, start_recipe
from tiny_models import sharpen
from transformers import AutoModelForImageTextToText

from histolab_sft.models.tiny import build_untrained_tiny_model

CONFIGS = Path("accelerate_configs")
PATIENCE = 150  # seconds until a process counts as hung
# Answers of different lengths, so that a mean of means over tokens isn't their mean.
CLASSES = {"a": "Fat", "b": "Invasive ductal carcinoma", "c": "Lymphocytes in the stroma"}
# Patches a class: 9, 3 and 9 rows, which don't come out even over two processes, or over steps of four.
PATCHES = {"train": 3, "validation": 1, "test": 3}
DATASETS = [
    {"name": name, "source": name, "class_names": CLASSES, "splits": {split: split for split in PATCHES}}
    for name in ("ward", "clinic")
]


def write_inputs(folder):
    """Write patches below `folder`, a base model, and one that doesn't give every patch the same class."""
    for entry in DATASETS:
        for split, count in PATCHES.items():
            write_class_folders(folder / entry["source"] / split, CLASSES, per_class=count, size=16)
    build_untrained_tiny_model(folder / "model", num_hidden_layers=LAYERS)
    build_untrained_tiny_model(folder / "decided", num_hidden_layers=LAYERS)
    model = AutoModelForImageTextToText.from_pretrained(folder / "decided", dtype=torch.float32)
    sharpen(model)
    model.save_pretrained(folder / "decided")


def write_recipe(folder, output_dir, **keys):
    """Write a recipe over one data set in `folder` and return its path."""
    recipe = {
        **{"model_name_or_path": str(folder / "model"), "use_peft": True, "lora_r": 4, "dtype": "float32"},
        **{"lora_target_modules": ["q_proj", "v_proj"], "datasets": DATASETS[:1], "data_dir": str(folder)},
        **{"output_dir": str(output_dir), "use_cpu": True, "bf16": False, "max_length": None, "vision_cache": "off"},
        **{"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "max_steps": 6, "save_steps": 2},
        **{"logging_steps": 1, "learning_rate": 1.0e-2, "disable_tqdm": True, "lora_dropout": 0.0},
        **{"activation_checkpointing": False, "resume_from_checkpoint": "auto"},
    }
    path = Path(folder, f"{Path(output_dir).name}.yaml")
    path.write_text(yaml.safe_dump(recipe | keys))
    return path


def find_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def describe_launch(config, *flags):
    """Return the environment that `accelerate launch` gives to each process, but for its number."""
    path, port = CONFIGS / f"{config}.yaml", find_port()
    args = launch_command_parser().parse_args(["--config_file", str(path), "--main_process_port", port, *flags, "_"])
    args, defaults, _ = _validate_launch_command(args)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join([*defaults.deepspeed_config, "mixed_precision"])
        environment = prepare_deepspeed_cmd_env(args)[1]
    else:
        environment = prepare_multi_gpu_env(args)
    added = {key: value for key, value in environment.items() if os.environ.get(key) != value}
    return added | {"WORLD_SIZE": str(args.num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def start_ranks(recipe, log, *flags, config="multi_gpu", launch=(), script="recipes/sft.py", environment=()):
    """Start the processes of a run; each writes to `log` with its number as suffix."""
    shared = describe_launch(config, *launch)
    return [
        start_recipe(
            recipe,
            log.with_suffix(f".{rank}"),
            *flags,
            script=script,
            environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | dict(environment),
        )
        for rank in range(int(shared["WORLD_SIZE"]))
    ]


def finish(processes, log, code=0):
    """Wait for all processes and compare their exit codes; return what they said."""
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    said = read_output(log)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [code] * len(processes), said[-6000:]
    return said


def run_ranks(recipe, log, *flags, code=0, **options):
    return finish(start_ranks(recipe, log, *flags, **options), log, code)


def wait_for(words, log, processes):
    """Wait until a process has said something."""
    deadline = time.monotonic() + PATIENCE
    while words not in read_output(log):
        assert all(process.is_alive() for process in processes), read_output(log)[-6000:]
        assert time.monotonic() < deadline, "the run hangs"
        time.sleep(0.02)


def read_output(log):
    return "\n".join(path.read_text() for path in sorted(log.parent.glob(f"{log.stem}.[0-9]")))


def read_log(output_dir):
    """Return the log of a run with every value in full, from its last checkpoint."""
    states = sorted(Path(output_dir).glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(states[-1].read_text())["log_history"]
