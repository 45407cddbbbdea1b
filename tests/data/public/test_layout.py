import dataclasses

import h5py
import numpy as np
import pytest

from histolab_sft.data.public.benchmarks import BENCHMARKS, PCAM
from histolab_sft.data.public.published_counts import check_folder, image_files


def write_pcam_like(folder, told, labels):
    with h5py.File(folder / "toy_y.h5", "w") as opened:
        opened["y"] = np.array(labels, dtype=np.uint8).reshape(-1, 1, 1, 1)
    lines = [f"{index},0,0,True,{value},slide_1" for index, value in enumerate(told)]
    (folder / "toy_meta.csv").write_text("\n".join([",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi", *lines]))
    return dataclasses.replace(
        PCAM, rows={"toy_y.h5": {"y": 3}}, labels={"toy_meta.csv": ("center_tumor_patch", "toy_y.h5")}
    )


def test_a_meta_table_that_repeats_the_labels_is_good(tmp_path):
    check_folder(write_pcam_like(tmp_path, ["False", "True", "True"], [0, 1, 1]), tmp_path)


def test_a_swapped_meta_table_is_told(tmp_path):
    with pytest.raises(ValueError, match="wrong or swapped file"):
        check_folder(write_pcam_like(tmp_path, ["True", "True", "False"], [0, 1, 1]), tmp_path)


def test_an_array_of_another_length_is_told_with_both_numbers(tmp_path):
    with pytest.raises(ValueError, match=r"toy_y.h5\[y\]: found 2 rows, expected 3"):
        check_folder(write_pcam_like(tmp_path, ["False", "True"], [0, 1]), tmp_path)


def test_an_empty_folder_has_every_difference_named_at_once(tmp_path):
    with pytest.raises(ValueError) as error:
        check_folder(PCAM, tmp_path)
    assert str(error.value).count("found 0 rows") == 6
    with pytest.raises(ValueError) as error:
        check_folder(BENCHMARKS["crc"], tmp_path)
    assert str(error.value).count("found 0 images") == 18


def test_the_arrays_of_an_npz_are_counted(tmp_path):
    np.savez(tmp_path / "pathmnist_224.npz", train_labels=np.zeros(5), val_labels=np.zeros(2), test_labels=np.zeros(1))
    with pytest.raises(ValueError, match=r"\[train_labels\]: found 5 rows, expected 89996"):
        check_folder(BENCHMARKS["pathmnist"], tmp_path)


def test_mhist_is_checked_by_its_annotations(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(3):
        (tmp_path / "images" / f"{index}.png").touch()
    rows = ["0.png,HP,2,train", "1.png,HP,1,test", "2.png,SSA,6,train"]
    (tmp_path / "annotations.csv").write_text(
        "\n".join(["Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition", *rows])
    )
    small = dataclasses.replace(
        BENCHMARKS["mhist"],
        counts={"": {"images": 3}},
        tables={"annotations.csv": {"Majority Vote Label": {"HP": 2, "SSA": 1}, "Partition": {"train": 2, "test": 1}}},
    )
    check_folder(small, tmp_path)
    (tmp_path / "annotations.csv").write_text("Image Name,Label\n0.png,HP\n")
    with pytest.raises(ValueError, match="no column Partition"):
        check_folder(small, tmp_path)


def test_hidden_files_and_other_files_are_no_images(tmp_path):
    for name in ("a.tif", "B.TIF", "c.png", "._a.tif", "Thumbs.db", "notes.csv"):
        (tmp_path / name).touch()
    assert sorted(path.name for path in image_files(tmp_path)) == ["B.TIF", "a.tif", "c.png"]
