"""Crop, pad and resize a picture, and record where the original is in it, so that its boxes can be moved too.

A step takes a picture and its `Placement` and returns new ones. `box_geometry.move_boxes` moves boxes into the new
picture, `restore_boxes` moves them back.
"""

import numpy as np
from PIL import Image

from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks.parsing.box_geometry import (
    Placement,
    crop_boxes,
    place_whole,
    resize_boxes,
    restore_boxes,
    shift_box,
    square_padding,
)

# Well above BACH's 3.1 Mpx, well below the 89 Mpx at which Pillow begins to warn, and 100 MB once decoded.
MAX_PIXELS = 25_000_000
# ExplainMyXray's rule for the dark frame of an X-ray.
DARK_SHARE = 0.05  # of the mean of the centre; what is darker is frame
MAX_CROP = 6  # at most one part in so many goes on each side
MIN_AREA_KEPT = 0.6
MIN_SIDE = 100
MIN_CENTRE = 10  # of 255; in a darker picture nothing tells frame from patient


def apply_steps(image: Image.Image, steps: list[list]) -> tuple[Image.Image, Placement]:
    """Take `steps`, as `config.picture.read_steps` gives them, one after the other.

    Raises:
        ValueError: A crop isn't inside the picture, or nothing of the original is in it, or a square is too large.
    """
    placement = place_whole(image.size)
    for name, *numbers in steps:
        image, placement = STEPS[name](image, placement, *numbers)
    return image, placement


def crop(
    image: Image.Image, placement: Placement, left: int, top: int, right: int, bottom: int
) -> tuple[Image.Image, Placement]:
    """Return what is inside the area, given in pixels.

    Raises:
        ValueError: The area isn't inside the picture, or nothing of the original is in it.
    """
    area = (left, top, right, bottom)
    inside = crop_boxes([Box(*placement.drawn)], area)
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height and inside):
        raise ValueError(
            f"crop to {area}, expected left, top, right, bottom inside {image.width} x {image.height} pixels and not "
            "of padding alone; correct the area"
        )
    [seen] = restore_boxes([shift_box(inside[0], left, top)], placement)
    return image.crop(area), Placement((right - left, bottom - top), seen[:4], inside[0][:4])


def crop_dark_edges(image: Image.Image, placement: Placement) -> tuple[Image.Image, Placement]:
    """Return the picture without its dark frame, whole where there is none (`find_bright_area`)."""
    return crop(image, placement, *find_bright_area(image))


def pad_to_square(image: Image.Image, placement: Placement) -> tuple[Image.Image, Placement]:
    """Return the picture centred in a black square with its longer side (`box_geometry.square_padding`).

    Raises:
        ValueError: The square would have more pixels than a picture may.
    """
    left, top, side = square_padding(image.size)
    if side * side > MAX_PIXELS:
        raise ValueError(
            f"a square of {side} x {side} pixels, expected at most {MAX_PIXELS} in all; crop or resize before padding"
        )
    square = Image.new(image.mode, (side, side))
    square.paste(image, (left, top))
    return square, placement._replace(size=(side, side), drawn=shift_box(Box(*placement.drawn), left, top)[:4])


def resize(image: Image.Image, placement: Placement, *size: int) -> tuple[Image.Image, Placement]:
    """Return the picture at `size` (width, height) in pixels by Lanczos' filter, sides scaled apart."""
    [drawn] = resize_boxes([Box(*placement.drawn)], image.size, size)
    return image.resize(size, Image.Resampling.LANCZOS), placement._replace(size=size, drawn=drawn[:4])


def list_cells(crops: int) -> list[list[int]]:
    """Return `[crops, row, column]` of each crop of a picture cut into `crops` x `crops`, row by row."""
    return [[crops, row, column] for row in range(crops) for column in range(crops)]


def cut_cell(image: Image.Image, crops: int, row: int, column: int) -> Image.Image:
    """Return one crop of a picture cut into `crops` x `crops` without gap or overlap; sizes differ by a pixel.

    Raises:
        ValueError: The picture has fewer pixels along a side than there are crops.
    """
    if min(image.size) < crops:
        raise ValueError(
            f"a picture of {image.width} x {image.height} pixels, expected at least {crops} along each side for "
            f"multi_scale: {crops}; lower it"
        )
    across, down = ([length * step // crops for step in range(crops + 1)] for length in image.size)
    return image.crop((across[column], down[row], across[column + 1], down[row + 1]))


def show_scales(image: Image.Image, crops: int | None) -> list[Image.Image]:
    """Return the pictures that the model sees of one: itself, and with `multi_scale: crops` its crops after it."""
    return [image, *(cut_cell(image, *cell) for cell in (list_cells(crops) if crops else ()))]


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


STEPS = {"crop": crop, "crop_dark_edges": crop_dark_edges, "pad_to_square": pad_to_square, "resize": resize}
