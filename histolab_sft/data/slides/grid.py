"""A whole slide, or a large picture, as a grid of squares, each as large as a patch.

Slides need the optional extra `slides`; `grid_slide` itself takes any object with OpenSlide's `read_region`,
`level_downsamples` and `properties`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from histolab_sft.data.pictures.containers import ImageRefused
from histolab_sft.data.pictures.decoding import MAX_PIXELS
from histolab_sft.data.slides.quality import find_tissue

SLIDE_SUFFIXES = (".svs", ".ndpi", ".tif", ".tiff", ".scn", ".mrxs", ".bif", ".vms", ".svslide")
TARGET_MPP = 0.5
# How much coarser than the target a slide may be: objectives called 20x are scanned at 0.45 to 0.55 µm/px.
MPP_TOLERANCE = 0.1
FINEST_MPP = 0.05


class Slide(Protocol):
    """What is needed of `openslide.OpenSlide`."""

    level_downsamples: tuple[float, ...]
    properties: dict[str, str]

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image: ...


class Grid(NamedTuple):
    """Whole squares from the upper left corner on; what is left at the right and lower border belongs to none.

    Args:
        size: Width and height in pixels, of level 0 for a slide.
        step: Those pixels that one square covers, across and down.
        patch_size: Pixels a side of what `read` gives.
        tissue: Which part of each square is tissue, from the overview; float (rows, columns).
        overview: All of it, small, 8-bit RGB.
        read: Gives the patch in a row and column, 8-bit RGB.
    """

    size: tuple[int, int]
    step: tuple[float, float]
    patch_size: int
    tissue: np.ndarray
    overview: Image.Image
    read: Callable[[int, int], Image.Image]

    def find_corner(self, row: int, column: int) -> tuple[int, int]:
        """Return x and y of the upper left corner of a square, in pixels as of `size`."""
        return round(column * self.step[0]), round(row * self.step[1])


@contextmanager
def open_slide(path: Path) -> Iterator[Slide]:
    """Open a slide with OpenSlide.

    Raises:
        ImportError: It isn't installed.
        ImageRefused: It can't read the file, here or under the block.
    """
    try:
        import openslide
    except ImportError as error:
        raise ImportError(
            f"{path} is a whole slide, expected OpenSlide to read it; run `pip install histolab_sft[slides]`"
        ) from error
    try:
        with openslide.OpenSlide(path) as slide:
            yield slide
    except openslide.OpenSlideError as error:
        reason = f"{error or 'unknown format'}; expected a slide that OpenSlide reads; copy or convert it again"
        raise ImageRefused(str(path), reason) from error


def grid_slide(slide: Slide, name: str, mpp: float, patch_size: int) -> Grid:
    """Divide a slide into squares of `patch_size * mpp` µm.

    A patch is read at the coarsest level that is no coarser than `mpp`, and scaled down to `patch_size` pixels a side.

    Args:
        name: Stands in errors.

    Raises:
        ImageRefused: The slide doesn't say its resolution, or is coarser than `mpp`, or has no overview.
    """
    mpp_x, mpp_y = read_mpp(slide, name, mpp)
    scale = np.array([mpp / mpp_x, mpp / mpp_y])  # px of level 0 to one of a patch
    step = patch_size * scale
    finest = [level for level, down in enumerate(slide.level_downsamples) if down <= max(scale.min(), 1) * 1.01]
    level = max(finest, key=lambda level: slide.level_downsamples[level])
    width, height = (int(side) for side in np.rint(step / slide.level_downsamples[level]))
    size = tuple(int(slide.properties[f"openslide.level[0].{side}"]) for side in ("width", "height"))
    overview = _read_overview(slide, name, size)
    tissue = _measure_tissue(overview, size, step)
    corners = Grid(size, (float(step[0]), float(step[1])), patch_size, tissue, overview, None)

    def read(row: int, column: int) -> Image.Image:
        image = _flatten(slide.read_region(corners.find_corner(row, column), level, (width, height)))
        return image.resize((patch_size, patch_size), Image.Resampling.LANCZOS)

    return corners._replace(read=read)


def grid_picture(image: Image.Image, patch_size: int) -> Grid:
    """Divide a picture (8-bit RGB) into squares of `patch_size` of its own pixels."""
    overview = image.copy()
    overview.thumbnail((1024, 1024), Image.Resampling.BOX)

    def read(row: int, column: int) -> Image.Image:
        x, y = column * patch_size, row * patch_size
        return image.crop((x, y, x + patch_size, y + patch_size))

    tissue = _measure_tissue(overview, image.size, np.full(2, patch_size))
    return Grid(image.size, (patch_size, patch_size), patch_size, tissue, overview, read)


def read_mpp(slide: Slide, name: str, target: float = TARGET_MPP) -> tuple[float, float]:
    """Return µm per pixel of level 0, across and down.

    Raises:
        ImageRefused: They aren't there, or aren't those of a slide, or are coarser than `target`.
    """
    given = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    if None in given:
        found = slide.properties.get("openslide.objective-power", "no objective power either")
        raise ImageRefused(
            name,
            f"no µm per pixel ({found}), expected openslide.mpp-x and -y; write them into the file or leave it out",
        )
    mpp = (float(given[0]), float(given[1]))
    if not all(FINEST_MPP <= value <= target * (1 + MPP_TOLERANCE) for value in mpp):
        raise ImageRefused(
            name,
            f"{mpp[0]:g} x {mpp[1]:g} µm per pixel, expected {FINEST_MPP} to {target}: coarser ones have no "
            "detail to scale up; correct the file or take another scan",
        )
    return mpp


def _measure_tissue(overview: Image.Image, size: tuple[int, int], step: np.ndarray) -> np.ndarray:
    """Return which part of each square of `step` px is tissue in the overview of `size` px: float (rows, columns)."""
    mask = find_tissue(overview)
    areas = np.pad(mask.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    columns, rows = np.floor(np.array(size) / step).astype(int)
    scale = np.array(overview.size) / size
    xs = np.minimum(np.rint(np.arange(columns + 1) * step[0] * scale[0]).astype(int), overview.width)
    ys = np.minimum(np.rint(np.arange(rows + 1) * step[1] * scale[1]).astype(int), overview.height)
    tissue = areas[np.ix_(ys[1:], xs[1:])] - areas[np.ix_(ys[:-1], xs[1:])]
    tissue = tissue - areas[np.ix_(ys[1:], xs[:-1])] + areas[np.ix_(ys[:-1], xs[:-1])]
    return tissue / np.maximum(1, np.outer(np.diff(ys), np.diff(xs)))


def _read_overview(slide: Slide, name: str, size: tuple[int, int]) -> Image.Image:
    level = len(slide.level_downsamples) - 1
    width, height = (int(side / slide.level_downsamples[level]) for side in size)
    if width * height > MAX_PIXELS:
        raise ImageRefused(
            name,
            f"{width} x {height} px at its lowest level, expected at most {MAX_PIXELS} in all; "
            "convert it to a pyramid",
        )
    return _flatten(slide.read_region((0, 0), level, (width, height)))


def _flatten(region: Image.Image) -> Image.Image:
    """Return the region in RGB, white where the slide wasn't scanned and OpenSlide's pixels are transparent."""
    region = region.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", region.size, "white"), region).convert("RGB")
