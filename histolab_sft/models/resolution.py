"""Change the resolution at which a model reads pictures (`image_side`, `image_tokens`).

A picture is scaled to a square of `image_side` pixels, the tower cuts it into patches, and what it makes of them is
pooled to `image_tokens` tokens of the language model. MedGemma was trained at 896 pixels and 256 tokens. At another
side the tower's position embeddings are interpolated (bicubic), by the function that transformers has for SigLIP.

An Idefics 3 such as SmolVLM scales a picture up and cuts it into tiles, each of which has as many tokens: 17 tiles for
a patch of any size in SmolVLM-256M. With a resolution a picture is one tile of `image_side` pixels. Its tower takes
tiles of any side as it is: a patch of pixels has the position embedding that belongs to its place in the picture.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import Gemma3Model, PretrainedConfig, ProcessorMixin
from transformers.image_utils import SizeDict
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

GEMMA3, IDEFICS3 = "gemma3", "idefics3"


@dataclass(frozen=True)
class Resolution:
    """Side of a picture in pixels, and its tokens in the language model."""

    side: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.side} pixels and {self.tokens} image token{'s' if self.tokens > 1 else ''} a picture"


def read_resolution(config: PretrainedConfig) -> Resolution | None:
    """Return the resolution of a Gemma 3, or of an Idefics 3 that was given one; else None.

    None means as many tokens as a picture is large, or a family whose pictures can't be given another resolution.
    """
    if config.model_type == GEMMA3:
        return Resolution(config.vision_config.image_size, config.mm_tokens_per_image)
    side = getattr(config, "image_side", None) if config.model_type == IDEFICS3 else None
    return None if side is None else Resolution(side, (side // _read_square(config)) ** 2)


def set_resolution(config: PretrainedConfig, side: int | None, tokens: int | None) -> None:
    """Give a base model's configuration the resolution of a recipe; what is None stays as it is.

    Raises:
        ValueError: The model is neither a Gemma 3 nor an Idefics 3, its patches don't fill such a side, or they can't
            be pooled to so many tokens.
    """
    if side is None and tokens is None:
        return
    if config.model_type == IDEFICS3:
        config.image_side = _choose_tile(config, side, tokens)
        return
    own = read_resolution(config)
    if own is None:
        raise ValueError(
            f"image_side: {side} and image_tokens: {tokens} with a model of the family {config.model_type}, expected "
            "a Gemma 3 such as MedGemma, or an Idefics 3 such as SmolVLM-256M: other towers scale and pool pictures "
            "in ways of their own; remove the keys, or set them to null where they come from a profile (hardware)"
        )
    side, tokens, patch = side or own.side, tokens or own.tokens, config.vision_config.patch_size
    _check_side(side, patch, f"the {patch} pixels of the tower's patches")
    patches = side // patch
    possible = [count**2 for count in range(1, patches + 1) if patches % count == 0]
    if tokens not in possible:
        raise ValueError(
            f"image_tokens is {tokens} at an image_side of {side}, expected one of {', '.join(map(str, possible))}: "
            f"the {patches} x {patches} patches of a picture are pooled in equal squares"
        )
    config.vision_config.image_size, config.mm_tokens_per_image = side, tokens


def _choose_tile(config: PretrainedConfig, side: int | None, tokens: int | None) -> int:
    """Return the side of the one tile of an Idefics 3, whose tokens follow from it; errors as in `set_resolution`."""
    largest, square = config.vision_config.image_size, _read_square(config)
    side = side or largest
    _check_side(side, square, f"the {square} pixels of an image token")
    if side > largest:
        raise ValueError(f"image_side is {side}, expected at most {largest}, the side of this model's own tiles")
    if tokens not in (None, (side // square) ** 2):
        raise ValueError(
            f"image_tokens is {tokens} at an image_side of {side}, expected {(side // square) ** 2}: this model has "
            f"one for each {square} x {square} pixels; remove image_tokens"
        )
    return side


def _read_square(config: PretrainedConfig) -> int:
    """Return the side in pixels of what an Idefics 3 makes one image token of."""
    return config.vision_config.patch_size * config.scale_factor


def _check_side(side: int, step: int, what: str) -> None:
    if side % step:
        nearest = max(1, round(side / step)) * step
        raise ValueError(f"image_side is {side}, expected a multiple of {what}; {nearest} is the nearest")


@torch.no_grad()
def resize_tower(model: nn.Module, side: int | None, tokens: int | None) -> None:
    """Give a loaded model the resolution of a recipe; arguments and errors as in `set_resolution`.

    The table of position embeddings becomes what `SiglipVisionEmbeddings.interpolate_pos_encoding` gives for that
    side, in the dtype of the weights. At the model's own resolution nothing changes, and of an Idefics 3 no weight.
    """
    own = read_resolution(model.config)
    set_resolution(model.config, side, tokens)
    if model.config.model_type == IDEFICS3 or read_resolution(model.config) == own:
        return
    gemma = next(module for module in model.modules() if isinstance(module, Gemma3Model))
    tower, side = gemma.vision_tower, model.config.vision_config.image_size
    if side != own.side:
        tower.embeddings = _resize_embeddings(tower.embeddings, side)
    pooled, projector = gemma.multi_modal_projector, Gemma3MultiModalProjector(model.config)
    projector.mm_input_projection_weight = pooled.mm_input_projection_weight
    projector.mm_soft_emb_norm = pooled.mm_soft_emb_norm
    gemma.multi_modal_projector = projector.train(pooled.training)


def resize_processor(processor: ProcessorMixin, config: PretrainedConfig) -> ProcessorMixin:
    """Return the processor of a base model for pictures of the resolution of `config`."""
    resolution = read_resolution(config)
    if config.model_type == IDEFICS3:
        processor.image_processor.do_image_splitting = False
        processor.image_processor.size = processor.image_processor.max_image_size = SizeDict(
            longest_edge=resolution.side
        )
        processor.image_seq_len = resolution.tokens
        return processor
    processor.image_processor.size = SizeDict(height=resolution.side, width=resolution.side)
    return type(processor)(
        processor.image_processor, processor.tokenizer, processor.chat_template, image_seq_length=resolution.tokens
    )


def check_same_resolution(folder: str | Path, trained: Resolution | None, loaded: Resolution | None) -> None:
    """Raise a `ValueError` unless what was trained and the base model that is loaded have the same resolution."""
    if trained != loaded:
        keys = "remove image_side and image_tokens"
        if trained is not None:
            keys = f"set image_side: {trained.side} and image_tokens: {trained.tokens}"
        own = "the base model's own resolution"
        raise ValueError(
            f"{folder} was trained at {trained or own}, and the base model is loaded at {loaded or own}; {keys}, as "
            "in training"
        )


def _resize_embeddings(embeddings: SiglipVisionEmbeddings, side: int) -> SiglipVisionEmbeddings:
    # Its configuration has the new side by now.
    resized, weight = SiglipVisionEmbeddings(embeddings.config), embeddings.position_embedding.weight
    patches = weight.new_empty(1, resized.num_patches, resized.embed_dim)
    table = embeddings.interpolate_pos_encoding(patches, side, side)[0]
    resized.patch_embedding = embeddings.patch_embedding
    resized.position_embedding.weight = nn.Parameter(table.contiguous(), requires_grad=weight.requires_grad)
    resized.position_ids = resized.position_ids.to(weight.device)
    return resized.train(embeddings.training)
