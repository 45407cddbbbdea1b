"""Pictures of another side, and with other tokens, than the base model was trained with."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from saved_adapters import name_model, save_adapter
from scored_likelihoods import assert_scored_like_one_by_one
from small_architectures import build_model_args
from tiny_models import (
    LANGUAGE_LORA,
    QUESTIONS,
    SMOLVLM_TEMPLATE,
    build_idefics3,
    build_llava,
    format_row,
    load_tiny,
    paint_patches,
)
from transformers import AutoModelForImageTextToText, AutoProcessor, Idefics3Config
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from histolab_sft.config.arguments import HistoArguments, parse_recipe
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.data.loss_masks import audit_masks, count_filled_tokens
from histolab_sft.demo.load import load_demo
from histolab_sft.memory.fit import measure_lengths
from histolab_sft.models.adapter_checks import AdapterError
from histolab_sft.models.continued_adapter import build_starting_point
from histolab_sft.models.geometry import build_medgemma_4b_config
from histolab_sft.models.load import (
    build_meta_model,
    check_recipe_model,
    load_adapter,
    load_base_model,
    load_base_processor,
    load_config,
    load_processor,
    load_whole,
)
from histolab_sft.models.resolution import Resolution, read_resolution, resize_tower, set_resolution
from histolab_sft.models.vision_cache.features import build_vision_cache, image_key, open_vision_cache
from histolab_sft.provenance import describe_result
from histolab_sft.publishing.merge import check_merge_parity, load_merged, merge_adapter
from histolab_sft.publishing.push_gate import PublishError, check_base_model

# The tiny model's own is 64 pixels and 16 tokens: these are to it what 448/256 and 448/64 are to 896/256.
OWN, SMALLER = (64, 16), [(32, 16), (32, 4)]
ANSWERS = ["The answer is: Tumor", "The answer is: In Situ Carcinoma", "No"]
CLASSES = {"a": "Adipose", "t": "Tumor", "s": "Stroma"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a tiny base model whose logits differ by whole nats."""
    folder = tmp_path_factory.mktemp("resolution") / "base"
    load_tiny(folder)[0].save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("side", "tokens", "expected"),
    [
        (None, None, (896, 256)),
        (896, 256, (896, 256)),
        (448, None, (448, 256)),
        (448, 64, (448, 64)),
        (None, 64, (896, 64)),
        (224, 16, (224, 16)),
        (1344, 576, (1344, 576)),
        (448, 1024, (448, 1024)),
    ],
)
def test_a_resolution_that_patches_and_pooling_can_give_is_taken(side, tokens, expected):
    config = build_medgemma_4b_config()
    set_resolution(config, side, tokens)
    assert read_resolution(config) == Resolution(*expected)


@pytest.mark.parametrize(
    ("side", "tokens", "message"),
    [
        (450, None, "image_side is 450, expected a multiple of the 14 pixels .*; 448 is the nearest"),
        (5, None, "14 is the nearest"),
        (448, 128, "image_tokens is 128 at an image_side of 448, expected one of 1, 4, 16, 64, 256, 1024"),
        (448, 100, "expected one of"),
        (336, 256, "image_tokens is 256 at an image_side of 336, expected one of 1, 4, 9, 16, 36, 64, 144, 576"),
        (None, 8192, "expected one of 1, 4, 16, 64, 256, 1024, 4096"),
    ],
)
def test_any_other_is_refused_with_those_that_can_be(side, tokens, message):
    with pytest.raises(ValueError, match=message):
        set_resolution(build_medgemma_4b_config(), side, tokens)
    # For a gated model too, whose configuration may be out of reach.
    with pytest.raises(ValueError, match=message):
        check_recipe_model(ModelConfig("google/medgemma-4b-it", image_side=side, image_tokens=tokens))


def test_another_family_is_refused_by_name():
    with pytest.raises(ValueError, match="family llava, expected a Gemma 3"):
        set_resolution(build_llava()[0].config, 448, None)
    set_resolution(build_llava()[0].config, None, None)


TILES = {  # of SmolVLM-256M's sizes
    (512, None): (512, 64),
    (None, 64): (512, 64),
    (256, None): (256, 16),
    (64, 1): (64, 1),
    (500, None): "image_side is 500, expected a multiple of the 64 pixels of an image token; 512 is the nearest",
    (1024, None): "image_side is 1024, expected at most 512",
    (512, 16): "image_tokens is 16 at an image_side of 512, expected 64",
}


