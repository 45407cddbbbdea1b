"""What patches look like: measured once each, then chosen and written in common colours."""

import logging
from collections.abc import Mapping
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from histolab_sft.data.biomarkers.quality import PatchFilter, judge_patch
from histolab_sft.data.biomarkers.reinhard import measure_moments, normalise_colours, pool_moments
from histolab_sft.data.biomarkers.selection import describe_look, select_patches
from histolab_sft.data.pictures.containers import ImageRefused
from histolab_sft.data.pictures.decoding import open_patch

logger = logging.getLogger(__name__)


def measure_patches(patches: pd.DataFrame, limits: PatchFilter, workers: int = 1) -> pd.DataFrame:
    """Return `patches` with `tissue`, `ink`, `sharpness`, `look` and `moments`, and the reason of each one refused.

    Args:
        patches: Columns `path` and `reason`; those with a reason aren't opened.
        workers: Processes.
    """
    usable = patches.index[patches["reason"] == ""]
    pool = joblib.Parallel(n_jobs=workers)
    measured = pool(joblib.delayed(_measure_patch)(path, limits) for path in patches.loc[usable, "path"])
    columns = ["reason", "tissue", "ink", "sharpness", "look", "moments"]
    table = pd.DataFrame(measured, index=usable, columns=columns)
    patches = patches.join(table.drop(columns="reason"))
    patches.loc[usable, "reason"] = table["reason"]
    return patches


def measure_slides(patches: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Return the colours (`mean` and `std` in L*a*b*) of each slide, over its usable patches."""
    usable = patches[patches["reason"] == ""]
    return {slide: pool_moments(list(rows["moments"])) for slide, rows in usable.groupby("slide", sort=True)}


def choose_patches(patches: pd.DataFrame, n_images: int, seed: int) -> pd.DataFrame:
    """Return the rows of at most `n_images` usable patches of each patient, over all slides, most common look first.

    Args:
        patches: From `measure_patches`, in sorted order.
    """
    usable = patches[patches["reason"] == ""]
    chosen = [
        rows.iloc[select_patches(np.stack(rows["look"]), n_images, seed)]
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


def _measure_patch(path: str, limits: PatchFilter) -> tuple:
    try:
        image = open_patch(path)
    except ImageRefused as error:
        logger.warning("%s", error)
        return f"unreadable: {error.reason}", np.nan, np.nan, np.nan, None, None
    quality = judge_patch(image, limits)
    if quality.reason:
        return quality.reason, quality.tissue, quality.ink, quality.sharpness, None, None
    return "", quality.tissue, quality.ink, quality.sharpness, describe_look(image), measure_moments(image)


def _write_image(path: str, target_path: Path, source: dict, target: dict | None) -> None:
    image = open_patch(path)
    if target is not None:
        image = normalise_colours(image, source, target)
    target_path.parent.mkdir(parents=True, exist_ok=True)
    image.save(target_path)
