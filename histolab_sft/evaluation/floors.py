"""What a score must beat to say anything about tissue: fits on colour, on the file alone, or on nothing.

On several public data sets stain and compression give the class away: on NCT-CRC a histogram of colours reaches 82 %
(Ignatov & Malivenko 2024, arXiv 2409.11546). All floors are trained on the train split and scored on the test split of
the same patches as the model, by a logistic regression on standardised features whose penalty validation chooses.
"""

import io
from collections.abc import Iterable, Mapping
from os import PathLike

import numpy as np
from datasets import Dataset
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.evaluation.score_names import format_score
from histolab_sft.metrics.classification import compute_balanced_accuracy, compute_classification

COLOUR_FLOORS = ("colour_histogram", "mean_rgb")
HISTOGRAM_BINS = 16
FORMATS = ("JPEG", "PNG", "TIFF")
# Strongest penalty first, so that each fit goes on from the one before.
REGULARISATION = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)

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


def measure_floors(rows: Mapping[str, Dataset], config: DatasetConfig) -> dict[str, dict | None]:
    """Score what needs no model on the rows of one data set: trained on its train split, scored on its test split."""
    places = {split: [images[0] for images in part.with_format(None)["images"]] for split, part in rows.items()}
    # A picture inside a larger file has no file of its own to look at.
    single = all(place["row"] < 0 for part in places.values() for place in part)
    return compute_floors(
        {split: (row["images"][0] for row in part) for split, part in rows.items()},
        {split: np.array(part.with_format(None)["label"]) for split, part in rows.items()},
        config.options,
        {split: [place["path"] for place in part] for split, part in places.items()} if single else None,
    )


def compute_floors(
    images: Mapping[str, Iterable[Image.Image]],
    labels: Mapping[str, np.ndarray],
    classes: list[str],
    files: Mapping[str, Iterable[bytes | str | PathLike]] | None = None,
) -> dict[str, dict | None]:
    """Score what needs no model on the split that the model was trained and scored on.

    Pictures are read one at a time; only their features (57 numbers each) stay in memory.

    Args:
        images: `train`, `validation` and `test` -> pictures in any mode, in the order of the labels.
        labels: The same splits -> str, shape (patches,), members of `classes`.
        files (*optional*): The files of the same pictures, as bytes or paths.

    Returns:
        `{"majority", "mean_rgb", "colour_histogram", "file"}`, each what `compute_linear_probe` returns
        (`probabilities` is None for the majority); `file` is None without files.

    Raises:
        ValueError: Another number of pictures than of labels, or a train split of a single class.
    """
    labels = {split: np.asarray(names, dtype=str) for split, names in labels.items()}
    colours = {split: _stack(map(colour_features, part), labels[split], split) for split, part in images.items()}
    names, counts = np.unique(labels["train"], return_counts=True)
    majority = np.full(len(labels["test"]), names[counts.argmax()])
    floors = {
        "majority": compute_classification(labels["test"], majority, classes)
        | {"predictions": majority, "probabilities": None},
        "mean_rgb": compute_linear_probe({split: part[:, :3] for split, part in colours.items()}, labels, classes),
        "colour_histogram": compute_linear_probe(
            {split: part[:, 3:] for split, part in colours.items()}, labels, classes
        ),
        "file": None,
    }
    if files is not None:
        features = {split: _stack(map(file_features, part), labels[split], split) for split, part in files.items()}
        floors["file"] = compute_linear_probe(features, labels, classes)
    return floors


