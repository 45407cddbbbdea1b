"""Numbers that go wrong stop the run within the step, and nothing of them reaches the disk; memory that is too small
is told with what to change, or worked around."""

import json
import math
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from steady_runs import build_trainer, hash_trained, start_recipe, write_inputs, write_recipe
from torch import nn
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from histolab_sft.training.checkpoints import find_whole_checkpoint, list_checkpoints
from histolab_sft.training.guards import NonFiniteError, check_gradient, check_weights
from histolab_sft.training.out_of_memory import OutOfMemoryError, explain_out_of_memory, split_batch

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Patches and a base model."""
    folder = tmp_path_factory.mktemp("guarded")
    write_inputs(folder)
    return folder


class AtStep(TrainerCallback):
    """Does something once the run stands before its n-th step."""

    def __init__(self, step, action):
        self.step = step
        self.action = action

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.action()


class BreakWeight(TrainerCallback):
    """Puts infinity into one weight when the optimiser has made the third step."""

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step == 2:
            weight = next(parameter for parameter in model.parameters() if parameter.requires_grad)
            weight.data.view(-1)[7] = math.inf


def break_input(trainer, monkeypatch):
    collate, collated = trainer.data_collator, []

    def collate_spoilt(examples):
        collated.append(collate(examples))
        # The fifth micro-batch belongs to the third step.
        if len(collated) == 5:
            collated[-1]["pixel_values"] = collated[-1]["pixel_values"].float()
            collated[-1]["pixel_values"][0, 0, 3, 3] = math.nan
        return collated[-1]

    trainer.data_collator = collate_spoilt


def break_loss(trainer, monkeypatch):
    compute = SFTTrainer.compute_loss

    def compute_spoilt(self, *args, **kwargs):
        loss = compute(self, *args, **kwargs)
        return loss * math.inf if self.state.global_step == 2 else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_spoilt)


def break_gradient(trainer, monkeypatch):
    weight = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    trainer.add_callback(AtStep(3, lambda: weight.register_hook(lambda gradient: gradient * math.nan)))


def break_weight(trainer, monkeypatch):
    trainer.add_callback(BreakWeight())


@pytest.mark.model
@pytest.mark.parametrize(
    ("break_it", "found"),
    [
        (break_input, "the loss is nan"),
        (break_loss, "the loss is (inf|nan)"),
        (break_gradient, "the norm of the gradient is nan"),
        (break_weight, r"the weights base_model\S*lora_A\S* aren't finite"),
    ],
)
@pytest.mark.parametrize("limit", [1.0, 0.0])
def test_nan_stops_the_run_in_its_step_and_the_last_checkpoint_is_finite(
    folder, tmp_path, monkeypatch, break_it, found, limit
):
    keys = {"max_steps": 6, "gradient_accumulation_steps": 2, "logging_steps": 1, "max_grad_norm": limit}
    trainer = build_trainer(folder, tmp_path / "run", **keys)
    break_it(trainer, monkeypatch)
    with pytest.raises(NonFiniteError, match=f"{found} in step 3, expected finite numbers; rows: ") as error:
        trainer.train()
    ids = set(trainer.train_dataset.with_format(None)["id"])
    named = set(re.search("rows: (.*?)[.] Nothing", str(error.value))[1].split(", "))
    assert named <= ids and len(named) in (2, 4)
    assert trainer.state.global_step <= 3
    assert find_whole_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2
    for path in files:
        with safe_open(path, "pt") as adapter:
            assert all(adapter.get_tensor(name).isfinite().all() for name in adapter.keys())  # noqa: SIM118


@pytest.mark.model
def test_a_validation_row_that_gives_nan_stops_the_run_and_is_no_improvement(folder, tmp_path, monkeypatch):
    keys = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}
    trainer = build_trainer(folder, tmp_path / "run", metric_for_best_model="eval_loss", **keys)
    compute = SFTTrainer.compute_loss
    evaluated = []

    def compute_spoilt(self, *args, **kwargs):
        loss = compute(self, *args, **kwargs)
        if not self.model.training:
            evaluated.append(loss)
        return loss * math.nan if len(evaluated) == 3 else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_spoilt)
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        trainer.train()
    assert trainer.state.best_metric is None or math.isfinite(trainer.state.best_metric)
    assert find_whole_checkpoint(tmp_path / "run") in (None, tmp_path / "run" / "checkpoint-1")


@pytest.mark.model
def test_the_filter_that_shows_old_losses_in_place_of_nan_is_off(folder, tmp_path):
    trainer = build_trainer(folder, tmp_path / "run")
    assert trainer.args.logging_nan_inf_filter is False


@pytest.mark.model
def test_a_broken_run_ends_with_an_error_code_and_saves_no_adapter(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "inputs")
    weights = tmp_path / "inputs" / "model" / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    tensors[name][0, 0] = math.inf
    save_file(tensors, weights, metadata={"format": "pt"})
    recipe = write_recipe(tmp_path / "inputs", tmp_path / "run")
    process = start_recipe(recipe, tmp_path / "log")
    process.join(120)
    assert process.exitcode == 2
    assert "error: the loss is nan in step 1" in (tmp_path / "log").read_text()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["exit_reason"].startswith("NonFiniteError: the loss is nan in step 1")
    assert not list(tmp_path.joinpath("run").rglob("*.safetensors")) and not list_checkpoints(tmp_path / "run")


@pytest.mark.parametrize("norm", [math.nan, math.inf, torch.tensor(math.nan), torch.tensor(-math.inf)])
def test_a_gradient_that_is_not_finite_is_named_with_step_and_rows(norm):
    with pytest.raises(NonFiniteError, match="in step 7.*rows: TUM/1, TUM/2"):
        check_gradient(norm, 7, ["TUM/1", "TUM/2"])
    check_gradient(torch.tensor(3e38), 7, [])
    check_gradient(None, 7, [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_weight_among_many_that_is_not_finite_is_found(value):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        model[0].weight.fill_(1e38)  # a sum of squares would overflow
    check_weights(list(model.named_parameters()), 1, [])
    with torch.no_grad():
        model[1].bias[63] = value
    with pytest.raises(NonFiniteError, match="1.bias"):
        check_weights(list(model.named_parameters()), 1, [])


def test_a_long_list_of_rows_is_cut_and_counted():
    with pytest.raises(NonFiniteError, match="row-15 and 4 more[.]"):
        check_gradient(math.nan, 1, [f"row-{i}" for i in range(20)])


def fail_above(rows, monkeypatch):
    """Let the memory run out in every backward pass over more rows; return the sizes that were tried."""
    step, tried = SFTTrainer.training_step, []

    def step_or_fail(self, model, inputs, *args):
        tried.append(len(inputs["labels"]))
        loss = step(self, model, inputs, *args)
        # Gradients have been added up already, as when the last layers have been through.
        if tried[-1] > rows:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return loss

    monkeypatch.setattr(SFTTrainer, "training_step", step_or_fail)
    return tried


@pytest.mark.model
def test_out_of_memory_stops_with_what_to_change(folder, tmp_path, monkeypatch):
    trainer = build_trainer(folder, tmp_path / "run", per_device_train_batch_size=8, gradient_accumulation_steps=2)
    fail_above(2, monkeypatch)
    with pytest.raises(OutOfMemoryError) as error:
        trainer.train()
    for words in (
        "in step 1 of training: a micro-batch of 8 rows",
        "8 pictures",
        "per_device_train_batch_size: 4 (now 8) with gradient_accumulation_steps: 4 (now 2)",
        "oom: halve",
        "activation_checkpointing: true",
    ):
        assert words in str(error.value)


@pytest.mark.model
@pytest.mark.parametrize("fits", [4, 2, 1])
def test_halved_micro_batches_give_the_losses_of_a_run_that_fitted(folder, tmp_path, monkeypatch, fits):
    keys = {"gradient_accumulation_steps": 2, "max_steps": 3, "logging_steps": 1, "lora_dropout": 0.0}
    keys |= {"per_device_train_batch_size": 8, "save_steps": 2, "learning_rate": 1e-3}
    fitted = build_trainer(folder, tmp_path / "fitted", **keys)
    fitted.train()
    trainer = build_trainer(folder, tmp_path / "halved", oom="halve", **keys)
    with monkeypatch.context() as patch:
        tried = fail_above(fits, patch)
        trainer.train()
    assert trainer.micro_batch == fits
    # 8 rows are tried once only; then every one of the 6 micro-batches goes through in parts that fit.
    assert [size for size in tried if size > fits] == [8, 4, 2][: int(math.log2(8 / fits))]
    losses, expected = (
        [(entry["loss"], entry["grad_norm"]) for entry in run.state.log_history if "loss" in entry]
        for run in (trainer, fitted)
    )
    assert torch.allclose(torch.tensor(losses), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert trainer.state.global_step == fitted.state.global_step

    # What fits is remembered when the run goes on.
    resumed = build_trainer(folder, tmp_path / "halved", oom="halve", **keys)
    with monkeypatch.context() as patch:
        tried = fail_above(fits, patch)
        resumed.train(str(tmp_path / "halved" / "checkpoint-2"))
    assert set(tried) == {fits}
    assert hash_trained(resumed) == hash_trained(trainer)


@pytest.mark.model
def test_one_row_that_does_not_fit_stops_the_run(folder, tmp_path, monkeypatch):
    trainer = build_trainer(folder, tmp_path / "run", oom="halve")
    fail_above(0, monkeypatch)
    with pytest.raises(OutOfMemoryError, match="a micro-batch of 1 rows"):
        trainer.train()


@pytest.mark.model
def test_out_of_memory_in_an_evaluation_names_its_batch_size(folder, tmp_path, monkeypatch):
    trainer = build_trainer(folder, tmp_path / "run", eval_strategy="steps", eval_steps=1)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(SFTTrainer, "prediction_step", fail)
    with pytest.raises(OutOfMemoryError, match="of evaluation.*per_device_eval_batch_size"):
        trainer.train()


@pytest.mark.model
def test_an_error_that_is_not_about_memory_passes_through(folder, tmp_path, monkeypatch):
    trainer = build_trainer(folder, tmp_path / "run", oom="halve")

    def fail(*args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(SFTTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trainer.train()


def test_a_batch_is_split_by_rows_with_all_pictures_of_each():
    batch = {
        "labels": torch.arange(12).reshape(3, 4),
        "pixel_values": torch.arange(6).reshape(6, 1),
        "row_ids": ["a", "b", "c"],
        "use_cache": False,
    }
    parts = split_batch(batch, 2)
    assert [part["row_ids"] for part in parts] == [["a", "b"], ["c"]]
    assert [part["pixel_values"].flatten().tolist() for part in parts] == [[0, 1, 2, 3], [4, 5]]
    assert torch.equal(torch.cat([part["labels"] for part in parts]), batch["labels"])
    assert all(part["use_cache"] is False for part in parts)


def test_the_advice_counts_pictures_and_keeps_the_rows_of_a_step():
    args = SFTConfig(
        output_dir="unused",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=4,
        activation_checkpointing=True,
    )
    inputs = {"labels": torch.zeros(3, 310), "pixel_values": torch.zeros(6, 1)}
    message = explain_out_of_memory(RuntimeError(OUT_OF_MEMORY), inputs, args, 5, training=True)
    assert "3 rows, 310 tokens each, 6 pictures in all" in message
    assert "per_device_train_batch_size: 1 (now 3) with gradient_accumulation_steps: 12 (now 4)" in message
    assert "fewer pictures a row (now 2)" in message and "activation_checkpointing" not in message
