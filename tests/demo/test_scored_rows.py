"""Rows of the test split as examples of the demo: which are chosen, and how they are read."""

import pandas as pd
import pytest
from PIL import Image

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.data_sets import list_rows
from histolab_sft.data.frozen_split import FrozenSplit, write_split
from histolab_sft.data.rows import load_patches
from histolab_sft.data.split_changes import COLUMNS, _hash
from histolab_sft.demo.examples import EXAMPLES
from histolab_sft.demo.scored_rows import TEST, caption_truth, choose_rows, read_test_rows

CLASSES = {"ADI": "Adipose", "STR": "Stroma", "TUM": "Tumor"}


def write_patches(folder, splits=("",), each=6):
    for split in splits:
        for number, label in enumerate(CLASSES):
            for patch in range(each):
                path = folder / "mine" / split / label / f"{patch}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (24 + number, 48), (10 * patch, 40 * number, len(split))).save(path)


def make_arguments(folder, **keys):
    entry = {"name": "mine", "source": "mine", "class_names": CLASSES, "image_steps": ["pad_to_square"]} | keys
    return HistoArguments(datasets=[entry], data_dir=str(folder))


def freeze(rows, folder):
    """Freeze a split in which every third row is of test, as training does."""
    table = pd.DataFrame({"dataset": rows["dataset"], "id": rows["id"].map(_hash)}).reindex(columns=COLUMNS)
    table["split"] = ["test" if number % 3 == 0 else "train" for number in range(len(rows))]
    write_split(FrozenSplit(table, "", {}), folder)
    return set(rows["id"][::3])


def test_examples_are_of_the_split_that_was_frozen_in_training_and_of_each_class_in_turn(tmp_path):
    write_patches(tmp_path)
    arguments = make_arguments(tmp_path)
    rows = list_rows(arguments.datasets[0], arguments)
    test = freeze(rows, tmp_path)
    examples, remarks = read_test_rows(arguments, tmp_path)
    assert remarks == [TEST] and len(examples) == len(test) == 6
    assert [example.caption for example in examples] == list(CLASSES.values()) * 2
    assert all(example.truth == example.caption and example.ask["options"] for example in examples)
    # As they are scored: the steps of the data set are taken.
    assert {example.open_pictures()[0].size for example in examples} == {(48, 48)}


def test_examples_are_what_scoring_reads(tmp_path):
    write_patches(tmp_path, ("train", "validation", "test"), 2)
    arguments = make_arguments(tmp_path, splits={name: name for name in ("train", "validation", "test")})
    examples, _ = read_test_rows(arguments, tmp_path)
    scored = {image.tobytes(): row["label"] for row in load_patches(arguments)["test"] for image in row["images"]}
    assert {example.open_pictures()[0].tobytes(): example.truth for example in examples} == scored


@pytest.mark.parametrize("missing, reason", [("data", "their data can't be read here"), ("split", "dealt out by")])
def test_examples_that_cannot_be_had_are_told(tmp_path, missing, reason):
    if missing == "split":
        write_patches(tmp_path)
    examples, [remark] = read_test_rows(make_arguments(tmp_path), tmp_path)
    assert examples == [] and reason in remark and "mine" in remark and str(tmp_path) not in remark


def test_questions_are_evenly_spread_and_captions_short():
    rows = pd.DataFrame({"row": range(100)})
    config = make_arguments(".").datasets[0]
    config.format = "llava"
    chosen = choose_rows(rows, config)["row"].tolist()
    assert len(chosen) == EXAMPLES and chosen[0] == 0 and chosen[-1] == 99
    assert caption_truth("boxes", [[1, 2, 3, 4, "mass"]]) == "1 box" and caption_truth("quantity", 13) == "13"
    assert caption_truth("report", "Heart is normal. " * 9).endswith("…") and caption_truth("report", None)
