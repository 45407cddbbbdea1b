"""MedGemma-4B's sizes, for what is computed from a model's shape alone: arithmetic and memory, no weights."""

from pathlib import Path

from transformers import Gemma3Config

# All of one size: version 1.5 is a further training of the same network.
MEDGEMMA_4B_SIZED = ("google/medgemma-4b-it", "google/medgemma-4b-pt", "google/medgemma-1.5-4b-it")

# Source: config.json of google/medgemma-4b-it, which is that of google/gemma-3-4b-it with the image tower's own sizes.
TEXT_SIZES = {
    "vocab_size": 262208,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 1024,
    "tie_word_embeddings": True,
}
VISION_SIZES = {
    "image_size": 896,  # pixels a side
    "patch_size": 14,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "vision_use_head": False,
}
IMAGE_TOKENS = 256


def build_medgemma_4b_config() -> Gemma3Config:
    """Return the configuration of MedGemma-4B: 4.30 billion parameters, 416.9 million of them in the vision tower."""
    return Gemma3Config(
        text_config=dict(TEXT_SIZES), vision_config=dict(VISION_SIZES), mm_tokens_per_image=IMAGE_TOKENS
    )


def write_medgemma_4b_config(folder: str | Path) -> Path:
    """Write the configuration where `AutoConfig.from_pretrained` finds it, for machines without the gated download."""
    build_medgemma_4b_config().save_pretrained(folder)
    return Path(folder)
