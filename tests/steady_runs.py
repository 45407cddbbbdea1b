"""Small training runs for the tests of what happens when runs are cut off: seconds each, dropout on."""

import faulthandler
import hashlib
import logging
import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

import pytest_socket
import torch
import yaml
from conftest import PCAM_CLASSES, write_class_folders
from transformers import TrainerCallback
from trl import SFTConfig

from histolab_sft.arguments import HistoArguments, parse_recipe
from histolab_sft.data.patches import load_audited_patches, load_patches
from histolab_sft.model_config import ModelConfig
from histolab_sft.models.load import build_lora_config, build_model_init_kwargs, load_processor
from histolab_sft.models.tiny import build_untrained_tiny_model
from histolab_sft.provenance import compute_sha256
from histolab_sft.training import assembly
from histolab_sft.training.callbacks import EMAEarlyStoppingCallback
from histolab_sft.training.phases import plan_phases, select_rows
from histolab_sft.training.pictures import prepare_pictures
from histolab_sft.training.trainer import PatchTrainer

ROOT = Path(__file__).parent.parent
DATASETS = [{"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES}]
# Two layers in place of four: half the time, and both kinds of attention are still there.
LAYERS = 2
# A server that has imported all of this once forks each run: a process of its own, there in an instant.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["steady_runs"])


def write_inputs(folder):
    """Write patches and a base model below `folder`; return the model's folder."""
    write_class_folders(folder / "pcam", PCAM_CLASSES, per_class=12, size=16)
    return build_untrained_tiny_model(folder / "model", num_hidden_layers=LAYERS)


def build_trainer(folder, output_dir, stopping=None, oom="stop", augmentation="none", resume_changes=(), **keys):
    """Build a trainer over the inputs in `folder`: 16 patches to train on, dropout 0.1.

    Args:
        stopping (`dict`, *optional*): Arguments of early stopping that replace those of a rule that never fires.
        **keys: Of `SFTConfig`.
    """
    histo_args = HistoArguments(datasets=DATASETS, data_dir=str(folder), augmentation=augmentation, vision_cache="off")
    model_args = ModelConfig(
        model_name_or_path=str(folder / "model"),
        use_peft=True,
        lora_r=4,
        lora_dropout=keys.pop("lora_dropout", 0.1),
        lora_target_modules=["q_proj", "v_proj"],
    )
    defaults = {
        **{"per_device_train_batch_size": 2, "max_steps": 8, "save_steps": 1, "logging_steps": 3},
        **{"learning_rate": 1e-2, "activation_checkpointing": False, "disable_tqdm": True, "max_length": None},
    }
    args = SFTConfig(output_dir=str(output_dir), use_cpu=True, bf16=False, **defaults | keys)
    args.model_init_kwargs = build_model_init_kwargs(model_args)
    patches = load_patches(histo_args)
    trainer = PatchTrainer(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=patches["train"],
        eval_dataset=patches["validation"],
        processing_class=load_processor(model_args.model_name_or_path),
        peft_config=build_lora_config(model_args, "language"),
        oom=oom,
        resume_changes=resume_changes,
    )
    prepare_pictures(trainer, patches, histo_args)
    rule = {"mode": "plateau", "metric": "answer_loss", "patience": 10_000, "threshold": 0, "min_delta": 0.001}
    trainer.add_callback(EMAEarlyStoppingCallback(**rule | {"decay": 0.9} | (stopping or {})))
    return trainer


def hash_trained(trainer):
    """Return one SHA-256 over everything that is trained."""
    digest = hashlib.sha256()
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def hash_adapter(folder):
    """Return the SHA-256 of an adapter's file."""
    return compute_sha256(Path(folder, "adapter_model.safetensors"))


def logged(trainer):
    """Return the log without what depends on the clock."""
    clock = ("runtime", "per_second", "flos", "train_loss")
    return [
        {key: value for key, value in entry.items() if not any(word in key for word in clock)}
        for entry in trainer.state.log_history
    ]


class SendSignals(TrainerCallback):
    """Sends this process signals in the n-th of the moments at which Trainer calls, and notes which one it was."""

    def __init__(self, moment, signals=(signal.SIGTERM,)):
        self.left = moment
        self.signals = signals
        self.hit = None

    def count(self, name, control):
        self.left -= 1
        if self.left == 0:
            self.hit = name
            for number in self.signals:
                os.kill(os.getpid(), number)
        return control

    def on_substep_end(self, args, state, control, **kwargs):
        return self.count("accumulating", control)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        return self.count("before the optimiser", control)

    def on_prediction_step(self, args, state, control, **kwargs):
        return self.count("evaluating", control)

    def on_save(self, args, state, control, **kwargs):
        return self.count("saving", control)

    def on_epoch_end(self, args, state, control, **kwargs):
        return self.count("ending an epoch", control)


def stopping_state(trainer):
    callbacks = trainer.callback_handler.callbacks
    return next(callback for callback in callbacks if isinstance(callback, EMAEarlyStoppingCallback)).state()


def compare(resumed, undisturbed):
    assert hash_trained(resumed) == hash_trained(undisturbed)
    assert logged(resumed) == logged(undisturbed)
    assert stopping_state(resumed) == stopping_state(undisturbed)


def write_recipe(folder, output_dir, **keys):
    """Write a recipe over the inputs in `folder` and return its path."""
    recipe = {
        **{"model_name_or_path": str(folder / "model"), "use_peft": True, "lora_r": 4, "lora_dropout": 0.1},
        **{"lora_target_modules": ["q_proj", "v_proj"], "datasets": DATASETS, "data_dir": str(folder)},
        **{"output_dir": str(output_dir), "use_cpu": True, "bf16": False, "dtype": "float32", "max_length": None},
        **{"per_device_train_batch_size": 2, "max_steps": 12, "save_steps": 2, "logging_steps": 1},
        **{"learning_rate": 1.0e-2, "activation_checkpointing": False, "disable_tqdm": True},
        **{"resume_from_checkpoint": "auto", "vision_cache": "off"},
    }
    path = Path(folder, f"{Path(output_dir).name}.yaml")
    path.write_text(yaml.safe_dump(recipe | keys))
    return path


def begin_recipe(recipe):
    """Return the trainer of a recipe's first phase, ready to train, with the parsed recipe and the audited patches."""
    parsed = parse_recipe(["--config", str(recipe)])
    histo_args, training_args, model_args = parsed
    patches, phase = load_audited_patches(histo_args, training_args.output_dir), plan_phases(*parsed[:2])[0]
    return assembly.build_trainer(select_rows(phase, patches), phase, histo_args, model_args), parsed, patches


def start_recipe(recipe, log, *flags, script="recipes/sft.py", **options):
    """Start a script with its output going to `log`; options as in `run_recipe`."""
    # The server finds this module by it.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = SERVER.Process(target=run_recipe, args=(script, recipe, log, flags), kwargs=options)
    process.start()
    return process


def run_recipe(script, recipe, log, flags, group=False, sockets=True, environment=()):
    """Be the process that runs a script.

    Args:
        group (`bool`): Whether it leads a process group of its own.
        sockets (`bool`): Whether it may open any.
        environment (`dict`): Variables that are added.
    """
    os.environ.update(environment)
    if group:
        os.setpgrp()
    if not sockets:
        pytest_socket.disable_socket()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout.reconfigure(line_buffering=True)
    # Says where it hangs, if it does.
    faulthandler.dump_traceback_later(60)
    torch.set_num_threads(1)
    # As in a process that a shell starts; here it would be the server's way.
    multiprocessing.set_start_method("fork", force=True)
    logging.getLogger().handlers.clear()
    os.chdir(ROOT)
    sys.argv = [script, "--config", str(recipe), *map(str, flags)]
    runpy.run_path(script, run_name="__main__")
