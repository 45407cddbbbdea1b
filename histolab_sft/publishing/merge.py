"""Merge an adapter into its base model in bfloat16, and prove that the merged model still gives the same answers.

Merging into 4-bit weights would round them to 4 bits once more, which cost a user six points of AUC (peft issue 2321).
"""

import gc
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoProcessor, PreTrainedModel

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.models.likelihood import label_log_likelihoods
from histolab_sft.models.load import (
    adapt_processor,
    load_adapter,
    load_base_model,
    load_base_processor,
    locate_base_model,
)
from histolab_sft.models.precision import Precision
from histolab_sft.provenance import compute_sha256
from histolab_sft.publishing.push_gate import ADAPTER, PublishError
from histolab_sft.tasks import classification

logger = logging.getLogger(__name__)

_PLAIN = Precision()
PARITY_FILE = "merge_parity.json"
PARITY_PATCHES = 64
# On the tiny model rounding moves the log-probability of an answer by up to 0.12 nats, a merge in 4 bit, with half the
# scale or without one module by 1.2 or more.
MAX_GAP = 0.5  # nats
MIN_AGREEMENT = 0.95


def merge_adapter(model_args: ModelConfig, output_dir: str | Path) -> Path:
    """Write `output_dir/merged`: the base model in bfloat16 with the adapter of `output_dir` in its weights.

    Safetensors under the names that the base model has on the Hub, with its processor.

    Raises:
        ValueError: A merged weight isn't finite.
    """
    target = Path(output_dir, "merged")
    shutil.rmtree(target, ignore_errors=True)  # shards of an earlier merge
    load_trained(in_bfloat16(model_args), output_dir).merge_and_unload(safe_merge=True).save_pretrained(target)
    base_model = locate_base_model(model_args.model_name_or_path)
    processor = AutoProcessor.from_pretrained(base_model, revision=model_args.model_revision)
    adapt_processor(processor, model_args).save_pretrained(target)
    logger.info("merged model written to %s", target)
    return target


def check_merge_parity(
    patches: Dataset,
    histo_args: HistoArguments,
    model_args: ModelConfig,
    output_dir: str | Path,
    precision: Precision = _PLAIN,
) -> dict:
    """Compare the adapter on the weights it was trained on, the adapter on bfloat16, and `output_dir/merged`.

    Args:
        patches (`Dataset`): Validation split of `load_patches`; 64 patches of it, evenly spaced, are scored.
        precision: Of training, in which all three compute.

    Returns:
        `dict`: What `compare_scores` gives, and the SHA-256 of the adapter and of the merged files; also written to
        `output_dir/merge_parity.json`, whatever the verdict.

    Raises:
        PublishError: The merged model is beyond the tolerance.
    """
    output_dir = Path(output_dir)
    merged_dir = output_dir / "merged"
    systems = {
        "training_precision": lambda: load_trained(model_args, output_dir, precision),
        "bfloat16": lambda: load_trained(in_bfloat16(model_args), output_dir, precision),
        "merged": lambda: load_merged(merged_dir, precision),
    }
    processor = load_base_processor(model_args)
    rows = select_rows(patches)
    scores = {name: _score(load, processor, rows, histo_args) for name, load in systems.items()}
    parity = compare_scores(scores) | {
        "adapter_sha256": compute_sha256(output_dir / ADAPTER),
        "merged_sha256": {path.name: compute_sha256(path) for path in sorted(merged_dir.glob("*.safetensors"))},
    }
    (output_dir / PARITY_FILE).write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")
    if not parity["passed"]:
        raise PublishError(
            f"the merged model differs from the adapter ({describe(parity)}), expected the same answers; see "
            f"{output_dir / PARITY_FILE}, and publish the adapter instead"
        )
    return parity


def select_rows(patches: Dataset) -> Dataset:
    """Return the patches that systems are compared on: 64 of the split, evenly spaced."""
    return patches.select(np.unique(np.linspace(0, len(patches) - 1, PARITY_PATCHES).astype(int)))


def compare_scores(scores: dict[str, np.ndarray]) -> dict:
    """Compare the answers of `training_precision`, `bfloat16` and `merged` to the same patches.

    Merging changes nothing but the rounding of `bfloat16`, so that this pair must also agree in the log-probability of
    every label. The first system has other weights: those that the adapter was trained on.

    Args:
        scores (`dict`): System -> float64 log-likelihoods, shape (patches, labels), `-inf` where a patch has fewer.

    Returns:
        `dict`: `n_patches`, `max_gap`, `min_agreement` (the tolerances), `passed`, and `pairs`: `a/b` -> `agreement`
        (share of patches with the same likeliest label) and `largest_gap` (nats).
    """
    pairs = {f"{a}/{b}": _compare(scores[a], scores[b]) for a, b in combinations(scores, 2)}
    passed = pairs["bfloat16/merged"]["largest_gap"] <= MAX_GAP and all(
        pair["agreement"] >= MIN_AGREEMENT for pair in pairs.values()
    )
    return {
        "n_patches": len(scores["merged"]),
        "max_gap": MAX_GAP,
        "min_agreement": MIN_AGREEMENT,
        "passed": bool(passed),
        "pairs": pairs,
    }


def load_trained(model_args: ModelConfig, output_dir: str | Path, precision: Precision = _PLAIN) -> PeftModel:
    """Load the base model of a recipe with the adapter of `output_dir` beside its weights."""
    return load_adapter(load_base_model(model_args, precision), output_dir, model_args.model_revision)


def load_merged(folder: str | Path, precision: Precision = _PLAIN) -> PreTrainedModel:
    """Load a merged model for scoring, from its folder alone."""
    return load_base_model(in_bfloat16(ModelConfig(str(folder))), precision)


def in_bfloat16(model_args: ModelConfig) -> ModelConfig:
    """Return the same model arguments without quantisation, in bfloat16."""
    return replace(model_args, load_in_4bit=False, load_in_8bit=False, dtype="bfloat16")


def describe(parity: dict) -> str:
    """Return the comparison of all pairs in one line."""
    return "; ".join(
        f"{name}: {pair['agreement']:.1%} of labels agree, largest gap {pair['largest_gap']:.3g} nats"
        for name, pair in parity["pairs"].items()
    )


def _score(load: Callable[[], PreTrainedModel], processor, rows: Dataset, histo_args: HistoArguments) -> np.ndarray:
    answers = {
        config.name: [classification.format_target(name) for name in config.class_names.values()]
        for config in histo_args.datasets
    }
    model = load()
    questions = [prompt[0]["content"] for prompt in rows["prompt"]]
    candidates = [answers[name] for name in rows["dataset"]]
    scores, _ = label_log_likelihoods(
        model, processor, rows["images"], questions, candidates, candidate_batch_size=histo_args.candidate_batch_size
    )
    # Only one of the three models is held at a time.
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return scores.numpy()


def _compare(a: np.ndarray, b: np.ndarray) -> dict:
    """Compare log-likelihoods; a value that isn't finite in a single one gives a gap that can't pass."""
    absent = np.isneginf(a) & np.isneginf(b)
    gaps = np.abs(np.subtract(a, b, where=~absent, out=np.zeros_like(a)))
    return {"agreement": float(np.mean(a.argmax(axis=1) == b.argmax(axis=1))), "largest_gap": float(gaps.max())}