def compute_linear_probe(
    features: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], classes: list[str]
) -> dict:
    """Fit a standardised logistic regression on train and score it on the test split.

    For the features of a frozen vision tower, or any other. The strength of its L2 penalty is the one of
    `REGULARISATION` with the best balanced accuracy on validation, of several the one with the least error there by
    log-likelihood: a fixed one would hold the floor down and flatter the model.

    Args:
        features: `train`, `validation` and `test` -> float, shape (patches, features), finite.
        labels: The same splits -> str, shape (patches,), members of `classes`.

    Returns:
        The dict of `compute_classification`, plus `predictions` (str, (test patches,)), `probabilities` (float64,
        (test patches, classes); 0 for a class that the train split lacks), which an interval needs and `results.json`
        doesn't, and `regularisation_c`, scikit-learn's C.

    Raises:
        ValueError: A train split of a single class or with others than `classes`; features that aren't finite.
    """
    labels = {split: np.asarray(names, dtype=str) for split, names in labels.items()}
    found = np.unique(labels["train"])
    if len(found) < 2:
        raise ValueError(
            f"the train split holds the class {found.tolist()} alone, expected at least two of {classes}; "
            "check the split, or leave the floors out"
        )
    if not set(found) <= set(classes):
        raise ValueError(
            f"the train split holds the classes {found.tolist()}, expected only {classes}; check the class names"
        )
    scaler = StandardScaler().fit(features["train"])
    scaled = {split: scaler.transform(part) for split, part in features.items()}
    gold = np.array([classes.index(label) for label in labels["validation"]])
    probe, best = LogisticRegression(max_iter=5000, warm_start=True), None
    columns = [classes.index(name) for name in found]
    for strength in REGULARISATION:
        probe.set_params(C=strength).fit(scaled["train"], labels["train"])
        held_out, tested = (np.zeros((len(scaled[split]), len(classes))) for split in ("validation", "test"))
        held_out[:, columns] = probe.predict_proba(scaled["validation"])
        tested[:, columns] = probe.predict_proba(scaled["test"])
        reached = rate_fit(held_out, gold)
        if best is None or reached > best[0]:
            best = (reached, strength, tested)
    _, strength, probabilities = best
    return describe_fit(labels["test"], probabilities, classes) | {"regularisation_c": float(strength)}


def rate_fit(probabilities: np.ndarray, gold: np.ndarray) -> tuple[float, float]:
    """Return by what the best of several fits is chosen on validation: balanced accuracy, then log-likelihood.

    Args:
        probabilities: float, shape (patches, classes).
        gold: int, shape (patches,): the true classes.
    """
    likely = np.log(np.maximum(probabilities[np.arange(len(gold)), gold], 1e-12)).mean()
    return compute_balanced_accuracy(gold, probabilities.argmax(axis=1)), likely


def describe_fit(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict:
    """Return the scores of a fit on test patches, with its `predictions` (the likeliest class) and `probabilities`."""
    predictions = np.asarray(classes, dtype=str)[probabilities.argmax(axis=1)]
    scores = compute_classification(labels, predictions, classes, probabilities)
    return scores | {"predictions": predictions, "probabilities": probabilities}


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


def colour_floor_line(finetuned: dict, floors: dict, gains: dict[str, dict]) -> str | None:
    """Return a sentence when the fine-tuned model can't be told from a colour floor, else None.

    That is when the 95 % interval of its paired gain in balanced accuracy over a colour floor isn't wholly above zero.

    Args:
        finetuned (`dict`): Scores with `balanced_accuracy` as `{"value", "ci95": [low, high]}`.
        floors (`dict`): Floor -> scores in the same form.
        gains (`dict`): Floor -> fine-tuned minus floor in balanced accuracy on the same draws, in the same form.
    """
    name = min(COLOUR_FLOORS, key=lambda floor: gains[floor]["value"])
    gain = gains[name]
    if all(gains[floor]["ci95"] is not None and gains[floor]["ci95"][0] > 0 for floor in COLOUR_FLOORS):
        return None
    below = gain["ci95"] is not None and gain["ci95"][1] < 0
    return (
        f"{'The model stays below colour' if below else 'Colour alone comes as far'}: a linear fit on "
        f"{name.replace('_', ' ')} has a balanced accuracy of {_format(floors[name]['balanced_accuracy'])}, the "
        f"fine-tuned model {_format(finetuned['balanced_accuracy'])}; its gain over the same patches is "
        f"{_format(gain, signed=True)}. On this split the score is no evidence that the model reads tissue."
    )


def _format(score: dict, signed: bool = False) -> str:
    return format_score(score, True, signed)["text"] + ("" if score["ci95"] else " (no interval)")


def _stack(features: Iterable[np.ndarray], labels: np.ndarray, split: str) -> np.ndarray:
    features = list(features)
    if len(features) != len(labels) or not features:
        raise ValueError(
            f"{split} split: {len(features)} pictures or files for {len(labels)} labels, expected as many of both and "
            "at least one; give them in the same order"
        )
    return np.stack(features)
