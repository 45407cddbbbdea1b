"""Answers that can't be anything but the JSON of their fields."""

import json
import sys

import pytest
import yaml
from recipe_args import BASE
from tiny_models import QUESTIONS, load_tiny, paint_patches

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.metrics.biomarkers import compute_biomarkers
from histolab_sft.models.constrained_decoding import compile_grammar
from histolab_sft.models.generate import generate_answers
from histolab_sft.tasks.biomarkers import FIELDS, format_target, parse
from histolab_sft.tasks.parsing.field_grammar import format_grammar

OWN = [
    {"name": "Größe (mm)", "range": [-5, 250], "decimals": 1},
    {"name": "grade", "values": ["G1", 'G2 "low"', "G2/G3"]},
]


def write_recipe(folder, **keys):
    entry = {"name": "x", "source": "x", "format": "biomarkers", "style": "generic"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE | {"datasets": [entry], "constrained_decoding": True} | keys))
    return ["--config", str(path)]


@pytest.mark.model
@pytest.mark.parametrize("fields", [FIELDS, OWN], ids=["immunopath", "own"])
def test_an_untrained_model_gives_whole_legal_answers_and_free_it_gives_none(tmp_path, fields):
    values = []
    for seed in (0, 1):
        model, processor = load_tiny(tmp_path / str(seed), seed)
        arguments = (model, processor, [paint_patches(2), *paint_patches(3)], QUESTIONS[:1] * 4)
        limits = compile_grammar(format_grammar(fields), model, processor)
        answers = generate_answers(*arguments, max_new_tokens=200, batch_size=3, limits=limits)
        assert not any(cut_off for _, cut_off in answers)
        read = [parse(text, fields).values for text, _ in answers]
        rates = compute_biomarkers([{}] * 4, read, [{}], fields)
        assert (rates["json_rate"], rates["schema_rate"], rates["value_rate"], rates["unparsed_rate"]) == (1, 1, 1, 0)
        # In the very form of the target
        assert [text for text, _ in answers] == [format_target(answer, fields) for answer in read]
        assert all(parse(text, fields) is None for text, _ in generate_answers(*arguments, max_new_tokens=30))
        values += [json.dumps(answer) for answer in read]
    assert len(set(values)) > 1


@pytest.mark.model
def test_rows_that_end_at_different_times_and_answers_cut_off_are_as_they_are_alone(tmp_path):
    model, processor = load_tiny(tmp_path)
    # Long for some rows, short for others, by what the model happens to like.
    grammar = 'start: "a" ("b" | "c") /[a-z]{0,12}/'
    limits = compile_grammar(grammar, model, processor)
    patches, questions = paint_patches(4), [QUESTIONS[i % 3] for i in range(4)]
    alone = [
        generate_answers(model, processor, [patch], [question], 8, limits=limits)[0]
        for patch, question in zip(patches, questions, strict=True)
    ]
    assert generate_answers(model, processor, patches, questions, 8, 4, limits) == alone
    assert all(text[0] == "a" and (len(text) == 1 or text[1] in "bc") for text, _ in alone)


@pytest.mark.model
def test_a_grammar_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="change the names or values"):
        compile_grammar("start: (", *load_tiny(tmp_path))


def test_a_recipe_for_json_answers_may_constrain_them(tmp_path):
    assert parse_recipe(write_recipe(tmp_path))[0].constrained_decoding


def test_a_recipe_with_an_answer_without_a_form_is_refused(tmp_path):
    entries = [
        {"name": "x", "source": "x", "format": "biomarkers"},
        {"name": "y", "source": "y", "format": "captions"},
    ]
    with pytest.raises(ValueError, match="only data sets with format: biomarkers have"):
        parse_recipe(write_recipe(tmp_path, datasets=entries))


def test_without_the_library_the_recipe_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError, match="pip install histolab_sft\\[constrained\\]"):
        parse_recipe(write_recipe(tmp_path))
    assert not parse_recipe(write_recipe(tmp_path, constrained_decoding=False))[0].constrained_decoding
