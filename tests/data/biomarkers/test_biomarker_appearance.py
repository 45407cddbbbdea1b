import numpy as np
import pandas as pd
import pytest
from biomarker_fixture import SIZE, paint_tissue
from PIL import Image, ImageDraw, ImageFilter

from histolab_sft.data.biomarkers.appearance import (
    FEATURE_NAMES,
    choose_patches,
    describe_appearance,
    measure_patches,
    measure_slides,
    select_patches,
    write_images,
)
from histolab_sft.data.biomarkers.reinhard import (
    fit_target,
    lab_to_rgb,
    measure_moments,
    normalise_colours,
    pool_moments,
    rgb_to_lab,
)
from histolab_sft.data.slides.quality import PatchFilter, find_ink, find_tissue, judge_patch

LIMITS = PatchFilter()
PURPLE, PINK = (110, 70, 150), (215, 150, 190)


def tissue(seed=0, size=SIZE):
    return paint_tissue(np.random.default_rng(seed), size)


def cover(image, colour, share):
    image = image.copy()
    ImageDraw.Draw(image).rectangle((0, 0, image.width, round(image.height * share) - 1), fill=colour)
    return image


def test_a_good_patch_passes():
    quality = judge_patch(tissue(), LIMITS)
    assert quality.reason == "" and quality.tissue == 1 and quality.ink == 0 and quality.sharpness > 200


@pytest.mark.parametrize("glass", [(245, 245, 245), (190, 190, 195), (0, 0, 0)])
def test_glass_bad_light_and_the_black_around_a_scan_are_no_tissue(glass):
    assert find_tissue(cover(tissue(), glass, 0.25)).mean() == pytest.approx(0.75, abs=0.02)
    assert judge_patch(cover(tissue(), glass, 0.6), LIMITS).reason in ("too little tissue", "pen mark")
    assert judge_patch(cover(tissue(), (245, 245, 245), 0.6), LIMITS).reason == "too little tissue"


def test_gaps_are_closed_and_specks_taken_out():
    image = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(image).rectangle((10, 10, 29, 29), fill=PURPLE)
    image.putpixel((20, 20), (255, 255, 255))
    image.putpixel((3, 3), PURPLE)
    mask = find_tissue(image)
    assert mask[20, 20] and not mask[3, 3] and mask.sum() == pytest.approx(400, abs=8)


@pytest.mark.parametrize("ink", [(30, 140, 60), (20, 60, 190), (230, 20, 30), (10, 10, 12), (20, 160, 160)])
def test_pen_marks_are_found_in_green_blue_red_black_and_teal(ink):
    assert judge_patch(cover(tissue(), ink, 0.08), LIMITS).reason == ""
    quality = judge_patch(cover(tissue(), ink, 0.2), LIMITS)
    assert quality.reason == "pen mark" and quality.ink == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("colour", [PURPLE, PINK, (40, 25, 90), (190, 50, 70), (70, 80, 150), (245, 245, 245)])
def test_nuclei_eosin_and_blood_are_no_ink(colour):
    assert not find_ink(Image.new("RGB", (20, 20), colour)).any()


def test_what_is_out_of_focus_is_refused():
    quality = judge_patch(tissue().filter(ImageFilter.GaussianBlur(3)), LIMITS)
    assert quality.reason == "out of focus" and quality.sharpness < 50


def test_lab_has_the_values_of_the_primaries_and_goes_back():
    # CIE L*a*b* of sRGB's primaries under D65, as in every table of them.
    expected = {(255, 255, 255): (100, 0, 0), (0, 0, 0): (0, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20)}
    expected |= {(0, 255, 0): (87.73, -86.18, 83.18), (0, 0, 255): (32.30, 79.19, -107.86)}
    lab = (rgb_to_lab(np.array([*expected], dtype=np.uint8)) - [0, 128, 128]) / [2.55, 1, 1]
    assert np.allclose(lab, [*expected.values()], atol=0.05)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    assert np.array_equal(lab_to_rgb(rgb_to_lab(pixels)), pixels)


def test_pooled_moments_are_those_of_all_tissue_pixels_together():
    patches = [tissue(seed, 128) for seed in range(3)]
    pixels = np.concatenate([rgb_to_lab(np.asarray(patch)[::4, ::4]).reshape(-1, 3) for patch in patches])
    pooled = pool_moments([measure_moments(patch) for patch in patches])
    assert np.allclose(pooled["mean"], pixels.mean(axis=0)) and np.allclose(pooled["std"], pixels.std(axis=0))
    # Glass is no part of a stain.
    with_glass = pool_moments([measure_moments(cover(patch, (245, 245, 245), 0.25)) for patch in patches])
    assert np.allclose(with_glass["mean"], pooled["mean"], atol=1.5)


def test_colours_that_can_not_be_measured_are_refused():
    with pytest.raises(ValueError, match="1 patches without tissue"):
        pool_moments([measure_moments(Image.new("RGB", (32, 32), "white"))])
    with pytest.raises(ValueError, match="tissue of one colour in 1 patches"):
        pool_moments([measure_moments(Image.new("RGB", (32, 32), PURPLE))])


