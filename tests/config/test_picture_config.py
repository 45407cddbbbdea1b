"""How stored pictures become those that the model sees: one look for intake, training and scoring, boxes and all."""

import json

import numpy as np
import pandas as pd
import pytest
from chest_fixture import PADCHEST_ROWS, SIZE, make_config, write_16_bit, write_padchest, write_padchest_gr
from PIL import Image

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.picture import choose_rendering, format_rendering, read_steps, read_window
from histolab_sft.data.audit.audit import audit_patches
from histolab_sft.data.audit.copies import find_leaking_rows, find_near_copies
from histolab_sft.data.data_sets import list_rows
from histolab_sft.data.pictures.containers import ImageRefused
from histolab_sft.data.pictures.decoding import hash_pixels, open_patch
from histolab_sft.data.pictures.inspection import check_images
from histolab_sft.data.rows import load_audited_patches, load_patches
from histolab_sft.demo.batch import open_upload
from histolab_sft.tasks import boxes


def arguments(source, format, **keys):
    entry = {"name": "chest", "source": str(source), "format": format} | keys
    return HistoArguments(datasets=[entry], leaks="allow")


def look(window="full", inverted=False, steps=()):
    return format_rendering(read_window(window), inverted, read_steps(list(steps)))


def write_split_padchest(folder):
    """PadChest's table with a column that says which patient is where."""
    path = write_padchest(folder)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["split"] = table["PatientID"].map({"99": "validation", "102": "test"}).fillna("train")
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"intensity_window": "wide"}, "expected full, minmax or"),
        ({"intensity_window": [4095, 0]}, "the lower one first"),
        ({"intensity_window": ["99%", "1%"]}, "the lower one first"),
        ({"intensity_window": ["1%", "101%"]}, "a percentile such as 1%"),
        ({"intensity_window": [0, 70000]}, "0 to 65535"),
        ({"intensity_window": [True, 5]}, "0 to 65535"),
        ({"image_steps": ["pad"]}, "pad_to_square"),
        ({"image_steps": [{"resize": [896]}]}, r"resize: \[width, height\]"),
        ({"image_steps": [{"resize": [0, 896]}]}, "of 1 to 4096 pixels"),
        ({"image_steps": [{"crop": [0, 0, 5, 5.5]}]}, "left, top, right, bottom"),
        ({"image_steps": [{"pad_to_square": [1]}]}, "correct or remove it"),
        ({"format": None, "class_names": {"a": "A", "b": "B"}, "intensity_window": "wide"}, "expected full, minmax"),
    ],
)
def test_a_window_or_a_step_that_cannot_be_taken_is_refused(keys, message):
    with pytest.raises(ValueError, match=f"data set 'chest'.*{message}"):
        make_config("x", **({"format": "padchest"} | keys))


def test_twelve_bits_in_a_16_bit_file_fill_the_range_through_a_window(tmp_path):
    path = str(write_16_bit(tmp_path / "a.png", top=4095))
    stored = np.asarray(Image.open(path)).astype(float)
    assert np.asarray(open_patch(path)).max() <= 16
    grey = np.asarray(open_patch(path, rendering=look([0, 4095])))[..., 0]
    assert np.abs(grey - stored / 4095 * 255).max() <= 0.5 + 1e-3
    grey = np.asarray(open_patch(path, rendering=look("minmax")))[..., 0]
    assert (grey.min(), grey.max()) == (0, 255) and stored[grey == 255].min() > stored[grey < 255].max()
    grey = np.asarray(open_patch(path, rendering=look(["10%", "90%"])))[..., 0]
    assert np.mean(grey == 0) == pytest.approx(0.1, abs=0.01) and np.mean(grey == 255) == pytest.approx(0.1, abs=0.01)
    negative = np.asarray(open_patch(path, rendering=look(["10%", "90%"], inverted=True)))[..., 0]
    assert (negative == 255 - grey).all()


def test_the_full_window_is_the_default_and_8_bit_pictures_have_no_other(tmp_path):
    path = str(write_16_bit(tmp_path / "a.png"))
    assert look() == "" and open_patch(path).tobytes() == open_patch(path, rendering=look([0, 65535])).tobytes()
    Image.fromarray(np.arange(100, 200, dtype=np.uint8).reshape(10, 10)).save(tmp_path / "b.png")
    grey = np.asarray(open_patch(str(tmp_path / "b.png"), rendering=look("minmax")))
    assert (grey.min(), grey.max()) == (100, 199)


