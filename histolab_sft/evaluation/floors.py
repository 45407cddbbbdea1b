"""What a score must beat to say anything about tissue: fits on colour, on the file alone, or on nothing.

On several public data sets stain and compression give the class away: on NCT-CRC a histogram of colours reaches 82 %
(Ignatov & Malivenko 2024, arXiv 2409.11546). All floors are trained on the train split and scored on the test split of
the same patches as the model, by a logistic regression on standardised features.
"""

import io
from collections.abc import Iterable
from os import PathLike

import numpy as np
from datasets import DatasetDict
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histolab_sft.data.patches import select_dataset
from histolab_sft.dataset_config import DatasetConfig
from histolab_sft.metrics.classification import compute_classification

COLOUR_FLOORS = ("colour_histogram", "mean_rgb")
HISTOGRAM_BINS = 16
FORMATS = ("JPEG", "PNG", "TIFF")

# Luminance table of the JPEG standard (ITU-T T.81, table K.1), which encoders scale to the quality asked for.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).ravel()


def measure_floors(patches: DatasetDict, config: DatasetConfig) -> dict[str, dict | None]:
    """Score what needs no model on one data set of a recipe: trained on its train split, scored on its test split."""
    rows = {split: select_dataset(patches[split], config.name) for split in ("train", "test")}
    labels = {split: np.array(part.with_format(None)["label"]) for split, part in rows.items()}
    places = {split: part.with_format(None)["image"] for split, part in rows.items()}
    # A picture inside a larger file has no file of its own to look at.
    single = all(place["row"] < 0 for part in places.values() for place in part)
    files = {split: [place["path"] for place in part] if single else None for split, part in places.items()}
    return compute_floors(
        (row["image"] for row in rows["train"]),
        labels["train"],
        (row["image"] for row in rows["test"]),
        labels["test"],
        list(config.class_names.values()),
        files["train"],
        files["test"],
    )


def compute_floors(
    train_images: Iterable[Image.Image],
    train_labels: np.ndarray,
    test_images: Iterable[Image.Image],
    test_labels: np.ndarray,
    classes: list[str],
    train_files: Iterable[bytes | str | PathLike] | None = None,
    test_files: Iterable[bytes | str | PathLike] | None = None,
) -> dict[str, dict | None]:
    """Score what needs no model on the split that the model was trained and scored on.

    Pictures are read one at a time; only their features (57 numbers each) stay in memory.

    Args:
        train_images, test_images: Pictures in any mode, in the order of the labels.
        train_labels, test_labels (`np.ndarray`): str, shape (patches,), members of `classes`.
        train_files, test_files (*optional*): The files of the same pictures, as bytes or paths.

    Returns:
        `{"majority", "mean_rgb", "colour_histogram", "file"}`, each the dict of `compute_classification` plus
        `predictions` (str, (test patches,)) and `probabilities` (None for the majority), which an interval needs and
        `results.json` doesn't; `file` is None without files.

    Raises:
        ValueError: Another number of pictures than of labels, or a train split of a single class.
    """
    train_labels, test_labels = np.asarray(train_labels, dtype=str), np.asarray(test_labels, dtype=str)
    train_colours = _stack((colour_features(image) for image in train_images), train_labels, "train")
    test_colours = _stack((colour_features(image) for image in test_images), test_labels, "test")
    names, counts = np.unique(train_labels, return_counts=True)
    majority = np.full(len(test_labels), names[counts.argmax()])
    floors = {
        "majority": compute_classification(test_labels, majority, classes)
        | {"predictions": majority, "probabilities": None},
        "mean_rgb": compute_linear_probe(
            train_colours[:, :3], train_labels, test_colours[:, :3], test_labels, classes
        ),
        "colour_histogram": compute_linear_probe(
            train_colours[:, 3:], train_labels, test_colours[:, 3:], test_labels, classes
        ),
        "file": None,
    }
    if train_files is not None and test_files is not None:
        floors["file"] = compute_linear_probe(
            _stack((file_features(file) for file in train_files), train_labels, "train"),
            train_labels,
            _stack((file_features(file) for file in test_files), test_labels, "test"),
            test_labels,
            classes,
        )
    return floors


