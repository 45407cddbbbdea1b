"""Measure training and scoring on a GPU, with MedGemma-4B's exact sizes and random weights, so nothing is downloaded:

    python -m benchmarks.bench_gpu

NF4 language layers, bfloat16 around them, LoRA of rank 16 on q, k, v, o. Writes `results/<device>.json` and `.md`.
"""

import argparse
import gc
import json
import os
import re
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import Gemma3Config, Gemma3ForConditionalGeneration
from trl import ModelConfig, SFTConfig, SFTTrainer

from benchmarks.miniature import TINY, build_config, paint_rows
from benchmarks.scoring_arms import score_systems
from benchmarks.tables import describe_machine, format_table
from benchmarks.training_arms import Clock, read_features
from histolab_sft.hardware import GIB, USABLE_GIB
from histolab_sft.models.geometry import IMAGE_TOKENS, VISION_SIZES, build_medgemma_4b_config
from histolab_sft.models.load import (
    build_lora_config,
    build_model_init_kwargs,
    build_quantization_config,
    load_base_model,
    load_processor,
)
from histolab_sft.models.tiny_tokenizer import build_processor
from histolab_sft.models.vision_cache import build_vision_cache
from histolab_sft.training.trainer import PatchTrainer

RESULTS = Path(__file__).parent / "results"
# Name -> trainer, activation checkpointing, cached features. C1 is what TRL does when told nothing.
CONFIGURATIONS = {
    "C1 TRL's default": (SFTTrainer, True, False),
    "C2 frozen tower under no_grad, checkpointing": (PatchTrainer, True, False),
    "C3 frozen tower under no_grad": (PatchTrainer, False, False),
    "C4 cached features, checkpointing": (PatchTrainer, True, True),
    "C5 cached features": (PatchTrainer, False, True),
}
BATCH_SIZES = (1, 4, 8)
STEPS = 8  # the first three warm up
CARD = USABLE_GIB["gpu_16gb"] * GIB
LARGEST = 64  # micro-batch at which the search in 16 GB ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a toy model on any machine: no result, only proof")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device found, expected one; run this on a machine with a GPU, or try --tiny")
    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else "no GPU"
    sizes, batches = (TINY.side, TINY.tokens), (1, 2)
    if not options.tiny:
        sizes, batches = (VISION_SIZES["image_size"], IMAGE_TOKENS), BATCH_SIZES
    with tempfile.TemporaryDirectory() as folder:
        model_args = write_model(Path(folder, "model"), *sizes, options.tiny)
        rows = paint_rows(max(batches) * STEPS, Path(folder, "rows"))
        results = {
            "machine": describe_machine(*os.getloadavg()[:2]) | {"device": name, "tiny": options.tiny},
            "training": {
                f"{configuration}, batch {batch}": train(configuration, model_args, rows, batch)
                for configuration in CONFIGURATIONS
                for batch in batches
            },
            "largest batch in 16 GB": find_largest_batches(model_args, rows) if on_gpu else "not measured",
            "encoding and scoring": measure_scoring(model_args, rows.select(range(16))),
        }
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / re.sub(r"\W+", "-", name.lower()).strip("-")
    stem.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    stem.with_suffix(".md").write_text(table := format_results(results))
    print(table)


def write_model(folder: Path, side: int, tokens: int, tiny: bool) -> ModelConfig:
    """Write random weights in bfloat16 where `from_pretrained` finds them, and return how they are loaded."""
    processor = build_processor(side, tokens)
    tokenizer = processor.tokenizer
    config: Gemma3Config = build_config(TINY, len(tokenizer)) if tiny else build_medgemma_4b_config()
    config.boi_token_index, config.eoi_token_index = tokenizer.boi_token_id, tokenizer.eoi_token_id
    config.image_token_index = config.image_token_id = tokenizer.image_token_id
    config.dtype = torch.float32 if tiny else torch.bfloat16
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Gemma3ForConditionalGeneration._from_config(config, dtype=config.dtype)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model
    free_memory()
    return ModelConfig(
        model_name_or_path=str(folder),
        dtype="float32" if tiny else "bfloat16",
        load_in_4bit=True,
        use_bnb_nested_quant=True,
        use_peft=True,
        lora_r=16,
        lora_target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    )


