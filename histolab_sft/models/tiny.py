"""The tiny base model: Gemma 3's real classes, a million parameters, built on this machine, offline.

It lets the whole road (quantise, attach LoRA, train, generate, score, merge) run on a laptop's processor. Its pictures
are painted by code and it has seen no tissue: a score that it reaches proves that the pipeline learns and measures,
and says nothing about patients.
"""

from pathlib import Path

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, set_seed

from histolab_sft.models.tiny_tokenizer import build_processor

IMAGE_SIZE = 64  # pixels
IMAGE_TOKENS = 16

# Every linear layer is a multiple of 64 wide, the block size of NF4.
TEXT_SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
VISION_SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}


def build_untrained_tiny_model(folder: str | Path, seed: int = 0, **text_sizes: int) -> Path:
    """Write a tiny Gemma 3 with random weights, with its tokenizer and processor: the same interface as the real one.

    Args:
        folder: where `AutoModelForImageTextToText` and `AutoProcessor` shall load it from; made if missing.
        seed: of the random weights.
        **text_sizes: fields of `Gemma3TextConfig` that replace those of `TEXT_SIZES`.

    Returns:
        The folder, holding float32 safetensors.
    """
    folder = Path(folder)
    processor = build_processor(IMAGE_SIZE, IMAGE_TOKENS)
    model = create_tiny_model(processor.tokenizer, seed, **text_sizes)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def create_tiny_model(tokenizer, seed: int, **text_sizes: int) -> Gemma3ForConditionalGeneration:
    """Create the model in memory with random weights; arguments as in `build_untrained_tiny_model`."""
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    sizes = TEXT_SIZES | text_sizes
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 2048,
            "sliding_window": 512,
            # Gemma 3 has five sliding layers to one full; both kinds must occur however few layers there are.
            "layer_types": [
                "full_attention" if i % 2 else "sliding_attention" for i in range(sizes["num_hidden_layers"])
            ],
            "query_pre_attn_scalar": sizes["head_dim"],
            **sizes,
        },
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "vision_use_head": False,
            **VISION_SIZES,
        },
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    set_seed(seed)
    model = Gemma3ForConditionalGeneration(config)
    # The class starts the projector at zero, where the picture could not change a single logit.
    torch.nn.init.normal_(
        model.model.multi_modal_projector.mm_input_projection_weight, std=VISION_SIZES["hidden_size"] ** -0.5
    )
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end_of_turn]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model
