"""A slide or a large picture as a grid: which pixels a square has, and what belongs to none."""

import numpy as np
import pytest
from biomarker_fixture import SIZE, paint_slide, write_pyramid
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histolab_sft.data.slides.grid import grid_picture, grid_slide, open_slide
from histolab_sft.data.slides.quality import find_tissue


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_squares_cover_a_picture_from_its_corner_without_gap_or_overlap(width, height, side):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    grid = grid_picture(Image.fromarray(pixels), side)
    rows, columns = grid.tissue.shape
    assert (rows, columns) == (height // side, width // side)
    for row, column in np.ndindex(rows, columns):
        x, y = grid.find_corner(row, column)
        assert (x, y) == (column * side, row * side)
        assert np.array_equal(np.asarray(grid.read(row, column)), pixels[y : y + side, x : x + side])


def test_the_part_that_is_tissue_is_that_of_the_square_itself():
    pixels = paint_slide(1, 0.5)
    grid = grid_picture(Image.fromarray(pixels), SIZE)
    mask = find_tissue(Image.fromarray(pixels))
    for row, column in np.ndindex(grid.tissue.shape):
        own = mask[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE].mean()
        assert grid.tissue[row, column] == pytest.approx(own)
    assert grid.tissue[:, 0].max() == 0 and grid.tissue[:, 1:].min() > 0.5  # glass at the left


@pytest.mark.parametrize("mpp", [0.5, 0.25])
def test_a_slide_and_the_same_tissue_as_a_picture_give_the_same_squares(tmp_path, mpp):
    pytest.importorskip("openslide", reason="needs the extra `slides`")
    path = write_pyramid(tmp_path / "a.tif", paint_slide(1, mpp), mpp)
    picture = grid_picture(Image.fromarray(paint_slide(1, 0.5)), SIZE)
    with open_slide(path) as slide:
        grid = grid_slide(slide, "a.tif", 0.5, SIZE)
        assert grid.tissue.shape == picture.tissue.shape
        for row, column in np.ndindex(grid.tissue.shape):
            difference = np.asarray(grid.read(row, column), float) - np.asarray(picture.read(row, column), float)
            assert np.abs(difference).mean() < 0.1
            # Corners are in pixels of the slide's finest level.
            assert grid.find_corner(row, column) == tuple(
                round(place * 0.5 / mpp) for place in picture.find_corner(row, column)
            )
