"""Through TRL's own collator: the loss is on the answer and its end of turn alone, and the picture counts."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import write_class_folders
from datasets import Dataset
from open_fixture import WRITERS, write_data
from PIL import ImageOps
from transformers import AutoModelForImageTextToText
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from histolab_sft.config.arguments import parse_recipe, read_recipe
from histolab_sft.data.loss_masks import describe_row
from histolab_sft.data.rows import load_patches
from histolab_sft.models.load import load_processor
from histolab_sft.training.answer_tokens import collect_answers, find_branches, mask_deciding_tokens

pytestmark = pytest.mark.model
ALL = {path.stem: path for path in sorted(Path("recipes").rglob("*.yaml"))}
RECORDS = [name for name, path in ALL.items() if "format" in read_recipe(path)["datasets"][0]]
CLASSES = [name for name in ALL if name not in RECORDS]


class Given(NamedTuple):
    """Rows of a shipped recipe over noise in the layout that it expects, and TRL's collator for them."""

    train: Dataset
    indices: list[int]
    collator: DataCollatorForVisionLanguageModeling

    @property
    def rows(self):
        """Opened anew, as the collator changes what it is given."""
        return [self.train[i] for i in self.indices]


@pytest.fixture(scope="module")
def given(request, tmp_path_factory, untrained_model):
    folder, path = tmp_path_factory.mktemp(request.param), ALL[request.param]
    recipe = read_recipe(path)
    home = folder / recipe.get("data_dir", "") if request.param in RECORDS else folder
    histo_args, training_args, _ = parse_recipe(
        ["--config", str(path), "--use_cpu", "true", "--bf16", "false", "--data_dir", str(home)]
        + (["--fold", "1"] if "folds" in recipe else [])
    )
    if request.param in RECORDS:
        write_data(request.param, folder, recipe["datasets"])
    else:
        for config in histo_args.datasets:
            parts = config.splits.values() if isinstance(config.splits, dict) else [""]
            for part in parts:
                write_class_folders(folder / config.source / part, config.class_names, per_class=40, slides=20)
    train = load_patches(histo_args)["train"]
    collator = DataCollatorForVisionLanguageModeling(
        processor=load_processor(str(untrained_model)), max_length=training_args.max_length, completion_only_loss=True
    )
    return Given(train, choose_rows(train), collator)


def choose_rows(train):
    """One row for each answer of each data set and number of pictures."""
    chosen = {}
    for i, row in enumerate(train.with_format(None)):
        chosen[row["dataset"], row["completion"][0]["content"], len(row.get("images", [0]))] = i
    return list(chosen.values())


def test_every_recipe_on_records_has_data_here():
    assert set(RECORDS) == set(WRITERS)


@pytest.mark.parametrize("given", ALL, indirect=True)
def test_labels_cover_only_the_answer_and_its_end_of_turn(given):
    tokenizer = given.collator.processor.tokenizer
    for row, labels in zip(given.rows, given.collator(given.rows)["labels"], strict=True):
        answer = row["completion"][0]["content"]
        assert tokenizer.decode(labels[labels != -100]) == f"{answer}<end_of_turn>"


@pytest.mark.parametrize("given", ALL, indirect=True)
def test_there_is_one_bos_and_every_image_token_survives(given):
    batch, processor = given.collator(given.rows), given.collator.processor
    tokenizer = processor.tokenizer
    assert ((batch["input_ids"] == tokenizer.bos_token_id).sum(dim=1) == 1).all()
    pictures = [len(row.get("images", [0])) for row in given.rows]
    counts = (batch["input_ids"] == tokenizer.image_token_id).sum(dim=1)
    assert counts.tolist() == [number * processor.image_seq_length for number in pictures]
    assert (batch["labels"][batch["input_ids"] == tokenizer.image_token_id] == -100).all()


@pytest.mark.parametrize("given", ["demo"], indirect=True)
def test_a_row_is_shown_with_the_number_of_its_image_tokens_in_place_of_each(given):
    processor = given.collator.processor
    shown = describe_row(given.train, given.train[0]["dataset"], processor)
    assert f"<{processor.image_seq_length} image tokens>" in shown
    assert processor.tokenizer.image_token not in shown


@pytest.mark.parametrize("given", ["flare", "immunopath"], indirect=True)
def test_some_of_these_rows_have_several_pictures(given):
    assert max(len(row["images"]) for row in given.rows) > 1


@pytest.mark.parametrize("given", CLASSES, indirect=True)
def test_every_answer_has_a_token_that_tells_it_apart(given):
    branches = find_branches(collect_answers(given.train, given.collator))
    batch = given.collator(given.rows)
    deciding = mask_deciding_tokens(batch["labels"], branches)
    assert (deciding.sum(dim=1) >= 1).all()
    assert (deciding.sum(dim=1) < (batch["labels"] != -100).sum(dim=1)).all()


@pytest.mark.parametrize("given", ALL, indirect=True)
def test_another_picture_changes_the_loss(given, untrained_model):
    """Any picture of a row does, the last of several too."""
    model = AutoModelForImageTextToText.from_pretrained(untrained_model).eval()
    row = max(given.rows, key=lambda row: len(row.get("images", [0])))
    if "images" in row:
        changed = row | {"images": [*row["images"][:-1], ImageOps.invert(row["images"][-1])]}
    else:
        changed = row | {"images": list(map(ImageOps.invert, row["images"]))}
    with torch.no_grad():
        loss, same, other = (model(**given.collator([dict(one)])).loss for one in (row, row, changed))
    assert loss == same and loss != other
