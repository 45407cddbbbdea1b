"""MedGemma 1.5 may think aloud before it answers: nothing learns, scores or shows what stands there."""

import json
import logging

import numpy as np
import pytest
import torch
from tiny_models import QUESTIONS, load_tiny, paint_patches

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.rows import load_patches
from histolab_sft.models.generate import encode_prompts, generate_answers, render_prompt
from histolab_sft.models.likelihood import label_log_likelihoods, probabilities
from histolab_sft.tasks import biomarkers, boxes, multilabel, quantity, report
from histolab_sft.tasks.parsing import answers
from histolab_sft.tasks.parsing.final_text import check_target, strip_thinking

SIZE = (640, 480)
LABELS = ["Pneumonia", "Pleural Effusion"]
BOXES = [boxes.Box(9, 9, 99, 99, "nodule")]
RECORD = {"cd274_expression": "high", "tme_subtype": "IE/F", "til_fraction": 0.57}
SECTIONS = report.format_sections([("nodule", ["left"]), ("cardiomegaly", [])])
# Each kind of answer as its parser reads it, and an answer of that kind.
PARSERS = {
    "class": (lambda text: answers.parse_answer(text, ["Tumor", "Stroma"]), "The answer is: Tumor"),
    "labels": (lambda text: multilabel.parse(text, LABELS), "Pneumonia; Pleural Effusion"),
    "count": (lambda text: quantity.parse(text, "counting"), "There are 13 cells."),
    "number": (lambda text: quantity.parse(text, "regression"), "33.3"),
    "caption": (report.parse, "X-ray showing healthy lungs."),
    "sections": (report.parse_sections, SECTIONS),
    "fields": (biomarkers.parse, biomarkers.format_target(RECORD)),
    **{
        codec: (lambda text, codec=codec: boxes.parse(text, SIZE, codec), boxes.format_target(BOXES, SIZE, codec))
        for codec in boxes.CODECS
    },
}
# What is thought names other answers of every kind.
THOUGHT = (
    'thought\nStroma? No Pneumonia, 7 or 8 of them. Answer: Stroma [1, 2, 30, 40] {"tme_subtype": "D"} FINDINGS:\n- x'
)
WRITTEN = {
    "a block": "<unused94>{thought}<unused95>{answer}",
    "a block with blanks": " <unused94>{thought}<unused95>\n\n{answer}<end_of_turn>\n",
    "two blocks": "<unused94>{thought}<unused95><unused94>{thought}<unused95>{answer}",
    "a block that was opened for the model": "{thought}<unused95>{answer}",
}


@pytest.mark.parametrize("kind", PARSERS)
@pytest.mark.parametrize("form", WRITTEN)
def test_an_answer_is_read_alike_with_and_without_thinking(kind, form):
    parse, answer = PARSERS[kind]
    expected = parse(answer)
    assert expected not in (None, "unparsed")
    assert parse(WRITTEN[form].format(thought=THOUGHT, answer=answer)) == expected


@pytest.mark.parametrize("kind", PARSERS)
def test_what_is_only_thought_is_no_answer(kind):
    parse, answer = PARSERS[kind]
    assert parse(f"<unused94>thought\n{answer}") in (None, "unparsed")


@pytest.mark.parametrize("marker", ["<unused94>", "<unused95>", "<end_of_turn>"])
def test_an_answer_to_learn_from_holds_no_thinking(marker, tmp_path):
    with pytest.raises(ValueError, match=f"the answer holds {marker}, expected the answer alone"):
        check_target(f"X-ray {marker} showing healthy lungs.")
    paint_patches(1)[0].save(tmp_path / "a.png")
    row = {"image": "a.png", "caption": f"{marker}thought: healthy lungs."}
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps([row]))
    entry = {"name": "xray", "source": str(tmp_path), "format": "captions"}
    with pytest.raises(ValueError, match=f"'xray', .*the answer holds {marker}"):
        load_patches(HistoArguments(datasets=[entry]))


def test_the_end_of_the_turn_ends_the_answer():
    assert strip_thinking("Tumor<end_of_turn>\n<start_of_turn>user") == "Tumor"


@pytest.fixture(scope="module", params=[False, True], ids=["markers_are_words", "markers_are_special"])
def thinker(request, tmp_path_factory):
    """The tiny model with MedGemma 1.5's two markers in its vocabulary, and their ids."""
    model, processor = load_tiny(tmp_path_factory.mktemp("thinker"))
    tokenizer = processor.tokenizer
    tokenizer.add_tokens(["<unused94>", "<unused95>"], special_tokens=request.param)
    markers = tokenizer.convert_tokens_to_ids(["<unused94>", "<unused95>"])
    if max(markers) >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(max(markers) + 1, mean_resizing=False)
    return model, processor, markers


def write(model, processor, script, limit):
    """Let the model write the tokens of `script`, whatever it is asked."""
    left = iter(script)

    def bend(module, args, output):
        logits = torch.full_like(output[:, -1:], -100.0)
        logits[..., next(left)] = 1.0
        return logits

    handle = model.lm_head.register_forward_hook(bend)
    try:
        return generate_answers(model, processor, paint_patches(1), QUESTIONS[:1], limit)
    finally:
        handle.remove()


@pytest.mark.model
def test_what_a_model_thinks_aloud_is_no_part_of_what_it_answers(thinker, caplog):
    model, processor, (opening, closing) = thinker
    tumor, stroma, end = processor.tokenizer.convert_tokens_to_ids(["▁Tumor", "▁Stroma", "<end_of_turn>"])
    assert write(model, processor, [opening, stroma, closing, tumor, end], 8) == [("Tumor", False)]
    assert write(model, processor, [opening, stroma, closing, tumor, tumor], 5) == [("Tumor Tumor", True)]
    assert write(model, processor, [tumor, end], 8) == [(" Tumor", False)]
    assert "thought" not in caplog.text
    with caplog.at_level(logging.WARNING):
        assert write(model, processor, [opening, stroma, stroma], 3) == [("", True)]
    assert "1 of 1 answers ended while the model still thought aloud" in caplog.text


@pytest.mark.model
def test_a_model_that_would_think_aloud_has_the_same_class_probabilities(thinker):
    model, processor, (opening, closing) = thinker
    patches, asked = paint_patches(3), [QUESTIONS[0]] * 3
    candidates = ["The answer is: Tumor", "The answer is: In Situ Carcinoma", "No", "Stroma"]
    plain, _ = label_log_likelihoods(model, processor, patches, asked, candidates)
    prompts = [encode_prompts(processor, [patch], [render_prompt(processor, asked[0])]) for patch in patches]
    with torch.no_grad():
        ends = torch.cat([model.model(**prompt).last_hidden_state[:, -1] for prompt in prompts])

    def think(module, args, output):
        """Where an answer begins, thinking aloud is all but sure."""
        begins = (args[0].unsqueeze(-2) - ends).abs().amax(-1).amin(-1) < 1e-3
        output[..., opening] += 20 * begins
        return output

    handle = model.lm_head.register_forward_hook(think)
    try:
        aloud, _ = label_log_likelihoods(model, processor, patches, asked, candidates)
        assert generate_answers(model, processor, patches, asked, 1) == [("", True)] * 3
    finally:
        handle.remove()
    # All candidates of a patch become less likely by the same factor.
    lost = plain - aloud
    assert lost.min() > 5 and lost.std(dim=1).max() < 1e-4
    assert np.abs(probabilities(aloud) - probabilities(plain)).max() < 1e-5
