import builtins
import json

import numpy as np
import pytest
from biomarker_fixture import SIZE, paint_slide, write_pyramid
from PIL import Image

from histolab_sft.data.biomarkers.patch_folders import cut_slides, list_patches
from histolab_sft.data.pictures.containers import ImageRefused
from histolab_sft.data.slides.cutting import Cutting, cut_slide, cut_slide_file

CUTTING = Cutting(patch_size=SIZE)
PATTERN = r"TCGA-\w{2}-\w{4}"


class FakeSlide:
    """A slide in memory with levels of 1, 2 and 4, that counts what is read of it; outside it is transparent."""

    def __init__(self, pixels, **properties):
        height, width = pixels.shape[:2]
        image = Image.fromarray(pixels)
        self.level_downsamples = (1.0, 2.0, 4.0)
        self.levels = [image.resize((width >> level, height >> level), Image.Resampling.BOX) for level in range(3)]
        self.properties = {"openslide.level[0].width": str(width), "openslide.level[0].height": str(height)}
        self.properties |= {f"openslide.{name.replace('_', '-')}": str(value) for name, value in properties.items()}
        self.reads = []

    def read_region(self, location, level, size):
        self.reads.append((location, level, size))
        x, y = (int(value / self.level_downsamples[level]) for value in location)
        return self.levels[level].convert("RGBA").crop((x, y, x + size[0], y + size[1]))


def fake_slide(mpp, seed=1, **more):
    return FakeSlide(paint_slide(seed, mpp), mpp_x=mpp, mpp_y=mpp, **more)


def stack(patches):
    return np.stack([np.asarray(patch.image, dtype=float) for patch in patches])


@pytest.mark.parametrize(("mpp", "level", "read"), [(0.5, 0, 64), (0.25, 1, 64), (0.125, 2, 64), (0.2, 1, 80)])
def test_a_patch_covers_the_same_tissue_at_any_magnification(mpp, level, read):
    slide = fake_slide(mpp)
    patches, refused = cut_slide(slide, "a", CUTTING)
    expected, _ = cut_slide(fake_slide(0.5), "a", CUTTING)
    assert {patch.image.size for patch in patches} == {(SIZE, SIZE)} and len(patches) == len(expected) == 9
    assert refused == {"no tissue in the overview": 3}
    assert slide.reads[1][1:] == (level, (read, read))
    corners = [(patch.x * mpp, patch.y * mpp) for patch in patches]  # in µm
    assert np.allclose(corners, [(patch.x * 0.5, patch.y * 0.5) for patch in expected], atol=0.2)
    # The pixels agree too; at 0.2 but for the resampling. Patches of 0.25 µm/px would show a quarter of the tissue.
    difference = np.abs(stack(patches) - stack(expected)).mean()
    assert difference < (9 if mpp == 0.2 else 0.1)


def test_pixels_that_are_not_square_are_made_so():
    wide = np.repeat(paint_slide(1, 0.5), 2, axis=1)
    patches, _ = cut_slide(FakeSlide(wide, mpp_x=0.25, mpp_y=0.5), "a", CUTTING)
    expected, _ = cut_slide(fake_slide(0.5), "a", CUTTING)
    assert np.abs(stack(patches) - stack(expected)).mean() < 3


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_a_real_pyramid_is_cut_as_the_one_in_memory(tmp_path, mpp):
    pytest.importorskip("openslide", reason="needs the extra `slides`")
    path = write_pyramid(tmp_path / "a.tif", paint_slide(1, mpp), mpp)
    patches, refused = cut_slide_file(path, CUTTING)
    expected, expected_refused = cut_slide(fake_slide(mpp), "a.tif", CUTTING)
    assert [patch[1:] for patch in patches] == [patch[1:] for patch in expected] and refused == expected_refused
    assert np.array_equal(stack(patches), stack(expected))


def test_no_more_patches_are_read_than_wanted_and_which_depends_on_seed_and_name_alone():
    def cut(seed=42, name="a"):
        slide = fake_slide(0.5)
        patches, _ = cut_slide(slide, name, CUTTING._replace(max_patches=4, seed=seed))
        assert len(patches) == 4 and len(slide.reads) == 5  # the overview first
        assert [(patch.y, patch.x) for patch in patches] == sorted((patch.y, patch.x) for patch in patches)
        return [patch[1:] for patch in patches]

    assert cut() == cut()
    assert cut() != cut(seed=1) and cut() != cut(name="b")


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"objective_power": 40}, "no µm per pixel \\(40\\), expected openslide.mpp-x"),
        ({"mpp_x": 0.25}, "no µm per pixel"),
        ({"mpp_x": 1, "mpp_y": 1}, "1 x 1 µm per pixel, expected 0.05 to 0.5"),
        ({"mpp_x": 352.8, "mpp_y": 352.8}, "352.8 x 352.8 µm per pixel"),
    ],
)
def test_a_slide_without_a_true_resolution_is_refused(properties, reason):
    with pytest.raises(ImageRefused, match=reason):
        cut_slide(FakeSlide(paint_slide(1, 0.5), **properties), "a", CUTTING)


def test_a_slide_of_0_503_is_scaled_and_one_of_0_6_refused():
    patches, _ = cut_slide(FakeSlide(paint_slide(1, 0.5), mpp_x=0.503, mpp_y=0.503), "a", CUTTING)
    assert patches[0].image.size == (SIZE, SIZE)
    with pytest.raises(ImageRefused, match="0.6 x 0.6"):
        cut_slide(FakeSlide(paint_slide(1, 0.5), mpp_x=0.6, mpp_y=0.6), "a", CUTTING)