@pytest.mark.parametrize(("asked", "expected"), TILES.items(), ids=str)
def test_an_idefics3_reads_a_picture_as_one_tile_of_a_side_that_its_tower_has(asked, expected):
    config = Idefics3Config(vision_config={"image_size": 512, "patch_size": 16}, scale_factor=4)
    assert read_resolution(config) is None
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            set_resolution(config, *asked)
    else:
        set_resolution(config, *asked)
        assert read_resolution(config) == Resolution(*expected)


@pytest.mark.model
@pytest.mark.parametrize(("side", "tokens"), [(None, 17 * 4), (32, 4), (16, 1)])
def test_an_idefics3_has_as_many_image_tokens_as_its_tiles_fill(tmp_path, side, tokens):
    model, processor = build_idefics3(tiles=4)
    processor.chat_template = SMOLVLM_TEMPLATE
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model_args = build_model_args(tmp_path, image_side=side)
    model, processor = load_both(model_args)
    batch = collate(processor, paint_patches(2))
    assert (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [tokens] * 2
    assert count_filled_tokens(load_config(model_args), batch, [1, 1]) == [tokens] * 2
    with torch.no_grad():
        assert model(**{key: value for key, value in batch.items() if key != "labels"}).logits.isfinite().all()
    assert_scored_like_one_by_one(model, processor, paint_patches(2), [ANSWERS] * 2, 2, 3)


def load_both(model_args):
    return load_base_model(model_args), load_base_processor(model_args)


def collate(processor, images, answers=ANSWERS):
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    return collator([format_row(image, QUESTIONS[0], answer) for image, answer in zip(images, answers, strict=False)])


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("side", [32, 96])
def test_position_embeddings_are_what_transformers_interpolates(base, side, dtype):
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
    embeddings, patches = model.model.vision_tower.embeddings, (side // 8) ** 2
    with torch.no_grad():
        expected = embeddings.interpolate_pos_encoding(torch.empty(1, patches, 64), side, side)[0].clone()
    resize_tower(model, side, None)
    resized = model.model.vision_tower.embeddings
    assert torch.equal(resized.position_embedding.weight, expected) and expected.shape == (patches, 64)
    pixels = torch.rand(1, 3, side, side).to(model.dtype)
    assert torch.equal(resized(pixels), resized(pixels, interpolate_pos_encoding=True))
    # Of the same weights, read by the model at its own side.
    own = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype).model.vision_tower.embeddings
    assert torch.equal(resized(pixels), own(pixels, interpolate_pos_encoding=True))


@pytest.mark.model
def test_the_models_own_resolution_changes_no_bit(base):
    images = paint_patches(3)
    (model, processor), (named, naming) = load_both(name_model(base)), load_both(name_model(base, *OWN))
    plain = AutoModelForImageTextToText.from_pretrained(base, dtype="float32").state_dict()
    for state in (model.state_dict(), named.state_dict()):
        assert state.keys() == plain.keys() and all(torch.equal(state[name], plain[name]) for name in plain)
    batches = [collate(one, images) for one in (processor, naming, load_processor(str(base)))]
    for batch in batches[1:]:
        assert all(torch.equal(batch[name], batches[0][name]) for name in batches[0])
    with torch.no_grad():
        assert torch.equal(model(**batches[0]).logits, named(**batches[1]).logits)


@pytest.mark.model
@pytest.mark.parametrize(("side", "tokens"), SMALLER)
def test_everything_that_counts_tokens_counts_those_of_the_recipe(base, side, tokens):
    model_args, own_args = name_model(base, side, tokens), name_model(base)
    model, processor = load_both(model_args)
    images = paint_patches(3)
    batch = collate(processor, images)
    assert batch["pixel_values"].shape[-2:] == (side, side)
    assert (batch["input_ids"] == processor.tokenizer.image_token_id).sum(dim=1).tolist() == [tokens] * 3
    for row, answer in zip(batch["labels"], ANSWERS, strict=True):
        assert processor.tokenizer.decode(row[row != -100]) == f"{answer}<end_of_turn>"
    rows = [
        format_row(image, QUESTIONS[0], ANSWERS[0]) | {"id": str(i), "dataset": "d", "label": None}
        for i, image in enumerate(images)
    ]
    assert audit_masks(Dataset.from_list(rows), processor, load_config(model_args)) == 3
    with pytest.raises(ValueError, match="image tokens, expected 16 as the vision tower fills"):
        audit_masks(
            Dataset.from_list(rows), load_base_processor(name_model(base, 32, 1)), load_config(name_model(base))
        )
    own = measure_lengths(Dataset.from_list(rows), load_base_processor(own_args))["tokens"]
    assert measure_lengths(Dataset.from_list(rows), processor)["tokens"] == own - 16 + tokens
    for made in (model, build_meta_model(model_args)[0]):
        assert read_resolution(made.config) == Resolution(side, tokens)
        assert made.get_encoder(modality="image").embeddings.position_embedding.weight.shape[0] == (side // 8) ** 2
        assert made.model.multi_modal_projector.kernel_size**2 * tokens == (side // 8) ** 2


@pytest.mark.model
@pytest.mark.parametrize(("side", "tokens"), SMALLER)
def test_pictures_count_and_likelihoods_are_those_of_full_passes(base, side, tokens):
    model, processor = load_both(name_model(base, side, tokens))
    first, second = paint_patches(2)
    with torch.no_grad():
        losses = [model(**collate(processor, [image])).loss for image in (first, second)]
    assert (losses[0] - losses[1]).abs() > 1e-3
    assert_scored_like_one_by_one(model, processor, paint_patches(3), [ANSWERS] * 3, 2, 4)


@pytest.mark.model
@pytest.mark.parametrize(("side", "tokens"), SMALLER)
@pytest.mark.parametrize("trained", [None, ["multi_modal_projector"]])
def test_cached_features_are_those_of_pixels(base, tmp_path, side, tokens, trained):
    model, processor = load_both(name_model(base, side, tokens))
    lora = LoraConfig(target_modules=LANGUAGE_LORA, init_lora_weights=False, modules_to_save=trained)
    model, images = get_peft_model(model, lora), paint_patches(3)
    with torch.no_grad():
        expected = model(**collate(processor, images)).logits
        cache = build_vision_cache(model, processor, [(image_key(image), image) for image in images], tmp_path)
        cache.attach(model)
        assert torch.equal(model(**collate(cache.processor(processor), images)).logits, expected)
        cache.detach(model)
        assert torch.equal(model(**collate(processor, images)).logits, expected)


@pytest.mark.model
@pytest.mark.parametrize("trained", [None, ["multi_modal_projector"]])
def test_every_resolution_has_a_cache_of_its_own(base, tmp_path, trained):
    names = set()
    for asked in [(None, None), OWN, *SMALLER]:
        model, processor = load_both(name_model(base, *asked))
        model = get_peft_model(model, LoraConfig(target_modules=LANGUAGE_LORA, modules_to_save=trained))
        names.add(open_vision_cache(model, processor, tmp_path).folder.name)
    assert len(names) == 3


@pytest.mark.model
def test_an_adapter_keeps_its_resolution_and_is_refused_at_another(base, tmp_path):
    smaller, own = tmp_path / "smaller", tmp_path / "own"
    save_adapter(base, smaller, 32)
    save_adapter(base, own)
    kept = json.loads((smaller / "adapter_config.json").read_text())
    assert (kept["image_side"], kept["image_tokens"]) == (32, 16)
    origin = describe_result(smaller, {}, seed=0)
    assert (origin["image_side"], origin["image_tokens"]) == (32, 16)
    assert "image_side" not in describe_result(own, {}, seed=0)
    assert "image_side" not in json.loads((own / "adapter_config.json").read_text())
    for folder, fitting in ((smaller, [(32, None), (32, 16)]), (own, [(None, None), OWN, (64, None)])):
        for asked in [(None, None), OWN, (64, None), (32, None), (32, 16), (32, 4)]:
            if asked in fitting:
                load_adapter(load_base_model(name_model(base, *asked)), folder)
                continue
            with pytest.raises(AdapterError, match="was trained at .* pixels and 16 .*, and the base model is loaded"):
                load_adapter(load_base_model(name_model(base, *asked)), folder)
    # To go on from it, nothing is loaded but its configuration.
    peft = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"]}
    with pytest.raises(AdapterError, match="set image_side: 32 and image_tokens: 16"):
        build_starting_point(name_model(base, **peft), "language", str(smaller), ["language"])
    config, _ = build_starting_point(name_model(base, 32, **peft), "language", str(smaller), ["language"])
    assert (config.image_side, config.image_tokens) == (32, 16)


@pytest.mark.model
def test_a_whole_model_is_refused_at_another_resolution(base, tmp_path):
    model_args = name_model(base, 32, 4)
    model = load_base_model(model_args)
    model.save_pretrained(tmp_path)
    loaded = load_whole(tmp_path, model_args, ["language"])
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in loaded.state_dict().items())
    for asked in [(None, None), (32, 16)]:
        with pytest.raises(ValueError, match="was trained at 32 pixels and 4 image tokens a picture"):
            load_whole(tmp_path, name_model(base, *asked), ["language"])


@pytest.mark.model
def test_four_bits_leave_the_tower_to_be_resized(base):
    model, processor = load_both(name_model(base, 32, 4, load_in_4bit=True, dtype="bfloat16"))
    plain = load_base_model(name_model(base, 32, 4, dtype="bfloat16"))
    tower, own = model.model.vision_tower, plain.model.vision_tower
    assert all(torch.equal(weight, own.state_dict()[name]) for name, weight in tower.state_dict().items())
    with torch.no_grad():
        assert model(**collate(processor, paint_patches(2))).loss.isfinite()


@pytest.mark.model
def test_a_merged_model_has_the_resolution_in_its_own_files(base, tmp_path):
    model_args = save_adapter(base, tmp_path, 32, 4, load_in_4bit=True)
    merge_adapter(model_args, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path / "merged", backend="pil")
    assert processor.image_seq_length == 4 and processor.image_processor.size["height"] == 32
    assert read_resolution(load_merged(tmp_path / "merged").config) == Resolution(32, 4)
    histo_args = HistoArguments(datasets=[{"name": "crc", "source": "x", "class_names": CLASSES}])
    question = [{"role": "user", "content": QUESTIONS[0]}]
    rows = Dataset.from_dict(
        {"images": [[image] for image in paint_patches(8)], "prompt": [question] * 8, "dataset": ["crc"] * 8}
    )
    assert check_merge_parity(rows, histo_args, model_args, tmp_path)["pairs"]["bfloat16/merged"]["agreement"] == 1


@pytest.mark.model
def test_the_demo_reads_pictures_as_the_recipe_says(base, tmp_path):
    save_adapter(base, tmp_path / "out", 32, 4)
    datasets = json.dumps([{"name": "crc", "source": "x", "class_names": CLASSES}])
    keys = {"model_name_or_path": base, "dtype": "float32", "output_dir": tmp_path / "out", "datasets": datasets}
    keys |= {"use_cpu": True, "bf16": False, "use_peft": True, "image_side": 32, "image_tokens": 4}
    flags = [text for key, value in keys.items() for text in (f"--{key}", str(value))]
    demo = load_demo(*parse_recipe([*flags, "--lora_target_modules", "q_proj", "v_proj"]))
    assert demo.systems.processor.image_seq_length == 4
    assert read_resolution(demo.systems.model.config) == Resolution(32, 4)


@pytest.mark.parametrize(
    ("kept", "asked", "fits"),
    [
        ((None, None), (None, None), True),
        ((448, 64), (448, 64), True),
        ((448, 256), (448, None), True),
        ((896, 64), (None, 64), True),
        ((448, 64), (None, None), False),
        ((448, 64), (448, 256), False),
        ((None, None), (448, None), False),
    ],
)
def test_nothing_is_published_with_another_resolution_than_the_adapters(tmp_path, kept, asked, fits):
    path = tmp_path / "adapter_config.json"
    config = {"base_model_name_or_path": "google/medgemma-4b-it"}
    path.write_text(json.dumps(config | ({"image_side": kept[0], "image_tokens": kept[1]} if kept[0] else {})))
    model_args = ModelConfig("google/medgemma-4b-it", image_side=asked[0], image_tokens=asked[1])
    if fits:
        check_base_model(path, model_args)
        return
    with pytest.raises(PublishError, match="image_side .* and image_tokens .*, and the recipe"):
        check_base_model(path, model_args)
