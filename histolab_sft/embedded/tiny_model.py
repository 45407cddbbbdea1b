"""The tiny base model: Gemma 3's real classes, a million parameters, built on this machine, offline.

It lets the whole road (quantise, attach LoRA, train, generate, score, merge) run on a laptop's processor. Its pictures
are painted by code and it has seen no tissue: a score that it reaches proves that the pipeline learns and measures,
and says nothing about patients.
"""

import hashlib
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from filelock import FileLock
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor, GemmaTokenizer

from histolab_sft.embedded import painting, pretext, pretraining, tokenizer
from histolab_sft.embedded.pretraining import pretrain
from histolab_sft.embedded.tokenizer import build_processor

logger = logging.getLogger(__name__)

IMAGE_SIZE = 64  # pixels
IMAGE_TOKENS = 16

# Every linear layer is a multiple of 64 wide, the block size of NF4.
TEXT_SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
UNTRAINED_SIZES = {"num_hidden_layers": 4}  # both kinds of attention layers twice
VISION_SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}


def load_tiny_base_model(cache_dir: str | Path | None = None) -> Path:
    """Give the folder of the pre-trained tiny base model; the first call on a machine builds it (a minute or two).

    Args:
        cache_dir: where built models are kept; `~/.cache/histolab_sft` by default, or below `XDG_CACHE_HOME`.

    Returns:
        A folder for `AutoModelForImageTextToText` and `AutoProcessor`, float32 safetensors. Its name carries a hash of
        the code that builds it, so that a change of the code builds anew.
    """
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "histolab_sft")
    cache_dir = Path(cache_dir)
    folder = cache_dir / f"tiny-gemma3-{_hash_recipe()}"
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            logger.info("Building the tiny base model, once on this machine, into %s", folder)
            with TemporaryDirectory(dir=cache_dir) as unfinished:
                os.replace(_build_tiny_model(Path(unfinished, "model")), folder)
    return folder


def build_untrained_tiny_model(folder: str | Path, seed: int = 0, **text_sizes: int) -> Path:
    """Write a tiny Gemma 3 with random weights, with its tokenizer and processor: the same interface as the real one.

    Args:
        folder: where `AutoModelForImageTextToText` and `AutoProcessor` shall load it from; made if missing.
        seed: of the random weights.
        **text_sizes: fields of `Gemma3TextConfig` that replace those of `TEXT_SIZES`.

    Returns:
        The folder, holding float32 safetensors.
    """
    processor = build_processor(IMAGE_SIZE, IMAGE_TOKENS)
    model = create_tiny_model(processor.tokenizer, seed, **(UNTRAINED_SIZES | text_sizes))
    return _save(model, processor, Path(folder))


def create_tiny_model(tokenizer: GemmaTokenizer, seed: int, **text_sizes: int) -> Gemma3ForConditionalGeneration:
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
    # The caller's random state must not depend on whether the model had to be built.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Gemma3ForConditionalGeneration(config)
        # The class starts the projector at zero, where the picture could not change a single logit.
        projection = model.model.multi_modal_projector.mm_input_projection_weight
        torch.nn.init.normal_(projection, std=VISION_SIZES["hidden_size"] ** -0.5)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end_of_turn]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model


def _build_tiny_model(folder: Path) -> Path:
    processor = build_processor(IMAGE_SIZE, IMAGE_TOKENS)
    # Sums over several threads are added up in another order for each number of them.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = create_tiny_model(processor.tokenizer, seed=0)
        losses = pretrain(model, processor)
    finally:
        torch.set_num_threads(threads)
    logger.info("Pre-training ended with losses %s", losses)
    return _save(model, processor, folder)


def _save(model: Gemma3ForConditionalGeneration, processor: Gemma3Processor, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _hash_recipe() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for module in (painting, pretext, pretraining, tokenizer):
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()[:12]
