"""Rows are what TRL reads, with pictures opened one batch at a time and never stored."""

import pytest
from conftest import BACH_CLASSES, CRC_CLASSES, PCAM_CLASSES, write_class_folders
from PIL import Image

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.rows import load_patches


def entry(name, class_names, **keys):
    return {"name": name, "source": f"data/datasets/{name}", "class_names": class_names} | keys


@pytest.fixture
def histo_args(histolab_folders):
    datasets = [entry("crc", CRC_CLASSES), entry("pcam", PCAM_CLASSES), entry("bach", BACH_CLASSES)]
    return HistoArguments(datasets=datasets, data_dir=str(histolab_folders))


@pytest.mark.slow
def test_several_data_sets_become_one_table_of_rows_for_trl(histo_args):
    patches = load_patches(histo_args)
    assert set(patches) == {"train", "validation", "test"}
    assert sum(len(split) for split in patches.values()) == (9 + 2 + 4) * 8
    row = next(row for row in patches["train"] if row["dataset"] == "crc")
    [image] = row["images"]
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    assert row["prompt"][0]["role"] == "user" and "Adipose, Background" in row["prompt"][0]["content"]
    assert row["completion"] == [{"role": "assistant", "content": f"The answer is: {row['label']}"}]
    assert row["id"].startswith("crc/")


@pytest.mark.slow
def test_no_pixel_is_held_by_the_table_or_written_to_disk(histo_args):
    patches = load_patches(histo_args)
    stored = patches["train"].with_format(None)
    assert set(stored[0]["images"][0]) == {"path", "row", "column", "rendering"}
    assert all(split.cache_files == [] for split in patches.values())


@pytest.mark.slow
def test_only_the_rows_that_are_read_are_opened(histo_args):
    patches = load_patches(histo_args)
    victim = patches["train"].with_format(None)[0]["images"][0]["path"]
    with open(victim, "wb") as file:
        file.write(b"not a picture")
    assert patches["train"][1]["images"][0].size == (32, 32)
    with pytest.raises(ValueError, match=victim):
        patches["train"][0]


def test_labels_and_class_names_must_be_the_same_set(histo_args):
    del histo_args.datasets[0].class_names["TUM"]
    with pytest.raises(ValueError, match="only in the data: \\['TUM'\\]|only in the data \\['TUM'\\]"):
        load_patches(histo_args)
    histo_args.datasets[0].class_names |= {"TUM": "Tumor", "LUNG": "Lung"}
    with pytest.raises(ValueError, match="only in the recipe \\['LUNG'\\]"):
        load_patches(histo_args)


@pytest.mark.slow
def test_a_cap_that_empties_a_split_is_refused(histo_args):
    histo_args.datasets[1].max_samples = 2
    with pytest.raises(ValueError, match="'pcam': the cap|'pcam'.*max_samples"):
        load_patches(histo_args)


@pytest.mark.slow
def test_a_test_split_that_the_data_bring_is_never_capped_but_by_its_own_key(tmp_path):
    for split, count in (("train", 20), ("test", 10)):
        write_class_folders(tmp_path / "data/datasets/pcam" / split, PCAM_CLASSES, per_class=count)
    keys = {"datasets": [entry("pcam", PCAM_CLASSES)], "data_dir": str(tmp_path), "max_samples": 20}
    patches = load_patches(HistoArguments(**keys))
    assert {split: len(rows) for split, rows in patches.items()} == {"train": 17, "validation": 3, "test": 20}
    assert len(load_patches(HistoArguments(**keys, max_test_samples=6))["test"]) == 6


@pytest.mark.slow
def test_the_prompt_style_and_the_recipes_own_question_reach_the_rows(histo_args):
    histo_args.prompt_style = "dataset_specific"
    histo_args.datasets[2].question = "Which of {options}?"
    questions = {row["dataset"]: row["prompt"][0]["content"] for row in load_patches(histo_args)["train"]}
    assert questions["crc"].startswith("This is an H&E stained colorectal tissue patch")
    assert questions["bach"] == "Which of Normal, Benign, InSitu, Invasive?"


def test_an_unknown_task_is_refused(histo_args):
    histo_args.datasets[0].task = "segmentation"
    with pytest.raises(ValueError, match="task is 'segmentation', expected one of classification"):
        load_patches(histo_args)
