"""Cut whole slides into patches of one true resolution, and keep those that are worth looking at."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from histolab_sft.data.slides.grid import TARGET_MPP, Slide, grid_slide, open_slide
from histolab_sft.data.slides.quality import PatchFilter, judge_patch


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
    """Return what `cut_slide` does, of a file; errors as there and in `open_slide`."""
    with open_slide(path) as slide:
        return cut_slide(slide, path.name, cutting)


def cut_slide(slide: Slide, name: str, cutting: Cutting) -> tuple[list[SlidePatch], Counter]:
    """Return patches of one slide, top to bottom, and how many squares were refused, by reason.

    Squares (`grid_slide`) with tissue in the overview are read in an order drawn from seed and name, until
    `max_patches` have passed.

    Args:
        name: Stands in errors, and is half of the seed.

    Raises:
        ImageRefused: As `grid_slide`.
    """
    grid = grid_slide(slide, name, cutting.mpp, cutting.patch_size)
    # Half of what the patch itself must have: the overview only roughly agrees with it.
    squares = (grid.tissue > 0) & (grid.tissue >= cutting.limits.min_tissue / 2)
    refused = Counter({"no tissue in the overview": int((~squares).sum())})
    digest = hashlib.sha256(f"{cutting.seed} {name}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    patches = []
    for row, column in generator.permutation(np.argwhere(squares)):
        if len(patches) == cutting.max_patches:
            break
        image = grid.read(row, column)
        quality = judge_patch(image, cutting.limits)
        if quality.reason:
            refused[quality.reason] += 1
        else:
            patches.append(SlidePatch(image, *grid.find_corner(row, column), quality.tissue))
    return sorted(patches, key=lambda patch: (patch.y, patch.x)), +refused