def test_normalised_slides_have_the_colours_of_the_target():
    slides = [[tissue(seed, 128)] for seed in range(3)]
    target = fit_target([pool_moments([measure_moments(patch) for patch in slide]) for slide in slides])
    bluish = Image.fromarray((np.asarray(tissue(9, 128)) * [0.8, 0.9, 1.0]).astype(np.uint8))
    source = pool_moments([measure_moments(bluish)])
    found = pool_moments([measure_moments(normalise_colours(bluish, source, target))])
    assert np.abs(np.subtract(source["mean"], target["mean"])).max() > 5
    assert np.allclose(found["mean"], target["mean"], atol=1) and np.allclose(found["std"], target["std"], atol=1)


def test_patches_of_one_slide_keep_their_difference():
    pale, dark = tissue(1, 128), Image.fromarray((np.asarray(tissue(2, 128)) * 0.7).astype(np.uint8))
    source = pool_moments([measure_moments(pale), measure_moments(dark)])
    means = [np.asarray(normalise_colours(image, source, source).convert("L")).mean() for image in (pale, dark)]
    assert means[0] - means[1] > 20


def test_a_look_has_a_number_for_each_name_and_tells_stains_apart():
    look = dict(zip(FEATURE_NAMES, describe_appearance(Image.new("RGB", (64, 64), PURPLE)), strict=True))
    other = dict(zip(FEATURE_NAMES, describe_appearance(Image.new("RGB", (64, 64), PINK)), strict=True))
    assert look["haematoxylin_mean"] > other["haematoxylin_mean"]
    assert look["haematoxylin_texture"] < 1e-9 < 0.1 < describe_appearance(tissue())[4]


def test_one_patch_of_each_kind_is_chosen_the_most_common_first():
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1, 2], [6, 12, 3])
    features = rng.normal(scale=0.01, size=(21, 4)) + np.array([[0, 0, 0, 1], [5, 0, 2, 1], [0, 9, 1, 1]])[kinds]
    features[:, 3] = 1  # a constant column
    chosen = select_patches(features, 3)
    assert kinds[chosen].tolist() == [1, 0, 2]
    assert select_patches(features, 3) == chosen


def test_few_patches_are_all_taken_and_equal_ones_fill_the_list():
    assert sorted(select_patches(np.random.default_rng(0).normal(size=(3, 4)), 8)) == [0, 1, 2]
    equal = np.zeros((6, 4))
    equal[5] = 1
    chosen = select_patches(equal, 4)
    assert len(set(chosen)) == 4 and 5 in chosen


@pytest.fixture
def patches(tmp_path):
    """A patient with two slides, another with one; one patch blurred, one cut off, one refused before."""
    rows = []
    for patient, slide in (("a", "a1"), ("a", "a2"), ("b", "b1")):
        for number in range(4):
            path = tmp_path / f"{slide}_patch_{number:03d}.png"
            tissue(len(rows)).save(path)
            rows.append({"path": str(path), "name": path.stem, "slide": slide, "patient": patient, "reason": ""})
    Image.open(rows[0]["path"]).filter(ImageFilter.GaussianBlur(3)).save(rows[0]["path"])
    with open(rows[1]["path"], "r+b") as file:
        file.truncate(900)
    return pd.DataFrame(rows).assign(reason=[*[""] * 11, "normal tissue"])


def test_every_patch_refused_keeps_its_reason(patches):
    measured = measure_patches(patches, LIMITS)
    assert measured["reason"].iloc[0] == "out of focus" and measured["sharpness"].iloc[0] < 50
    assert measured["reason"].iloc[1].startswith("unreadable: ")
    assert measured["reason"].iloc[11] == "normal tissue" and np.isnan(measured["tissue"].iloc[11])
    assert (measured["reason"] == "").sum() == 9
    assert measured["path"].equals(patches["path"])


def test_a_patient_gets_patches_of_all_slides_in_the_target_colours(patches, tmp_path):
    measured = measure_patches(patches, LIMITS)
    colours = measure_slides(measured)
    assert sorted(colours) == ["a1", "a2", "b1"]
    chosen = choose_patches(measured, 5, seed=0)
    assert chosen["patient"].value_counts().to_dict() == {"a": 5, "b": 3}
    assert set(chosen.loc[chosen["patient"] == "a", "slide"]) == {"a1", "a2"}
    target = {"mean": [150.0, 160.0, 110.0], "std": [40.0, 10.0, 12.0]}
    paths = write_images(chosen, tmp_path / "out", colours, target)
    assert [path.relative_to(tmp_path / "out").parts[0] for path in paths] == chosen["patient"].tolist()
    of_b = [measure_moments(Image.open(path)) for path in paths if path.parent.name == "b"]
    assert np.allclose(pool_moments(of_b)["mean"], target["mean"], atol=2)
    untouched = write_images(chosen, tmp_path / "plain", colours, None)
    assert np.array_equal(np.asarray(Image.open(untouched[0])), np.asarray(Image.open(chosen["path"].iloc[0])))
