import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scored_likelihoods import ORDERS, assert_scored_like_one_by_one, name_classes, score_one_by_one
from tiny_models import (
    LANGUAGE_LORA,
    QUESTIONS,
    build_idefics3,
    build_llava,
    build_qwen2_vl,
    build_recurrent_llava,
    load_tiny,
    paint_patches,
)

from histolab_sft.models import shared_prefix
from histolab_sft.models.generate import encode_prompts, render_prompts
from histolab_sft.models.likelihood import label_log_likelihoods, probabilities, score_parts, tokenize_answers
from histolab_sft.models.shared_prefix import shares_prefix

pytestmark = pytest.mark.model

ANSWERS = ["The answer is: " + name for name in ["Tumor", "Tumor stroma", "In Situ Carcinoma", "No", "Adipose"]]


@pytest.fixture(scope="module", params=[16, 512], ids=["window_shorter_than_prompt", "window_longer_than_prompt"])
def tiny(request, tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("tiny"), sliding_window=request.param)


@pytest.mark.parametrize("batch_size, candidate_batch_size", [(1, 1), (2, 32), (5, 7), (3, 3)])
def test_scores_equal_full_forward_passes_at_any_batch_size(tiny, batch_size, candidate_batch_size):
    candidates = [ANSWERS] * 5
    assert_scored_like_one_by_one(*tiny, paint_patches(5), candidates, batch_size, candidate_batch_size)


def test_answers_without_common_words_and_answers_that_begin_others_are_exact(tiny):
    candidates = [["No", "No No", "No No No", "Yes", "Tumor."]] * 3
    assert_scored_like_one_by_one(*tiny, paint_patches(3), candidates, 2, 4)


@pytest.mark.parametrize("count", [52, pytest.param(500, marks=pytest.mark.thorough)])
def test_many_classes_in_any_order_equal_full_forward_passes(tmp_path, count):
    names, chunk = name_classes(count), 8
    folder, question, [patch] = tmp_path / "model", QUESTIONS[0], paint_patches(1)
    _, processor = load_tiny(folder)
    prompt = encode_prompts(processor, [patch], render_prompts(processor, [question], [patch]))["input_ids"].shape[1]
    lengths = sorted(len(tokens) for tokens in tokenize_answers(processor, question, names))
    # A window that holds the prompt and a tree of the shortest answers, and none of the longest.
    model, processor = load_tiny(folder, sliding_window=prompt + sum(lengths[:chunk]))
    expected = {name: score_one_by_one(model, processor, patch, question, name)[0] for name in names}
    rows, taken = [], []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["inputs_embeds"].shape[0]), with_kwargs=True
    )
    for order in ORDERS.values():
        rows.clear()
        asked = order(names)
        [scores], _ = label_log_likelihoods(model, processor, [patch], [question], asked, candidate_batch_size=chunk)
        assert (scores - torch.tensor([expected[name] for name in asked], dtype=torch.float64)).abs().max() < 1e-5
        # Behind the prompt, some as a tree in one row and some in a row each.
        taken.append(set(rows[1:]))
    assert {1, chunk} <= taken[0] and {1, chunk} <= taken[1]


def test_a_single_answer_is_scored(tiny):
    assert_scored_like_one_by_one(*tiny, paint_patches(2), [["The answer is: Tumor"], ["No"]], 2, 4)


def test_rows_may_have_different_answers_in_any_number(tiny):
    model, processor = tiny
    patches, questions = paint_patches(5), [QUESTIONS[i % 3] for i in range(5)]
    candidates = [ANSWERS, ANSWERS[:2], ["Yes", "No", "Stroma"], ANSWERS[:2], ANSWERS]
    scores, counts = label_log_likelihoods(model, processor, patches, questions, candidates, batch_size=2)
    assert scores.shape == counts.shape == (5, 5)
    for row, answers in enumerate(candidates):
        for column, answer in enumerate(answers):
            expected, count = score_one_by_one(model, processor, patches[row], questions[row], answer)
            assert scores[row, column].item() == pytest.approx(expected, abs=1e-5)
            assert counts[row, column] == count
        assert (scores[row, len(answers) :] == -torch.inf).all() and not counts[row, len(answers) :].any()
    assert probabilities(scores)[1, 2:].tolist() == [0, 0, 0]


def test_parts_are_scored_as_if_each_was_asked_alone(tiny):
    model, processor = tiny
    patches, questions = paint_patches(7), [QUESTIONS[i % 3] for i in range(7)]
    candidates = [ANSWERS, ANSWERS[:2], ["Yes", "No", "Stroma"], ANSWERS[:2], ANSWERS, ANSWERS[:2], ANSWERS]
    parts = [range(0, 3), range(3, 5), range(6, 7)]  # of the sixth row nobody asks
    found = list(score_parts(model, processor, patches, questions, candidates, parts, 2, 96))
    for part, (scores, counts) in zip(parts, found, strict=True):
        rows = slice(part.start, part.stop)
        alone = label_log_likelihoods(model, processor, patches[rows], questions[rows], candidates[rows], 2)
        assert torch.equal(scores, alone[0]) and torch.equal(counts, alone[1])