def test_a_slide_without_an_overview_is_refused_before_it_is_read():
    slide = fake_slide(0.25)
    slide.level_downsamples = (1.0,)
    slide.properties |= {"openslide.level[0].width": "90000", "openslide.level[0].height": "80000"}
    with pytest.raises(ImageRefused, match="90000 x 80000 px at its lowest level, expected at most 25000000"):
        cut_slide(slide, "a", CUTTING)
    assert slide.reads == []


def test_what_was_never_scanned_is_white():
    pixels = paint_slide(1, 0.5)
    slide = fake_slide(0.5)
    holes = np.full(pixels.shape[:2], 255, dtype=np.uint8)
    holes[:, SIZE : 2 * SIZE] = 0  # transparent, with tissue's colours below
    full = Image.fromarray(np.dstack([pixels, holes]))
    slide.levels = [
        full.resize((full.width >> level, full.height >> level), Image.Resampling.BOX) for level in range(3)
    ]
    patches, refused = cut_slide(slide, "a", CUTTING)
    assert len(patches) == 6 and refused == {"no tissue in the overview": 6}


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_openslide(name, *args, **kwargs):
        if name == "openslide":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_openslide)
    with pytest.raises(ImportError, match=r"a.svs is a whole slide, expected OpenSlide .* histolab_sft\[slides\]"):
        cut_slide_file(tmp_path / "a.svs", CUTTING)


def test_slides_are_cut_into_folders_and_a_second_call_cuts_nothing(tmp_path):
    pytest.importorskip("openslide", reason="needs the extra `slides`")
    slides = tmp_path / "slides"
    slides.mkdir()
    write_pyramid(slides / "TCGA-05-0001-01Z-00-DX1.tif", paint_slide(1, 0.25), 0.25)
    write_pyramid(slides / "TCGA-05-0002-01Z-00-DX1.tif", paint_slide(2, 1.0), 1.0, n_levels=1)
    (slides / "TCGA-05-0003-01Z-00-DX1.svs").write_bytes(b"no slide")
    entries = cut_slides(slides, tmp_path / "patches", CUTTING)
    assert [entry["patches"] for entry in entries] == [9, 0, 0]
    assert entries[0]["refused"] == {"no tissue in the overview": 3}
    assert (
        "1 x 1 µm per pixel" in entries[1]["reason"]
        and "expected a slide that OpenSlide reads" in entries[2]["reason"]
    )

    patches = list_patches(tmp_path / "patches", 0.5, None, PATTERN)
    assert patches["patient"].unique().tolist() == ["TCGA-05-0001"] and patches["reason"].eq("").all()
    first = tmp_path / "patches/TCGA-05-0001-01Z-00-DX1/TCGA-05-0001-01Z-00-DX1_patch_000.jpg"
    assert patches["path"][0] == str(first)
    stamp = first.stat().st_mtime_ns
    assert cut_slides(slides, tmp_path / "patches", CUTTING) == entries and first.stat().st_mtime_ns == stamp
    # Another size: everything anew, nothing left of the first.
    assert [entry["patches"] for entry in cut_slides(slides, tmp_path / "patches", CUTTING._replace(max_patches=2))][
        0
    ] == 2
    assert len(list_patches(tmp_path / "patches", 0.5, None, PATTERN)) == 2
    with pytest.raises(FileNotFoundError, match="holds no slides"):
        cut_slides(tmp_path / "patches", tmp_path / "other", CUTTING)


def write_patch(folder, slide, number=0, mpp=None):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / f"{slide}_patch_{number:03d}.png")
    if mpp is not None:
        (folder / f"{slide}_metadata.json").write_text(json.dumps({"mpp": mpp, "patches": []}))


def test_patches_of_another_resolution_or_of_normal_tissue_are_refused(tmp_path):
    write_patch(tmp_path / "b", "TCGA-05-0001-01Z-00-DX1", mpp=0.25)
    write_patch(tmp_path / "a", "TCGA-05-0002-01Z-00-DX1", mpp=0.503)
    write_patch(tmp_path / "a", "TCGA-05-0003-11A-01-TS1", mpp=0.5)
    patches = list_patches(tmp_path, 0.5, None, PATTERN).set_index("patient")["reason"]
    assert patches.to_dict() == {
        "TCGA-05-0001": "cut at 0.25 µm/px instead of 0.5",
        "TCGA-05-0002": "",
        "TCGA-05-0003": "normal tissue",
    }


def test_patches_must_tell_their_resolution_or_have_it_declared(tmp_path):
    write_patch(tmp_path, "TCGA-05-0001-01Z-00-DX1")
    with pytest.raises(ValueError, match="1 of 1 slides don't tell the µm per pixel of their patches, TCGA-05-0001-"):
        list_patches(tmp_path, 0.5, None, PATTERN)
    assert list_patches(tmp_path, 0.5, 0.5, PATTERN)["reason"].tolist() == [""]


def test_pictures_named_otherwise_are_not_passed_over(tmp_path):
    write_patch(tmp_path, "TCGA-05-0001-01Z-00-DX1", mpp=0.5)
    Image.new("RGB", (8, 8)).save(tmp_path / "thumbnail.png")
    with pytest.raises(ValueError, match="1 of 2 pictures .* SLIDE_patch_NUMBER, .*thumbnail.png first"):
        list_patches(tmp_path, 0.5, None, PATTERN)
    (tmp_path / "thumbnail.png").unlink()
    write_patch(tmp_path / "again", "TCGA-05-0001-01Z-00-DX1", mpp=0.5)
    with pytest.raises(ValueError, match="two patches are named TCGA-05-0001-01Z-00-DX1_patch_000"):
        list_patches(tmp_path, 0.5, None, PATTERN)
