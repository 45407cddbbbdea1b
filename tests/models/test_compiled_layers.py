"""Compiled layers learn and score what plain ones do, in few compilations, each of which takes ten seconds."""

import logging
from contextlib import nullcontext

import pytest
import torch
from conftest import CRC_CLASSES, PCAM_CLASSES, write_class_folders
from tiny_models import QUESTIONS, load_tiny, paint_patches
from torch._dynamo.utils import counters
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.data.rows import load_patches
from histolab_sft.models import compiled_layers
from histolab_sft.models.compiled_layers import (
    LayerSwitch,
    compiled_scoring,
    decide,
    decide_encoding,
    find_layers,
)
from histolab_sft.models.likelihood import label_log_likelihoods
from histolab_sft.models.load import build_lora_config, build_model_init_kwargs, load_processor
from histolab_sft.models.vision_cache import features
from histolab_sft.models.vision_cache.choice import prepare_vision_cache
from histolab_sft.models.vision_cache.features import build_vision_cache, image_key
from histolab_sft.training.compiled_steps import compile_training
from histolab_sft.training.trainer import PatchTrainer

pytestmark = pytest.mark.model
CPU = torch.device("cpu")


def make_trainer(folder, base_model, lora_dropout=0.0, **keys):
    """Two data sets whose questions and class names differ in length."""
    for name, classes in {"crc": CRC_CLASSES, "pcam": PCAM_CLASSES}.items():
        write_class_folders(folder / name, classes, per_class=6)
    histo_args = HistoArguments(
        datasets=[
            {"name": name, "source": name, "class_names": classes}
            for name, classes in {"crc": CRC_CLASSES, "pcam": PCAM_CLASSES}.items()
        ],
        data_dir=str(folder),
    )
    model_args = ModelConfig(
        model_name_or_path=str(base_model),
        use_peft=True,
        lora_dropout=lora_dropout,
        lora_target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    )
    args = SFTConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        max_length=None,
        report_to="none",
        **{"bf16": False, "per_device_train_batch_size": 4, "num_train_epochs": 1, "activation_checkpointing": False}
        | keys,
    )
    args.model_init_kwargs = build_model_init_kwargs(model_args)
    return PatchTrainer(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=load_patches(histo_args)["train"],
        processing_class=load_processor(str(base_model)),
        peft_config=build_lora_config(model_args, "language"),
    )


def train(trainer):
    trainer.train()
    return {name: weights.detach().clone() for name, weights in trainer.model.named_parameters() if "lora_" in name}


@pytest.mark.thorough
def test_an_epoch_of_two_data_sets_learns_the_same_in_four_compilations(tmp_path, untrained_model, caplog):
    caplog.set_level(logging.INFO, logger="histolab_sft.models.compiled_layers")
    plain = make_trainer(tmp_path / "one", untrained_model, learning_rate=1e-3)
    expected = train(plain)
    trainer = make_trainer(tmp_path / "two", untrained_model, learning_rate=1e-3)
    counters.clear()
    assert compile_training(trainer, "on")
    found = train(trainer)
    assert 0 < counters["stats"]["unique_graphs"] <= 4
    assert not counters["graph_break"]
    steps, plain_steps = ([log["loss"] for log in run.state.log_history if "loss" in log] for run in (trainer, plain))
    assert steps == pytest.approx(plain_steps, abs=1e-5)
    assert max((found[name] - expected[name]).abs().max() for name in expected) < 1e-5
    assert "compiled in" in caplog.text


