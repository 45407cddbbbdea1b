"""Judge patches: whether they have enough tissue, are in focus, and have no marks of a pen."""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

# ImmunoPath's: tissue is darker than this (ITU-R 601 grey, 0 to 255).
BACKGROUND_GREY = 220
# And, unlike glass in a bad light or the black around a scan, coloured: largest minus smallest channel.
TISSUE_CHROMA = 20
_CROSS = ndimage.generate_binary_structure(2, 1)


class PatchFilter(NamedTuple):
    """Limits beyond which a patch is refused; the defaults are ImmunoPath's."""

    min_tissue: float = 0.5  # fraction of the pixels
    max_ink: float = 0.1  # fraction of the pixels
    min_sharpness: float = 50.0  # variance of the Laplacian of the 8-bit grey values


class Quality(NamedTuple):
    """What was measured of a patch, and why it is refused ("" if it isn't)."""

    tissue: float
    ink: float
    sharpness: float
    reason: str


def judge_patch(image: Image.Image, limits: PatchFilter) -> Quality:
    """Measure a patch (8-bit RGB) and say whether it passes: tissue first, then ink, then sharpness."""
    tissue, ink = float(find_tissue(image).mean()), float(find_ink(image).mean())
    sharpness = measure_sharpness(image)
    reason = ""
    if tissue < limits.min_tissue:
        reason = "too little tissue"
    elif ink > limits.max_ink:
        reason = "pen mark"
    elif sharpness < limits.min_sharpness:
        reason = "out of focus"
    return Quality(tissue, ink, sharpness, reason)


def find_tissue(image: Image.Image) -> np.ndarray:
    """Return where there is tissue, bool (H, W): neither white nor grey, gaps of 4 px closed, specks taken out."""
    chroma = np.ptp(np.asarray(image), axis=2)
    mask = (np.asarray(image.convert("L")) < BACKGROUND_GREY) & (chroma >= TISSUE_CHROMA)
    # Without a margin, closing would eat what touches the border.
    mask = np.pad(mask, 4, mode="edge")
    mask = ndimage.binary_closing(mask, _CROSS, iterations=2)
    return ndimage.binary_opening(mask, _CROSS)[4:-4, 4:-4]


def find_ink(image: Image.Image) -> np.ndarray:
    """Return where a pen has marked the glass, bool (H, W): colours that haematoxylin and eosin don't have.

    Yellow-green to blue-green is ink at any strength, blue and red only where purer and brighter than nuclei and red
    blood cells are, and black where it has next to no colour.
    """
    hue, saturation, value = (np.asarray(channel, dtype=np.float32) for channel in image.convert("HSV").split())
    hue, saturation, value = hue * (360 / 255), saturation / 255, value / 255
    green = (hue > 70) & (hue < 215) & (saturation > 0.25)
    blue = (hue >= 215) & (hue < 250) & (saturation > 0.75) & (value > 0.5)
    red = ((hue < 15) | (hue > 345)) & (saturation > 0.85) & (value > 0.5)
    black = (value < 0.2) & (saturation * value < 0.08)
    # Single pixels of such a colour are compression and dust, not a pen's stroke.
    return ndimage.binary_opening((green & (value > 0.2)) | blue | red | black, _CROSS)


def measure_sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian (4 neighbours) of the grey values."""
    return float(ndimage.laplace(np.asarray(image.convert("L"), dtype=np.float32)).var())
