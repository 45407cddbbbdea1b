"""Changes to pictures: nothing at strength zero, more at more strength, and the arithmetic where it can be known."""

import numpy as np
import pytest
from PIL import Image

from histolab_sft.data.pictures.stain import STAINS
from histolab_sft.evaluation.perturbations import CHANGES, STRENGTHS, TURNS, UNCHANGED, change_patch


def paint_patch(size=(60, 40), seed=0):
    """A smooth patch in H&E colours, so that blur and compression have something to keep."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(90, 240, (16, 24, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def distance(first, second):
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean())


@pytest.mark.parametrize("change", CHANGES)
def test_every_strength_gives_an_rgb_patch_and_the_same_one_again(change):
    patch = paint_patch((240, 160))
    before = np.asarray(patch).copy()
    for strength in STRENGTHS[change]:
        changed = change_patch(patch, change, strength, seed=3)
        assert changed.mode == "RGB"
        assert changed.size in (patch.size, patch.size[::-1])
        assert (np.asarray(changed) == np.asarray(change_patch(patch, change, strength, seed=3))).all()
        same = changed.size == patch.size and distance(changed, patch) == 0
        assert same == (strength == UNCHANGED[change])
    assert (np.asarray(patch) == before).all()


@pytest.mark.parametrize("change", ["stain", "jpeg", "blur"])
def test_a_stronger_change_is_further_from_the_patch(change):
    patches = [paint_patch(seed=seed) for seed in range(12)]
    distances = [
        np.mean([distance(change_patch(patch, change, strength, seed), patch) for seed, patch in enumerate(patches)])
        for strength in STRENGTHS[change]
    ]
    assert distances == sorted(distances) and distances[-1] > distances[1]


def test_every_curve_holds_the_unchanged_patch():
    assert set(STRENGTHS) == set(UNCHANGED) == set(CHANGES)
    assert all(UNCHANGED[change] in strengths for change, strengths in STRENGTHS.items())


def test_stain_jitter_moves_each_stain_by_one_factor_and_one_shift():
    patch = paint_patch()
    changed = change_patch(patch, "stain", 0.05, seed=1)
    before, after = (
        (-np.log10(np.asarray(image, dtype=float) / 255) @ np.linalg.inv(STAINS)).reshape(-1, 3)
        for image in (patch, changed)
    )
    rng = np.random.default_rng(1)
    factors, shifts = rng.uniform(0.95, 1.05, 3), rng.uniform(-0.05, 0.05, 3)
    inside = (np.asarray(changed).reshape(-1, 3) < 255).all(axis=1)
    # Pixels are whole numbers, of which the inverse of the stains makes a few thousandths.
    np.testing.assert_allclose(after[inside], (before * factors + shifts)[inside], atol=0.02)


def test_stain_jitter_depends_on_the_seed_and_survives_black_and_white():
    extremes = Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8))
    first, second = (np.asarray(change_patch(extremes, "stain", 0.2, seed)) for seed in (0, 1))
    assert (first != second).any()
    assert first[0, 0].mean() < 20


def test_blur_keeps_the_mean_and_is_as_strong_on_a_larger_picture_of_the_same():
    patch = paint_patch()
    large = patch.resize((480, 320), Image.Resampling.BICUBIC)
    small_blurred = change_patch(patch, "blur", 2.0, 0)
    large_blurred = change_patch(large, "blur", 2.0, 0).resize(patch.size, Image.Resampling.BOX)
    assert np.asarray(small_blurred).mean() == pytest.approx(np.asarray(patch).mean(), abs=1)
    assert distance(small_blurred, large_blurred) < 2


def test_twice_the_magnification_shows_the_middle_half():
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[10:30, 10:30] = 200
    changed = np.asarray(change_patch(Image.fromarray(pixels), "magnification", 2.0, 0))
    assert changed[4:-4, 4:-4].min() > 190


def test_half_the_magnification_holds_the_whole_patch_and_mirror_images_around_it():
    patch = paint_patch((40, 40))
    changed = np.asarray(change_patch(patch, "magnification", 0.5, 0)).astype(int)
    whole = np.asarray(patch.resize((20, 20), Image.Resampling.BICUBIC, reducing_gap=3)).astype(int)
    assert (changed[10:30, 10:30] == whole).all()
    assert (changed[:10, 10:30] == whole[:10][::-1]).all()
    assert (changed[10:30, 30:] == whole[:, 10:][:, ::-1]).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (201, 2)])
@pytest.mark.parametrize("factor", [0.5, 0.75, 1.5, 2.0])
def test_magnification_keeps_the_size_of_any_picture(size, factor):
    assert change_patch(paint_patch(size), "magnification", factor, 0).size == size


@pytest.mark.slow
@pytest.mark.parametrize("name", TURNS)
def test_a_turn_keeps_every_pixel(name):
    patch = paint_patch()
    turned = np.asarray(change_patch(patch, "orientation", name, 0)).reshape(-1, 3)
    assert sorted(map(tuple, turned.tolist())) == sorted(map(tuple, np.asarray(patch).reshape(-1, 3).tolist()))
