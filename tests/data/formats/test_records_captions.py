"""Manifests of pictures and captions give records, whatever their format."""

import json

import pandas as pd
import pytest
from chest_fixture import make_config, write_16_bit
from PIL import Image

from histolab_sft.data.formats.captions import read_captions
from histolab_sft.data.formats.rows import COLUMNS
from histolab_sft.data.pictures.decoding import open_patch
from histolab_sft.tasks import report

CAPTIONS = {
    "xray1.jpeg": "X-ray showing healthy lungs.",
    "ct1.jpeg": "CT scan with small lesion in left lung.",
    "mri1.png": "MRI scan showing normal brain anatomy.",  # RGBA
    "mri2.jpg": "MRI scan showing mild temporal lobe swelling.",
    "deep.png": "Radiografía de tórax sin hallazgos.",  # 16 bit
    "gone.png": "CT scan.",
}


@pytest.fixture
def folder(tmp_path):
    """`dataset/train.json` with six rows, beside `data/images` with five of the pictures."""
    pictures = tmp_path / "data" / "images"
    pictures.mkdir(parents=True)
    for name in ("xray1.jpeg", "ct1.jpeg", "mri2.jpg"):
        Image.new("RGB", (30, 20), "grey").save(pictures / name)
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(pictures / "mri1.png")
    write_16_bit(pictures / "deep.png", size=(30, 20))
    write(tmp_path / "dataset" / "train.json", six_rows())
    return tmp_path / "dataset"


def six_rows():
    return [{"image": f"data/images/{name}", "caption": caption} for name, caption in CAPTIONS.items()]


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False, encoding="utf-8-sig")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8-sig")
    else:
        path.write_text(json.dumps(rows, ensure_ascii=False))


def read(source, **keys):
    return read_captions(source, make_config(source, "captions", **keys))


def test_a_missing_picture_is_an_error_that_names_it(folder):
    with pytest.raises(FileNotFoundError, match="1 pictures that aren't there, such as .*gone.png"):
        read(folder)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_every_manifest_gives_the_same_records(folder, suffix):
    (folder / "train.json").unlink()
    write(folder / f"train{suffix}", six_rows()[:5])
    records = read(folder)
    assert list(records.columns) == COLUMNS
    assert records["id"].tolist() == [f"chest/train/data/images/{name}" for name in sorted(list(CAPTIONS)[:5])]
    assert records["answer"].tolist() == [CAPTIONS[name] for name in sorted(list(CAPTIONS)[:5])]
    assert set(records["split"]) == {"train"} and set(records["group"]) == {None}
    assert report.format_prompt(**records["ask"][0]) == report.QUESTIONS["caption"]


def test_pictures_with_transparency_or_16_bits_open(folder):
    write(folder / "train.json", six_rows()[:5])
    opened = [open_patch(paths[0]) for paths in read(folder)["images"]]
    assert {(image.mode, image.size) for image in opened} == {("RGB", (30, 20))}
    assert opened[2].getpixel((0, 0)) == (255, 255, 255)  # mri1.png is transparent


def test_files_of_a_folder_are_splits(folder):
    write(folder / "train.json", six_rows()[:3])
    write(folder / "val.json", six_rows()[3:5])
    write(folder / "notes.json", {"no": "manifest"})
    assert read(folder)["split"].value_counts().to_dict() == {"train": 3, "val": 2}
    own = read(folder, splits={"train": "train", "test": "val"})
    assert own["split"].value_counts().to_dict() == {"train": 3, "val": 2}


def test_a_split_column_goes_before_the_files_name(folder):
    write(folder / "train.json", [row | {"split": "test"} for row in six_rows()[:2]] + six_rows()[2:3])
    assert sorted(read(folder)["split"]) == ["test", "test", "train"]
    (folder / "train.json").rename(folder / "all.json")
    assert sorted(read(folder / "all.json")["split"]) == ["", "test", "test"]


def test_groups_come_from_a_column_or_the_path(folder):
    write(folder / "train.json", [row | {"group": i % 2} for i, row in enumerate(six_rows()[:3])] + six_rows()[3:4])
    assert read(folder)["group"].tolist() == ["1", "0", None, "0"]
    write(folder / "train.csv", six_rows()[:3])
    (folder / "train.json").unlink()
    assert read(folder, group_by=r"images/([a-z]+)")["group"].tolist() == ["ct", "mri", "xray"]
    with pytest.raises(ValueError, match="doesn't match"):
        read(folder, group_by="patient([0-9]+)")


def test_columns_can_have_other_names_and_pictures_can_lie_beside_the_manifest(folder):
    Image.new("L", (9, 9)).save(folder / "here.png")
    write(folder / "train.json", [{"file": "here.png", "text": " Nothing. "}])
    records = read(folder, image_column="file", label_column="text")
    assert records["answer"].tolist() == ["Nothing."] and records["images"][0] == [str(folder / "here.png")]


def test_a_picture_with_several_captions_gives_several_records(folder):
    first = six_rows()[0]
    write(folder / "train.json", [first, first | {"caption": "Healthy."}])
    assert read(folder)["id"].tolist() == [
        "chest/train/data/images/xray1.jpeg",
        "chest/train/data/images/xray1.jpeg#2",
    ]


def test_rows_without_words_or_without_a_picture_are_counted(folder, caplog):
    rows = six_rows()[:3]
    rows[0]["caption"], rows[1]["image"] = " . ", None
    write(folder / "train.json", [*rows, {"image": rows[2]["image"]}])
    assert len(read(folder)) == 1
    assert (
        "rows left out of 4: 2 with no caption (train/data/images/xray1.jpeg first); 1 with no picture" in caplog.text
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.json", '[{"image": "a', "train.json, line 1, column 12: .*expected JSON"),
        ("train.json", '{"image": "a.png"}', "holds dict, expected a list of objects"),
        ("train.json", '["a.png"]', "expected a list of objects"),
        ("train.json", "[]", "no row to learn from .*it is empty"),
        ("train.csv", "image,caption\n", "no row to learn from .*it is empty"),
        ("train.jsonl", '{"file": "a.png"}', "expected .'caption', 'image'. too"),
        ("train.json", '[{"image": "a.png", "text": "b"}]', "expected .'caption'. too"),
        ("train.jsonl", '{"image": "a.png", "caption": "b"}\n\n{"image"', "train.jsonl, line 3, column 9"),
        ("train.csv", 'image,caption\n"a.png,b', "train.csv, line 2: .*expected a table"),
        ("train.csv", "", "train.csv is empty"),
    ],
)
def test_broken_manifests_are_named(folder, name, text, message):
    (folder / "train.json").unlink()
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_a_manifest_in_another_encoding_is_refused(folder):
    (folder / "train.json").write_bytes('[{"image": "a", "caption": "tórax"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match="train.json, line 1, column 30: byte 0xf3 isn't UTF-8"):
        read(folder)


def test_a_folder_without_a_split_manifest_is_refused(folder):
    (folder / "train.json").rename(folder / "captions.json")
    with pytest.raises(FileNotFoundError, match="no manifest named after a split"):
        read(folder)
