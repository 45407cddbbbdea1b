import logging

import pytest
import torch
from tiny_models import QUESTIONS, format_row, load_tiny, paint_patches
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from histolab_sft.models.generate import encode_prompts, generate_answers, render_completion, render_prompt

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("tiny"), sliding_window=16)


def test_prompt_and_completion_are_the_tokens_that_training_sees(tiny):
    _, processor = tiny
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    patches = paint_patches(3)
    for patch, question in zip(patches, QUESTIONS, strict=True):
        for answer in ["The answer is: Tumor", "In Situ Carcinoma", "  two  spaces, and a\nline "]:
            batch = collator([format_row(patch, question, answer)])
            inputs = encode_prompts(processor, [patch], [render_prompt(processor, question)])
            completion = processor(
                text=[render_completion(processor, question, answer)], add_special_tokens=False, return_tensors="pt"
            )["input_ids"]
            labels = batch["labels"][0]
            assert batch["input_ids"][0].tolist() == inputs["input_ids"][0].tolist() + completion[0].tolist()
            assert labels[labels != -100].tolist() == completion[0].tolist()
            assert torch.equal(batch["pixel_values"], inputs["pixel_values"])
            assert batch["token_type_ids"][0, : inputs["input_ids"].shape[1]].equal(inputs["token_type_ids"][0])


def test_a_batch_gives_the_answers_of_single_patches(tiny):
    model, processor = tiny
    patches = paint_patches(7)
    questions = [QUESTIONS[i % 3] for i in range(7)]
    single = [generate_answers(model, processor, [p], [q], 12)[0] for p, q in zip(patches, questions, strict=True)]
    assert len({text for text, _ in single}) > 1
    for batch_size in (2, 3, 7):
        assert generate_answers(model, processor, patches, questions, 12, batch_size) == single


def test_an_answer_stops_at_its_end_of_turn_and_is_else_reported_as_cut_off(tiny, monkeypatch):
    model, processor = tiny
    patches, questions = paint_patches(4), [QUESTIONS[0]] * 4
    end_of_turn = processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    word = processor.tokenizer.convert_tokens_to_ids("▁Tumor")
    # The head is bent so that patch 0 and 2 end their turn at once and the others never do.
    rows = iter(range(10**6))

    def bend(module, args, output):
        logits = torch.full_like(output[:, -1:], -100.0)
        logits[:, :, word] = 1.0
        if next(rows) == 1:
            logits[::2, :, end_of_turn] = 2.0
        else:
            logits[:, :, end_of_turn] = -200.0
        return logits

    handle = model.lm_head.register_forward_hook(bend)
    try:
        answers = generate_answers(model, processor, patches, questions, max_new_tokens=3)
    finally:
        handle.remove()
    assert answers == [(" Tumor", False), (" Tumor Tumor Tumor", True)] * 2


def test_the_end_of_turn_stops_even_a_model_that_lost_its_generation_settings(tiny, monkeypatch):
    model, processor = tiny
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    end_of_turn = processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")

    def bend(module, args, output):
        output[..., end_of_turn] = 1e4
        return output

    handle = model.lm_head.register_forward_hook(bend)
    try:
        assert generate_answers(model, processor, paint_patches(1), QUESTIONS[:1], 4) == [("", False)]
    finally:
        handle.remove()


def test_sampling_settings_of_the_model_change_nothing(tiny, monkeypatch, caplog):
    model, processor = tiny
    expected = generate_answers(model, processor, paint_patches(2), QUESTIONS[:2], 6)
    for name, value in {"do_sample": True, "top_k": 64, "top_p": 0.95}.items():
        monkeypatch.setattr(model.generation_config, name, value)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        assert generate_answers(model, processor, paint_patches(2), QUESTIONS[:2], 6) == expected
    assert not [record for record in caplog.records if "generation flags" in record.getMessage()]


def test_the_model_is_left_in_the_mode_it_came_in(tiny):
    model, processor = tiny
    model.train()
    generate_answers(model, processor, paint_patches(1), QUESTIONS[:1], 2)
    assert model.training
    model.eval()


def test_another_number_of_questions_than_patches_is_refused(tiny):
    with pytest.raises(ValueError, match="found 2 images and 1 questions"):
        generate_answers(*tiny, paint_patches(2), QUESTIONS[:1])
