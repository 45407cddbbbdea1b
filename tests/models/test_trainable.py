"""What is trained and where it begins: an adapter, a merged model, the whole model; projector and tower as well."""

import json

import pytest
import torch
from conftest import PCAM_CLASSES
from peft import get_peft_model_state_dict
from phase_runs import train
from safetensors.torch import load_file
from small_architectures import build_model_args, build_trainer, score
from steady_runs import begin_recipe, write_inputs, write_recipe
from tiny_models import build_llava

from histolab_sft.config.arguments import HistoArguments, parse_recipe
from histolab_sft.data.rows import load_audited_patches
from histolab_sft.models.adapter_checks import AdapterError
from histolab_sft.models.chat_templates import complete_chat_template
from histolab_sft.models.load import (
    find_weights,
    load_adapter,
    load_base_model,
    load_finetuned,
    load_processor,
)
from histolab_sft.models.trainable import count_trained, list_parameters, set_learning_rates
from histolab_sft.provenance import describe_result
from histolab_sft.publishing.merge import merge_adapter
from histolab_sft.training.picture_inputs import prepare_pictures

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainable")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def first(folder):
    """Folder of a run that trained an adapter of the language layers for two steps."""
    run = folder / "first"
    assert train(write_recipe(folder, run, max_steps=2, lora_dropout=0.0)) == 0
    return run


def parse(recipe):
    return parse_recipe(["--config", str(recipe)])


def begin(recipe):
    return begin_recipe(recipe)[0]


def weights_of(trainer):
    return get_peft_model_state_dict(trainer.model, save_embedding_layers=False)


def test_training_continues_an_adapter_without_a_second_one_inside(folder, first, tmp_path):
    # Its layers, rank and scale needn't be said again.
    recipe = write_recipe(
        folder, tmp_path / "run", adapter_name_or_path=str(first), lora_target_modules=None, lora_r=16, max_steps=2
    )
    saved = load_file(first / "adapter_model.safetensors")
    begun = weights_of(begin(recipe))
    assert set(begun) == set(saved) and all(torch.equal(begun[name], saved[name]) for name in saved)
    assert train(recipe) == 0
    ended = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert set(ended) == set(saved) and all(tensor.shape == saved[name].shape for name, tensor in ended.items())
    assert not any(torch.equal(ended[name], saved[name]) for name in saved)
    model_args = parse(recipe)[2]
    processor = load_processor(str(folder / "model"))
    before, after = (
        score(load_adapter(load_base_model(model_args), run), processor) for run in (first, tmp_path / "run")
    )
    assert (before - after).abs().max() > 1e-3


def test_a_part_that_the_adapter_does_not_hold_begins_as_in_the_base_model(folder, first, tmp_path):
    recipe = write_recipe(folder, tmp_path, adapter_name_or_path=str(first), train_projector=True)
    trainer, saved = begin(recipe), load_file(first / "adapter_model.safetensors")
    begun = weights_of(trainer)
    assert all(torch.equal(begun[name], saved[name]) for name in saved)
    projector = {name: tensor for name, tensor in begun.items() if name not in saved}
    base = load_base_model(parse(recipe)[2]).state_dict()
    assert projector and all(
        torch.equal(base[name.removeprefix("base_model.model.")], projector[name]) for name in projector
    )
    assert count_trained(trainer.model)["projector"] == sum(tensor.numel() for tensor in projector.values())


def test_an_adapter_that_does_not_fit_is_refused_before_training(folder, first, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in first.glob("adapter_*"):
        broken.joinpath(path.name).write_bytes(path.read_bytes())
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "another/model"}))
    with pytest.raises(AdapterError, match="an adapter of another/model, expected one of"):
        begin(write_recipe(folder, tmp_path / "run", adapter_name_or_path=str(broken)))


def test_a_merged_model_is_a_base_model_like_any_other(folder, first, tmp_path):
    merged = merge_adapter(parse(folder / "first.yaml")[2], first)
    recipe = write_recipe(folder, tmp_path / "run", model_name_or_path=str(merged), max_steps=1)
    assert train(recipe) == 0
    adapter = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(merged)


@pytest.mark.parametrize("keys", [{"use_dora": True}, {"use_rslora": True}, {"load_in_8bit": True}], ids=str)
def test_kinds_of_adapters_train_and_load_with_the_same_likelihoods(tmp_path_factory, tmp_path, keys):
    base = tmp_path_factory.mktemp("llava")
    model, processor = build_llava()
    model.save_pretrained(base)
    processor = complete_chat_template(processor)
    model_args = build_model_args(base, **keys)
    trainer = build_trainer(model_args, processor, tmp_path, max_steps=2)
    kinds = {type(module).__name__ for name, module in trainer.model.named_modules() if ".layers." in name}
    magnitudes = [name for name, _ in trainer.model.named_parameters() if "lora_magnitude_vector" in name]
    layer = next(module for module in trainer.model.modules() if isinstance(vars(module).get("scaling"), dict))
    assert bool(magnitudes) == bool(keys.get("use_dora"))
    assert layer.scaling["default"] == (32 / 2 if keys.get("use_rslora") else 32 / 4)
    assert ("Linear8bitLt" in kinds) == bool(keys.get("load_in_8bit"))
    before = score(trainer.model, processor)
    trainer.train()
    after = score(trainer.model, processor)
    assert after.isfinite().all() and (after - before).abs().max() > 1e-3
    trainer.save_model()
    again = score(load_adapter(load_base_model(model_args), tmp_path), processor)
    assert (again - after).abs().max() < 1e-4