def test_the_picture_is_read_once_and_the_memory_is_bounded(tiny):
    model, processor = tiny
    passes, towers = [], []
    handles = [
        model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: passes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
        ),
        model.model.vision_tower.register_forward_hook(lambda *_: towers.append(1)),
    ]
    sizes = []
    handles.append(model.lm_head.register_forward_hook(lambda module, args, logits: sizes.append(logits.shape[:2])))
    label_log_likelihoods(model, processor, paint_patches(4), QUESTIONS[:1] * 4, ANSWERS, 4, 8)
    for handle in handles:
        handle.remove()
    answers = tokenize_answers(processor, QUESTIONS[0], ANSWERS)
    common = next(i for i, tokens in enumerate(zip(*answers, strict=False)) if len(set(tokens)) > 1)
    assert len(towers) == 1 and common == 4
    if model.config.text_config.sliding_window > 100:
        # One row a patch: prompt and answers at once, and eight tokens' logits at a time.
        assert len(passes) == 1 and passes[0][0] == 4 and passes[0][1] % 16 == 0
        assert {size[0] for size in sizes[:-1]} == {8} and sizes[-1][0] <= 8
        return
    # Four patches leave room for two answers at a time.
    pairs = [[answer[common:] for answer in answers[start : start + 2]] for start in range(0, 5, 2)]
    assert passes[1:] == [(4 * len(pair), max(map(len, pair)) - 1) for pair in pairs]
    # Of the prompt, only the places that predict a scored token reach the head.
    assert sizes[0] == (4, common + 1)


@pytest.mark.parametrize("bounded", [1, 3, 96])
def test_one_pass_gives_what_the_shared_prefix_gives(tmp_path, bounded, monkeypatch):
    model, processor = load_tiny(tmp_path, sliding_window=512)
    arguments = (model, processor, paint_patches(5), [QUESTIONS[i % 3] for i in range(5)], ANSWERS, 3, bounded)
    at_once, _ = label_log_likelihoods(*arguments)
    monkeypatch.setattr(shared_prefix, "takes_one_pass", lambda *_: False)
    in_parts, _ = label_log_likelihoods(*arguments)
    assert (at_once - in_parts).abs().max() < 1e-5 and not torch.equal(at_once, in_parts)


@pytest.mark.parametrize("build", [build_llava, build_idefics3, build_qwen2_vl])
def test_other_architectures_share_the_prefix_and_equal_full_forward_passes(build):
    model, processor = build()
    assert shares_prefix(model)
    assert_scored_like_one_by_one(model, processor, paint_patches(5), [ANSWERS] * 5, 3, 7)


def test_a_model_with_recurrent_layers_is_scored_whole_and_says_so_once(caplog):
    model, processor = build_recurrent_llava()
    assert not shares_prefix(model)
    assert_scored_like_one_by_one(model, processor, paint_patches(3), [ANSWERS] * 3, 2, 7)
    assert_scored_like_one_by_one(model, processor, paint_patches(3), [ANSWERS] * 3, 3, 7)
    notices = [record for record in caplog.records if "keeps more than keys and values" in record.getMessage()]
    assert len(notices) == 1


def test_the_adapter_counts_unless_it_is_switched_off(tmp_path):
    model, processor = load_tiny(tmp_path)
    arguments = (processor, paint_patches(2), QUESTIONS[:2], ANSWERS)
    baseline, _ = label_log_likelihoods(model, *arguments)
    model = get_peft_model(model, LoraConfig(target_modules=LANGUAGE_LORA, init_lora_weights=False))
    finetuned, _ = label_log_likelihoods(model, *arguments)
    assert (finetuned - baseline).abs().max() > 0.1
    with model.disable_adapter():
        switched_off, _ = label_log_likelihoods(model, *arguments)
    # Not to the last bit: threads may add up in another order.
    assert (switched_off - baseline).abs().max() < 1e-4


def test_dropout_is_off_while_scoring_and_on_again_afterwards(tmp_path):
    model, processor = load_tiny(tmp_path)
    model = get_peft_model(model, LoraConfig(target_modules=LANGUAGE_LORA, init_lora_weights=False, lora_dropout=0.5))
    model.gradient_checkpointing_enable()
    arguments = (processor, paint_patches(2), QUESTIONS[:2], ANSWERS)
    expected, _ = label_log_likelihoods(model.eval(), *arguments)
    scores, _ = label_log_likelihoods(model.train(), *arguments)
    assert torch.equal(scores, expected) and not scores.requires_grad
    assert model.get_base_model().training


def test_bad_input_is_named(tiny):
    patches = paint_patches(2)
    for questions, candidates, message in [
        (QUESTIONS[:1], ANSWERS, "found 2 images and 1 questions"),
        (QUESTIONS[:2], [ANSWERS], "found 1 lists of candidates and 2 questions"),
        (QUESTIONS[:2], [ANSWERS, []], "row 1: candidates"),
        (QUESTIONS[:2], ["Yes", "Yes"], "row 0: candidates"),
    ]:
        with pytest.raises(ValueError, match=message):
            label_log_likelihoods(*tiny, patches, questions, candidates)


def test_probabilities_follow_from_the_scores():
    scores = torch.tensor([[0.0, -1.0, -2.0], [-3.0, -3.0, -3.0]], dtype=torch.float64)
    plain = probabilities(scores)
    assert plain.dtype == np.float64 and plain.sum(1) == pytest.approx([1, 1])
    assert plain[0] == pytest.approx(np.exp([0, -1, -2]) / np.exp([0, -1, -2]).sum())
    assert probabilities(scores, log_prior=np.log(plain[0]))[0] == pytest.approx([1 / 3] * 3)
