"""The dtypes that a recipe names are those that parts of the model compute in, and nothing else changes."""

from contextlib import contextmanager

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from steady_runs import begin_recipe, write_inputs, write_recipe
from tiny_models import build_llava

from histolab_sft.config.base_model import ModelConfig
from histolab_sft.demo.load import load_demo
from histolab_sft.models.generate import unwrap_adapter
from histolab_sft.models.load import build_quantization_config, load_base_model, load_finetuned
from histolab_sft.models.precision import Precision, cast_vision_tower, read_precision
from histolab_sft.models.vision_tower import find_vision_tower
from histolab_sft.publishing.merge import load_trained
from histolab_sft.training.canary import run_canary
from histolab_sft.training.task_metric import collect_options, measure_balanced_accuracy

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def loaded(untrained_model):
    """The model as a Turing card scores it."""
    model_args = ModelConfig(model_name_or_path=str(untrained_model), dtype="bfloat16", load_in_4bit=True)
    return load_base_model(model_args, Precision(compute="float16", tower="float16")), model_args


def test_4_bit_layers_multiply_in_the_dtype_that_the_recipe_names(loaded):
    model, model_args = loaded
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert layers and {layer.compute_dtype for layer in layers} == {torch.float16}
    # What passes between them stays in the model's own dtype.
    width = layers[0].in_features
    assert layers[0](torch.ones(1, width, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert build_quantization_config(model_args).bnb_4bit_compute_dtype == torch.bfloat16


def test_the_tower_computes_in_its_own_dtype_and_gives_the_models(loaded):
    model, _ = loaded
    tower, seen = find_vision_tower(model), []
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float16}
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16
    hook = tower.encoder.layers[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    size = model.config.vision_config.image_size
    with torch.no_grad():
        features = model.model.get_image_features(torch.rand(1, 3, size, size)).pooler_output
    hook.remove()
    assert seen == [torch.float16] and features.dtype == torch.bfloat16 and features.isfinite().all()


def test_a_tower_in_another_dtype_gives_nearly_the_same_features():
    model, _ = build_llava()
    size = model.config.vision_config.image_size
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    tower = find_vision_tower(model)
    with torch.no_grad():
        before = tower(pixels).last_hidden_state
        cast_vision_tower(model, None)
        assert torch.equal(tower(pixels).last_hidden_state, before)
        cast_vision_tower(model, "bfloat16")
        after = tower(pixels).last_hidden_state
    assert before.dtype == after.dtype == torch.float32
    assert not torch.equal(before, after)
    assert (after - before).norm() < 0.05 * before.norm()


@pytest.fixture(scope="module")
def bfloat16_run(tmp_path_factory):
    """A run under `bf16: true` with 4-bit layers and a tower in float16: what `begin_recipe` gives."""
    folder = tmp_path_factory.mktemp("bfloat16")
    write_inputs(folder)
    keys = {"bf16": True, "load_in_4bit": True, "dtype": "float32", "vision_tower_dtype": "float16", "max_steps": 1}
    recipe = write_recipe(folder, folder / "run", bnb_4bit_compute_dtype="bfloat16", leaks="allow", **keys)
    return begin_recipe(recipe)


@contextmanager
def noted_dtypes(model):
    """Give a set of (layer, dtype) of what every linear layer, norm and attention gives while the block runs."""
    noted, handles = set(), []
    for name, module in unwrap_adapter(model).named_modules():
        plain = name.replace(".base_layer", "")
        if not list(module.children()) and "lora_" not in name and "decoder" not in name:
            handles.append(
                module.register_forward_hook(
                    lambda module, args, output, name=plain: (
                        noted.add((name, output.dtype)) if isinstance(output, torch.Tensor) else None
                    )
                )
            )
    yield noted
    for handle in handles:
        handle.remove()


def test_every_pass_computes_in_the_same_dtypes(bfloat16_run, monkeypatch):
    trainer, (histo_args, training_args, model_args), patches = bfloat16_run
    rows, found = patches["validation"].select(range(2)), {}

    def score(name, model, processor):
        with noted_dtypes(model) as found[name]:
            options = collect_options(patches["train"])
            measure_balanced_accuracy(model, processor, rows, options, 2, 8, trainer.accelerator)

    with noted_dtypes(trainer.model) as found["canary"]:
        run_canary(trainer)
    with noted_dtypes(trainer.model) as found["training"]:
        trainer.train()
    processor = trainer.data_collator.processor
    score("evaluation in training", trainer.model, processor)
    trainer.save_model()
    precision, output_dir = read_precision(histo_args, training_args), training_args.output_dir
    scored = load_finetuned(load_base_model(model_args, precision), model_args, output_dir, ["language"], precision)
    score("evaluation", scored, processor)
    score("merging", load_trained(model_args, output_dir, precision), processor)
    demo = load_demo(histo_args, training_args, model_args)
    score("demo", demo.systems.model, processor)
    places = {name: dict(pairs) for name, pairs in found.items()}
    # Training and canary give the head hidden states through TRL's own kernel.
    shared = set.intersection(*map(set, places.values()))
    assert {"model.language_model.layers.0.self_attn.q_proj", "model.language_model.norm"} <= shared
    for name, dtypes in places.items():
        differing = {place: dtypes[place] for place in shared if dtypes[place] != places["training"][place]}
        assert not differing, name
    # 4-bit layers give back what they take; attention computes in the dtype of autocast, the tower in its own.
    assert places["demo"]["model.language_model.layers.0.self_attn.o_proj"] == torch.bfloat16
    assert {dtype for name, dtype in found["demo"] if "vision_tower.encoder" in name} == {torch.float16}


def test_without_autocast_nothing_is_cast(untrained_model):
    model = load_base_model(ModelConfig(model_name_or_path=str(untrained_model), dtype="float32"))
    with noted_dtypes(model) as noted, torch.no_grad():
        model(input_ids=torch.tensor([[2, 5, 6]]))
    assert noted and {dtype for _, dtype in noted} == {torch.float32}
