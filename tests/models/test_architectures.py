"""Five architectures take the same road: what is adapted, where the loss is, a step, the likelihoods, the adapter."""

import copy

import pytest
import torch
from peft import PeftModel
from scored_likelihoods import ORDERS, assert_scored_like_one_by_one, name_classes
from small_architectures import ANSWERS, QUESTION, build_model_args, build_rows, build_trainer, score
from tiny_models import (
    SMOLVLM_TEMPLATE,
    build_idefics3,
    build_llava,
    build_paligemma,
    build_qwen2_5_vl,
    load_tiny,
    paint_patches,
)
from transformers import AutoConfig, AutoModelForImageTextToText
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from histolab_sft.data.loss_masks import audit_masks, count_filled_tokens
from histolab_sft.models.chat_templates import complete_chat_template
from histolab_sft.models.generate import render_completion, render_prompt
from histolab_sft.models.load import (
    build_lora_config,
    load_adapter,
    load_base_model,
)
from histolab_sft.models.trainable import find_parts, list_parameters

pytestmark = pytest.mark.model

# Turns as the families write them, in words of the tiny vocabulary; PaliGemma has none.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image_soft_token>\n' }}"
    "{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ARCHITECTURES = {
    "gemma3": (None, "model.language_model", ["model.multi_modal_projector"], "model.vision_tower"),
    "paligemma": (build_paligemma, "model.language_model", ["model.multi_modal_projector"], "model.vision_tower"),
    "llava": (build_llava, "model.language_model", ["model.multi_modal_projector"], "model.vision_tower"),
    "idefics3": (build_idefics3, "model.text_model", ["model.connector"], "model.vision_model"),
    "qwen2_5_vl": (build_qwen2_5_vl, "model.language_model", ["model.visual.merger"], "model.visual"),
}
TEMPLATES = {"llava": LLAVA_TEMPLATE, "idefics3": SMOLVLM_TEMPLATE}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def road(request, tmp_path_factory):
    """Name, folder of the base model with random weights, and its processor with whole turns."""
    folder = tmp_path_factory.mktemp(request.param)
    build = ARCHITECTURES[request.param][0]
    model, processor = build() if build else load_tiny(folder, num_hidden_layers=2)
    model.save_pretrained(folder)
    processor.chat_template = TEMPLATES.get(request.param, processor.chat_template)
    # As Llama's tokenizer does, and the template of LLaVA relies on.
    processor.tokenizer.add_bos_token = request.param == "llava"
    return request.param, folder, complete_chat_template(processor)


def test_the_parts_are_found_in_the_model(road):
    name, folder, _ = road
    model = AutoModelForImageTextToText.from_pretrained(folder)
    _, decoder, projector, tower = ARCHITECTURES[name]
    assert find_parts(model) == {"language": [decoder, "lm_head"], "projector": projector, "vision": [tower]}
    parameters = list_parameters(model)
    assert all(parameters.values())
    assert sum(map(len, parameters.values())) == len(list(model.parameters()))


def test_the_loss_is_on_the_answer_and_its_end_alone(road):
    _, folder, processor = road
    config = AutoConfig.from_pretrained(folder)
    assert audit_masks(build_rows(), processor, config) == 6
    # An answer ends in one marker, and the prompt begins with what the tokenizer puts in front of it.
    completion = processor.tokenizer(render_completion(processor, QUESTION, ANSWERS[0]), add_special_tokens=False)
    markers = [token in processor.tokenizer.added_tokens_decoder for token in completion["input_ids"]]
    assert markers.index(True) == len(markers) - 1
    whole = processor(images=[paint_patches(1)], text=[render_prompt(processor, QUESTION)], add_special_tokens=False)
    assert list(whole["input_ids"][0]).count(processor.tokenizer.bos_token_id) == 1
    with pytest.raises(ValueError, match="max_length"):
        audit_masks(build_rows(), processor, config, max_length=len(whole["input_ids"][0]) + 2)


