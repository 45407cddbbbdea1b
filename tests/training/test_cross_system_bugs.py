"""The 26 faults that the systems before this one had: one test each, named after it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PCAM_CLASSES, write_class_folders
from published_run import write_run
from safetensors.torch import save_file
from scored_results import score
from small_trainer import make_trainer
from transformers import AutoModelForImageTextToText

from histolab_sft.config.arguments import HistoArguments, parse_recipe
from histolab_sft.data.rows import list_patches, load_audited_patches, load_patches
from histolab_sft.evaluation.predictions import System, hash_weights, predict
from histolab_sft.metrics.boxes import Box
from histolab_sft.metrics.classification import compute_classification
from histolab_sft.metrics.text import compute_text
from histolab_sft.models.adapter_checks import AdapterError
from histolab_sft.models.generate import encode_prompts, generate_answers, render_prompt
from histolab_sft.models.load import find_adapter, load_adapter, load_processor
from histolab_sft.publishing.push_gate import PublishError, check_evaluation
from histolab_sft.tasks import classification
from histolab_sft.tasks.parsing.box_codecs import decode_box_2d, decode_coco, encode_box_2d, encode_coco
from histolab_sft.tasks.parsing.box_geometry import crop_boxes

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, untrained_model):
    """A run of three optimiser steps of two micro-batches, saved."""
    trainer = make_trainer(
        tmp_path_factory.mktemp("bugs"), untrained_model, load_in_4bit=False, gradient_accumulation_steps=2
    )
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture(scope="module")
def batch(trainer):
    return trainer.data_collator([trainer.train_dataset[0]])


def make_arguments(folder, **keys):
    entry = {"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES, **keys.pop("dataset", {})}
    return HistoArguments(datasets=[entry], data_dir=str(folder), **keys)


def test_bug_01_training_that_does_not_see_the_picture(trainer):
    first, second = trainer.train_dataset[0], trainer.train_dataset[1]
    with torch.no_grad():
        own = trainer.model(**trainer.data_collator([dict(first)])).loss
        other = trainer.model(**trainer.data_collator([first | {"images": second["images"]}])).loss
    assert own != other


def test_bug_02_two_bos(trainer, batch):
    assert int((batch["input_ids"] == trainer.processing_class.tokenizer.bos_token_id).sum()) == 1


def test_bug_03_a_mask_that_takes_the_picture_for_one_token(trainer, batch):
    labels, tokenizer = batch["labels"][0], trainer.processing_class.tokenizer
    answer = trainer.train_dataset[0]["completion"][0]["content"]
    assert tokenizer.decode(labels[labels != -100]) == f"{answer}<end_of_turn>"


def test_bug_04_no_end_of_turn_in_the_target(trainer, batch):
    assert batch["labels"][0, -1] == trainer.processing_class.tokenizer.convert_tokens_to_ids("<end_of_turn>")


def test_bug_05_an_answer_that_begins_with_the_prompt(trainer):
    row = trainer.train_dataset[0]
    question = row["prompt"][0]["content"]
    [(text, _)] = generate_answers(trainer.model, trainer.processing_class, [row["images"]], [question], 4)
    assert question[:20] not in text and "<start_of_turn>" not in text


def test_bug_06_token_types_dropped(trainer, batch):
    pictures = batch["input_ids"] == trainer.processing_class.tokenizer.image_token_id
    assert torch.equal(batch["token_type_ids"].bool(), pictures) and pictures.any()


def test_bug_07_lora_in_the_vision_tower(trainer):
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trained and not any("vision_tower" in name or "projector" in name for name in trained)


def test_bug_08_other_prompt_or_pixels_in_scoring_than_in_training(trainer, batch):
    row = trainer.train_dataset[0]
    prompt = render_prompt(trainer.processing_class, row["prompt"][0]["content"])
    asked = encode_prompts(trainer.processing_class, [row["images"]], [prompt])
    length = asked["input_ids"].shape[1]
    assert batch["input_ids"][0, :length].equal(asked["input_ids"][0])
    assert torch.equal(batch["pixel_values"], asked["pixel_values"])


def test_bug_09_a_black_picture_in_place_of_an_unreadable_one(tmp_path):
    write_class_folders(tmp_path / "pcam", PCAM_CLASSES)
    next((tmp_path / "pcam" / "Tumor").iterdir()).write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match="1 picture can't be used"):
        load_audited_patches(make_arguments(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("missing", ["adapter", "key", "data"])
def test_bug_10_a_fallback_without_a_word(tmp_path, missing):
    with pytest.raises((FileNotFoundError, ValueError), match="no adapter_model|'lerning_rate'|doesn't exist"):
        if missing == "adapter":
            find_adapter(tmp_path)
        elif missing == "key":
            parse_recipe(["--config", "recipes/demo.yaml", "--lerning_rate", "1"])
        else:
            load_patches(make_arguments(tmp_path))


def test_bug_11_pixels_in_the_arrow_table(trainer):
    table = trainer.train_dataset.with_format(None)
    assert set(table[0]["images"][0]) == {"path", "row", "column", "rendering"}
    assert table.data.nbytes / len(table) < 2000  # a patch of 32 pixels a side would add 3,072


def test_bug_12_a_patient_on_both_sides_of_the_split(tmp_path):
    write_class_folders(tmp_path / "pcam", PCAM_CLASSES, per_class=40, slides=20)
    patches = list_patches(make_arguments(tmp_path, dataset={"group_by": r"-(S\d+)-"}))
    assert (patches.groupby("group")["split"].nunique() == 1).all() and patches["split"].nunique() == 3


def test_bug_13_the_test_split_chosen_or_stopped_on(trainer):
    patches = load_patches(make_arguments(Path(trainer.args.output_dir).parent))
    seen = {*trainer.train_dataset.with_format(None)["id"], *trainer.eval_dataset.with_format(None)["id"]}
    assert seen and not seen & set(patches["test"].with_format(None)["id"])


def test_bug_14_confidence_made_from_the_truth(tmp_path, untrained_model, monkeypatch):
    write_class_folders(tmp_path / "pcam", PCAM_CLASSES)
    model = AutoModelForImageTextToText.from_pretrained(untrained_model).eval()
    processor = load_processor(str(untrained_model))
    answers = []
    for turn, labels in enumerate([PCAM_CLASSES, dict(zip(PCAM_CLASSES, reversed(PCAM_CLASSES), strict=True))]):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{turn}"))
        arguments = make_arguments(tmp_path)
        rows = load_audited_patches(arguments, tmp_path / "out")["test"]
        swapped = [labels[label] for label in rows.with_format(None)["label"]]
        table = rows.with_format(None).to_pandas().assign(label=swapped)
        rows = type(rows).from_pandas(table).with_transform(rows.format["format_kwargs"]["transform"])
        system = System("baseline", model, processor, hash_weights(model), arguments, 4)
        asked = predict(rows, system, arguments.datasets[0], generate=False)
        answers.append((asked["label"].tolist(), np.stack(asked["log_likelihoods"])))
    (labels, scores), (other_labels, other_scores) = answers
    assert labels != other_labels and np.array_equal(scores, other_scores)


def test_bug_15_unparsed_answers_dropped():
    labels = np.array(["Normal", "Tumor"] * 2)
    said = np.array(["Normal", "Tumor", "unparsed", "unparsed"])
    assert compute_classification(labels, said, ["Normal", "Tumor"])["accuracy"] == 0.5


def test_bug_16_a_class_found_inside_another_word():
    assert classification.parse("Abnormal tissue", ["Normal", "Tumor"]) == "unparsed"
    assert classification.parse("The answer is: Normal", ["Normal", "Tumor"]) == "Normal"


def test_bug_17_boxes_left_behind_by_a_crop_or_read_in_another_order():
    box, size = Box(30.0, 40.0, 60.0, 80.0, "mass"), (200, 100)
    [moved] = crop_boxes([box], (20, 10, 120, 90))
    assert moved[:4] == (10.0, 30.0, 40.0, 70.0)
    for encode, decode in ((encode_box_2d, decode_box_2d), (encode_coco, decode_coco)):
        [read] = decode(encode([box], size), size).boxes
        assert np.allclose(read[:4], box[:4], atol=0.2)


def test_bug_18_an_answer_cut_off_unnoticed(trainer):
    row = trainer.train_dataset[0]
    question = row["prompt"][0]["content"]
    [(_, truncated)] = generate_answers(trainer.model, trainer.processing_class, [row["images"]], [question], 1)
    assert truncated


def test_bug_19_a_score_named_after_one_that_it_is_not():
    scores = compute_text(["no effusion", "a small mass"], ["no effusion", "a mass"])
    assert scores and not any("green" in name.lower() for name in scores)


def test_bug_20_a_schedule_that_counts_micro_batches(trainer):
    assert trainer.state.global_step == 3 and trainer.lr_scheduler.last_epoch == 3
    assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}  # at its end after three optimiser steps, not six


def test_bug_21_an_adapter_in_an_adapter_or_an_empty_one(trainer, untrained_model, tmp_path):
    names = [name for name, _ in trainer.model.named_parameters()]
    assert not any(name.count("base_model.model.") > 1 for name in names)
    folder = shutil.copytree(trainer.args.output_dir, tmp_path / "empty")
    save_file({}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError):
        load_adapter(AutoModelForImageTextToText.from_pretrained(untrained_model), folder)


def test_bug_22_a_card_of_another_run(tmp_path):
    write_run(tmp_path)
    (tmp_path / "out" / "adapter_model.safetensors").write_bytes(b"another adapter")
    with pytest.raises(PublishError):
        check_evaluation(tmp_path / "out", ["crc", "ward"])


def test_bug_23_a_small_test_split_without_interval_or_warning():
    entry, _ = score(n=40)
    low, high = entry["finetuned"]["balanced_accuracy"]["ci95"]
    assert low < high
    entry, _ = score(groups=False)
    assert entry["warnings"]


def test_bug_24_saved_in_one_place_and_loaded_from_another(trainer, untrained_model):
    base = AutoModelForImageTextToText.from_pretrained(untrained_model)
    loaded = dict(load_adapter(base, trainer.args.output_dir).named_parameters())
    trained = {name: value for name, value in trainer.model.named_parameters() if "lora_" in name}
    assert trained and all(torch.equal(loaded[name], value) for name, value in trained.items())


def test_bug_25_splits_that_hang_on_the_order_of_the_listing(tmp_path, monkeypatch):
    write_class_folders(tmp_path / "pcam", PCAM_CLASSES, per_class=40)
    expected = list_patches(make_arguments(tmp_path))
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(sorted(listed(folder), reverse=True)))
    assert list_patches(make_arguments(tmp_path)).equals(expected)


def test_bug_26_a_public_link_or_a_token_in_a_file(tmp_path):
    source = "\n".join(path.read_text() for path in Path("histolab_sft").rglob("*.py"))
    assert not re.search(r"share\s*=\s*True", source)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(Path("recipes/demo.yaml").read_text() + f"hub_model_id: hf_{'q7W' * 12}\n")
    with pytest.raises(ValueError, match="token"):
        parse_recipe(["--config", str(recipe)])
