"""Language layers in 8 bits go the whole road that those in 4 bits go: trained, saved, resumed, scored and merged."""

import dataclasses
import logging

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt
from conftest import PCAM_CLASSES
from small_architectures import score
from steady_runs import begin_recipe, hash_trained, logged, write_inputs, write_recipe

from histolab_sft.config.arguments import parse_recipe_elsewhere
from histolab_sft.models.load import load_base_model, load_finetuned, load_processor
from histolab_sft.publishing.merge import check_merge_parity, merge_adapter

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    write_inputs(folder)
    return folder


def begin(folder, run, **keys):
    """A trainer of a recipe in 8 bits, and the recipe's arguments."""
    recipe = write_recipe(folder, folder / run, load_in_8bit=True, leaks="allow", **{"max_steps": 4} | keys)
    return begin_recipe(recipe)


@pytest.fixture(scope="module")
def trained(folder):
    trainer, parsed, patches = begin(folder, "run", eval_strategy="steps", eval_steps=2)
    before = {name: value.clone() for name, value in list_frozen(trainer.model)}
    trainer.train()
    trainer.save_model()
    return trainer, parsed, patches, before


def list_frozen(model):
    """Every weight that isn't trained, those in 8 bits among them."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear8bitLt)}
    yield from ((f"{name}.weight", module.weight.data) for name, module in layers.items())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and parameter.dtype.is_floating_point:
            yield name, parameter.data


def test_the_language_layers_alone_are_in_8_bits_and_stay_as_they_are(trained):
    trainer, _, _, before = trained
    layers = [name for name, module in trainer.model.named_modules() if isinstance(module, Linear8bitLt)]
    assert len(layers) == 2 * 7 and all(".language_model.layers." in name for name in layers)
    assert all(torch.equal(value, before[name]) for name, value in list_frozen(trainer.model))


def test_every_weight_of_the_adapter_is_float32_and_learns_past_an_evaluation(trained):
    trainer, *_ = trained
    assert {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad} == {torch.float32}
    losses = [entry["loss"] for entry in logged(trainer) if "loss" in entry]
    norms = [entry["grad_norm"] for entry in logged(trainer) if "grad_norm" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.3 and all(norm > 0.1 for norm in norms)


def test_a_run_in_8_bits_that_is_resumed_is_bit_equal(folder, trained):
    trainer, *_ = trained
    resumed, *_ = begin(folder, "run", eval_strategy="steps", eval_steps=2)
    resumed.train(str(folder / "run" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert hash_trained(resumed) == hash_trained(trainer) and logged(resumed) == logged(trainer)


def test_what_is_loaded_for_scoring_gives_the_likelihoods_of_training(folder, trained):
    trainer, (_, training_args, model_args), _, _ = trained
    processor = load_processor(str(folder / "model"))
    base = load_base_model(model_args)
    before = score(base, processor)
    after = score(load_finetuned(base, model_args, training_args.output_dir), processor)
    assert (after - before).abs().max() > 0.1
    assert (after - score(trainer.model, processor)).abs().max() < 1e-4
    whole = load_base_model(dataclasses.replace(model_args, load_in_8bit=False))
    finetuned = score(load_finetuned(whole, model_args, training_args.output_dir), processor)
    gap = (finetuned - after).abs().max()
    assert 0 < gap < 0.3


def test_an_adapter_trained_in_8_bits_merges_and_the_merged_model_answers_as_it_does(trained):
    _, (histo_args, training_args, model_args), patches, _ = trained
    merge_adapter(model_args, training_args.output_dir)
    parity = check_merge_parity(patches["validation"], histo_args, model_args, training_args.output_dir)
    assert parity["passed"] and parity["pairs"]["bfloat16/merged"]["agreement"] == 1.0


def test_values_beyond_float16_are_infinite_in_8_bits_and_finite_below():
    # The kernel of GPUs, which a processor has for scoring; sums may go beyond, what is multiplied may not.
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 8, bias=False)
    layer = Linear8bitLt(64, 8, bias=False, has_fp16_weights=False)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to("cpu").eval()
    row = torch.full((1, 64), 6e4, dtype=torch.bfloat16)
    with torch.no_grad():
        exact, quantised = plain(row.float()), layer(row).float()
        assert exact.abs().max() > 65504
        assert (quantised - exact).norm() < 0.05 * exact.norm()
        assert not layer(row * 2).isfinite().all()


def test_8_bits_say_nothing_that_nobody_can_act_upon(trained, caplog):
    trainer, *_ = trained
    with caplog.at_level(logging.WARNING):
        logging.getLogger("bitsandbytes.autograd._functions").warning(
            "MatMul8bitLt: inputs will be cast from torch.bfloat16 to float16 during quantization"
        )
    assert "MatMul8bitLt" not in caplog.text


ADAPTER = "use_peft: true\nlora_target_modules: [q_proj]\n"
PCAM = {"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES}


@pytest.mark.parametrize("profile", ["gpu_4gb", "gpu_16gb_turing", "gpu_80gb"])
def test_a_profile_leaves_a_recipe_its_8_bits(tmp_path, profile):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: x\nhardware: {profile}\nload_in_8bit: true\n{ADAPTER}datasets: [{PCAM}]\n")
    (_, _, model_args), _ = parse_recipe_elsewhere(["--config", str(path)])
    assert model_args.load_in_8bit and not model_args.load_in_4bit


def test_4_and_8_bits_at_once_are_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: x\nload_in_4bit: true\nload_in_8bit: true\n{ADAPTER}datasets: [{PCAM}]\n")
    with pytest.raises(ValueError, match="8 bit and 4 bit"):
        parse_recipe_elsewhere(["--config", str(path)])
