"""The dtypes that a recipe names are those that parts of the model compute in, and nothing else changes."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from tiny_models import build_llava
from trl import ModelConfig

from histolab_sft.models.load import build_quantization_config, load_base_model
from histolab_sft.models.precision import Precision, cast_vision_tower
from histolab_sft.models.vision_tower import find_vision_tower

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
