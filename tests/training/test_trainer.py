"""Training changes the adapter and nothing else, and logs the loss of the tokens that tell the classes apart."""

import numpy as np
import pytest
import torch
from conftest import PCAM_CLASSES
from small_trainer import make_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from histolab_sft.models.likelihood import label_log_likelihoods

pytestmark = pytest.mark.model


def weights(trainer, lora):
    state = trainer.model.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if ("lora_" in name) == lora}


@pytest.mark.parametrize("load_in_4bit", [True, False])
def test_lora_weights_change_and_every_base_weight_stays_bit_equal(tmp_path, untrained_model, load_in_4bit):
    trainer = make_trainer(tmp_path, untrained_model, load_in_4bit)
    base, lora = weights(trainer, lora=False), weights(trainer, lora=True)
    trainer.train()
    assert all(torch.equal(tensor, base[name]) for name, tensor in weights(trainer, lora=False).items())
    assert all(not torch.equal(tensor, lora[name]) for name, tensor in weights(trainer, lora=True).items())


def test_only_the_language_layers_are_quantised_and_adapted(tmp_path, untrained_model):
    trainer = make_trainer(tmp_path, untrained_model)
    quantised = [name for name, module in trainer.model.named_modules() if type(module).__name__ == "Linear4bit"]
    assert quantised and all("language_model.layers" in name for name in quantised)
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trained and all("language_model.layers" in name and "lora_" in name for name in trained)


def test_what_is_trained_is_float32_on_a_quantised_model(tmp_path, untrained_model):
    trainer = make_trainer(tmp_path, untrained_model)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


def test_training_goes_on_learning_after_an_evaluation(tmp_path, untrained_model):
    trainer = make_trainer(tmp_path, untrained_model, eval_strategy="steps", eval_steps=1, max_steps=4)
    gradients = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            gradients.append(sum(p.grad is not None for p in model.parameters() if p.requires_grad))

    trainer.add_callback(Watch())
    trainer.train()
    adapted = sum(p.requires_grad for p in trainer.model.parameters())
    assert adapted and gradients == [adapted] * 4


def test_the_log_holds_the_loss_of_the_deciding_tokens(tmp_path, untrained_model):
    trainer = make_trainer(tmp_path, untrained_model, eval_strategy="steps", eval_steps=3)
    trainer.train()
    train = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(train) == 3 and all(entry["answer_loss"] > 0 and 0 <= entry["answer_accuracy"] <= 1 for entry in train)
    evaluation = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert evaluation["eval_answer_loss"] > 0
    assert trainer.guessing_level["answer_accuracy"] == 0.5


def test_answer_loss_is_the_mean_over_the_deciding_tokens(tmp_path, untrained_model):
    trainer = make_trainer(tmp_path, untrained_model, load_in_4bit=False)
    batch = trainer.data_collator(list(trainer.eval_dataset))
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    trainer.evaluate()
    log_probs = logits.log_softmax(-1)
    # The one deciding token of `The answer is: Normal` and `... Tumor` is the first after the words they share.
    shared = len(next(iter(trainer.branches)))
    expected = []
    for row, labels in enumerate(batch["labels"]):
        place = (labels != -100).nonzero()[0].item() + shared
        expected.append(-log_probs[row, place - 1, labels[place]].item())
    assert len(trainer.branches) == 1
    logged = trainer.state.log_history[-1]["eval_answer_loss"]
    assert len(expected) > 2 and logged == pytest.approx(sum(expected) / len(expected), rel=1e-5)


class CountReadings(TorchDispatchMode):
    """Count what a GPU would be waited for: a number that Python reads, a shape that depends on values."""

    READ = {"_local_scalar_dense", "nonzero", "masked_select"}

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.__name__.partition(".")[0] in self.READ
        return function(*args, **(kwargs or {}))


def test_a_step_waits_for_its_device_as_often_however_many_rows_it_has(tmp_path, untrained_model):
    trainer = make_trainer(tmp_path, untrained_model, load_in_4bit=False)
    trainer.create_optimizer()
    waits = {}
    for rows in (2, 8):
        trainer._train_batch_size = rows
        batch = next(iter(trainer.get_train_dataloader()))
        assert len(batch["labels"]) == rows
        with CountReadings() as reading:
            trainer.training_step(trainer.model, batch, (batch["labels"] != -100).sum())
        waits[rows] = reading.count
    # Of transformers 2, of TRL 5, whether the loss is finite 1.
    assert waits[2] == waits[8] <= 8


def test_each_evaluation_measures_balanced_accuracy_by_likelihood(tmp_path, untrained_model):
    keys = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 2}
    keys |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_balanced_accuracy"}
    trainer = make_trainer(tmp_path, untrained_model, load_in_4bit=False, **keys)
    trainer.train()
    logged = [entry["eval_balanced_accuracy"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(logged) == 2 and trainer.state.best_metric == max(logged)

    rows = trainer.eval_dataset
    questions = [row["prompt"][0]["content"] for row in rows]
    answers = ["The answer is: Normal", "The answer is: Tumor"]
    scores, _ = label_log_likelihoods(
        trainer.model, trainer.data_collator.processor, rows["images"], questions, answers
    )
    said = ["Normal" if normal > tumor else "Tumor" for normal, tumor in scores.tolist()]
    recalls = [
        np.mean([s == g for s, g in zip(said, rows["label"], strict=True) if g == name]) for name in PCAM_CLASSES
    ]
    assert trainer.evaluate()["eval_balanced_accuracy"] == pytest.approx(np.mean(recalls))
