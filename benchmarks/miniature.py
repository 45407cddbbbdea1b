"""A Gemma 3 with MedGemma-4B's proportions of vision tower to language model, small enough for two cores."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, set_seed

from histolab_sft.data.pictures.decoding import hash_pixels
from histolab_sft.embedded.tokenizer import build_processor
from histolab_sft.tasks import classification

CLASS_NAMES = ["Adipose", "Background", "Debris", "Lymphocyte", "Mucus", "Muscle", "Normal", "Stroma", "Tumor"]
QUESTION = classification.format_prompt("crc", CLASS_NAMES, "generic", None)
PATCH_SIDE = 224  # pixels, as stored
# On MedGemma-4B, by `flops.py`: a pass of the tower over that of the language model with 310 tokens, and the share of
# attention in the tower.
MEDGEMMA_RATIO = 2.7
MEDGEMMA_ATTENTION = 0.38


@dataclass(frozen=True)
class Miniature:
    """Sizes of a model; `tokens` are those of an image, `side` is what its pictures are scaled to."""

    name: str
    side: int
    tokens: int
    vision: dict
    text: dict


# Widths, heads and patches are a quarter of MedGemma's, rank included; layers are taken until the passes are as long
# to each other as there: the question is longer here, in the tokens of a small vocabulary.
QUARTER = Miniature(
    "a quarter",
    side=448,
    tokens=64,
    vision={"hidden_size": 288, "intermediate_size": 1076, "num_hidden_layers": 6, "num_attention_heads": 4},
    text={"hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 4, "num_attention_heads": 2},
)
EIGHTH = Miniature(
    "an eighth",
    side=336,
    tokens=36,
    vision={"hidden_size": 144, "intermediate_size": 538, "num_hidden_layers": 6, "num_attention_heads": 2},
    text={"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 3, "num_attention_heads": 1},
)
TINY = Miniature(
    "tiny",
    side=56,
    tokens=4,
    vision={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    text={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1},
)


def build_config(miniature: Miniature, vocabulary: int, **ids: int) -> Gemma3Config:
    """Return the configuration of the model; patches of 14 pixels and grouped heads as in MedGemma-4B."""
    text = {
        "vocab_size": vocabulary,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(len(CLASS_NAMES))][
            : miniature.text["num_hidden_layers"]
        ],
        **miniature.text,
    }
    vision = {"image_size": miniature.side, "patch_size": 14, "vision_use_head": False, **miniature.vision}
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=miniature.tokens, **ids)


def write_miniature(miniature: Miniature, folder: Path) -> Path:
    """Write model (random weights, float32), tokenizer and processor where `from_pretrained` finds them."""
    processor = build_processor(miniature.side, miniature.tokens)
    tokenizer = processor.tokenizer
    config = build_config(
        miniature,
        len(tokenizer),
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    set_seed(0)
    model = Gemma3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def measure_proportions(miniature: Miniature, length: int) -> dict:
    """Return the tower's pass over the language model's with `length` tokens, and the tower's share of attention."""
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(build_config(miniature, 1024)).model
        mask = torch.ones(1, 1, length, length, dtype=torch.bool)
        pixels = torch.zeros(1, 3, miniature.side, miniature.side)
        words = torch.zeros(1, length, miniature.text["hidden_size"])
    with torch.device("meta"), FlopCounterMode(display=False) as tower:
        model.vision_tower(pixels)
    with torch.device("meta"), FlopCounterMode(display=False) as language:
        model.language_model(
            inputs_embeds=words, attention_mask={"full_attention": mask, "sliding_attention": mask}, use_cache=False
        )
    # Attention is a batched product or a fused kernel; the layers' own products are neither.
    counts = {str(operation): count for operation, count in tower.get_flop_counts()["Global"].items()}
    attention = sum(count for name, count in counts.items() if "bmm" in name or "attention" in name)
    return {
        "tokens": length,
        "tower_gflop": tower.get_total_flops() / 1e9,
        "language_gflop": language.get_total_flops() / 1e9,
        "tower_over_language": tower.get_total_flops() / language.get_total_flops(),
        "attention_in_tower": attention / tower.get_total_flops(),
    }


def paint_rows(count: int, folder: Path, seed: int = 0) -> Dataset:
    """Write `count` different patches as PNG and return rows as `load_audited_patches` does."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        coarse = rng.integers(90, 240, (28, 28, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((PATCH_SIDE, PATCH_SIDE), Image.Resampling.BICUBIC)
        path = folder / f"{seed}-{number:06d}.png"
        image.save(path)
        label = CLASS_NAMES[number % len(CLASS_NAMES)]
        rows.append(
            {
                "images": [str(path)],
                "prompt": [{"role": "user", "content": QUESTION}],
                "completion": [{"role": "assistant", "content": classification.format_target(label)}],
                "label": label,
                "options": list(CLASS_NAMES),
                "dataset": "crc",
                "group": None,
                "pixel_sha256": [hash_pixels(image)],
                "id": path.name,
            }
        )
    return Dataset.from_list(rows).with_transform(_open_images)


def build_lora() -> LoraConfig:
    """Return the adapter of every arm: rank 16 on q, k, v, o of the language layers."""
    return LoraConfig(
        r=4, target_modules=r".*language_model\.layers\.\d+\.self_attn\.[qkvo]_proj", task_type="CAUSAL_LM"
    )


def _open_images(batch: dict) -> dict:
    if "images" in batch:
        batch["images"] = [[Image.open(path).convert("RGB") for path in paths] for paths in batch["images"]]
    return batch
