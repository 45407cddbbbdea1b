"""Confidences come from the model's own tokens, and the truth only judges them."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from open_fixture import write_biomarkers
from scipy.special import log_softmax
from tiny_models import QUESTIONS, build_qwen2_vl, build_recurrent_llava, load_tiny, paint_patches

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.rows import load_audited_patches
from histolab_sft.evaluation import predictions
from histolab_sft.evaluation.field_confidences import score_confidences
from histolab_sft.evaluation.predictions import System, hash_weights, predict, predict_held_out
from histolab_sft.metrics.calibration import compute_ece, fit_temperature
from histolab_sft.models.generate import encode_prompts, render_prompt
from histolab_sft.models.likelihood import slot_log_probabilities
from histolab_sft.tasks.biomarkers import FIELDS, parse
from histolab_sft.tasks.parsing.field_places import find_places, list_options

ENTRY = {"name": "immunopath", "source": "data", "format": "biomarkers", "style": "training"}
TEXTS = [
    '{\n  "cd274_expression": "low",\n  "msi_status": "MSS",\n  "til_fraction": 0.570,\n  "tme_subtype": "IE/F"\n}',
    "Here: {'tme_subtype': 'F', 'msi_status': 'perhaps', 'cd8_infiltration': 'unknown'}",
    '{"immune_phenotype": "desert", "til_dens',
]
GRADE = {"name": "grade", "values": ["low", "high"]}


def weigh_by_hand(model, processor, pictures, question, alternatives):
    """Log-probabilities of the alternatives from one full forward pass each, over the prompt and the whole text."""
    prompt = render_prompt(processor, question, len(pictures))
    inputs = encode_prompts(processor, [pictures], [prompt])
    start, scores = inputs["input_ids"].shape[1], []
    for text, end in alternatives:
        whole = encode_prompts(processor, [pictures], [prompt + text])
        with torch.no_grad():
            log_probs = model(**whole).logits[0].double().log_softmax(-1)
        ids, score, position = whole["input_ids"][0], 0.0, start
        # Tokens up to the one with the closing quote
        while not processor.tokenizer.decode(ids[start:position]).startswith(text[:end]):
            score += log_probs[position - 1, ids[position]].item()
            position += 1
        scores.append(score)
    return log_softmax(scores)


def assert_weighed_like_by_hand(model, processor, counts, chunk=32):
    pictures = [paint_patches(count, seed) for seed, count in enumerate(counts)]
    questions = QUESTIONS[:3]
    places = [list(find_places(text, parse(text).values, FIELDS).values()) for text in TEXTS]
    assert [len(found) for found in places] == [3, 3, 1]
    weighed = slot_log_probabilities(model, processor, pictures, questions, places, chunk)
    for row, found in enumerate(places):
        for alternatives, scores in zip(found, weighed[row], strict=True):
            expected = weigh_by_hand(model, processor, pictures[row], questions[row], alternatives)
            assert np.abs(scores - expected).max() < 1e-5 and np.exp(scores).sum() == pytest.approx(1)
            assert np.exp(expected).std() > 1e-4


@pytest.mark.model
@pytest.mark.parametrize(("window", "chunk"), [(16, 32), (512, 2)])
def test_confidences_equal_full_forward_passes_with_several_pictures(tmp_path, window, chunk):
    assert_weighed_like_by_hand(*load_tiny(tmp_path, sliding_window=window), (2, 1, 3), chunk)


@pytest.mark.model
@pytest.mark.parametrize("build", [build_qwen2_vl, build_recurrent_llava])
def test_confidences_of_other_architectures_equal_full_forward_passes(build):
    assert_weighed_like_by_hand(*build(), (1, 1, 1))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What `predict` needs beside the rows, with the machine's cache in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_biomarkers(tmp_path, [ENTRY])
    histo_args = HistoArguments(
        datasets=[ENTRY], data_dir=str(tmp_path), max_new_tokens=160, constrained_decoding=True
    )
    rows = load_audited_patches(histo_args, tmp_path / "out")
    model, processor = load_tiny(tmp_path / "tiny")
    return rows, (System("baseline", model, processor, hash_weights(model), histo_args, 4), histo_args.datasets[0])


@pytest.mark.model
def test_another_truth_changes_nothing_that_the_model_says(asked, tmp_path, monkeypatch):
    rows, ask = asked
    validation, first = predict_held_out(rows["validation"], *ask), predict(rows["test"], *ask)
    assert len(validation) == 3 and (first["predicted"] != "null").all() and first["constrained"].all()
    for field in FIELDS:
        for text in first["log_confidences"] if "values" in field else ():
            assert len(json.loads(text)[field["name"]]) == len(list_options(field))

    other = [
        json.dumps(json.loads(text) | {"cd274_expression": "low", "msi_status": "MSI-H"}) for text in first["truth"]
    ]
    changed = rows["test"].remove_columns("answer").add_column("answer", other)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other_cache"))
    second = predict(changed, *ask)
    assert (first["truth"] != second["truth"]).all()
    pd.testing.assert_frame_equal(first.drop(columns="truth"), second.drop(columns="truth"))


@pytest.mark.model
def test_answers_and_confidences_are_kept_and_free_ones_are_others(asked, monkeypatch):
    rows, ask = asked
    first = predict(rows["test"], *ask)
    monkeypatch.setattr(predictions, "generate_answers", None)
    monkeypatch.setattr(predictions, "slot_log_probabilities", None)
    pd.testing.assert_frame_equal(predict(rows["test"], *ask), first)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(ask[0].histo_args.data_dir) + "/cache")
    ask[0].histo_args.constrained_decoding = False
    free = predict(rows["test"], *ask)
    assert (free["answer"] != first["answer"]).all() and not free["constrained"].any()
    assert set(free["log_confidences"]) == {"{}"} and set(free["predicted"]) == {"null"}


@pytest.mark.parametrize(("task", "fitted"), [("report", 0), ("boxes", 0), ("biomarkers", 1)])
def test_only_tasks_with_fields_pay_for_validation(task, fitted, monkeypatch):
    asked = []
    monkeypatch.setattr(predictions, "predict", lambda rows, *_, **__: asked.append(rows) or rows)
    rows, config = Dataset.from_dict({"task": [task]}), DatasetConfig("x", "x", format="questions", task=task)
    assert predict_held_out(rows, None, config) is (rows if fitted else None) and len(asked) == fitted


def draw_table(seed, n=40, n_without=3):
    """Answers to `n` questions, of which the first few don't give the field and the last one's truth is unknown."""
    rng = np.random.default_rng(seed)
    scores = log_softmax(rng.normal(size=(n, 3)) * 4, axis=1)
    truths = [["low", "high"][i] for i in rng.integers(0, 2, n)]
    truths[-1] = "unknown"
    return pd.DataFrame(
        {
            "truth": [json.dumps({"grade": truth}) for truth in truths],
            "log_confidences": [
                json.dumps({} if row < n_without else {"grade": list(values)}) for row, values in enumerate(scores)
            ],
        }
    )


def read_table(table):
    rows = [
        (json.loads(c), json.loads(t)["grade"]) for c, t in zip(table["log_confidences"], table["truth"], strict=True)
    ]
    kept = [(c["grade"], ["low", "high"].index(t)) for c, t in rows if c and t != "unknown"]
    return np.array([scores for scores, _ in kept]), np.array([gold for _, gold in kept])


def test_the_temperature_is_fitted_on_validation_alone():
    validation = draw_table(1)
    found = [score_confidences(draw_table(seed), validation, GRADE) for seed in (2, 3)]
    expected = fit_temperature(*read_table(validation)) | {"n": 36}
    assert found[0]["temperature"] == found[1]["temperature"] == expected
    assert found[0]["ece"] != found[1]["ece"] and found[0]["ece"] != found[0]["ece_calibrated"]
    assert score_confidences(draw_table(2), draw_table(4), GRADE)["temperature"] != expected


def test_scores_are_those_of_the_rows_that_have_a_truth_and_a_confidence():
    table = draw_table(5)
    scores, gold = read_table(table)
    found = score_confidences(table, draw_table(1), GRADE)
    assert (found["n"], found["n_without"]) == (36, 3)
    assert found["ece"]["value"] == compute_ece(np.exp(scores), gold)
    assert sum(part["n"] for part in found["reliability"]) == 36


def test_a_field_that_no_answer_gives_has_a_reason_and_no_score():
    silent = draw_table(5, n_without=40)
    assert set(score_confidences(silent, draw_table(1), GRADE)) == {"n", "n_without", "reason"}
    for validation in (silent, None):
        found = score_confidences(draw_table(1), validation, GRADE)
        assert found["temperature"] is None and "validation" in found["temperature_reason"] and "ece" in found
        assert "ece_calibrated" not in found
