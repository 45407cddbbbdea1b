"""A recipe with MedGemma-4B's exact sizes, random weights and painted patches: what the benchmarks on a GPU run."""

import gc
from pathlib import Path

import pandas as pd
import torch
import yaml
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from benchmarks.miniature import CLASS_NAMES, TINY, build_config, paint_rows
from histolab_sft.config.hardware import GIB
from histolab_sft.embedded.tokenizer import build_processor
from histolab_sft.models.geometry import IMAGE_TOKENS, VISION_SIZES, build_medgemma_4b_config

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def write_recipe(folder: Path, tiny: bool, patches: dict[str, int]) -> Path:
    """Write patches, a base model with random weights and a recipe on both, and return the recipe.

    Args:
        patches (`dict[str, int]`): Split -> patches in it.
    """
    write_model(folder / "model", tiny)
    splits = [split for split, count in patches.items() for _ in range(count)]
    rows = paint_rows(len(splits), folder / "patches").with_format(None)
    pd.DataFrame({"path": [paths[0] for paths in rows["images"]], "label": rows["label"], "split": splits}).to_csv(
        folder / "patches.csv"
    )
    recipe = {
        "model_name_or_path": str(folder / "model"),
        "use_peft": True,
        "lora_target_modules": LORA_TARGETS,
        "datasets": [
            {"name": "crc", "source": str(folder / "patches.csv"), "class_names": {name: name for name in CLASS_NAMES}}
        ],
        "output_dir": str(folder / "out"),
        "max_length": None,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "generate_answers": False,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def write_model(folder: Path, tiny: bool) -> None:
    """Write random weights in bfloat16 (float32 at toy size) where `from_pretrained` finds them."""
    sizes = (TINY.side, TINY.tokens) if tiny else (VISION_SIZES["image_size"], IMAGE_TOKENS)
    processor = build_processor(*sizes)
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


def free_memory() -> None:
    """Give back what the last model held; a trainer's cycles keep it alive until they are collected."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_peaks() -> dict[str, float]:
    """Return the allocator's peaks since they were reset, in GiB; nothing without a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {
        "peak_allocated_gib": torch.cuda.max_memory_allocated() / GIB,
        "peak_reserved_gib": torch.cuda.max_memory_reserved() / GIB,
    }
