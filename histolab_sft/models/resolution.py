"""Change the resolution at which a model reads pictures (`image_side`, `image_tokens`).

A picture is scaled to a square of `image_side` pixels, the tower cuts it into patches, and what it makes of them is
pooled to `image_tokens` tokens of the language model. MedGemma was trained at 896 pixels and 256 tokens. At another
side the tower's position embeddings are interpolated (bicubic), by the function that transformers has for SigLIP.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import Gemma3Model, PretrainedConfig, ProcessorMixin
from transformers.image_utils import SizeDict
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

GEMMA3 = "gemma3"


@dataclass(frozen=True)
class Resolution:
    """Side of a picture in pixels, and its tokens in the language model."""

    side: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.side} pixels and {self.tokens} image token{'s' if self.tokens > 1 else ''} a picture"


def read_resolution(config: PretrainedConfig) -> Resolution | None:
    """Return the resolution of a Gemma 3; None for other families, whose pictures can't be given another one."""
    if config.model_type != GEMMA3:
        return None
    return Resolution(config.vision_config.image_size, config.mm_tokens_per_image)


def set_resolution(config: PretrainedConfig, side: int | None, tokens: int | None) -> None:
    """Give a base model's configuration the resolution of a recipe; what is None stays as it is.

    Raises:
        ValueError: The model isn't a Gemma 3, its patches don't fill such a side, or they can't be pooled to so many
            tokens.
    """
    if side is None and tokens is None:
        return
    own = read_resolution(config)
    if own is None:
        raise ValueError(
            f"image_side: {side} and image_tokens: {tokens} with a model of the family {config.model_type}, expected "
            "a Gemma 3 such as MedGemma: other towers scale and pool pictures in ways of their own; remove the keys, "
            "or set them to null where they come from a profile (hardware)"
        )
    side, tokens, patch = side or own.side, tokens or own.tokens, config.vision_config.patch_size
    if side % patch:
        nearest = max(1, round(side / patch)) * patch
        raise ValueError(
            f"image_side is {side}, expected a multiple of the {patch} pixels of the tower's patches; {nearest} is "
            "the nearest"
        )
    patches = side // patch
    possible = [count**2 for count in range(1, patches + 1) if patches % count == 0]
    if tokens not in possible:
        raise ValueError(
            f"image_tokens is {tokens} at an image_side of {side}, expected one of {', '.join(map(str, possible))}: "
            f"the {patches} x {patches} patches of a picture are pooled in equal squares"
        )
    config.vision_config.image_size, config.mm_tokens_per_image = side, tokens


@torch.no_grad()
def resize_tower(model: nn.Module, side: int | None, tokens: int | None) -> None:
    """Give a loaded Gemma 3 the resolution of a recipe; arguments and errors as in `set_resolution`.

    The table of position embeddings becomes what `SiglipVisionEmbeddings.interpolate_pos_encoding` gives for that
    side, in the dtype of the weights. At the model's own resolution nothing changes.
    """
    own = read_resolution(model.config)
    set_resolution(model.config, side, tokens)
    if read_resolution(model.config) == own:
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
    """Return the processor of a Gemma 3 for pictures of the resolution of `config`."""
    resolution = read_resolution(config)
    processor.image_processor.size = SizeDict(height=resolution.side, width=resolution.side)
    return type(processor)(
        processor.image_processor, processor.tokenizer, processor.chat_template, image_seq_length=resolution.tokens
    )


def check_same_resolution(folder: str | Path, trained: Resolution | None, loaded: Resolution | None) -> None:
    """Raise a `ValueError` unless what was trained and the base model that is loaded have the same resolution."""
    if trained != loaded:
        raise ValueError(
            f"{folder} was trained at {trained}, and the base model is loaded at {loaded}; set image_side: "
            f"{trained.side} and image_tokens: {trained.tokens}, as in training"
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
