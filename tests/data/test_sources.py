"""Every layout of patches on disk gives the same table, sorted, without opening a picture."""

import io
import json
import tarfile

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import BACH_CLASSES, CRC_CLASSES, PCAM_CLASSES, write_class_folders
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.data_sets import load_source
from histolab_sft.data.pictures.decoding import open_stored


def paths(patches):
    return [images[0]["path"] for images in patches["images"]]


def config(source, **keys):
    return DatasetConfig(**{"name": "d", "source": str(source), "class_names": PCAM_CLASSES} | keys)


def test_class_folders_give_one_label_a_folder(tmp_path):
    write_class_folders(tmp_path / "crc", CRC_CLASSES, per_class=3, suffix=".tif")
    patches = load_source(config("crc", class_names=CRC_CLASSES), tmp_path)
    assert patches["label"].value_counts().to_dict() == dict.fromkeys(CRC_CLASSES, 3)
    assert set(patches["split"]) == {""} and {images[0]["row"] for images in patches["images"]} == {-1}
    assert paths(patches) == sorted(paths(patches))
    assert patches["id"][0] == "d/ADI/ADI-S00-0000.tif"


def test_split_folders_above_class_folders_are_splits(tmp_path):
    for split in ("train", "valid", "test"):
        write_class_folders(tmp_path / split, PCAM_CLASSES, per_class=2)
    patches = load_source(config(tmp_path))
    assert patches["split"].value_counts().to_dict() == {"train": 4, "validation": 4, "test": 4}


def test_split_folders_can_have_names_of_their_own(tmp_path):
    write_class_folders(tmp_path / "NCT-CRC-HE-100K", PCAM_CLASSES, per_class=2)
    write_class_folders(tmp_path / "CRC-VAL-HE-7K", PCAM_CLASSES, per_class=1)
    write_class_folders(tmp_path / "elsewhere", PCAM_CLASSES, per_class=1)
    patches = load_source(config(tmp_path, splits={"train": "NCT-CRC-HE-100K", "test": "CRC-VAL-HE-7K"}))
    assert patches["split"].value_counts().to_dict() == {"train": 4, "test": 2}


def test_pictures_on_disk_with_odd_neighbours_are_listed_alone(tmp_path):
    write_class_folders(tmp_path, PCAM_CLASSES, per_class=2)
    (tmp_path / "Normal" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "README.txt").write_text("x")
    assert len(load_source(config(tmp_path))) == 4


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_every_kind_of_manifest_gives_the_same_table(tmp_path, suffix):
    write_class_folders(tmp_path / "pictures", PCAM_CLASSES, per_class=2)
    rows = [
        {"path": f"pictures/{label}/{label}-S{i:02d}-{i:04d}.png", "label": label, "split": split, "slide": f"s{i}"}
        for label in PCAM_CLASSES
        for i, split in enumerate(("train", "test"))
    ]
    path = tmp_path / f"manifest{suffix}"
    if suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        path.write_text(json.dumps(rows))
    patches = load_source(config(path, group_by="slide"))
    assert patches[["label", "split", "group"]].to_dict("records") == [
        {"label": row["label"], "split": row["split"], "group": row["slide"]} for row in rows
    ]
    assert all(images[0]["row"] == -1 for images in patches["images"])
    assert [Image.open(place).size for place in paths(patches)] == [(32, 32)] * 4


def test_a_manifests_columns_can_have_other_names(tmp_path):
    write_class_folders(tmp_path, PCAM_CLASSES, per_class=1)
    rows = [{"file": f"{label}/{label}-S00-0000.png", "y": label, "fold": "train"} for label in PCAM_CLASSES]
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    patches = load_source(config(tmp_path / "m.csv", image_column="file", label_column="y", split_column="fold"))
    assert patches[["label", "split"]].to_numpy().tolist() == [["Normal", "train"], ["Tumor", "train"]]


def test_a_folder_of_split_files_with_pictures_inside_is_read_without_the_pictures(tmp_path):
    for split, count in (("train", 5), ("valid", 3), ("test", 2)):
        picture = {"bytes": b"not read", "path": None}
        labels = ["Normal", "Tumor", "Normal", "Tumor", "Normal"][:count]
        pd.DataFrame({"image": [picture] * count, "label": labels}).to_parquet(tmp_path / f"{split}.parquet")
    patches = load_source(config(tmp_path))
    assert patches["split"].value_counts().to_dict() == {"train": 5, "validation": 3, "test": 2}
    train = patches[patches["split"] == "train"]
    assert [images[0]["row"] for images in train["images"]] == [0, 1, 2, 3, 4]
    assert patches["id"].iloc[0] == "d/test.parquet#0"