def compute_linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: list[str],
) -> dict:
    """Fit a standardised logistic regression (scikit-learn's default L2, C = 1) and score it on the test split.

    For the features of a frozen vision tower, or any other.

    Args:
        train_features, test_features (`np.ndarray`): float, shape (patches, features), finite.
        train_labels, test_labels (`np.ndarray`): str, shape (patches,), members of `classes`.

    Returns:
        The dict of `compute_classification`, plus `predictions` (str, (test patches,)) and `probabilities` (float64,
        (test patches, classes); 0 for a class that the train split lacks).

    Raises:
        ValueError: A train split of a single class or with others than `classes`; features that aren't finite.
    """
    train_labels = np.asarray(train_labels, dtype=str)
    found = np.unique(train_labels)
    if len(found) < 2:
        raise ValueError(
            f"the train split holds the class {found.tolist()} alone, expected at least two of {classes}; "
            "check the split, or leave the floors out"
        )
    if not set(found) <= set(classes):
        raise ValueError(
            f"the train split holds the classes {found.tolist()}, expected only {classes}; check the class names"
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(train_features, train_labels)
    probabilities = np.zeros((len(test_features), len(classes)))
    probabilities[:, [classes.index(name) for name in probe.classes_]] = probe.predict_proba(test_features)
    predictions = np.asarray(classes, dtype=str)[probabilities.argmax(axis=1)]
    return compute_classification(test_labels, predictions, classes, probabilities) | {
        "predictions": predictions,
        "probabilities": probabilities,
    }


def colour_features(image: Image.Image) -> np.ndarray:
    """Return 57 numbers of one picture: mean RGB (3), then the colour histogram (54).

    The colour histogram is mean, standard deviation (both in 0 to 1) and the part of the pixels in each of 16 equal
    bins, of R, then G, then B.
    """
    # The counts of the 256 levels hold all that is asked, and Pillow counts them without unpacking the pixels.
    counts = np.array(image.convert("RGB").histogram()).reshape(3, 256)
    parts = counts / counts.sum(axis=1, keepdims=True)
    levels = np.arange(256) / 255
    mean = parts @ levels
    deviation = np.sqrt((parts * np.square(levels - mean[:, None])).sum(axis=1))
    bins = parts.reshape(3, HISTOGRAM_BINS, -1).sum(axis=2)
    return np.concatenate([mean, mean, deviation, bins.ravel()]).astype(np.float32)


def file_features(file: bytes | str | PathLike) -> np.ndarray:
    """Return 5 numbers of one picture's file: format is JPEG, PNG, TIFF (0 or 1), JPEG quality, log2 of its bytes.

    A file that isn't JPEG has quality 100, since nothing was thrown away.

    Raises:
        PIL.UnidentifiedImageError: Not a picture.
    """
    if not isinstance(file, bytes):
        with open(file, "rb") as opened:
            file = opened.read()
    with Image.open(io.BytesIO(file)) as image:
        quality = estimate_jpeg_quality(image) if isinstance(image, JpegImageFile) else 100
        return np.array([*(image.format == name for name in FORMATS), quality, np.log2(len(file))], dtype=np.float32)


def estimate_jpeg_quality(image: JpegImageFile) -> int:
    """Return the quality, 1 to 100, at which the standard's luminance table comes nearest to the picture's own.

    Exact for files written by libjpeg, whose `jpeg_quality_scaling` is the formula used; near for other encoders.
    """
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = np.clip((_LUMINANCE * scale + 50) // 100, 1, 255)
    return int(np.abs(tables - np.array(image.quantization[0])).sum(axis=1).argmin() + 1)


def colour_floor_line(finetuned: dict, floors: dict) -> str | None:
    """Return a sentence when the fine-tuned model can't be told from a colour floor, else None.

    That is when the 95 % interval of its balanced accuracy isn't wholly above that of the best colour floor.

    Args:
        finetuned (`dict`): Scores with `balanced_accuracy` as `{"value", "ci95": [low, high]}`.
        floors (`dict`): Floor -> scores in the same form.
    """
    name = max(COLOUR_FLOORS, key=lambda floor: floors[floor]["balanced_accuracy"]["value"])
    model, floor = finetuned["balanced_accuracy"], floors[name]["balanced_accuracy"]
    if model["ci95"] is not None and floor["ci95"] is not None and model["ci95"][0] > floor["ci95"][1]:
        return None
    return (
        f"Colour alone comes as far: a linear fit on {name.replace('_', ' ')} has a balanced accuracy of "
        f"{_format(floor)}, the fine-tuned model {_format(model)}. "
        "On this split the score is no evidence that the model reads tissue."
    )


def _format(score: dict) -> str:
    if score["ci95"] is None:
        return f"{score['value']:.1%} (no interval)"
    return f"{score['value']:.1%} ({score['ci95'][0]:.1%} to {score['ci95'][1]:.1%})"


def _stack(features: Iterable[np.ndarray], labels: np.ndarray, split: str) -> np.ndarray:
    features = list(features)
    if len(features) != len(labels) or not features:
        raise ValueError(
            f"{split} split: {len(features)} pictures or files for {len(labels)} labels, expected as many of both and "
            "at least one; give them in the same order"
        )
    return np.stack(features)