def train(configuration: str, model_args: ModelConfig, rows: Dataset, batch: int) -> dict:
    """Train `STEPS` steps and return seconds a step, samples a second and peak memory; or that it didn't fit."""
    trainer_class, checkpointing, cached = CONFIGURATIONS[configuration]
    on_gpu = torch.cuda.is_available()
    free_memory()
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            use_cpu=not on_gpu,
            bf16=model_args.dtype == "bfloat16",
            activation_checkpointing=checkpointing,
            max_steps=STEPS,
            per_device_train_batch_size=batch,
            max_length=None,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            model_init_kwargs=build_model_init_kwargs(model_args),
        )
        try:
            trainer = trainer_class(
                model=model_args.model_name_or_path,
                args=args,
                train_dataset=rows,
                processing_class=load_processor(model_args.model_name_or_path),
                quantization_config=build_quantization_config(model_args),
                peft_config=build_lora_config(model_args, "language"),
            )
            trainer.add_callback(clock := Clock())
            if cached:
                read_features(trainer, rows, Path(folder, "features"), batch)
            tokens = trainer.data_collator([rows[0]])["input_ids"].shape[1]
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            trainer.train()
        except torch.cuda.OutOfMemoryError:
            return {"fits": False}
        finally:
            trainer = None
            free_memory()
    step = median(clock.steps[2:])
    peaks = {}
    if on_gpu:
        peaks = {
            "peak_allocated_gib": torch.cuda.max_memory_allocated() / GIB,
            "peak_reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        }
    return {"fits": True, "tokens": tokens, "step_s": step, "samples_per_s": batch / step} | peaks


def find_largest_batches(model_args: ModelConfig, rows: Dataset) -> dict[str, int]:
    """Return, for C3 to C5, the largest power of two that trains within a 16 GB card's memory."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CARD / total))
    many = rows.select([number % len(rows) for number in range(LARGEST * STEPS)])
    largest = {}
    for configuration in list(CONFIGURATIONS)[2:]:
        batch, largest[configuration] = 1, 0
        while batch <= LARGEST and train(configuration, model_args, many, batch)["fits"]:
            largest[configuration], batch = batch, 2 * batch
    torch.cuda.set_per_process_memory_fraction(1.0)
    return largest


def measure_scoring(model_args: ModelConfig, rows: Dataset) -> dict[str, float]:
    """Return patches a second of the encode pass, and of both systems by generation and by likelihood."""
    free_memory()
    base = load_base_model(model_args)
    model = get_peft_model(base, build_lora_config(model_args, "language")).eval().requires_grad_(False)
    processor = load_processor(model_args.model_name_or_path)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        pictures = [
            (key, lambda row=row: rows[row]["image"]) for row, key in enumerate(rows.with_format(None)["pixel_sha256"])
        ]
        build_vision_cache(model, processor, pictures, folder, 8)
        rates = {"encoding": len(rows) / (time.perf_counter() - start)}
    for arm in ("generation", "likelihood", "likelihood, cold cache", "likelihood, warm cache"):
        rates[arm] = 2 * len(rows) / score_systems(arm, model, processor, rows, 8, 16)
    return rates


def free_memory() -> None:
    """Give back what the last model held; a trainer's cycles keep it alive until they are collected."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def format_results(results: dict) -> str:
    """Return the results as tables in Markdown."""
    first = results["training"][next(iter(results["training"]))]
    reference = {name.rsplit(" ", 1)[1]: run for name, run in results["training"].items() if name.startswith("C1")}
    lines = []
    for name, run in results["training"].items():
        plain = reference[name.rsplit(" ", 1)[1]]
        ratio = f"{plain['step_s'] / run['step_s']:.2f}" if run["fits"] and plain["fits"] else ""
        peak = f"{run['peak_reserved_gib']:.2f}" if "peak_reserved_gib" in run else ""
        measured = (f"{run['step_s']:.3f}", f"{run['samples_per_s']:.2f}") if run["fits"] else ("does not fit", "")
        lines.append((name, *measured, ratio, peak))
    largest = results["largest batch in 16 GB"]
    rates = results["encoding and scoring"]
    machine = results["machine"]
    parts = [
        f"{machine['device']}, {first.get('tokens')} tokens a sample, torch {machine['torch']}, transformers "
        f"{machine['transformers']}" + (", toy sizes: no result" if machine["tiny"] else ""),
        format_table(("configuration", "s a step", "samples a second", "times C1", "peak GiB"), lines),
        "Largest micro-batch in 16 GB: "
        + (", ".join(f"{key}: {size}" for key, size in largest.items()) if isinstance(largest, dict) else largest),
        format_table(("pass", "patches a second"), [(arm, f"{rate:.2f}") for arm, rate in rates.items()]),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