def watch_layers(model, batch):
    """Give the arguments that each kind of layer is called with in a pass."""
    seen = {}

    def note(layer, args, kwargs):
        seen[layer.self_attn.is_sliding] = layer, args, kwargs

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in find_layers(model)]
    model(**batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def test_no_layer_breaks_the_graph_in_bfloat16_with_lora(tmp_path, untrained_model):
    trainer = make_trainer(tmp_path, untrained_model, lora_dropout=0.05)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    batch.pop("row_ids")
    with torch.autocast("cpu", torch.bfloat16):
        seen = watch_layers(trainer.model.train(), batch)
        assert set(seen) == {True, False}
        for layer, args, kwargs in seen.values():
            traced = torch._dynamo.explain(layer)(*args, **kwargs)
            assert traced.graph_count == 1 and traced.graph_break_count == 0, traced.break_reasons


@pytest.mark.thorough
def test_compiled_layers_give_the_plain_likelihoods(tmp_path):
    model, processor = load_tiny(tmp_path, sliding_window=512)
    answers = [f"The answer is: {name}" for name in CRC_CLASSES.values()]
    arguments = (model, processor, paint_patches(5), [QUESTIONS[i % 3] for i in range(5)], answers, 2)
    expected, _ = label_log_likelihoods(*arguments)
    counters.clear()
    with compiled_scoring("on", model, rows=2, count=5):
        found, _ = label_log_likelihoods(*arguments)
    assert 0 < counters["stats"]["unique_graphs"] <= 4
    assert (found - expected).abs().max() < 1e-5
    assert all(layer._compiled_call_impl is None for layer in find_layers(model))


@pytest.mark.thorough
@pytest.mark.parametrize("keys", [{"bf16": True}, {"activation_checkpointing": True}], ids=str)
def test_it_trains_in_bfloat16_with_dropout_and_with_checkpointing(tmp_path, untrained_model, keys):
    trainer = make_trainer(tmp_path, untrained_model, lora_dropout=0.05, max_steps=3, learning_rate=1e-3, **keys)
    before = {name: weights.clone() for name, weights in trainer.model.named_parameters() if "lora_B" in name}
    counters.clear()
    assert compile_training(trainer, "on")
    after = train(trainer)
    assert counters["stats"]["unique_graphs"] and not counters["graph_break"]
    assert all(not torch.equal(after[name], weights) for name, weights in before.items())


@pytest.mark.thorough
def test_a_compiled_tower_gives_the_plain_features_in_one_compilation(tmp_path):
    model, processor = load_tiny(tmp_path / "model")
    model.requires_grad_(False)
    patches = paint_patches(10)
    sources = [(image_key(patch), patch) for patch in patches]
    plain = build_vision_cache(model, processor, sources, tmp_path / "cache", batch_size=4)
    counters.clear()
    compiled = build_vision_cache(model, processor, sources, tmp_path / "cache", batch_size=4, compiled=True)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert compiled.folder != plain.folder  # neither is served in place of the other
    # Rounding moves these features by 1e-3 of 20 either way: each is as near to double precision as the other.
    exact = build_vision_cache(model.double(), processor, sources, tmp_path / "cache", batch_size=4)
    errors = [
        (cache.features([key]) - exact.features([key])).abs().max()
        for cache in (compiled, plain)
        for key, _ in sources
    ]
    assert 0 < max(errors[:10]) < 3 * max(errors[10:]) < 6e-3
    model.float()
    # With all features there, nothing is compiled; and the tower is left as it was.
    counters.clear()
    build_vision_cache(model, processor, sources, tmp_path / "cache", batch_size=4, compiled=True)
    assert not counters["stats"]
    assert all(module._compiled_call_impl is None for module in model.modules())


@pytest.mark.parametrize(("choice", "compiled"), [("on", True), ("auto", False), ("off", False)])
def test_the_key_compiles_the_tower_where_it_says_on(tmp_path, choice, compiled, monkeypatch):
    model, processor = load_tiny(tmp_path / "model")
    model.requires_grad_(False)
    pictures = {image_key(patch): lambda patch=patch: patch for patch in paint_patches(3)}
    used = []
    monkeypatch.setattr(features, "compiled_encoding", lambda tower, rows: used.append(rows) or nullcontext())
    cache = prepare_vision_cache(str(tmp_path / "cache"), model, processor, pictures, 2, 2, choice)
    assert cache.compiled == compiled and used == [2] * compiled
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not decide_encoding(choice, CPU)


def test_the_estimate_decides_and_is_told(untrained_model, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger=compiled_layers.__name__)
    model, _ = load_tiny(tmp_path)
    gpu = torch.device("cuda")
    assert not decide("off", model, gpu, 1e6, learning=True)
    assert not decide("auto", model, CPU, 1e6, learning=True)
    assert "not used on a processor" in caplog.text
    assert decide("on", model, CPU, 1, learning=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not decide("on", model, CPU, 1e6, learning=True)
    assert "no C++ compiler (no-such-compiler) is on the PATH" in caplog.text


def test_layers_are_compiled_for_full_batches_of_two_lengths_alone(tmp_path):
    model, _ = load_tiny(tmp_path)
    switch, decoder, layer = LayerSwitch(model, 4, learning=True), model.get_decoder(), find_layers(model)[0]

    def is_compiled(rows, length, **kwargs):
        switch.choose(decoder, (), {"inputs_embeds": torch.zeros(rows, length, 1)} | kwargs)
        return layer._compiled_call_impl is not None

    assert is_compiled(4, 32) and is_compiled(4, 64) and is_compiled(4, 32)
    assert not is_compiled(4, 96) and not is_compiled(3, 32) and not is_compiled(4, 31)
    assert not is_compiled(4, 32, use_cache=True)
    with torch.no_grad():
        assert not is_compiled(4, 32)