def test_a_flat_picture_has_no_range_to_divide_by(tmp_path):
    Image.fromarray(np.full((9, 9), 700, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(open_patch(str(tmp_path / "a.png"), rendering=look("minmax"))).max() == 0


def test_the_intake_says_the_window_and_keeps_what_each_one_shows_apart(tmp_path):
    path = str(write_16_bit(tmp_path / "a.png", top=4095))
    looks = ["", look([0, 4095]), look(["1%", "99%"], inverted=True)]
    references = [{"path": path, "row": -1, "rendering": rendering} for rendering in looks]
    fresh = check_images(references, cache_folder=tmp_path / "cache")
    kept = check_images(references[::-1], cache_folder=tmp_path / "cache").iloc[::-1].reset_index(drop=True)
    assert kept.equals(fresh) and fresh["rendering"].tolist() == looks
    assert fresh["conversions"].tolist() == [
        "16-bit grey scaled to 8-bit RGB",
        "16-bit grey, window 0-4095",
        "16-bit grey, window 1%-99%; MONOCHROME1 inverted",
    ]
    shown = [hash_pixels(open_patch(path, rendering=rendering)) for rendering in looks]
    assert fresh["pixel_sha256"].tolist() == shown and len(set(shown)) == 3


@pytest.mark.parametrize(("window", "warned"), [("full", 2), ("minmax", 0)])
def test_the_audit_says_which_16_bit_pictures_come_out_nearly_black(tmp_path, window, warned):
    paths = [write_16_bit(tmp_path / f"{top}.png", seed=top, top=top) for top in (1023, 4095, 65535)]
    intake = check_images([{"path": str(path), "row": -1, "rendering": look(window)} for path in paths])
    rows = intake[["path", "row", "rendering"]].assign(
        label=None, dataset="ct", cohort="ct", split="train", group=None
    )
    found = [
        f
        for f in audit_patches(rows, intake, find_near_copies(intake))["findings"]
        if f["check"] == "dark_16_bit_images"
    ]
    assert [finding["count"] for finding in found] == [warned] * bool(warned)
    assert all("set the data set's intensity_window" in finding["message"] for finding in found)


@pytest.mark.slow
def test_what_the_audit_advises_for_12_bit_class_folders_works(tmp_path):
    # Splits are given, as pictures that are all of one shading aren't dealt apart.
    folders = [(split, label) for split in ("train", "validation", "test") for label in ("Normal", "Tumor")]
    for number, folder in enumerate(folders):
        tmp_path.joinpath(*folder).mkdir(parents=True)
        for seed in range(3):
            write_16_bit(tmp_path.joinpath(*folder, f"{seed}.png"), seed=seed + 10 * number, top=4095)
    entry = {"name": "ct", "source": str(tmp_path), "class_names": {"Normal": "Normal", "Tumor": "Tumor"}}
    found = {}
    for name, keys in (("plain", {}), ("advised", {"intensity_window": [0, 4095], "image_steps": ["pad_to_square"]})):
        rows = load_audited_patches(HistoArguments(datasets=[entry | keys]), tmp_path / name)["train"]
        audit = json.loads((tmp_path / name / "audit.json").read_text())
        warned = any(finding["check"] == "dark_16_bit_images" for finding in audit["findings"])
        found[name] = warned, max(np.asarray(row["images"][0]).max() for row in rows)
        assert [[hash_pixels(*row["images"])] for row in rows] == rows.with_format(None)["pixel_sha256"]
    assert found["plain"][0] and found["plain"][1] <= 16
    assert not found["advised"][0] and found["advised"][1] >= 250


def test_one_file_shown_in_two_ways_is_one_picture_to_the_audit(tmp_path):
    path = str(write_16_bit(tmp_path / "a.png"))
    references = [{"path": path, "row": -1, "rendering": r} for r in ("", look("full", steps=["pad_to_square"]))]
    rows = check_images(references)[["path", "row", "rendering"]].assign(
        label=None, dataset=["reports", "boxes"], cohort="chest", split=["train", "test"], group=None
    )
    intake = check_images(references)
    near = find_near_copies(intake)
    audit = audit_patches(rows, intake, near)
    assert "copies_across_splits" in {finding["check"] for finding in audit["findings"]}
    assert find_leaking_rows(rows, intake, near).to_dict() == {0: "equal pixels"}


def test_padchest_is_windowed_by_itself_and_its_negatives_are_turned(tmp_path):
    table = write_split_padchest(tmp_path)
    questions = list_rows(make_config(table, "padchest"), arguments(table, "padchest"))
    inverted = {
        row.id: json.loads(row.images[0]["rendering"]).get("inverted", False) for row in questions.itertuples()
    }
    assert [name for name, turned in inverted.items() if turned] == [f"chest/54/{PADCHEST_ROWS[7][1]}"]
    assert all(json.loads(images[0]["rendering"])["window"] == ["1%", "99%"] for images in questions["images"])
    own = arguments(table, "padchest", intensity_window="full")
    assert {images[0]["rendering"] for images in list_rows(own.datasets[0], own)["images"]} == {
        "",
        look(inverted=True),
    }


@pytest.mark.slow
@pytest.mark.parametrize("steps", [[], ["pad_to_square", {"resize": [64, 48]}]])
def test_training_and_scoring_read_what_the_intake_has_seen(tmp_path, steps):
    table = write_split_padchest(tmp_path / "data")
    given = arguments(table, "padchest", **({"image_steps": steps} if steps else {}))
    for split in load_audited_patches(given, tmp_path / "out").values():
        for row in split:
            [picture] = row["images"]
            assert picture.size == ((64, 48) if steps else SIZE) and [hash_pixels(picture)] == row["pixel_sha256"]
    findings = json.loads((tmp_path / "out" / "audit.json").read_text())["findings"]
    said = next(finding["message"] for finding in findings if finding["check"] == "converted_images")
    assert "16-bit grey, window 1%-99%" in said and "MONOCHROME1 inverted" in said


@pytest.mark.slow
def test_an_upload_looks_as_in_training(tmp_path):
    given = arguments(write_framed_studies(tmp_path), "padchest_gr", image_steps=STEPS)
    [row] = load_patches(given)["train"]
    stored = tmp_path / "Padchest_GR_files" / "PadChest_GR" / "a.png"
    image, conversions = open_upload(stored, choose_rendering(given.datasets[0]))
    assert image.tobytes() == row["images"][0].tobytes() and conversions == ["16-bit grey, window 1%-99%"]
    # All that boxes need to come back to the upload's own pixels.
    assert json.loads(json.dumps(image.info["placement"])) == json.loads(row["ask"])["placement"]


def write_framed_studies(folder):
    """PadChest-GR with a nodule painted where its box says, in X-rays with a dark frame on three sides."""
    study = {"StudyID": "s", "findings": [{"abnormal": True, "labels": ["nodule"], "boxes": [[0.25, 0.25, 0.5, 0.5]]}]}
    write_padchest_gr(folder, [study | {"ImageID": f"{name}.png"} for name in "abc"])
    for name in "abc":
        pixels = np.zeros((200, 400), np.uint16)
        pixels[20:170, 40:] = 1000
        pixels[50:100, 100:200] = 4000
        Image.fromarray(pixels).save(folder / "Padchest_GR_files" / "PadChest_GR" / f"{name}.png")
    return folder


STEPS = ["crop_dark_edges", "pad_to_square", {"resize": [720, 720]}]


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["pixels", "coco", "box_2d", "normalised", "loc"])
def test_boxes_survive_the_road_from_the_row_to_the_score(tmp_path, codec):
    given = arguments(write_framed_studies(tmp_path), "padchest_gr", codec=codec, image_steps=STEPS)
    [row] = load_patches(given)["train"]
    ask, config = json.loads(row["ask"]), given.datasets[0]
    # 360 x 150 are left of 400 x 200, padded by 105 above and below, and doubled.
    assert row["images"][0].size == (720, 720) and "400 wide" not in row["prompt"][0]["content"]
    [shown] = boxes.CODECS[codec][1](row["completion"][0]["content"], (720, 720)).boxes
    rows, columns = np.where(np.asarray(row["images"][0].convert("L")) > 200)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(np.array(found) - shown[:4]).max() <= 2 and np.allclose(shown[:4], (120, 270, 320, 370), atol=1)

    read, mended = boxes.read_answer(row["completion"][0]["content"], ask, config)
    exact = codec in ("pixels", "coco")
    assert not mended and np.allclose(read[0][:4], (100, 50, 200, 100), atol=1e-6 if exact else 0.5)
    _, scores = boxes.measure_answers([json.loads(row["answer"])], [read], [ask], [[]], config)
    assert scores["box_f1"] == 1


@pytest.mark.slow
def test_padding_to_a_square_is_not_done_twice_for_the_codec_that_counts_on_it(tmp_path):
    folder = write_framed_studies(tmp_path)
    plain, padded = (
        load_patches(arguments(folder, "padchest_gr", **keys))["train"][0]
        for keys in ({}, {"image_steps": ["pad_to_square"]})
    )
    assert padded["images"][0].size == (400, 400) and plain["images"][0].size == (400, 200)
    assert padded["completion"] == plain["completion"] and "[375, 250, 500, 500]" in str(plain["completion"])


@pytest.mark.slow
def test_a_row_outside_of_test_that_loses_a_box_is_left_out_and_counted(tmp_path, caplog):
    given = arguments(write_framed_studies(tmp_path), "padchest_gr", image_steps=[{"crop": [200, 0, 400, 200]}])
    assert load_patches(given).num_rows == {"train": 0, "validation": 0, "test": 1}
    assert "cut away 3 boxes; 2 rows outside of test are left out" in caplog.text
    assert json.loads(load_patches(given)["test"][0]["answer"])[0][:4] == [100, 50, 200, 100]


def test_a_crop_that_a_picture_is_too_small_for_refuses_that_picture(tmp_path):
    path = str(write_16_bit(tmp_path / "a.png", size=(30, 20)))
    steps = look(steps=[{"crop": [0, 0, 31, 20]}])
    with pytest.raises(ImageRefused, match="inside 30 x 20 pixels"):
        open_patch(path, rendering=steps)
    [entry] = check_images([{"path": path, "row": -1, "rendering": steps}]).itertuples()
    assert entry.verdict == "refused" and "correct the area" in entry.reason
