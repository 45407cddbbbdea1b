"""Crop, pad and resize a picture and its boxes together, so that a box never stays behind.

A step takes a picture and its boxes (pixels of that picture, xyxy) and gives both anew, the inputs untouched. Boxes
are cut off at the picture's edge; one that is outside is dropped and counted.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks.box_geometry import Size, clip_boxes, crop_boxes, pad_boxes, resize_boxes, square_padding

# ExplainMyXray's rule for the dark frame of an X-ray.
DARK_SHARE = 0.05  # of the mean of the centre; what is darker is frame
MAX_CROP = 6  # at most one part in so many goes on each side
MIN_AREA_KEPT = 0.6
MIN_SIDE = 100
MIN_CENTRE = 10  # of 255; in a darker picture nothing tells frame from patient


class Framed(NamedTuple):
    """A picture, the boxes in it, and how many boxes no longer are."""

    image: Image.Image
    boxes: list[Box]
    dropped: int


def apply_steps(image: Image.Image, boxes: Sequence[Box], steps: Sequence[Callable[..., Framed]]) -> Framed:
    """Take `steps` one after the other; each is called with a picture and its boxes. `dropped` is of all of them."""
    dropped = 0
    for step in steps:
        image, boxes, lost = step(image, boxes)
        dropped += lost
    return Framed(image, list(boxes), dropped)


def crop(
    image: Image.Image, boxes: Sequence[Box], area: tuple[int, int, int, int], min_visible: float = 0.0
) -> Framed:
    """Return what is inside `area` (left, top, right, bottom in pixels).

    A box of which less than the share `min_visible` of its area is left is dropped.

    Raises:
        ValueError: `area` isn't inside the picture.
    """
    left, top, right, bottom = area
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise ValueError(
            f"crop to {tuple(area)}, expected left, top, right, bottom inside {image.width} x {image.height} pixels; "
            "correct the area"
        )
    moved = crop_boxes(list(boxes), area, min_visible)
    return Framed(image.crop(area), moved, len(boxes) - len(moved))


def crop_dark_edges(image: Image.Image, boxes: Sequence[Box]) -> Framed:
    """Return the picture without its dark frame, whole where there is none (`find_bright_area`)."""
    return crop(image, boxes, find_bright_area(image))


def pad_to_square(image: Image.Image, boxes: Sequence[Box]) -> Framed:
    """Return the picture centred in a black square with its longer side (`box_geometry.square_padding`)."""
    left, top, side = square_padding(image.size)
    square = Image.new(image.mode, (side, side))
    square.paste(image, (left, top))
    # Cut off first: the padding must not uncover what lay outside.
    moved = pad_boxes(clip_boxes(list(boxes), image.size), left, top)
    return Framed(square, moved, len(boxes) - len(moved))


def resize(image: Image.Image, boxes: Sequence[Box], size: Size) -> Framed:
    """Return the picture at `size` (width, height) in pixels by Lanczos' filter, sides scaled apart."""
    moved = resize_boxes(clip_boxes(list(boxes), image.size), image.size, size)
    return Framed(image.resize(size, Image.Resampling.LANCZOS), moved, len(boxes) - len(moved))


def find_bright_area(image: Image.Image) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the picture without its dark frame.

    Rows and columns count as frame, from the edge inwards, while their mean over the central half is below
    `DARK_SHARE` of the mean of the centre; see the other constants for when less or nothing is cut.
    """
    whole = (0, 0, *image.size)
    grey = np.asarray(image.convert("L"), dtype=float)
    height, width = grey.shape
    middle_rows, middle_columns = slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)
    centre = grey[middle_rows, middle_columns].mean()
    if min(image.size) < MIN_SIDE or centre < MIN_CENTRE:
        return whole
    top, bottom = _bright_range(grey[:, middle_columns].mean(axis=1), DARK_SHARE * centre)
    left, right = _bright_range(grey[middle_rows].mean(axis=0), DARK_SHARE * centre)
    kept = (right - left) * (bottom - top)
    return (left, top, right, bottom) if kept >= MIN_AREA_KEPT * width * height else whole


def _bright_range(means: np.ndarray, threshold: float) -> tuple[int, int]:
    bright, most = np.flatnonzero(means >= threshold), len(means) // MAX_CROP
    return min(int(bright[0]), most), max(int(bright[-1]) + 1, len(means) - most)
