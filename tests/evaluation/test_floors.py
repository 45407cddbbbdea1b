"""Floors: what colour, the file and the majority class reach without any model."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from histolab_sft.evaluation.floors import (
    colour_features,
    colour_floor_line,
    compute_floors,
    compute_linear_probe,
    estimate_jpeg_quality,
    file_features,
)
from histolab_sft.evaluation.uncertainty import difference, interval, score_systems

CLASSES = ["Normal", "Tumor"]
PCAM = Path(os.environ.get("histolab_sftPATCHES", "data")) / "pcam_26k"


def draw_pictures(n: int, seed: int, shift: float = 60):
    """Pictures of noise in which Tumor is `shift` redder, with their labels."""
    generator = np.random.default_rng(seed)
    gold = generator.integers(2, size=n)
    for_red = np.array([shift, 0, 0])
    pixels = generator.integers(0, 180, size=(n, 16, 16, 3)) + gold[:, None, None, None] * for_red
    return [Image.fromarray(picture) for picture in pixels.astype(np.uint8)], np.array(CLASSES)[gold]


def name_splits(train, test):
    """Validation holds what test does: nothing here hangs on which is which."""
    return {"train": train, "validation": test, "test": test}


def encode(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def test_colour_features_equal_those_of_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, size=(20, 30, 3)).astype(np.uint8)
    features = colour_features(Image.fromarray(pixels))
    flat = pixels.reshape(-1, 3)
    bins = [np.histogram(channel, bins=16, range=(0, 256))[0] / len(flat) for channel in flat.T]
    np.testing.assert_allclose(features[:3], flat.mean(axis=0) / 255, rtol=1e-6)
    np.testing.assert_allclose(features[3:9], np.concatenate([flat.mean(axis=0), flat.std(axis=0)]) / 255, rtol=1e-6)
    np.testing.assert_allclose(features[9:], np.concatenate(bins), rtol=1e-6)
    assert len(features) == 3 + 54


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_a_picture_of_another_mode_is_read_as_rgb(mode):
    image = Image.fromarray(np.full((4, 4, 3), 100, dtype=np.uint8)).convert(mode)
    np.testing.assert_allclose(colour_features(image)[:3], np.full(3, 100 / 255), atol=0.02)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 51, 75, 90, 95, 100])
def test_jpeg_quality_is_read_from_the_quantisation_tables(quality):
    image = draw_pictures(1, 0)[0][0]
    for subsampling in (0, 2):
        data = encode(image, format="JPEG", quality=quality, subsampling=subsampling)
        with Image.open(io.BytesIO(data)) as written:
            assert estimate_jpeg_quality(written) == quality


def test_file_features_tell_format_quality_and_size(tmp_path):
    image = draw_pictures(1, 0)[0][0]
    for name, one_hot, quality in (("JPEG", [1, 0, 0], 80), ("PNG", [0, 1, 0], 100), ("TIFF", [0, 0, 1], 100)):
        options = {"quality": 80} if name == "JPEG" else {}
        data = encode(image, format=name, **options)
        (tmp_path / name).write_bytes(data)
        expected = np.float32([*one_hot, quality, np.log2(len(data))])
        np.testing.assert_array_equal(file_features(data), expected)
        np.testing.assert_array_equal(file_features(tmp_path / name), expected)


def test_floors_find_a_class_that_colour_gives_away():
    train, train_labels = draw_pictures(200, 0)
    test, test_labels = draw_pictures(100, 1)
    images = {"train": iter(train), "validation": iter(test), "test": iter(test)}
    floors = compute_floors(images, name_splits(train_labels, test_labels), CLASSES)
    assert list(floors) == ["majority", "mean_rgb", "colour_histogram", "file"]
    assert floors["mean_rgb"]["accuracy"] > 0.95 and floors["colour_histogram"]["accuracy"] > 0.95
    assert floors["file"] is None
    assert np.mean(floors["mean_rgb"]["predictions"] == test_labels) == floors["mean_rgb"]["accuracy"]


def test_floors_find_a_class_that_the_compression_gives_away_and_colour_does_not():
    train, train_labels = draw_pictures(200, 0, shift=0)
    test, test_labels = draw_pictures(200, 1, shift=0)
    quality = {"Normal": 70, "Tumor": 75}
    files = [
        [encode(image, format="JPEG", quality=quality[label]) for image, label in zip(images, labels, strict=True)]
        for images, labels in ((train, train_labels), (test, test_labels))
    ]
    labels = name_splits(train_labels, test_labels)
    floors = compute_floors(name_splits(train, test), labels, CLASSES, name_splits(*files))
    assert floors["file"]["accuracy"] == 1.0
    assert floors["mean_rgb"]["accuracy"] < 0.65


def test_majority_is_that_of_the_train_split():
    train, train_labels = draw_pictures(40, 0)
    test, test_labels = draw_pictures(30, 1)
    train_labels[:30] = "Tumor"
    labels = name_splits(train_labels, test_labels)
    floor = compute_floors(name_splits(train, test), labels, CLASSES)["majority"]
    assert set(floor["predictions"]) == {"Tumor"}
    assert floor["accuracy"] == np.mean(test_labels == "Tumor")
    assert floor["balanced_accuracy"] == 0.5


def test_pictures_are_read_one_at_a_time():
    opened = []

    def stream(images):
        for image in images:
            opened.append(1)
            yield image.copy()
            opened.pop()
            assert not opened

    train, train_labels = draw_pictures(20, 0)
    test, test_labels = draw_pictures(20, 1)
    images = {"train": stream(train), "validation": stream(test), "test": stream(test)}
    compute_floors(images, name_splits(train_labels, test_labels), CLASSES)


def test_another_number_of_pictures_than_of_labels_is_refused():
    train, train_labels = draw_pictures(20, 0)
    with pytest.raises(ValueError, match="test split: 19 pictures or files for 20 labels"):
        compute_floors(
            name_splits(train, train) | {"test": train[:19]}, name_splits(train_labels, train_labels), CLASSES
        )


def test_linear_probe_keeps_the_order_of_the_classes_and_gives_zero_to_one_not_trained():
    generator = np.random.default_rng(0)
    gold = np.array(["z", "a"])[generator.integers(2, size=200)]
    features = generator.normal(size=(200, 8))
    features[:, 0] += 6.0 * (gold == "z")
    classes = ["z", "m", "a"]
    splits = ({"train": x[:100], "validation": x[100:150], "test": x[150:]} for x in (features, gold))
    probe = compute_linear_probe(*splits, classes)
    assert probe["accuracy"] > 0.95 and probe["auroc"] > 0.99
    np.testing.assert_array_equal(probe["probabilities"][:, 1], 0)


def test_linear_probe_does_not_depend_on_the_scale_of_a_feature():
    generator = np.random.default_rng(0)
    gold = np.array(CLASSES)[generator.integers(2, size=300)]
    features = generator.normal(size=(300, 4)) + (gold == "Tumor")[:, None]
    scaled = features * [1, 1000, 1e-4, 1]
    labels = name_splits(gold[:200], gold[200:])
    one, two = (compute_linear_probe(name_splits(x[:200], x[200:]), labels, CLASSES) for x in (features, scaled))
    np.testing.assert_allclose(one["probabilities"], two["probabilities"], atol=1e-3)


@pytest.mark.parametrize(("name", "message"), [("Normal", "alone"), ("Other", "check the class names")])
def test_linear_probe_refuses_a_train_split_it_cannot_learn_from(name, message):
    train_labels = ["Normal"] * 3 + [name]
    with pytest.raises(ValueError, match=message):
        compute_linear_probe(name_splits(np.eye(4), np.eye(4)), name_splits(train_labels, train_labels), CLASSES)


def score(value, low, high):
    return {"balanced_accuracy": {"value": value, "ci95": [low, high]}}


FLOORS = {"mean_rgb": score(0.70, 0.68, 0.72), "colour_histogram": score(0.806, 0.79, 0.82)}


def gains(mean_rgb, colour_histogram):
    places = {"mean_rgb": mean_rgb, "colour_histogram": colour_histogram}
    return {name: {"value": (low + high) / 2, "ci95": [low, high]} for name, (low, high) in places.items()}


def test_a_score_within_reach_of_colour_is_said_to_be_no_evidence():
    line = colour_floor_line(score(0.83, 0.79, 0.86), FLOORS, gains((0.1, 0.16), (-0.01, 0.06)))
    assert line.startswith("Colour alone comes as far") and "colour histogram" in line
    assert "80.6 % (79.0 to 82.0)" in line and "83.0 % (79.0 to 86.0)" in line
    assert "+2.5 points (−1.0 to +6.0)" in line


def test_a_score_below_colour_is_said_to_stay_below():
    line = colour_floor_line(score(0.60, 0.55, 0.65), FLOORS, gains((-0.14, -0.05), (-0.24, -0.16)))
    assert line.startswith("The model stays below colour") and "colour histogram" in line


def test_a_gain_over_every_colour_floor_is_left_without_a_line_even_where_the_intervals_overlap():
    assert colour_floor_line(score(0.83, 0.81, 0.85), FLOORS, gains((0.1, 0.16), (0.01, 0.04))) is None


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("n", "gain", "flagged"), [(2000, 0.05, False), (2000, 0.0, True), (7180, 0.03, False), (7180, 0.0, True)]
)
def test_the_sentence_on_colour_is_right_in_57_of_60_studies_each_way(n, gain, flagged):
    """A model and a colour fit that mostly err on the same hard patches of 50 patients.

    NCT-CRC's own test set has 7,180 patches of 50 patients, enough to tell 3 points; 2,000 patches tell 5.
    """
    classes, right = ["Normal", "Tumor"], 0
    labels = np.array(classes)[np.arange(n) % 2]
    other = np.array(classes)[1 - np.arange(n) % 2]
    for study in range(60):
        rng = np.random.default_rng(study)
        groups = rng.permutation(np.arange(n) % 50)
        # How hard a patch is, one part of it shared by its slide; each system adds its own noise.
        hard = rng.normal(size=n) + 0.3 * rng.normal(size=50)[groups]
        answers = {}
        for name, skill in (("finetuned", 0.80 + gain), ("mean_rgb", 0.70), ("colour_histogram", 0.80)):
            luck = hard + 0.5 * rng.normal(size=n)
            bar = norm.ppf(skill) * np.sqrt(1 + 0.3**2 + 0.5**2)
            answers[name] = (np.where(luck < bar, labels, other), None)
        scores, estimates = score_systems(labels, answers, classes, groups, draws=400, seed=study)
        above = {
            name: interval(
                difference(estimates["finetuned"]["balanced_accuracy"], estimates[name]["balanced_accuracy"])
            )
            for name in ("mean_rgb", "colour_histogram")
        }
        right += (colour_floor_line(scores["finetuned"], scores, above) is not None) == flagged
    assert right >= 57


def test_the_penalty_of_a_probe_is_chosen_on_validation():
    """Many features that say little each, as raw pixels do: the default penalty fits their noise."""
    rng = np.random.default_rng(0)
    gold = rng.integers(2, size=1500)
    features = rng.normal(size=(1500, 300)) + 0.12 * gold[:, None]
    parts = {"train": slice(0, 300), "validation": slice(300, 600), "test": slice(600, 1500)}
    named = np.array(CLASSES)[gold]
    splits = [{split: values[part] for split, part in parts.items()} for values in (features, named)]
    chosen = compute_linear_probe(*splits, CLASSES)
    fixed = LogisticRegression(max_iter=5000).fit(features[:300], gold[:300]).score(features[600:], gold[600:])
    assert chosen["regularisation_c"] < 1 and chosen["accuracy"] > fixed + 0.02
    # What the test split holds has no part in the choice.
    splits[1]["test"] = splits[1]["test"][::-1]
    assert compute_linear_probe(*splits, CLASSES)["regularisation_c"] == chosen["regularisation_c"]


@pytest.mark.model
@pytest.mark.skipif(not PCAM.is_dir(), reason="needs the PatchCamelyon parquet files in $histolab_sftPATCHES/pcam_26k")
def test_colour_alone_reaches_81_percent_on_patch_camelyon():
    def load(split):
        table = pq.read_table(PCAM / f"{split}.parquet").to_pylist()
        return [row["image"]["bytes"] for row in table], [row["label"] for row in table]

    def pictures(files):
        return (Image.open(io.BytesIO(file)) for file in files)

    (train, train_labels), (test, test_labels) = load("train"), load("test")
    (validation, validation_labels) = load("validation")
    images = {"train": pictures(train), "validation": pictures(validation), "test": pictures(test)}
    labels = {"train": train_labels, "validation": validation_labels, "test": test_labels}
    floors = compute_floors(images, labels, CLASSES)
    assert floors["majority"]["accuracy"] == pytest.approx(0.5, abs=0.02)
    assert floors["mean_rgb"]["accuracy"] == pytest.approx(0.697, abs=0.015)
    assert floors["colour_histogram"]["accuracy"] == pytest.approx(0.806, abs=0.015)
