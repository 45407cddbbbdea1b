"""Notes on a patch that the models were hardly made for: size, shape, focus, glass, colours. They refuse nothing."""

import numpy as np
from PIL import Image
from scipy.ndimage import laplace

from histolab_sft.data.pictures.inspection import compute_background_fraction
from histolab_sft.demo.data_set import DataSet

SIDES = (64, 2048)  # pixels: PCam's 96 and BACH's 2048 lie inside
SIDE_RATIO = 1.5
EMPTY = 0.85  # share of glass or padding
FAINT = 5.0  # standard deviation of grey values under which there is no detail that could be sharp
# Share of the contrast that lies in detail of single pixels. A blur of three pixels takes patches of 224 below it.
FINE_DETAIL = 0.015
# Both stains of H&E take most of the green: nearly all pixels of a stained patch, and few of most other pictures.
STAINED, GREEN_GAP, DARK = 0.25, 4, 225


def note_picture(image: Image.Image, data_set: DataSet) -> list[str]:
    """Return the notes of `check_patch` where the data set's pictures are patches of classes."""
    return check_patch(image) if data_set.options else []


def check_patch(image: Image.Image) -> list[str]:
    """Return one sentence for each thing about the picture (8-bit RGB) that casts doubt on an answer."""
    return [note for note in (_check_size(image), _check_content(image)) if note]


def _check_size(image: Image.Image) -> str | None:
    size = f"{image.width} × {image.height} pixels"
    if min(image.size) < SIDES[0]:
        return f"Small: {size}, expected at least {SIDES[0]} on a side. Nuclei may be too coarse to tell apart."
    if max(image.size) > SIDES[1]:
        return f"Large: {size}, expected at most {SIDES[1]} on a side. It may be an overview; cut out a patch."
    if max(image.size) > SIDE_RATIO * min(image.size):
        return f"Not square: {size}. The model sees it squeezed into a square; cut out a square patch."
    return None


def _check_content(image: Image.Image) -> str | None:
    pixels = np.asarray(image)
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    empty = compute_background_fraction(pixels)
    if empty > EMPTY:
        return f"Hardly any tissue: {empty:.0%} of the picture is glass or padding."
    if grey.std() < FAINT:
        return "Hardly any contrast: the picture is of almost one shade. It may be no tissue."
    stained = measure_stained_fraction(pixels)
    if stained < STAINED:
        return f"Maybe not H&E: only {stained:.0%} of what is dark has the colours of the two stains."
    if laplace(grey).var() < FINE_DETAIL * grey.var():
        return "Maybe out of focus, or enlarged: there is hardly any fine detail."
    return None


def measure_stained_fraction(pixels: np.ndarray) -> float:
    """Return the share of dark pixels (H, W, 3) uint8 in which green is the darkest channel; 0 if none is dark."""
    red, green, blue = np.moveaxis(pixels.astype(np.int16), -1, 0)
    dark = np.minimum(np.minimum(red, green), blue) < DARK
    stained = dark & (np.minimum(red, blue) - green >= GREEN_GAP)
    return stained.sum() / max(dark.sum(), 1)