def test_pcams_hdf5_pairs_are_read_with_their_splits(tmp_path):
    for split, count in (("train", 6), ("valid", 2), ("test", 4)):
        stem = f"camelyonpatch_level_2_split_{split}"
        with h5py.File(tmp_path / f"{stem}_x.h5", "w") as file:
            file["x"] = np.zeros((count, 96, 96, 3), np.uint8)
        with h5py.File(tmp_path / f"{stem}_y.h5", "w") as file:
            file["y"] = (np.arange(count) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
    patches = load_source(config(tmp_path))
    assert patches["split"].value_counts().to_dict() == {"train": 6, "test": 4, "validation": 2}
    assert patches[patches["split"] == "train"]["label"].tolist() == ["Normal", "Tumor"] * 3


def test_pcam_labels_of_another_length_are_refused(tmp_path):
    with h5py.File(tmp_path / "a_train_x.h5", "w") as file:
        file["x"] = np.zeros((3, 96, 96, 3), np.uint8)
    with h5py.File(tmp_path / "a_train_y.h5", "w") as file:
        file["y"] = np.zeros((2, 1, 1, 1), np.uint8)
    with pytest.raises(ValueError, match="3 pictures and a_train_y.h5 2 labels"):
        load_source(config(tmp_path))


def test_a_group_is_taken_from_the_path_by_a_regular_expression(tmp_path):
    write_class_folders(tmp_path, PCAM_CLASSES, per_class=4, slides=2)
    patches = load_source(config(tmp_path, group_by=r"-(S\d+)-"))
    assert patches["group"].tolist() == ["S00", "S00", "S01", "S01"] * 2


def test_a_path_that_the_group_pattern_does_not_match_is_refused(tmp_path):
    write_class_folders(tmp_path, PCAM_CLASSES, per_class=1)
    with pytest.raises(ValueError, match="patient.*doesn't match.*Normal-S00-0000.png"):
        load_source(config(tmp_path, group_by=r"patient(\d+)"))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere doesn't exist"):
        load_source(config("nowhere"), tmp_path)
    with pytest.raises(ValueError, match="no patch found"):
        load_source(config(tmp_path))
    pd.DataFrame({"path": ["a.png"], "label": ["Normal"]}).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(FileNotFoundError, match="names 1 picture not there.*a.png"):
        load_source(config(tmp_path / "m.csv"))
    with pytest.raises(ValueError, match="expected \\['tissue'\\] too"):
        load_source(config(tmp_path / "m.csv", label_column="tissue"))


def test_tar_shards_are_read_with_labels_splits_and_groups(tmp_path):
    write_class_folders(tmp_path / "pictures", PCAM_CLASSES, per_class=2)
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}-000.tar", "w") as shard:
            for i, path in enumerate(sorted((tmp_path / "pictures").rglob("*.png"))):
                shard.add(path, f"{split}{i}.png")
                facts = json.dumps({"label": path.parent.name, "slide_id": f"s{i}"}).encode()
                member = tarfile.TarInfo(f"{split}{i}.json")
                member.size = len(facts)
                shard.addfile(member, io.BytesIO(facts))
    (tmp_path / "pictures").rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    patches = load_source(config(tmp_path))
    assert patches["split"].value_counts().to_dict() == {"train": 4, "test": 4}
    assert patches["label"].tolist() == ["Normal", "Normal", "Tumor", "Tumor"] * 2
    assert patches["group"].tolist() == ["s0", "s1", "s2", "s3"] * 2
    assert open_stored(patches["images"][1][0]).size == (32, 32)


def test_a_shard_whose_picture_has_no_label_is_refused(tmp_path):
    write_class_folders(tmp_path / "pictures", PCAM_CLASSES, per_class=1)
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        shard.add(next((tmp_path / "pictures").rglob("*.png")), "x.png")
    with pytest.raises(ValueError, match="x.png in .*a.tar has no label"):
        load_source(config(tmp_path / "a.tar"))


def test_parquet_written_by_datasets_keeps_the_words_of_its_labels(tmp_path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["Normal", "Tumor"])})
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    rows = Dataset.from_dict({"image": [picture] * 3, "label": [0, 1, 0]}, features=features)
    rows.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    rows.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    patches = load_source(config(tmp_path))
    assert patches["label"].tolist() == ["Normal", "Tumor", "Normal"] * 2
    assert patches["split"].tolist() == ["test"] * 3 + ["train"] * 3
    assert open_stored(patches["images"][0][0]).size == (8, 8)


def test_the_slide_of_pcams_meta_file_is_the_group(tmp_path):
    with h5py.File(tmp_path / "a_train_x.h5", "w") as file:
        file["x"] = np.zeros((2, 96, 96, 3), np.uint8)
    with h5py.File(tmp_path / "a_train_y.h5", "w") as file:
        file["y"] = np.array([1, 0], np.uint8).reshape(2, 1, 1, 1)
    pd.DataFrame({"wsi": ["camelyon16_1", "camelyon16_2"]}).to_csv(tmp_path / "a_train_meta.csv")
    patches = load_source(config(tmp_path))
    assert patches["label"].tolist() == ["Tumor", "Normal"]
    assert patches["group"].tolist() == ["camelyon16_1", "camelyon16_2"]


def test_folders_that_an_archive_unpacks_to_are_looked_into(tmp_path):
    write_class_folders(tmp_path / "ICIAR2018_BACH_Challenge" / "Photos", PCAM_CLASSES, per_class=2)
    assert len(load_source(config(tmp_path))) == 4


def test_bachs_published_split_is_used_on_the_whole_set_and_not_on_a_part(tmp_path, caplog):
    for label, stem in (("Benign", "b"), ("InSitu", "is"), ("Invasive", "iv"), ("Normal", "n")):
        (tmp_path / label).mkdir()
        for i in range(1, 101):
            (tmp_path / label / f"{stem}{i:03d}.tif").touch()
    bach = config(tmp_path, class_names=BACH_CLASSES, splits="bach_official")
    assert load_source(bach)["split"].value_counts().to_dict() == {"train": 268, "test": 132}
    (tmp_path / "Normal" / "n001.tif").unlink()
    assert set(load_source(bach)["split"]) == {""}
    assert "dealt out by seed" in caplog.text
