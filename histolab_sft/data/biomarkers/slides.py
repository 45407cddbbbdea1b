"""Cut whole slides into patches of one true resolution.

Needs the optional extra `slides` to open files; `cut_slide` itself takes any object with OpenSlide's `read_region`,
`level_downsamples` and `properties`.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from histolab_sft.data.biomarkers.quality import PatchFilter, find_tissue, judge_patch
from histolab_sft.data.pictures.containers import ImageRefused
from histolab_sft.data.pictures.decoding import MAX_PIXELS

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


class Cutting(NamedTuple):
    """How slides are cut."""

    mpp: float = TARGET_MPP  # µm per pixel of a patch
    patch_size: int = 512  # px, both sides
    max_patches: int = 64  # of one slide
    seed: int = 42
    limits: PatchFilter = PatchFilter()


class SlidePatch(NamedTuple):
    """A patch, and its upper left corner in pixels of level 0."""

    image: Image.Image
    x: int
    y: int
    tissue: float


def cut_slide_file(path: Path, cutting: Cutting) -> tuple[list[SlidePatch], Counter]:
    """Return what `cut_slide` does, of a file.

    Raises:
        ImportError: OpenSlide isn't installed.
        ImageRefused: It can't read the file, and as `cut_slide`.
    """
    try:
        import openslide
    except ImportError as error:
        raise ImportError(
            f"{path} is a whole slide, expected OpenSlide to read it; run `pip install histolab_sft[slides]`"
        ) from error
    try:
        with openslide.OpenSlide(path) as slide:
            return cut_slide(slide, path.name, cutting)
    except openslide.OpenSlideError as error:
        reason = f"{error or 'unknown format'}; expected a slide that OpenSlide reads; copy or convert it again"
        raise ImageRefused(str(path), reason) from error


def cut_slide(slide: Slide, name: str, cutting: Cutting) -> tuple[list[SlidePatch], Counter]:
    """Return patches of one slide, top to bottom, and how many squares were refused, by reason.

    The slide is divided into squares of `patch_size * mpp` µm. Those with tissue at the lowest level are read in an
    order drawn from seed and name, at the coarsest level that is no coarser than `mpp`, and scaled down to it, until
    `max_patches` have passed.

    Args:
        name: Stands in errors, and is half of the seed.

    Raises:
        ImageRefused: The slide doesn't say its resolution, or is coarser than `mpp`, or has no overview.
    """
    mpp_x, mpp_y = read_mpp(slide, name, cutting.mpp)
    scale = np.array([cutting.mpp / mpp_x, cutting.mpp / mpp_y])  # px of level 0 to one of a patch
    step = cutting.patch_size * scale
    finest = [level for level, down in enumerate(slide.level_downsamples) if down <= max(scale.min(), 1) * 1.01]
    level = max(finest, key=lambda level: slide.level_downsamples[level])
    size = np.rint(step / slide.level_downsamples[level]).astype(int)
    squares = _find_squares(slide, name, step, cutting.limits.min_tissue)
    refused = Counter({"no tissue in the overview": int((~squares).sum())})
    digest = hashlib.sha256(f"{cutting.seed} {name}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    patches = []
    for row, column in generator.permutation(np.argwhere(squares)):
        if len(patches) == cutting.max_patches:
            break
        x, y = (int(corner) for corner in np.rint(np.array([column, row]) * step))
        image = _flatten(slide.read_region((x, y), level, (int(size[0]), int(size[1]))))
        image = image.resize((cutting.patch_size, cutting.patch_size), Image.Resampling.LANCZOS)
        quality = judge_patch(image, cutting.limits)
        if quality.reason:
            refused[quality.reason] += 1
        else:
            patches.append(SlidePatch(image, x, y, quality.tissue))
    return sorted(patches, key=lambda patch: (patch.y, patch.x)), +refused


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


def _find_squares(slide: Slide, name: str, step: np.ndarray, min_tissue: float) -> np.ndarray:
    """Return which squares of `step` px of level 0 may have enough tissue, bool (rows, columns)."""
    size = np.array([int(slide.properties[f"openslide.level[0].{side}"]) for side in ("width", "height")])
    level = len(slide.level_downsamples) - 1
    downsample = slide.level_downsamples[level]
    overview = np.floor(size / downsample).astype(int)
    if overview.prod() > MAX_PIXELS:
        raise ImageRefused(
            name,
            f"{overview[0]} x {overview[1]} px at its lowest level, expected at most {MAX_PIXELS} in all; "
            "convert it to a pyramid",
        )
    mask = find_tissue(_flatten(slide.read_region((0, 0), level, (int(overview[0]), int(overview[1])))))
    areas = np.pad(mask.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    columns, rows = np.floor(size / step).astype(int)
    xs = np.minimum(np.rint(np.arange(columns + 1) * step[0] / downsample).astype(int), overview[0])
    ys = np.minimum(np.rint(np.arange(rows + 1) * step[1] / downsample).astype(int), overview[1])
    tissue = areas[np.ix_(ys[1:], xs[1:])] - areas[np.ix_(ys[:-1], xs[1:])]
    tissue = tissue - areas[np.ix_(ys[1:], xs[:-1])] + areas[np.ix_(ys[:-1], xs[:-1])]
    # Half of what the patch itself must have: the overview only roughly agrees with it.
    return tissue >= np.maximum(1, np.outer(np.diff(ys), np.diff(xs)) * min_tissue / 2)


def _flatten(region: Image.Image) -> Image.Image:
    """Return the region in RGB, white where the slide wasn't scanned and OpenSlide's pixels are transparent."""
    region = region.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", region.size, "white"), region).convert("RGB")
