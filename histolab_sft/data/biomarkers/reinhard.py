"""Normalise the colours of a slide to those of the training slides (Reinhard et al. 2001, IEEE CGA 21(5):34).

Each channel of L*a*b* is shifted and scaled so that its mean and standard deviation over the tissue become those of
the target. The statistics are those of the slide, so that a patch full of lymphocytes stays darker than its neighbour.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from histolab_sft.data.slides.quality import find_tissue

# sRGB (IEC 61966-2-1) to CIE XYZ under D65, rows scaled to a white of 1.
_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_XYZ = _XYZ / _XYZ.sum(axis=1, keepdims=True)
_DELTA = 6 / 29
# L* 0 to 100, a* and b* about 0, as the 0 to 255 of OpenCV's 8-bit L*a*b*, in which ImmunoPath gives its target.
_SCALE, _SHIFT = np.array([2.55, 1, 1]), np.array([0, 128, 128])
# Every fourth pixel of every fourth row: 16,384 of a patch of 512 x 512 px.
_STEP = 4


class ColourMoments(NamedTuple):
    """Number of tissue pixels, and of their L*a*b* values (0 to 255) the sums and the sums of squares."""

    count: int
    sums: tuple[float, float, float]
    squares: tuple[float, float, float]


def normalise_colours(image: Image.Image, source: dict, target: dict) -> Image.Image:
    """Return the picture with the target's colours.

    Args:
        image: 8-bit RGB.
        source: `mean` and `std` of its slide, three numbers each, from `pool_moments`.
        target: As `source`, of the slides to look like.
    """
    lab = rgb_to_lab(np.asarray(image))
    scale = np.array(target["std"]) / np.array(source["std"])
    return Image.fromarray(lab_to_rgb((lab - source["mean"]) * scale + target["mean"]))


def measure_moments(image: Image.Image) -> ColourMoments:
    """Return the moments of the tissue of one patch, from one pixel in sixteen."""
    lab = rgb_to_lab(np.asarray(image)[::_STEP, ::_STEP])[find_tissue(image)[::_STEP, ::_STEP]]
    return ColourMoments(len(lab), tuple(map(float, lab.sum(axis=0))), tuple(map(float, (lab**2).sum(axis=0))))


def pool_moments(moments: Sequence[ColourMoments]) -> dict[str, list[float]]:
    """Return `mean` and `std` (ddof 0) over the tissue of several patches, three numbers each.

    Raises:
        ValueError: There is no tissue in them, or it has one colour only.
    """
    count = sum(patch.count for patch in moments)
    if count == 0:
        raise ValueError(f"{len(moments)} patches without tissue, expected some; leave them out")
    mean = np.sum([patch.sums for patch in moments], axis=0) / count
    variance = np.sum([patch.squares for patch in moments], axis=0) / count - mean**2
    if (variance < 1e-6).any():
        raise ValueError(f"tissue of one colour in {len(moments)} patches, expected stained tissue; leave them out")
    return {"mean": mean.tolist(), "std": np.sqrt(variance).tolist()}


def fit_target(slides: Sequence[dict]) -> dict[str, list[float]]:
    """Return the target: `mean` and `std` averaged over the slides of the training patients, each counting once."""
    return {name: np.mean([slide[name] for slide in slides], axis=0).tolist() for name in ("mean", "std")}


def rgb_to_lab(pixels: np.ndarray) -> np.ndarray:
    """Convert sRGB (..., 3) uint8 to CIE L*a*b* (D65) (..., 3) float64, scaled to 0 to 255 as OpenCV does."""
    light = pixels / 255.0
    light = np.where(light > 0.04045, ((light + 0.055) / 1.055) ** 2.4, light / 12.92)
    xyz = light @ _XYZ.T
    x, y, z = np.moveaxis(np.where(xyz > _DELTA**3, np.cbrt(xyz), xyz / (3 * _DELTA**2) + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1) * _SCALE + _SHIFT


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """Convert what `rgb_to_lab` gives back to sRGB uint8; colours outside of sRGB are clipped."""
    lightness, a, b = np.moveaxis((lab - _SHIFT) / _SCALE, -1, 0)
    y = (lightness + 16) / 116
    roots = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = np.where(roots > _DELTA, roots**3, 3 * _DELTA**2 * (roots - 4 / 29))
    light = np.clip(xyz @ np.linalg.inv(_XYZ).T, 0, 1)
    return np.rint(255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)).astype(
        np.uint8
    )
