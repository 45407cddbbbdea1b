"""Ways to score the base model and the fine-tuned one on the same patches: what `bench.py` compares."""

import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

from benchmarks.miniature import CLASS_NAMES, QUESTION, build_lora
from histolab_sft.models.generate import generate_answers
from histolab_sft.models.likelihood import label_log_likelihoods
from histolab_sft.models.load import load_processor
from histolab_sft.models.vision_cache.features import build_vision_cache, open_vision_cache
from histolab_sft.tasks import classification

ANSWERS = [classification.format_target(name) for name in CLASS_NAMES]


def load_systems(folder: Path) -> tuple[PeftModel, object]:
    """Return the model with an adapter on it, which is the fine-tuned system, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return get_peft_model(model, build_lora()).eval().requires_grad_(False), load_processor(str(folder))


def count_answer_tokens(processor) -> int:
    """Return the tokens of the longest answer with its end of turn: what a model writes that answers as trained."""
    return 1 + max(len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in ANSWERS)


def score_systems(arm: str, model: PeftModel, processor, rows: Dataset, batch_size: int, limit: int) -> float:
    """Return the seconds that both systems take over all the patches, reading them included.

    Args:
        arm (`str`): `generation`, `generation one at a time`, `likelihood`, `likelihood, cold cache` (encoding
            included) or `likelihood, warm cache`.
        limit (`int`): Tokens of an answer. A model with random weights never ends one, so this many are written.
    """
    with tempfile.TemporaryDirectory() as folder:
        if arm == "likelihood, warm cache":
            _build(model, processor, rows, folder, batch_size)
        start = time.perf_counter()
        if arm == "likelihood, cold cache":
            _build(model, processor, rows, folder, batch_size)
        cached = arm.endswith("cache")
        if cached:
            cache = open_vision_cache(model, processor, folder)
            cache.attach(model)
            processor = cache.processor(processor)
        with model.disable_adapter():
            _score(arm, model, processor, rows, batch_size, limit)
        _score(arm, model, processor, rows, batch_size, limit)
        seconds = time.perf_counter() - start
        if cached:
            cache.detach(model)
    return seconds


def _score(arm: str, model: PeftModel, processor, rows: Dataset, batch_size: int, limit: int) -> None:
    questions = [QUESTION] * len(rows)
    if arm.startswith("generation"):
        size = 1 if arm.endswith("one at a time") else batch_size
        generate_answers(model, processor, rows["images"], questions, limit, size)
    else:
        label_log_likelihoods(model, processor, rows["images"], questions, ANSWERS, batch_size)


def _build(model: PeftModel, processor, rows: Dataset, folder: str, batch_size: int) -> None:
    hashes = rows.with_format(None)["pixel_sha256"]
    pictures = [(key, lambda row=row: rows[row]["images"][0]) for row, [key] in enumerate(hashes)]
    build_vision_cache(model, processor, pictures, folder, batch_size)