def test_image_tokens_are_as_many_as_the_tower_fills_and_half_of_them_are_refused(road):
    name, folder, processor = road
    model = AutoModelForImageTextToText.from_pretrained(folder)
    collator = DataCollatorForVisionLanguageModeling(processor=processor, completion_only_loss=True)
    batch = collator([build_rows()[i] for i in range(2)])
    pictures = {key: batch[key] for key in ("pixel_values", "pixel_attention_mask", "image_grid_thw") if key in batch}
    features = model.get_image_features(**pictures).pooler_output
    counts = count_filled_tokens(model.config, batch, [1, 1])
    assert sum(counts) == sum(part.shape[:-1].numel() for part in features)

    halved = copy.deepcopy(processor)
    if name == "qwen2_5_vl":  # it writes as many as the picture is large
        halved.image_processor.merge_size *= 2
    elif name == "llava":
        halved.patch_size *= 2
    elif name == "idefics3":
        halved.image_seq_len //= 2
    elif name == "gemma3":
        soft = processor.tokenizer.image_token
        halved.full_image_sequence = halved.full_image_sequence.replace(2 * soft, soft)
    else:
        halved.image_seq_length //= 2
    with pytest.raises(ValueError, match="image tokens, expected"):
        audit_masks(build_rows(), halved, model.config)


def test_likelihoods_equal_full_forward_passes(road):
    _, folder, processor = road
    model = load_base_model(build_model_args(folder))
    assert_scored_like_one_by_one(model, processor, paint_patches(3), [ANSWERS] * 3, 2, 3)


@pytest.mark.thorough
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_likelihoods_of_fifty_two_classes_equal_full_forward_passes(road, order):
    _, folder, processor = road
    model = load_base_model(build_model_args(folder))
    assert_scored_like_one_by_one(model, processor, paint_patches(2), [order(name_classes(52))] * 2, 2, 8)


@pytest.mark.parametrize("quantised", [False, True], ids=["float32", "nf4"])
def test_a_step_trains_the_language_layers_and_the_saved_adapter_gives_the_same_likelihoods(road, tmp_path, quantised):
    name, folder, processor = road
    model_args = build_model_args(folder, load_in_4bit=quantised)
    trainer = build_trainer(model_args, processor, tmp_path)
    decoder = ARCHITECTURES[name][1]
    trained = [place for place, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trained and all(f".{decoder}.layers." in place for place in trained)
    linear = [place for place, module in trainer.model.named_modules() if type(module).__name__ == "Linear4bit"]
    assert bool(linear) == quantised and all(f"{decoder}.layers." in place for place in linear)
    before = score(trainer.model, processor)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0 and trainer.state.log_history[0]["answer_loss"] > 0
    after = score(trainer.model, processor)
    assert after.isfinite().all() and (after - before).abs().max() > 1e-3
    trainer.save_model()
    model = load_adapter(load_base_model(model_args), tmp_path)
    assert isinstance(model, PeftModel) and (score(model, processor) - after).abs().max() < 1e-4


def test_lora_goes_into_the_tower_too_if_the_scope_says_so(road, tmp_path):
    name, folder, processor = road
    trainer = build_trainer(
        build_model_args(folder), processor, tmp_path, "language_and_vision", ("language", "vision")
    )
    trainer.train()
    moved = {
        part: sum(parameter.any().item() for name, parameter in found.items() if "lora_B" in name)
        for part, found in list_parameters(trainer.model).items()
    }
    assert moved["language"] == 4 and moved["vision"] >= 2 and moved["projector"] == 0
    with pytest.raises(ValueError, match=f"none is in {ARCHITECTURES[name][3]}, expected some of"):
        build_lora_config(build_model_args(folder, lora_target_modules=["o_proj"]), "language_and_vision")


def test_projector_and_tower_train_whole_and_come_back_with_the_adapter(road, tmp_path):
    name, folder, processor = road
    model_args = build_model_args(folder)
    trainer = build_trainer(model_args, processor, tmp_path, parts=("projector", "vision"))
    frozen = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert all(torch.equal(p, frozen[name]) for name, p in trainer.model.named_parameters() if name in frozen)
    after = score(trainer.model, processor)
    trainer.save_model()
    base = load_base_model(model_args)
    assert (score(base, processor) - after).abs().max() > 1e-3
    assert (score(load_adapter(base, tmp_path), processor) - after).abs().max() < 1e-4
