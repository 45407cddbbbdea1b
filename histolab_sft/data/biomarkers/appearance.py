"""Measure patches once, choose a few of each patient that differ in appearance, and write them in common colours."""

import logging
from collections.abc import Mapping
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from histolab_sft.data.biomarkers.reinhard import measure_moments, normalise_colours, pool_moments
from histolab_sft.data.pictures.containers import ImageRefused
from histolab_sft.data.pictures.decoding import open_patch
from histolab_sft.data.pictures.stain import STAINS
from histolab_sft.data.slides.quality import PatchFilter, judge_patch

logger = logging.getLogger(__name__)

FEATURE_NAMES = (
    "haematoxylin_mean haematoxylin_std eosin_mean eosin_std haematoxylin_texture eosin_texture haematoxylin_p95 "
    "rest_mean"
).split()
_SIZE = 128


def measure_patches(patches: pd.DataFrame, limits: PatchFilter, workers: int = 1) -> pd.DataFrame:
    """Return `patches` with `tissue`, `ink`, `sharpness`, `appearance`, `moments` and the reason of each refusal.

    Args:
        patches: Columns `path` and `reason`; those with a reason aren't opened.
        workers: Processes.
    """
    usable = patches.index[patches["reason"] == ""]
    pool = joblib.Parallel(n_jobs=workers)
    measured = pool(joblib.delayed(_measure_patch)(path, limits) for path in patches.loc[usable, "path"])
    columns = ["reason", "tissue", "ink", "sharpness", "appearance", "moments"]
    table = pd.DataFrame(measured, index=usable, columns=columns)
    patches = patches.join(table.drop(columns="reason"))
    patches.loc[usable, "reason"] = table["reason"]
    return patches


def measure_slides(patches: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Return the colours (`mean` and `std` in L*a*b*) of each slide, over its usable patches."""
    usable = patches[patches["reason"] == ""]
    return {slide: pool_moments(list(rows["moments"])) for slide, rows in usable.groupby("slide", sort=True)}


def choose_patches(patches: pd.DataFrame, n_images: int, seed: int) -> pd.DataFrame:
    """Return the rows of at most `n_images` usable patches of each patient, the most common appearance first.

    Args:
        patches: From `measure_patches`, in sorted order.
    """
    usable = patches[patches["reason"] == ""]
    chosen = [
        rows.iloc[select_patches(np.stack(rows["appearance"]), n_images, seed)]
        for _, rows in usable.groupby("patient", sort=True)
    ]
    return pd.concat(chosen)


def write_images(
    chosen: pd.DataFrame, folder: Path, slides: Mapping[str, dict], target: dict | None, workers: int = 1
) -> list[Path]:
    """Write the chosen patches as `folder/PATIENT/NAME.png`, with the target's colours if one is given.

    Args:
        chosen: Columns `path`, `name`, `slide` and `patient`.
        slides: From `measure_slides`.
        target: `mean` and `std` in L*a*b*, None to leave the colours.
    """
    paths = [folder / patient / f"{name}.png" for patient, name in zip(chosen["patient"], chosen["name"], strict=True)]
    pool = joblib.Parallel(n_jobs=workers)
    pool(
        joblib.delayed(_write_image)(source, path, slides[slide], target)
        for source, path, slide in zip(chosen["path"], paths, chosen["slide"], strict=True)
    )
    return paths


def describe_appearance(image: Image.Image) -> np.ndarray:
    """Return colour and texture statistics of a patch (8-bit RGB), float64 (8,), in the order of `FEATURE_NAMES`.

    Amounts of stain as in `histolab_sft.data.pictures.stain`, at 128 x 128 px; a texture is the mean gradient of an
    amount, a 95th percentile tells crowded nuclei from an even blue.
    """
    small = np.asarray(image.resize((_SIZE, _SIZE), Image.Resampling.BOX), dtype=np.float64)
    amounts = -np.log10(np.maximum(small, 0.5) / 255) @ np.linalg.inv(STAINS)
    blue, pink, rest = np.moveaxis(amounts, -1, 0)
    textures = [np.hypot(ndimage.sobel(stain, 0), ndimage.sobel(stain, 1)).mean() for stain in (blue, pink)]
    return np.array(
        [blue.mean(), blue.std(), pink.mean(), pink.std(), *textures, np.quantile(blue, 0.95), rest.mean()]
    )


def select_patches(features: np.ndarray, n_patches: int, seed: int = 42) -> list[int]:
    """Return the rows of at most `n_patches` patches: the one nearest to the centre of each cluster (K-means).

    The patch of the largest cluster comes first, so that a shorter list keeps the most common appearances. Where
    patches are equal and clusters are missing, those farthest from all chosen ones fill the list.

    Args:
        features: (patches, features), in an order that doesn't depend on the file system.
    """
    spread = features.std(axis=0)
    points = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    n_patches = min(n_patches, len(points))
    n_clusters = min(n_patches, len(np.unique(points, axis=0)))
    clusters = KMeans(n_clusters, random_state=seed, n_init=10).fit(points)
    nearest = cdist(clusters.cluster_centers_, points).argmin(axis=1)
    sizes = np.bincount(clusters.labels_, minlength=n_clusters)
    chosen = [int(row) for _, row in sorted(zip(-sizes, nearest, strict=True))]
    chosen = list(dict.fromkeys(chosen))
    while len(chosen) < n_patches:
        distances = cdist(points, points[chosen]).min(axis=1)
        distances[chosen] = -1
        chosen.append(int(distances.argmax()))
    return chosen


def _measure_patch(path: str, limits: PatchFilter) -> tuple:
    try:
        image = open_patch(path)
    except ImageRefused as error:
        logger.warning("%s", error)
        return f"unreadable: {error.reason}", np.nan, np.nan, np.nan, None, None
    quality = judge_patch(image, limits)
    if quality.reason:
        return quality.reason, quality.tissue, quality.ink, quality.sharpness, None, None
    return "", quality.tissue, quality.ink, quality.sharpness, describe_appearance(image), measure_moments(image)


def _write_image(path: str, target_path: Path, source: dict, target: dict | None) -> None:
    image = open_patch(path)
    if target is not None:
        image = normalise_colours(image, source, target)
    target_path.parent.mkdir(parents=True, exist_ok=True)
    image.save(target_path)
