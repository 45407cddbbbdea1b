"""Weighted rows add up like others, and the rows of a class-balanced epoch are the same however a run gets there."""

import os
import signal
from collections import Counter
from math import log

import pytest
import torch
from conftest import write_class_folders
from steady_runs import LAYERS, build_trainer, compare, logged
from transformers import TrainerCallback

from histolab_sft.embedded.tiny_model import build_untrained_tiny_model
from histolab_sft.training.data_loader import ROWS, WEIGHTS
from histolab_sft.training.out_of_memory import split_batch

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model, and patches of which most are of one class: 10 and 3 to train on."""
    folder = tmp_path_factory.mktemp("rare")
    write_class_folders(folder / "pcam", ["Normal", "Tumor"], per_class=14, size=16)
    for path in sorted((folder / "pcam" / "Tumor").iterdir())[5:]:
        path.unlink()
    build_untrained_tiny_model(folder / "model", num_hidden_layers=LAYERS)
    return folder


class StopAt(TrainerCallback):
    """Sends this process SIGTERM before the step that is given."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1 < state.max_steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def compute(trainer, batch, weights, tokens):
    """Return the loss of a batch and the gradient that it gives."""
    trainer.model.zero_grad()
    inputs = {key: value for key, value in batch.items() if key != WEIGHTS} | (
        {} if weights is None else {WEIGHTS: weights}
    )
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=tokens)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])
    return loss.detach(), gradient.clone()


def test_a_weighted_batch_is_the_sum_of_its_weighted_rows(folder, tmp_path):
    keys = {"class_weights": "inverse_frequency", "lora_dropout": 0.0, "per_device_train_batch_size": 6}
    trainer = build_trainer(folder, tmp_path, **keys)
    labels = dict(zip(*(trainer.train_dataset.with_format(None)[name] for name in ("id", "label")), strict=True))
    counts = Counter(labels.values())
    trainer.model.train()
    batches = list(trainer.get_train_dataloader())
    for batch in batches:
        weights = batch[WEIGHTS]
        total = len(labels)
        assert weights.tolist() == pytest.approx([total / 2 / counts[labels[row]] for row in batch[ROWS]])
    batch = next(batch for batch in batches if len(set(batch[WEIGHTS].tolist())) > 1)
    tokens = (batch["labels"] != -100).sum()
    loss, gradient = compute(trainer, batch, batch[WEIGHTS], tokens)
    parts = [
        [weight * value for value in compute(trainer, row, None, tokens)]
        for weight, row in zip(batch[WEIGHTS], split_batch(batch, 1), strict=True)
    ]
    losses, gradients = zip(*parts, strict=True)
    torch.testing.assert_close(loss, sum(losses))
    torch.testing.assert_close(gradient, sum(gradients), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(loss, compute(trainer, batch, None, tokens)[0], rtol=1e-3)


@pytest.mark.thorough
def test_weights_change_training_and_no_evaluation_and_add_up_over_micro_batches(folder, tmp_path):
    keys = {"lora_dropout": 0.0, "max_steps": 4, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "epoch"}
    ways = {
        "plain": {"per_device_train_batch_size": 4},
        "weighted": {"per_device_train_batch_size": 4, "class_weights": "inverse_frequency"},
        "in parts": {
            **{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
            "class_weights": "inverse_frequency",
        },
    }
    runs = {}
    for way, own in ways.items():
        trainer = build_trainer(folder, tmp_path / way, eval_on_start=True, **keys | own)
        trainer.train()
        runs[way] = logged(trainer)
    losses = {way: [entry["loss"] for entry in log if "loss" in entry] for way, log in runs.items()}
    assert losses["in parts"] == pytest.approx(losses["weighted"], abs=2e-5)
    assert losses["weighted"] != pytest.approx(losses["plain"], abs=1e-3)
    # Before the first step both are one model.
    assert runs["weighted"][0]["eval_loss"] == runs["plain"][0]["eval_loss"]


def test_a_class_balanced_run_that_is_stopped_and_goes_on_is_bit_equal(folder, tmp_path):
    # 13 patches in batches of 4: epochs of 4 steps, the first and the second of them broken off.
    keys = {"class_sampling": "balanced", "max_steps": 9, "per_device_train_batch_size": 4, "save_strategy": "no"}
    undisturbed = build_trainer(folder, tmp_path / "undisturbed", **keys)
    undisturbed.train()
    for step in (2, 6, 9):
        resumed = build_trainer(folder, tmp_path / "resumed", **keys)
        resumed.add_callback(StopAt(step))
        resumed.train("auto")
        assert resumed.state.global_step == step
    compare(resumed, undisturbed)


@pytest.mark.thorough
@pytest.mark.parametrize("keys", [{"class_weights": "inverse_frequency"}, {"class_sampling": "balanced"}])
def test_who_guesses_after_balanced_training_takes_the_classes_for_equally_frequent(folder, tmp_path, keys):
    level = build_trainer(folder, tmp_path, **keys).guessing_level
    assert level == {"answer_loss": pytest.approx(log(2)), "answer_accuracy": pytest.approx(0.5)}
