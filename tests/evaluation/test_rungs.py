"""Frozen encoders, nearest neighbours and a small network in the ladder: what they read, choose, keep and say."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import PCAM_CLASSES, write_class_folders
from fabricated_evaluation import draw_features, fabricate_evaluation, list_synthetic_datasets
from html_page import Page
from PIL import Image
from tiny_encoders import ENCODERS, save_classifier, save_encoder
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.rows import load_audited_patches
from histolab_sft.embedded.synthetic import write_synthetic_patches
from histolab_sft.evaluation import cnn, rungs
from histolab_sft.evaluation.asked import Asked
from histolab_sft.evaluation.cnn import count_epochs, load_cnn, measure_cnn, plan_epochs
from histolab_sft.evaluation.floors import compute_linear_probe
from histolab_sft.evaluation.html_report import write_report
from histolab_sft.evaluation.neighbours import compute_neighbours
from histolab_sft.evaluation.report_tables import list_rungs
from histolab_sft.evaluation.rung_tables import describe_rungs, name_rung, say_rungs
from histolab_sft.evaluation.rungs import check_rungs, measure_rungs
from histolab_sft.evaluation.verdict import judge_dataset
from histolab_sft.hub_access import HubAccessError
from histolab_sft.models import image_encoders
from histolab_sft.models.image_encoders import EncoderError, encode_rows, load_encoder, name_encoders

CPU = "cpu"
CLASSES = ["Normal", "Tumor"]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Rows of noise patches of two classes, 24 in train, 8 in each of the others, with a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_class_folders(tmp_path / "ward", PCAM_CLASSES, per_class=20, slides=10)
    entry = {"name": "ward", "source": "ward", "class_names": PCAM_CLASSES, "group_by": r"-(S\d+)-"}
    arguments = HistoArguments(
        datasets=[entry], data_dir=str(tmp_path), validation_fraction=0.2, test_fraction=0.2, augmentation="symmetries"
    )
    return arguments, load_audited_patches(arguments, tmp_path / "out")


def train_on_cpu(folder, **keys):
    return SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, per_device_eval_batch_size=8, **keys)


# Neighbours


def draw_classes(n, seed=0, noise=0.05, n_classes=3):
    rng = np.random.default_rng(seed)
    codes = rng.integers(n_classes, size=n)
    names = np.array([f"class {code}" for code in range(n_classes)])
    return np.eye(n_classes)[codes] * rng.uniform(1, 100, (n, 1)) + rng.normal(0, noise, (n, n_classes)), names[codes]


def test_neighbours_are_near_in_angle_whatever_the_length_of_a_feature():
    parts = {split: draw_classes(n, seed) for seed, (split, n) in enumerate(SIZES.items())}
    features, labels = ({split: part[i] for split, part in parts.items()} for i in (0, 1))
    found = compute_neighbours(features, labels, ["class 0", "class 1", "class 2"])
    assert found["accuracy"] == 1 and found["fitted"]["n_neighbours"] in (1, 3, 5, 10, 20, 50)
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1)
    longer = compute_neighbours({split: 1000 * part for split, part in features.items()}, labels, found_classes(3))
    np.testing.assert_allclose(longer["probabilities"], found["probabilities"], atol=1e-6)


SIZES = {"train": 60, "validation": 30, "test": 40}


def found_classes(n):
    return [f"class {code}" for code in range(n)]


def test_the_number_of_neighbours_is_chosen_on_validation_alone():
    parts = {split: draw_classes(n, seed, noise=60) for seed, (split, n) in enumerate(SIZES.items())}
    features, labels = ({split: part[i] for split, part in parts.items()} for i in (0, 1))
    chosen = compute_neighbours(features, labels, found_classes(3))
    other = labels | {"test": np.roll(labels["test"], 1)}
    assert compute_neighbours(features, other, found_classes(3))["fitted"] == chosen["fitted"]
    # Validation patches that are train patches have themselves for the nearest.
    same = {key: part | {"validation": part["train"]} for key, part in (("f", features), ("l", labels))}
    assert compute_neighbours(same["f"], same["l"], found_classes(3))["fitted"] == {"n_neighbours": 1}


# Encoders


@pytest.mark.model
@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_gives_its_class_token_and_the_mean_of_its_patches(kind, rows, tmp_path):
    encoder = load_encoder(save_encoder(tmp_path / kind, kind), CPU)
    features = encode_rows(rows[1]["test"], encoder, 3)
    assert features.shape == (len(rows[1]["test"]), ENCODERS[kind][1]) and np.isfinite(features).all()
    pictures = [images[0].convert("RGB") for images in rows[1]["test"]["images"]]
    pixels = encoder.processor(pictures, return_tensors="pt")["pixel_values"]
    hidden = encoder.model(pixel_values=pixels).last_hidden_state.numpy()
    if kind in ("dinov2", "vit", "clip"):
        # The class token first; registers belong to neither half.
        first = 3 if kind == "dinov2" else 1
        expected = np.concatenate([hidden[:, 0], hidden[:, first:].mean(axis=1)], axis=1)
    else:
        expected = hidden.mean(axis=(2, 3) if kind == "resnet" else 1)
    np.testing.assert_allclose(features, expected, atol=1e-5)


@pytest.mark.model
def test_an_encoding_that_was_cut_off_goes_on_and_no_picture_is_encoded_twice(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(image_encoders, "SHARD", 4)
    folder, train = save_encoder(tmp_path / "vit", "vit"), rows[1]["train"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "whole"))
    whole = encode_rows(train, load_encoder(folder, CPU), 2)
    encoded = []

    def count(pictures, **options):
        encoded.extend(pictures)
        if len(encoded) == 11:
            raise OSError("the disk is gone")
        return encoder.processor(pictures, **options)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "broken"))
    encoder = load_encoder(folder, CPU)
    counting = replace(encoder, processor=count)
    with pytest.raises(OSError, match="the disk is gone"):
        encode_rows(train, counting, 1)
    assert len(encoded) == 11
    found = encode_rows(train, counting, 2)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert len(encoded) == len(train) + 11 - 8  # two shards of four were kept
    encode_rows(train.select([5, 3, 3]), counting, 2)
    assert len(encoded) == len(train) + 11 - 8
    other = load_encoder(save_encoder(tmp_path / "other", "vit", seed=1), CPU)
    assert other.fingerprint != encoder.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            EncoderError,
            "has no preprocessor_config.json",
        ),
        (lambda folder: (folder / "config.json").unlink(), HubAccessError, "^encoders .* folder without config.json"),
        (lambda folder: shutil.rmtree(folder), HubAccessError, "^encoders .* neither a folder nor the form of an id"),
    ],
)
def test_an_encoder_that_cannot_be_had_is_refused_before_anything_is_scored(change, kind, message, rows, tmp_path):
    save_encoder(tmp_path / "vit", "vit")
    change(tmp_path / "vit")
    arguments = replace_keys(rows[0], encoders=[str(tmp_path / "vit")])
    with pytest.raises(kind, match=message):
        check_rungs(arguments)


def test_a_model_of_timm_says_what_to_install(tmp_path):
    (tmp_path / "uni").mkdir()
    config = {"architecture": "vit_giant_patch14_224", "num_classes": 0, "pretrained_cfg": {"num_classes": 0}}
    (tmp_path / "uni" / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="needs timm and torchvision; run `pip install timm torchvision`"):
        image_encoders.check_image_model(str(tmp_path / "uni"), "encoders")


def test_an_encoder_on_the_hub_that_is_not_in_the_cache_says_how_to_fetch_it(tmp_path):
    with pytest.raises(HubAccessError, match="facebook/dinov2-base isn't in the cache whole"):
        image_encoders.check_image_model("facebook/dinov2-base", "encoders")


@pytest.mark.model
def test_a_language_model_is_no_encoder_of_pictures(tmp_path):
    from transformers import AutoModel, LlamaConfig

    save_encoder(tmp_path / "vit", "vit")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    AutoModel.from_config(LlamaConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path / "llama")
    shutil.copy(tmp_path / "vit" / "preprocessor_config.json", tmp_path / "llama")
    with pytest.raises(EncoderError, match="is a LlamaModel, expected an encoder that takes pictures alone"):
        load_encoder(str(tmp_path / "llama"), CPU)


def test_encoders_go_by_as_much_of_their_names_as_tells_them_apart():
    assert name_encoders(["facebook/dinov2-base", "kaiko-ai/midnight"]) == {
        "dinov2-base": "facebook/dinov2-base",
        "midnight": "kaiko-ai/midnight",
    }
    assert list(name_encoders(["one/vit", "other/vit"])) == ["one/vit", "other/vit"]
    assert name_encoders([]) == {}


def replace_keys(arguments, **keys):
    for key, value in keys.items():
        setattr(arguments, key, value)
    return arguments


# The network


@pytest.mark.parametrize(
    ("keys", "phases", "expected"),
    [
        ({"num_train_epochs": 2.5}, None, (2.5, 2.5)),
        ({"max_steps": 10, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, None, (0.2, 0.2)),
        (
            {"num_train_epochs": 2},
            [{"name": "a", "train": ["language"], "datasets": ["ward"]}, {"name": "b", "train": ["language"]}],
            (4, 2),
        ),
        (
            {"num_train_epochs": 2, "per_device_train_batch_size": 10},
            [{"name": "a", "train": ["language"], "datasets": ["other"], "max_steps": 15}],
            (0, 0.5),
        ),
    ],
)
def test_the_network_sees_as_many_samples_as_the_recipe_trains_on(keys, phases, expected, tmp_path):
    datasets = [{"name": name, "source": name, "class_names": PCAM_CLASSES} for name in ("ward", "other")]
    arguments = HistoArguments(datasets=datasets, phases=phases)
    training = train_on_cpu(tmp_path, **keys)
    counts = {"ward": 100, "other": 300}
    assert tuple(count_epochs(name, counts, arguments, training) for name in counts) == expected


def test_an_epoch_holds_each_row_once_and_a_balanced_one_the_classes_equally_often():
    labels = np.array(["Normal"] * 18 + ["Tumor"] * 2)
    orders = plan_epochs(labels, 2.25, False, 1)
    assert [len(order) for order in orders] == [20, 20, 5]
    assert all(sorted(order) == list(range(20)) for order in orders[:2]) and (orders[0] != orders[1]).any()
    balanced = plan_epochs(labels, 1, True, 1)[0]
    assert len(balanced) == 20 and (labels[balanced] == "Tumor").sum() == 10
    assert all((one == other).all() for one, other in zip(orders, plan_epochs(labels, 2.25, False, 1), strict=True))


@pytest.mark.model
def test_a_network_from_a_folder_is_trained_once_and_says_the_same_when_it_is_asked_again(rows, tmp_path, monkeypatch):
    arguments, patches = rows
    replace_keys(arguments, cnn=save_classifier(tmp_path / "net"))
    config, training = arguments.datasets[0], train_on_cpu(tmp_path / "out", seed=3)
    patches = dict(patches)
    ask = patches, config, 3, arguments, training
    first = measure_cnn(*ask)
    assert first["fitted"]["samples_seen"] == 3 * len(patches["train"]) and 1 <= first["fitted"]["epoch"] <= 3
    assert first["probabilities"].shape == (len(patches["test"]), 2)
    [kept] = (tmp_path / "cache" / "histolab_sft" / "cnn").iterdir()
    trained = []
    plain = cnn._train
    monkeypatch.setattr(cnn, "_train", lambda *given: trained.append(1) or plain(*given))
    again = measure_cnn(*ask)
    np.testing.assert_array_equal(again["probabilities"], first["probabilities"])
    assert not trained
    # A run that was killed before its end has kept nothing, and trains to the same numbers.
    kept.unlink()
    np.testing.assert_array_equal(measure_cnn(*ask)["probabilities"], first["probabilities"])
    assert trained == [1]
    ask = patches, config, 0.5
    for changed in ({"augmentation": "none"}, {"class_sampling": "balanced"}, {"class_weights": "effective_number"}):
        measure_cnn(*ask, replace_keys(copy.copy(arguments), **changed), training)
    measure_cnn(*ask, arguments, train_on_cpu(tmp_path / "out", seed=4))
    assert len(trained) == 5


@pytest.mark.model
def test_a_resnet18_from_random_weights_takes_pictures_at_their_own_side(rows):
    train = rows[1]["train"]
    network, processor = load_cnn("resnet18", 2, train, 0)
    assert sum(weight.numel() for weight in network.parameters()) == 11_177_538  # of a ResNet-18 with two classes
    assert processor([Image.new("RGB", (96, 80))], return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.model
def test_a_network_learns_what_can_be_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for label, level in (("Normal", 60), ("Tumor", 190)):
        (tmp_path / "ward" / label).mkdir(parents=True)
        for number in range(30):
            pixels = rng.normal(level, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "ward" / label / f"{number}.png")
    entry = {"name": "ward", "source": "ward", "class_names": PCAM_CLASSES}
    arguments = HistoArguments(datasets=[entry], data_dir=str(tmp_path), cnn=save_classifier(tmp_path / "net"))
    patches = dict(load_audited_patches(arguments, tmp_path / "out"))
    found = measure_cnn(patches, arguments.datasets[0], 30, arguments, train_on_cpu(tmp_path / "out"))
    assert found["balanced_accuracy"] > 0.9


# All together


@pytest.mark.model
def test_every_data_set_with_options_gets_its_rungs_and_the_others_a_line(rows, tmp_path, caplog):
    arguments, patches = rows
    encoders = [save_encoder(tmp_path / kind, kind) for kind in ("dinov2", "resnet")]
    replace_keys(arguments, encoders=encoders, cnn=save_classifier(tmp_path / "net"))
    config = arguments.datasets[0]
    captions = HistoArguments(datasets=[{"name": "captions", "source": "c", "format": "captions"}]).datasets[0]
    asked = [Asked(config, dict(patches)), Asked(captions, dict(patches))]
    training = train_on_cpu(tmp_path / "out", num_train_epochs=1)
    with caplog.at_level("INFO"):
        measure_rungs(asked, arguments, training)
    assert "captions has no rung of encoders or cnn: its answers are written" in caplog.text and not asked[1].rungs
    methods = ("linear_probe:dinov2", "neighbours:dinov2", "linear_probe:resnet", "neighbours:resnet", "cnn:net")
    assert tuple(asked[0].rungs) == methods
    for found in asked[0].rungs.values():
        assert found["probabilities"].shape == (len(patches["test"]), 2)
    plain = [Asked(config, dict(patches))]
    measure_rungs(plain, replace_keys(arguments, encoders=None, cnn=None), training)
    assert not plain[0].rungs


# In the report


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Results and page of a run whose encoder sees as much as the fine-tuned model, and whose network sees nothing."""
    folder = tmp_path_factory.mktemp("rungs")

    def measure(rows, classes):
        known = draw_features(rows, classes, noise=0.3)
        blind = draw_features(rows, classes, noise=100)
        network = compute_linear_probe(*blind, classes)
        del network["regularisation_c"]
        return {
            "neighbours": compute_neighbours(*blind, classes),
            "linear_probe:dinov2-base": compute_linear_probe(*known, classes),
            "neighbours:dinov2-base": compute_neighbours(*known, classes),
            "cnn:resnet18": network | {"fitted": {"epoch": 2, "epochs": 3, "samples_seen": 1260}},
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_synthetic_patches(folder / "patches", {"pcam": 80})
        results, tables, patches = fabricate_evaluation(folder, list_synthetic_datasets(["pcam"]), rungs=measure)
        write_report(results, tables, patches, folder / "evaluation")
    return results, (folder / "evaluation" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_rungs_stand_in_the_ladder_between_the_own_encoder_and_the_language_model(reported):
    entry = reported[0]["datasets"]["pcam"]
    names = [rung["name"] for rung in list_rungs(entry)]
    assert names[4:10] == [
        *("linear probe", "nearest neighbours", "dinov2-base, linear", "dinov2-base, neighbours", "CNN resnet18"),
        "zero-shot, raw",
    ]
    for key in ("neighbours", "linear_probe:dinov2-base", "cnn:resnet18"):
        low, high = entry["above_floors"][key]["balanced_accuracy"]["ci95"]
        gain = entry["finetuned"]["balanced_accuracy"]["value"] - entry["floors"][key]["balanced_accuracy"]["value"]
        assert low < entry["above_floors"][key]["balanced_accuracy"]["value"] < high
        assert gain == pytest.approx(entry["above_floors"][key]["balanced_accuracy"]["value"])
        assert entry["floors"][key]["balanced_accuracy"]["ci95"] is not None


@pytest.mark.slow
def test_the_page_has_a_row_for_each_rung_with_its_difference(reported):
    results, page = reported
    words = " ".join(Page(page).words)
    rows = describe_rungs(results["datasets"]["pcam"])
    assert [row["name"] for row in rows] == [
        *("linear probe", "nearest neighbours", "dinov2-base, linear", "dinov2-base, neighbours", "CNN resnet18"),
    ]
    assert rows[-1]["fitted"] == "epoch 2 of 3, 1,260 samples seen" and rows[1]["fitted"].startswith("k = ")
    assert rows[2]["fitted"].startswith("C = ")
    for row in rows:
        assert f"{row['name']} {row['fitted']} {row['score']['value']}" in words
        assert row["gain"]["value"] in words


def test_the_verdict_says_which_rung_comes_as_far(reported):
    results, page = reported
    text = judge_dataset(results["datasets"]["pcam"])["text"]
    assert "Without a language model come " in text and "dinov2-base, linear (" in text
    assert "CNN resnet18" not in text
    assert text in " ".join(Page(page).words)


@pytest.mark.parametrize(
    ("gains", "start"),
    [
        ({"linear_probe": (9, 8, 10), "cnn:net": (5, 4, 6)}, "No rung without a language model comes as far; nearest"),
        ({"linear_probe": (9, 8, 10), "cnn:net": (1, -1, 3)}, "Without a language model come as far: CNN net (+1.0"),
        (
            {"linear_probe": (1, -1, 3), "cnn:net": (-5, -6, -4)},
            "Without a language model come further than the fine-tuned model: CNN net (−5.0 points, −6.0 to −4.0); as "
            "far: linear probe (+1.0",
        ),
        ({"linear_probe": (-5, -6, -4)}, ""),
    ],
)
def test_the_sentence_on_rungs_follows_from_the_intervals(gains, start):
    scores = {
        key: {"balanced_accuracy": {"value": value / 100, "ci95": [low / 100, high / 100]}}
        for key, (value, low, high) in gains.items()
    }
    text = say_rungs({"above_floors": {"majority": scores["linear_probe"]} | scores})
    assert text.startswith(start) and bool(text) == bool(start)


def test_the_sentence_on_rungs_names_the_nearest_three_and_counts_the_others():
    gains = {key: {"value": place / 100, "ci95": [-1, 1]} for place, key in enumerate(["cnn:a", "cnn:b", "cnn:c"])}
    gains |= {f"linear_probe:{name}": {"value": 0.2, "ci95": [-1, 1]} for name in "xy"}
    entry = {"above_floors": {key: {"balanced_accuracy": gain} for key, gain in gains.items()}}
    entry["above_floors"]["linear_probe"] = {"balanced_accuracy": {"value": 0.3, "ci95": [0.2, 0.4]}}
    text = say_rungs(entry)
    assert all(f"CNN {name} (" in text for name in "abc") and " and 2 more. " in text and "linear" not in text


def test_a_rung_without_an_interval_is_not_said_to_be_beaten():
    scores = {"value": 0.3, "ci95": None}
    entry = {"above_floors": {key: {"balanced_accuracy": scores} for key in ("linear_probe", "cnn:resnet18")}}
    assert say_rungs(entry).startswith("Without a language model come as far: linear probe (+30.0 points)")


def test_long_names_keep_their_beginning_and_end():
    name, kind = name_rung("linear_probe:a_folder_with_a_very_long_name_v2")
    assert kind == "linear_probe" and len(name) < 36 and name.startswith("a_folder") and name.endswith("v2, linear")


def test_without_a_key_nothing_is_loaded(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(rungs, "load_encoder", None)
    asked = [Asked(rows[0].datasets[0], dict(rows[1]))]
    check_rungs(rows[0])
    measure_rungs(asked, rows[0], train_on_cpu(tmp_path))
    assert asked[0].rungs == {}