def test_a_small_model_is_trained_whole_saved_and_loaded_as_the_finetuned_system(folder, tmp_path):
    recipe = write_recipe(
        folder, tmp_path / "run", use_peft=False, lora_target_modules=None, max_steps=3, save_steps=1
    )
    _, _, model_args = parse(recipe)
    with pytest.raises(FileNotFoundError, match="no whole model in .*train first"):
        find_weights(tmp_path / "run", use_peft=False)
    assert train(recipe) == 0
    find_weights(tmp_path / "run", use_peft=False)
    processor = load_processor(str(folder / "model"))
    base = load_base_model(model_args)
    finetuned = load_finetuned(base, model_args, tmp_path / "run")
    before, after = base.state_dict(), finetuned.state_dict()
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("language_model" in name or name == "lm_head.weight" for name in changed)
    assert (score(base, processor) - score(finetuned, processor)).abs().max() > 1e-3
    provenance = describe_result(tmp_path / "run", {}, 42)
    assert provenance["base_model"] == str(folder / "model") and list(provenance["model_sha256"])
    train(recipe, "--generate_answers", "false", script="recipes/evaluate.py")
    results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    systems = results["datasets"]["pcam"]
    assert systems["baseline"]["brier"] != systems["finetuned"]["brier"]
    # It goes on like any other run.
    assert train(recipe, "--max_steps", "4", "--resume_changes", "max_steps") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 4


def test_each_part_learns_at_its_own_rate(folder, tmp_path):
    recipe = write_recipe(
        folder, tmp_path, train_projector=True, train_vision=True, max_steps=1, projector_learning_rate=0.0,
        vision_learning_rate=1e-3, lr_scheduler_type="constant", lora_dropout=0.0,
    )  # fmt: skip
    trainer = begin(recipe)
    before = {part: [p.clone() for p in found.values()] for part, found in list_parameters(trainer.model).items()}
    trainer.train()
    steps = {
        part: max(
            (p - q).abs().max().item() for p, q in zip(found.values(), before[part], strict=True) if p.requires_grad
        )
        for part, found in list_parameters(trainer.model).items()
    }
    # The first step of AdamW is as long as the rate.
    assert steps["projector"] == 0
    assert steps["vision"] == pytest.approx(1e-3, rel=0.05) and steps["language"] == pytest.approx(1e-2, rel=0.05)


def test_without_rates_of_their_own_the_optimiser_is_left_as_it_is(folder, tmp_path):
    trainer = begin(write_recipe(folder, tmp_path, train_projector=True))
    groups = trainer.create_optimizer().param_groups
    assert len(groups) == 2 and {group["lr"] for group in groups} == {1e-2}
    set_learning_rates(trainer.optimizer, trainer.model, {"projector": 1e-4})
    sizes = {}
    for group in trainer.optimizer.param_groups:
        sizes[group["lr"]] = sizes.get(group["lr"], 0) + sum(p.numel() for p in group["params"])
    counts = count_trained(trainer.model)
    assert sizes == {1e-2: counts["language"], 1e-4: counts["projector"]}


@pytest.mark.parametrize(("keys", "pooled"), [({"train_projector": True}, True), ({"train_vision": True}, None)])
def test_the_vision_cache_keeps_what_goes_into_a_trained_projector_and_declines_a_trained_tower(
    folder, tmp_path, monkeypatch, caplog, keys, pooled
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    caplog.set_level("INFO")
    recipe = write_recipe(folder, tmp_path / "run", max_steps=16, vision_cache="off", eval_strategy="epoch", **keys)
    trainer = begin(recipe)
    histo_args = HistoArguments(
        datasets=[{"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES}], data_dir=str(folder)
    )
    loss = trainer.evaluate()["eval_loss"]
    cache = prepare_pictures(trainer, load_audited_patches(histo_args, tmp_path), histo_args)
    assert (cache.pooled if cache else None) == pooled
    assert ("features change" in caplog.text) == (pooled is None)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, abs=1e-5)
    if cache:
        trainer.args.max_steps = 2
        trainer.train()
        assert trainer.state.log_history[-1]["train_loss"] > 0


def test_a_trained_projector_takes_what_a_tower_in_bfloat16_gives(folder, tmp_path):
    recipe = write_recipe(folder, tmp_path, train_projector=True, dtype="bfloat16", max_steps=1)
    trainer = begin(recipe)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    trainer.train()
    trainer.save_model()
    scores = score(load_adapter(load_base_model(parse(recipe)[2]), tmp_path), load_processor(str(folder / "model")))
    assert scores.isfinite().all()
