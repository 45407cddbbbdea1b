"""Both systems are asked in the same way; answers are kept, reused and never mixed up."""

import logging

import pandas as pd
import pytest
import torch
from conftest import PCAM_CLASSES, write_class_folders
from transformers import AutoModelForImageTextToText

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.rows import load_audited_patches
from histolab_sft.evaluation import answer_cache, predictions
from histolab_sft.evaluation.predictions import System, hash_weights, predict, write_predictions
from histolab_sft.models import generate
from histolab_sft.models.load import load_processor
from histolab_sft.models.precision import Precision, set_precision

pytestmark = pytest.mark.model


@pytest.fixture
def asked(tmp_path, untrained_model, monkeypatch):
    """What `predict` needs, with the machine's cache in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_class_folders(tmp_path / "pcam", PCAM_CLASSES, per_class=20)
    histo_args = HistoArguments(
        datasets=[{"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES}],
        data_dir=str(tmp_path),
        max_new_tokens=3,
    )
    rows = load_audited_patches(histo_args, tmp_path / "out")["train"]
    model = AutoModelForImageTextToText.from_pretrained(untrained_model).eval()
    processor = load_processor(str(untrained_model))
    return rows, model, processor, histo_args


def ask(asked, rows=None, model=None, **keys):
    patches, base, processor, histo_args = asked
    model = model or base
    config = histo_args.datasets[0]
    system = System("baseline", model, processor, hash_weights(model), histo_args, 8)
    return predict(rows or patches, system, config, **keys)


def test_each_patch_has_an_answer_and_the_likelihood_of_each_class(asked):
    table = ask(asked)
    assert len(table) == len(asked[0]) and table["id"].is_unique
    assert all(len(scores) == 2 for scores in table["log_likelihoods"])
    assert set(table["generated"]) <= {"Normal", "Tumor", "unparsed"} and table["truncated"].dtype == bool


def test_a_second_call_asks_nothing_and_gives_the_same(asked, monkeypatch):
    first = ask(asked)
    monkeypatch.setattr(predictions, "score_parts", None)
    pd.testing.assert_frame_equal(ask(asked), first)


def test_other_weights_are_asked_again(asked):
    first = ask(asked, generate=False)
    _, model, _, _ = asked
    with torch.no_grad():
        next(model.get_decoder().parameters()).mul_(1.5)
    second = ask(asked, generate=False)
    assert any((a != b).any() for a, b in zip(first["log_likelihoods"], second["log_likelihoods"], strict=True))


@pytest.mark.parametrize("change", ["autocast", "tokenizer", "generation", "attention", "scale"])
def test_what_weights_do_not_show_is_asked_again(asked, monkeypatch, change):
    ask(asked, generate=False)
    _, model, processor, _ = asked
    if change == "autocast":
        set_precision(model, Precision(autocast="bfloat16"))
    elif change == "tokenizer":
        processor.tokenizer.add_tokens(["Tumor"])
    elif change == "generation":
        model.generation_config.repetition_penalty = 1.5
    elif change == "attention":
        model.set_attn_implementation("eager")
    else:
        model.config.text_config.query_pre_attn_scalar = 7
    monkeypatch.setattr(predictions, "score_parts", None)
    with pytest.raises(TypeError):
        ask(asked, generate=False)


def test_a_call_that_was_cut_off_goes_on_where_it_stood(asked, monkeypatch):
    expected = ask(asked, generate=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(asked[3].data_dir) + "/other")
    monkeypatch.setattr(answer_cache, "CHUNK", 8)
    real, calls = predictions.score_parts, []

    def interrupted(*args):
        for part, found in zip(args[5], real(*args), strict=True):
            calls.append(len(part))
            if len(calls) == 3:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(predictions, "score_parts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(asked, generate=False)
    resumed = ask(asked, generate=False)
    assert calls == [8, 8, 8, 8, len(expected) - 24]
    for before, after in zip(expected["log_likelihoods"], resumed["log_likelihoods"], strict=True):
        assert before == pytest.approx(after, abs=1e-4)


def test_all_parts_of_a_data_set_share_one_loader_and_one_decision_on_compiled_layers(asked, monkeypatch, caplog):
    monkeypatch.setattr(answer_cache, "CHUNK", 8)
    caplog.set_level(logging.INFO)
    prepare_ahead, loaders = generate.prepare_ahead, []
    monkeypatch.setattr(generate, "prepare_ahead", lambda *given: [loaders.append(given), prepare_ahead(*given)][1])
    table = ask(asked, generate=False)
    [(_, batches, pictures)] = loaders
    assert [len(batch) for batch in batches] == [8, 8, 8, 4] and pictures == len(table) == 28
    assert caplog.text.count("compiled layers: not used") == 1 and caplog.text.count("28 patches scored") == 4
    ask(asked, generate=False)
    assert len(loaders) == 1 and caplog.text.count("compiled layers") == 1


def test_written_predictions_hold_no_file_name(asked, tmp_path):
    table = ask(asked)
    write_predictions({("pcam", "baseline"): table}, tmp_path / "evaluation")
    written = pd.read_parquet(tmp_path / "evaluation" / "predictions.parquet")
    assert set(written["system"]) == {"baseline"} and written["id"].is_unique
    assert not any(".png" in str(value) for value in written.astype(str).to_numpy().ravel())
