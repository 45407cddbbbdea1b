"""What hangs on wording, order and picture quality: variants asked of real rows, and scores against worked numbers."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import CRC_CLASSES, PCAM_CLASSES, write_class_folders
from saved_adapters import save_adapter
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments, parse_recipe
from histolab_sft.data.rows import load_audited_patches, select_datasets
from histolab_sft.evaluation.figures import draw_change
from histolab_sft.evaluation.linear_probe import encode_pictures, measure_linear_probe
from histolab_sft.evaluation.perturbations import STRENGTHS
from histolab_sft.evaluation.predictions import System, hash_weights
from histolab_sft.evaluation.sensitivity import (
    AS_IT_IS,
    build_variants,
    list_orders,
    list_questions,
    list_sides,
    predict_sides,
    predict_variants,
    score_sensitivity,
)
from histolab_sft.tasks import classification

CHANGED = sum(len(strengths) - 1 for strengths in STRENGTHS.values())


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Arguments and test rows of two classes, 12 patches each in train and 4 in the others, with their slides."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_class_folders(tmp_path / "data" / "ward", PCAM_CLASSES, per_class=20, slides=10)
    entry = {"name": "ward", "source": "data/ward", "class_names": PCAM_CLASSES, "group_by": r"-(S\d+)-"}
    histo_args = HistoArguments(
        datasets=[entry],
        data_dir=str(tmp_path),
        validation_fraction=0.2,
        test_fraction=0.4,
        sensitivity="all",
        sensitivity_samples=12,
    )
    return histo_args, load_audited_patches(histo_args, tmp_path / "out")


def answer_variants(rows, classes, choose, **columns):
    """A table of `predict_variants` whose system answers `choose(row)` for each row of the table of the variants."""
    table = rows.with_format(None).select_columns(["id", "dataset", "group", "label", "variant"]).to_pandas()
    answers = [choose(row) for row in table.itertuples()]
    scores = [[0.0 if name == answer else -5.0 for name in classes] for answer in answers]
    return table.assign(log_likelihoods=scores, **columns)


def test_orders_are_permutations_and_begin_with_the_recipes_own():
    for options in (list("AB"), list("ABC"), list("ABCDEFGHI")):
        orders = list_orders(options)
        assert orders[:2] == [options, options[::-1]]
        assert len(orders) == len({tuple(order) for order in orders}) == (2 if len(options) == 2 else 5)
        assert all(sorted(order) == options for order in orders)


def test_every_wording_lists_all_classes():
    options = list(CRC_CLASSES.values())
    wordings = classification.format_paraphrases(options)
    assert len(set(wordings)) == len(wordings) >= 3
    assert all(", ".join(options) in text and "{" not in text for text in wordings)


def test_the_same_balanced_patches_are_asked_under_every_variant(recipe):
    histo_args, patches = recipe
    config = histo_args.datasets[0]
    test = select_datasets(patches["test"], "ward")
    table = build_variants(test, config, histo_args).with_format(None).to_pandas()
    ids = table.groupby("variant")["id"].agg(list)
    assert len(ids) == 1 + len(list_questions(config, histo_args)) + CHANGED
    assert all(variant_ids == ids[AS_IT_IS] for variant_ids in ids)
    assert table[table["variant"] == AS_IT_IS]["label"].value_counts().to_dict() == {"Normal": 6, "Tumor": 6}
    # What the cache of predictions tells rows apart by: no two are alike.
    keys = table["pixel_sha256"].str[0] + [prompt[0]["content"] for prompt in table["prompt"]]
    assert keys.is_unique


@pytest.mark.slow
def test_pictures_are_left_alone_by_prompts_and_changed_by_changes(recipe):
    histo_args, patches = recipe
    rows = build_variants(select_datasets(patches["test"], "ward"), histo_args.datasets[0], histo_args)
    names = rows.with_format(None)["variant"]
    first = {name: np.asarray(rows[names.index(name)]["images"][0]) for name in dict.fromkeys(names)}
    original = np.asarray(select_datasets(patches["test"], "ward")[0]["images"][0])
    assert (first[AS_IT_IS] == original).all()
    for name, pixels in first.items():
        touched = name.split(":")[0] in STRENGTHS
        assert (pixels != original).any() == touched, name


def test_prompt_sensitivity_alone_changes_no_picture(recipe):
    histo_args, patches = recipe
    histo_args.sensitivity = "prompt"
    rows = build_variants(select_datasets(patches["test"], "ward"), histo_args.datasets[0], histo_args)
    kinds = {name.split(":")[0] for name in rows.with_format(None)["variant"]}
    assert kinds == {AS_IT_IS, "paraphrase", "order"}


def test_too_few_samples_for_the_classes_are_refused_with_a_way_out(recipe):
    histo_args, patches = recipe
    histo_args.sensitivity_samples = 1
    with pytest.raises(ValueError, match="sensitivity_samples is 1, expected .* 2 classes of ward; raise it"):
        build_variants(select_datasets(patches["test"], "ward"), histo_args.datasets[0], histo_args)


def test_curves_spread_and_position_bias_follow_from_the_answers(recipe):
    histo_args, patches = recipe
    config = histo_args.datasets[0]
    rows = build_variants(select_datasets(patches["test"], "ward"), config, histo_args)
    classes = ["Normal", "Tumor"]

    def choose_first(row):
        """Names whichever class is listed first, and Normal once the picture is blurred or the words are others."""
        return "Tumor" if row.variant == "order:1" else "Normal"

    def choose_right_unless_blurred(row):
        return "Normal" if row.variant == "blur:3" else row.label

    tables = {
        "baseline": answer_variants(rows, classes, choose_first),
        "finetuned": answer_variants(rows, classes, choose_right_unless_blurred),
    }
    scores = score_sensitivity(config, histo_args, tables, {"headline": "raw"})

    assert (scores["n"], scores["unit"]) == (12, "group")
    assert scores["positions"]["baseline"]["chosen"] == [1.0, 0.0]
    assert scores["positions"]["baseline"]["right"] == [0.5, 0.5]
    assert scores["positions"]["baseline"]["bias"][0]["value"] == pytest.approx(0.5)
    assert [bias["value"] for bias in scores["positions"]["finetuned"]["bias"]] == [0.0, 0.0]
    assert scores["orders"]["spread"] == {"baseline": 0.0, "finetuned": 0.0}
    assert scores["orders"]["variants"][1]["order"] == ["Tumor", "Normal"]
    assert scores["paraphrases"]["variants"][0]["question"] == rows.with_format(None)["prompt"][0][0]["content"]
    curve = scores["robustness"]["blur"]
    assert [score["value"] for score in curve["finetuned"]] == [1.0, 1.0, 1.0, 0.5]
    assert [score["value"] for score in curve["baseline"]] == [0.5] * 4
    assert curve["strengths"] == list(STRENGTHS["blur"])
    stain = scores["robustness"]["stain"]["finetuned"]
    assert all(score["value"] == 1.0 and "ci95" in score for score in stain)


def test_other_sides_are_a_curve_with_the_adapters_own_among_them(recipe):
    histo_args, patches = recipe
    histo_args.sensitivity = "prompt"
    config = histo_args.datasets[0]
    rows = build_variants(select_datasets(patches["test"], "ward"), config, histo_args)
    own = answer_variants(rows, ["Normal", "Tumor"], lambda row: row.label)
    plain = own[own["variant"] == AS_IT_IS]
    wrong = plain.assign(variant="side:96", log_likelihoods=[[0.0, -5.0]] * len(plain))
    table = pd.concat([own, plain.assign(variant="side:32"), wrong], ignore_index=True)
    scores = score_sensitivity(config, histo_args, {"baseline": own, "finetuned": own}, {"headline": "raw"})
    assert scores["robustness"] == {}
    tables = {"baseline": table, "finetuned": table}
    curve = score_sensitivity(config, histo_args, tables, {"headline": "raw"}, 64)["robustness"]["side"]
    assert (curve["strengths"], curve["unchanged"]) == ([32, 64, 96], 64)
    assert [score["value"] for score in curve["finetuned"]] == [1.0, 1.0, 0.5]
    alt = "side of the pictures"
    assert alt in draw_change("side", curve, ["baseline", "finetuned"]).axes[0].get_xlabel()


def test_the_spread_is_the_largest_score_minus_the_smallest(recipe):
    histo_args, patches = recipe
    config = histo_args.datasets[0]
    rows = build_variants(select_datasets(patches["test"], "ward"), config, histo_args)
    table = answer_variants(
        rows, ["Normal", "Tumor"], lambda row: "Tumor" if row.variant == "paraphrase:2" else row.label
    )
    scores = score_sensitivity(config, histo_args, {"baseline": table, "finetuned": table}, {"headline": "raw"})
    assert scores["paraphrases"]["spread"] == {"baseline": 0.5, "finetuned": 0.5}


@pytest.mark.model
def test_a_model_answers_every_variant_and_a_second_call_gives_the_same_answers(recipe, untrained_model):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    histo_args, patches = recipe
    config = histo_args.datasets[0]
    model = AutoModelForImageTextToText.from_pretrained(untrained_model).eval()
    processor = AutoProcessor.from_pretrained(untrained_model)
    test = select_datasets(patches["test"], "ward")
    ask = (test, System("baseline", model, processor, hash_weights(model), histo_args, 16), config)
    first, second = predict_variants(*ask), predict_variants(*ask)
    pd.testing.assert_frame_equal(first, second)
    scores = np.stack(first["log_likelihoods"])
    assert np.isfinite(scores).all()
    plain = scores[first["variant"] == AS_IT_IS]
    assert all((scores[first["variant"] == name] != plain).any() for name in first["variant"].unique()[1:])


@pytest.mark.model
def test_the_linear_probe_reads_what_the_language_model_is_given(recipe, untrained_model, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    histo_args, patches = recipe
    model = AutoModelForImageTextToText.from_pretrained(untrained_model).eval()
    processor = AutoProcessor.from_pretrained(untrained_model)
    system = System("baseline", model, processor, hash_weights(model), histo_args, 5)
    features = encode_pictures(patches["test"], system)
    assert features.shape == (len(patches["test"]), model.config.text_config.hidden_size)
    np.testing.assert_allclose(
        encode_pictures(patches["test"].select([3]), replace(system, batch_size=1))[0], features[3], atol=1e-5
    )
    kept = sorted((tmp_path / "cache" / "histolab_sft" / "features").iterdir())
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in kept]
    probe = measure_linear_probe(patches, replace(system, batch_size=8), histo_args.datasets[0])
    assert len(probe["predictions"]) == len(patches["test"])
    assert probe["probabilities"].shape == (len(patches["test"]), 2)
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in kept] == before


@pytest.mark.model
def test_one_adapter_is_scored_at_other_sides_with_as_many_tokens(recipe, untrained_model, tmp_path):
    histo_args, patches = recipe
    model_args = save_adapter(untrained_model, tmp_path / "out", 32, 4)
    histo_args.sensitivity_sides = [64, 32, 96]
    compared = list_sides(histo_args, model_args)
    assert [(args.image_side, args.image_tokens) for args in compared] == [(64, 4), (96, 4)]
    training_args = SFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, per_device_eval_batch_size=16)
    rows = {"ward": select_datasets(patches["test"], "ward")}
    tables = predict_sides(rows, histo_args, training_args, model_args)
    scores = {}
    for system in ("baseline", "finetuned"):
        table = tables["ward", system]
        assert table["variant"].value_counts().to_dict() == {"side:64": 12, "side:96": 12}
        scores |= {(system, name): np.stack(part["log_likelihoods"]) for name, part in table.groupby("variant")}
    # The same patches in the same order, so that scores can be paired; and four different answers to each.
    names = table.groupby("variant")["id"].agg(list)
    chosen = build_variants(rows["ward"], histo_args.datasets[0], histo_args).with_format(None).to_pandas()
    assert all(ids == chosen.loc[chosen["variant"] == AS_IT_IS, "id"].tolist() for ids in names)
    values = list(scores.values())
    assert all((one != other).any() for place, one in enumerate(values) for other in values[:place])
    for sides, message in (([65], "expected a multiple of the 8"), ([24], "image_tokens is 4 at an image_side of 24")):
        histo_args.sensitivity_sides = sides
        with pytest.raises(ValueError, match=message):
            list_sides(histo_args, model_args)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sensitivity": "none"}, "sensitivity_sides asks about the patches of sensitivity, which is none"),
        ({"sensitivity": "prompt", "use_peft": False}, "compares one adapter"),
        ({"sensitivity": "prompt", "train_vision": True}, "with a trained vision tower"),
    ],
)
def test_sides_that_can_not_be_compared_are_refused(keys, message):
    keys = {"use_peft": True} | keys
    datasets = json.dumps([{"name": "ward", "source": "ward", "class_names": PCAM_CLASSES}])
    flags = [text for key, value in keys.items() for text in (f"--{key}", str(value))]
    flags += ["--lora_target_modules", "q_proj", "v_proj", "--sensitivity_sides", "448", "672"]
    with pytest.raises(ValueError, match=message):
        parse_recipe(["--datasets", datasets, "--use_cpu", "true", "--bf16", "false", *flags])
