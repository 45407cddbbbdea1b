"""Phases in one recipe: what trains in each, one adapter through all of them, and going on where a run was cut off."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import PCAM_CLASSES
from peft import get_peft_model_state_dict
from phase_runs import train
from recipe_args import BASE
from safetensors.torch import load_file
from steady_runs import SendSignals, hash_adapter, start_recipe, write_inputs, write_recipe
from transformers.integrations import HfDeepSpeedConfig

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.data.rows import load_patches
from histolab_sft.models.adapter_checks import AdapterError
from histolab_sft.models.load import load_adapter, load_base_model
from histolab_sft.models.trainable import count_trained
from histolab_sft.training.assembly import build_trainer
from histolab_sft.training.checkpoints import CheckpointError
from histolab_sft.training.phases import plan_phases, select_rows

DATASETS = [
    {"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES},
    {"name": "again", "source": "pcam", "class_names": PCAM_CLASSES, "question": "Which is it: {options}?"},
]
PHASES = [
    {"name": "align", "train": ["projector"], "datasets": ["pcam"], "max_steps": 2, "learning_rate": 1e-2},
    {"name": "tune", "train": ["language", "projector"], "max_steps": 3},
]
GOOD = BASE | {"use_peft": True, "lora_target_modules": ["q_proj"], "max_length": None}
ALIGN = PHASES[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases")
    write_inputs(folder)
    return folder


def write_phases(folder, output_dir, phases=PHASES, **keys):
    keys = {"datasets": DATASETS, "leaks": "allow", "lora_dropout": 0.0, "save_steps": 1} | keys
    return write_recipe(folder, output_dir, phases=phases, **keys)


@pytest.mark.model
def test_each_phase_trains_its_parts_on_its_data_from_where_the_one_before_ended(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    recipe = write_phases(folder, tmp_path / "run", projector_learning_rate=5e-3)
    assert train(recipe) == 0
    lines = [record.getMessage() for record in caplog.records]
    first, second = lines[lines.index("phase align") :], lines[lines.index("phase tune") :]
    assert "language: frozen" in first and "vision: frozen" in first and "vision: frozen" in second
    said = {line.split(":")[0]: line for line in second if "parameters train" in line}
    assert set(said) == {"language", "projector"} and said["projector"].endswith("at 0.005")
    assert said["language"].endswith("at 0.01")

    run = tmp_path / "run"
    align, tune = (load_file(run / f"phase-{name}" / "adapter_model.safetensors") for name in ("align", "tune"))
    # One adapter, with the same tensors all along: none inside another.
    assert set(align) == set(tune) and not any(name.count("base_model") > 1 for name in tune)
    lora = [name for name in tune if "lora_B" in name]
    projector = [name for name in tune if "projector" in name]
    assert lora and projector and not any(align[name].any() for name in lora)
    assert all(tune[name].any() for name in lora)
    assert all(not torch.equal(align[name], tune[name]) for name in projector)
    assert (run / "adapter_model.safetensors").read_bytes() == (
        run / "phase-tune" / "adapter_model.safetensors"
    ).read_bytes()
    record = json.loads((run / "phase-tune" / "phase.json").read_text())
    assert record["start"] == {"adapter_model.safetensors": hash_adapter(run / "phase-align")}
    ended = json.loads((run / "run.json").read_text())
    assert {name: entry["steps"] for name, entry in ended["phases"].items()} == {"align": 2, "tune": 3}

    histo_args, training_args, model_args = parse_recipe(["--config", str(recipe)])
    patches, phases = load_patches(histo_args), plan_phases(histo_args, training_args)
    assert [len(set(select_rows(phase, patches)["train"].with_format(None)["dataset"])) for phase in phases] == [1, 2]
    trainer = build_trainer(select_rows(phases[1], patches), phases[1], histo_args, model_args)
    begun = get_peft_model_state_dict(trainer.model, save_embedding_layers=False)
    assert set(begun) == set(align) and all(torch.equal(begun[name], align[name]) for name in align)
    loaded = load_adapter(load_base_model(model_args), run)
    copies = loaded.base_model.model.model.multi_modal_projector
    assert torch.equal(
        copies.modules_to_save["default"].mm_input_projection_weight,
        next(tune[name] for name in projector if "mm_input_projection_weight" in name),
    )


@pytest.mark.thorough
@pytest.mark.model
def test_a_second_phase_that_is_killed_goes_on_and_the_first_is_not_run_again(folder, tmp_path, caplog):
    phases = [ALIGN, PHASES[1] | {"max_steps": 12}]
    undisturbed = write_phases(folder, tmp_path / "undisturbed", phases)
    assert train(undisturbed) == 0
    recipe = write_phases(folder, tmp_path / "cut", phases)
    process = start_recipe(recipe, tmp_path / "log")
    checkpoint = tmp_path / "cut" / "phase-tune" / "checkpoint-2" / "manifest.json"
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert checkpoint.is_file() and not (tmp_path / "cut" / "phase-tune" / "adapter_model.safetensors").exists()
    first = (tmp_path / "cut" / "phase-align" / "adapter_model.safetensors").stat().st_mtime_ns

    caplog.set_level("INFO")
    assert train(recipe) == 0
    assert "phase align is finished, and isn't run again" in caplog.text and "training goes on from" in caplog.text
    assert (tmp_path / "cut" / "phase-align" / "adapter_model.safetensors").stat().st_mtime_ns == first
    assert hash_adapter(tmp_path / "cut") == hash_adapter(tmp_path / "undisturbed")

    # Everything is done: only what went missing in the run's own folder comes back.
    (tmp_path / "cut" / "adapter_model.safetensors").unlink()
    assert train(recipe) == 0
    assert hash_adapter(tmp_path / "cut") == hash_adapter(tmp_path / "undisturbed")
    with pytest.raises(CheckpointError, match="expected none at a fresh start"):
        train(write_phases(folder, tmp_path / "cut", phases, resume_from_checkpoint=None))
    for change in ({"learning_rate": 1e-3}, {"datasets": ["again"]}):
        with pytest.raises(CheckpointError, match="undo the change"):
            train(write_phases(folder, tmp_path / "cut", [ALIGN | change, phases[1]]))
    (tmp_path / "cut" / "phase-align" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="aren't those that the phase ended with"):
        train(write_phases(folder, tmp_path / "cut", phases))


@pytest.mark.model
def test_an_adapter_of_another_shape_is_refused_before_a_weight_is_loaded(folder, tmp_path):
    recipe = write_phases(folder, tmp_path / "first", [ALIGN | {"max_steps": 1}])
    assert train(recipe) == 0
    for keys, message in [
        ({"lora_r": 8}, "lora_r is 8 and the adapter in .* has 4"),
        ({"use_dora": True}, "use_dora is True"),
        ({"lora_target_modules": ["k_proj"]}, "name other layers"),
    ]:
        keys = {"phases": None, "adapter_name_or_path": str(tmp_path / "first")} | keys
        with pytest.raises(AdapterError, match=message):
            train(write_phases(folder, tmp_path / "second", **keys))


@pytest.mark.model
def test_phases_are_refused_under_zero_3_which_saves_nothing_frozen(folder, tmp_path):
    histo_args, training_args, _ = parse_recipe(["--config", str(write_phases(folder, tmp_path / "run"))])
    zero3 = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    with pytest.raises(ValueError, match="phases with ZeRO-3"):
        plan_phases(histo_args, training_args)
    del zero3
    assert len(plan_phases(histo_args, training_args)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"phases": [ALIGN | {"datasets": ["pcm"]}]}, "'pcm'"),
        ({"phases": [ALIGN | {"datasets": ["pcam"], "learning_rte": 1}]}, "did you mean 'learning_rate'"),
        ({"phases": [ALIGN | {"train": ["projektor"]}]}, "did you mean 'projector'"),
        ({"phases": [ALIGN | {"train": []}]}, "expected a list of language"),
        ({"phases": [ALIGN | {"num_train_epochs": 1}]}, "contradict each other"),
        ({"phases": [ALIGN | {"max_steps": 0}]}, "expected at least 1"),
        ({"phases": [ALIGN | {"learning_rate": 3}]}, "learning_rate is 3, expected at least 0 and at most 1"),
        ({"phases": [ALIGN | {"name": "../x"}]}, "becomes a folder's"),
        ({"phases": [ALIGN, ALIGN]}, "share a name"),
        ({"phases": [{"name": "a"}]}, "lacks \\['train'\\]"),
        ({"phases": "align"}, "phases"),
        ({"phases": [ALIGN], "train_projector": True}, "say themselves what they train"),
        ({"phases": [ALIGN], "resume_from_checkpoint": "x/checkpoint-1"}, "set it to auto"),
        ({"phases": [ALIGN], "vision_learning_rate": 1e-4}, "set train_vision: true"),
        ({"projector_learning_rate": 1e-4}, "set train_projector: true"),
        ({"train_projector": True, "projector_learning_rate": 7}, "at most 1"),
        ({"train_vision": True, "vision_learning_rate": -1}, "at least 0"),
        ({"train_vision": True, "lora_scope": "language_and_vision"}, "choose one"),
        ({"train_vision": True, "vision_cache": "outputs/cache"}, "set vision_cache: off"),
        ({"train_vision": "perhaps"}, "expected bool"),
        ({"train_projektor": True}, "did you mean 'train_projector'"),
        ({"use_peft": False, "adapter_name_or_path": "x"}, "set use_peft: true"),
        ({"lora_modules_to_save": ["lm_head"]}, "set train_projector or train_vision"),
    ],
)
def test_keys_that_cannot_be_carried_out_are_refused(tmp_path, keys, message):
    path = Path(tmp_path, "recipe.yaml")
    path.write_text(yaml.safe_dump(GOOD | keys))
    with pytest.raises(ValueError, match=message):
        parse_recipe(["--config", str(path)])


def test_phases_can_be_given_on_the_command_line(tmp_path):
    path = Path(tmp_path, "recipe.yaml")
    path.write_text(yaml.safe_dump(GOOD))
    phases = parse_recipe(["--config", str(path), "--phases", json.dumps([ALIGN])])[0].phases
    assert [(phase.name, phase.train, phase.max_steps) for phase in phases] == [("align", ["projector"], 2)]


@pytest.mark.model
def test_what_a_phase_froze_stays_frozen_after_a_resume(folder, tmp_path):
    recipe = write_phases(folder, tmp_path / "run", [ALIGN | {"max_steps": 4}, PHASES[1]])
    histo_args, training_args, model_args = parse_recipe(["--config", str(recipe)])
    weights = []
    for moments in ([100], [2, 100]):
        for moment in moments:
            phase = plan_phases(histo_args, training_args)[0]
            phase.args.output_dir = str(tmp_path / f"cut-{len(moments)}")
            trainer = build_trainer(load_patches(histo_args), phase, histo_args, model_args)
            trainer.add_callback(SendSignals(moment))
            trainer.train("auto")
        assert trainer.state.global_step == 4
        trained = {part for part, count in count_trained(trainer.model).items() if count}
        assert trained == {"projector"}
        weights.append(get_peft_model_state_dict(trainer.model, save_embedding_layers=False))
    assert not any(weights[0][name].any() for name in weights[0] if "lora_B" in name)
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
