"""Through TRL's own collator: the loss is on the answer and its end of turn alone, and the picture counts."""

from pathlib import Path

import pytest
import torch
from conftest import write_class_folders
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from histolab_sft.arguments import parse_recipe, read_recipe
from histolab_sft.data.patches import load_patches
from histolab_sft.models.load import load_processor
from histolab_sft.training.answer_tokens import collect_answers, find_branches, mask_deciding_tokens

pytestmark = pytest.mark.model
# Those on class folders; the others are in test_open_recipes.py.
RECIPES = [
    path for path in sorted(Path("recipes").rglob("*.yaml")) if "format" not in read_recipe(path)["datasets"][0]
]


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def batch_of_recipe(request, tmp_path, untrained_model):
    """Rows of a shipped recipe over noise patches in the layout it expects, and what TRL's collator makes of them."""
    histo_args, training_args, _ = parse_recipe(
        ["--config", str(request.param), "--use_cpu", "true", "--bf16", "false", "--data_dir", str(tmp_path)]
    )
    for config in histo_args.datasets:
        write_class_folders(tmp_path / config.source, config.class_names, per_class=40, slides=20)
    patches = load_patches(histo_args)
    processor = load_processor(str(untrained_model))
    collator = DataCollatorForVisionLanguageModeling(
        processor=processor, max_length=training_args.max_length, completion_only_loss=True
    )
    rows = {row["completion"][0]["content"]: i for i, row in enumerate(patches["train"].with_format(None))}
    indices = list(rows.values())
    return patches, processor, collator, indices


def test_labels_cover_only_the_answer_and_its_end_of_turn(batch_of_recipe):
    patches, processor, collator, indices = batch_of_recipe
    batch = collator([patches["train"][i] for i in indices])
    for i, labels in zip(indices, batch["labels"], strict=True):
        answer = patches["train"][i]["completion"][0]["content"]
        assert processor.tokenizer.decode(labels[labels != -100]) == f"{answer}<end_of_turn>"


def test_there_is_one_bos_and_every_image_token_survives(batch_of_recipe):
    patches, processor, collator, indices = batch_of_recipe
    batch = collator([patches["train"][i] for i in indices])
    tokenizer = processor.tokenizer
    assert ((batch["input_ids"] == tokenizer.bos_token_id).sum(dim=1) == 1).all()
    assert ((batch["input_ids"] == tokenizer.image_token_id).sum(dim=1) == processor.image_seq_length).all()
    assert (batch["labels"][batch["input_ids"] == tokenizer.image_token_id] == -100).all()


def test_every_answer_has_a_token_that_tells_it_apart(batch_of_recipe):
    patches, _, collator, indices = batch_of_recipe
    branches = find_branches(collect_answers(patches["train"], collator))
    batch = collator([patches["train"][i] for i in indices])
    deciding = mask_deciding_tokens(batch["labels"], branches)
    assert (deciding.sum(dim=1) >= 1).all()
    assert (deciding.sum(dim=1) < (batch["labels"] != -100).sum(dim=1)).all()


def test_another_picture_changes_the_loss(batch_of_recipe, untrained_model):
    from transformers import AutoModelForImageTextToText

    patches, _, collator, indices = batch_of_recipe
    model = AutoModelForImageTextToText.from_pretrained(untrained_model).eval()
    first, second = patches["train"][indices[0]], patches["train"][indices[1]]
    with torch.no_grad():
        loss = model(**collator([dict(first)])).loss
        same = model(**collator([dict(first)])).loss
        other = model(**collator([first | {"image": second["image"]}])).loss
    assert loss == same and loss != other
