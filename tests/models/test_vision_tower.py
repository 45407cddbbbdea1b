from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import LANGUAGE_LORA, build_trainer, compute_gradients, load_tiny
from transformers import LlamaConfig, LlamaForCausalLM

from histolab_sft.models.vision_tower import find_vision_tower, freeze_vision_tower

pytestmark = pytest.mark.model


def count_calls(tower):
    calls = Counter()
    # Of a part inside a layer: checkpointing runs layers again without calling the tower.
    attention = tower.encoder.layers[0].self_attn
    attention.register_forward_hook(lambda *_: calls.update(["forward"]))
    attention.register_full_backward_hook(lambda *_: calls.update(["backward"]))
    return calls


def train_one_step(folder, freeze, **overrides):
    model, processor = load_tiny(folder / "base")
    trainer = build_trainer(model, processor, folder / "out", **overrides)
    if freeze:
        assert freeze_vision_tower(trainer.model)
    calls = count_calls(find_vision_tower(trainer.model))
    trainer.train()
    return calls


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_frozen_tower_runs_once_a_step_and_never_backwards(tmp_path, reentrant):
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    assert train_one_step(tmp_path, freeze=True, **checkpointing) == {"forward": 1}


def test_without_it_checkpointing_runs_the_tower_twice_and_backwards(tmp_path):
    assert train_one_step(tmp_path, freeze=False, gradient_checkpointing=True) == {"forward": 2, "backward": 1}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradients_of_the_adapter_are_the_same_to_the_last_bit(tmp_path, checkpointing):
    model, processor = load_tiny(tmp_path / "base")
    trainer = build_trainer(model, processor, tmp_path / "out", gradient_checkpointing=checkpointing)
    if checkpointing:
        # `train` switches it on; here the step is taken by hand.
        trainer.model.gradient_checkpointing_enable()
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    loss, gradients = compute_gradients(trainer)
    assert freeze_vision_tower(trainer.model)
    frozen_loss, frozen_gradients = compute_gradients(trainer)
    assert torch.equal(loss, frozen_loss)
    assert gradients.keys() == frozen_gradients.keys() and len(gradients) == 16
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, frozen_gradients[name]), name


def test_a_trained_projector_keeps_its_gradient(tmp_path):
    model, processor = load_tiny(tmp_path / "base")
    lora = LoraConfig(target_modules=LANGUAGE_LORA, modules_to_save=["multi_modal_projector"])
    trainer = build_trainer(model, processor, tmp_path / "out", lora)
    assert freeze_vision_tower(trainer.model)
    calls = count_calls(find_vision_tower(trainer.model))
    _, gradients = compute_gradients(trainer)
    projector = [name for name in gradients if "multi_modal_projector" in name]
    assert len(projector) == 2 and all(gradients[name].abs().max() > 0 for name in projector)
    assert calls == {"forward": 1}


def test_a_trained_tower_is_left_alone(tmp_path):
    model, _ = load_tiny(tmp_path)
    assert not freeze_vision_tower(model)
    model = get_peft_model(model, LoraConfig(target_modules=r".*vision_tower.*q_proj"))
    assert not freeze_vision_tower(model)
    assert find_vision_tower(model)(torch.zeros(1, 3, 64, 64)).last_hidden_state.requires_grad


def test_it_works_without_an_adapter_and_twice(tmp_path):
    model, _ = load_tiny(tmp_path)
    find_vision_tower(model).requires_grad_(False)
    model.enable_input_require_grads()
    assert freeze_vision_tower(model) and freeze_vision_tower(model)
    features = model.get_image_features(torch.zeros(1, 3, 64, 64))
    assert not features.last_hidden_state.requires_grad
    assert features.pooler_output.requires_grad


def test_a_model_without_a_tower_is_refused():
    config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match="LlamaForCausalLM has no vision tower"):
        freeze_vision_tower(LlamaForCausalLM(config))
