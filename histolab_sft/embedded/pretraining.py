"""What the tiny base model knows before any fine-tuning: to describe painted pictures in words.

First the vision tower learns to tell the attributes of `tiny_pretext` by itself, which is quick and direct; then the
whole model learns to say them. Every picture is turned, mirrored and stained anew each time it is seen.
"""

import logging
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor

from histolab_sft.embedded.painting import EOSIN, HEMATOXYLIN
from histolab_sft.embedded.pretext import QUESTIONS, paint_pretext, write_text

logger = logging.getLogger(__name__)

PICTURES = 5000
VISION_STEPS = 900
LANGUAGE_STEPS = 400
VISION_BATCH = 64
LANGUAGE_BATCH = 32
VISION_RATE = 3e-3
LANGUAGE_RATE = 2e-3


def pretrain(
    model: Gemma3ForConditionalGeneration,
    processor: Gemma3Processor,
    seed: int = 0,
    pictures: int = PICTURES,
    vision_steps: int = VISION_STEPS,
    language_steps: int = LANGUAGE_STEPS,
) -> dict[str, float]:
    """Teach the model the pretext, in place.

    Args:
        model: as `create_tiny_model` gives it, float32, on the CPU.
        processor: its processor.
        seed: of the pictures and of every random choice; the same seed on the same machine gives the same weights.
        pictures: how many are painted; each is seen in new colours every time.
        vision_steps: optimiser steps on the vision tower alone.
        language_steps: optimiser steps on the whole model.

    Returns:
        Mean loss of the last twenty steps, as `vision_loss` and `language_loss`.
    """
    maps, attributes, numbers = paint_pretext(pictures, model.config.vision_config.image_size, seed)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    words_per_question = [len(words) for _, words in QUESTIONS.values()]
    width = model.config.vision_config.hidden_size
    # The caller's random state must not depend on whether the model had to be built.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(words_per_question)))
        regression = nn.Linear(width, numbers.shape[1])
    tower = model.model.vision_tower
    aids = [*head.parameters(), *regression.parameters()]

    def look(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (batch, patches, width) and the loss of telling the attributes from their mean."""
        features = tower(pixel_values=stain_pictures(maps[chosen], generator)).last_hidden_state
        mean = features.mean(dim=1)
        scores = head(mean).split(words_per_question, dim=1)
        told = sum(F.cross_entropy(score, attributes[chosen, i]) for i, score in enumerate(scores)) / len(scores)
        return features, told + F.mse_loss(regression(mean), numbers[chosen])

    def step_vision() -> torch.Tensor:
        return look(torch.randint(len(maps), (VISION_BATCH,), generator=generator))[1]

    def step_language() -> torch.Tensor:
        chosen = torch.randint(len(maps), (LANGUAGE_BATCH,), generator=generator)
        features, told = look(chosen)
        return _compute_answer_loss(model, processor, features, attributes[chosen], rng) + 0.3 * told

    model.train()
    vision_loss = _optimise(step_vision, [*tower.parameters(), *aids], vision_steps, VISION_RATE)
    language_loss = _optimise(step_language, [*model.parameters(), *aids], language_steps, LANGUAGE_RATE)
    model.eval()
    return {"vision_loss": vision_loss, "language_loss": language_loss}


def _optimise(step, parameters: list[nn.Parameter], steps: int, rate: float) -> float:
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 40, 0.05 + 0.475 * (1 + math.cos(math.pi * i / steps)))
    )
    losses = []
    for i in range(steps):
        loss = step()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if i % 100 == 0:
            logger.info("Pre-training step %s of %s: loss %.3f", i, steps, losses[-1])
    return float(np.mean(losses[-20:]))


def _compute_answer_loss(model, processor, features, attributes, rng: np.random.Generator) -> torch.Tensor:
    """Cross-entropy of the answer tokens of one text per picture."""
    tokenizer = processor.tokenizer
    texts = [write_text(row.tolist(), rng) for row in attributes]
    image = processor.full_image_sequence
    prompts = [f"<bos><start_of_turn>user\n{image}{asked}<end_of_turn>\n<start_of_turn>model\n" for asked, _ in texts]
    prompts = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answers = tokenizer([f"{told}<end_of_turn>\n" for _, told in texts], add_special_tokens=False)["input_ids"]
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(texts), width), tokenizer.pad_token_id)
    labels = torch.full((len(texts), width), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    embedded = model.get_input_embeddings()(ids)
    is_image = ids == tokenizer.image_token_id
    embedded = embedded.masked_scatter(is_image[..., None], model.model.multi_modal_projector(features))
    hidden = model.model(
        inputs_embeds=embedded,
        attention_mask=(ids != tokenizer.pad_token_id).long(),
        token_type_ids=is_image.long(),
        use_cache=False,
    ).last_hidden_state
    # Only the answers go through the output layer.
    told = labels[:, 1:] != -100
    return F.cross_entropy(model.lm_head(hidden[:, :-1][told]), labels[:, 1:][told])


def stain_pictures(maps: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn, mirror and colour maps (n, 2, size, size) anew, as `painting.stain_patch` does; pixel values in -1..1."""
    count, _, size, _ = maps.shape

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    flips = torch.rand(3, generator=generator) < 0.5
    maps = maps.flip([axis for axis, flip in zip((2, 3), flips[:2].tolist(), strict=True) if flip])
    maps = maps.transpose(2, 3) if flips[2] else maps
    vectors = torch.tensor(np.stack([HEMATOXYLIN, EOSIN]), dtype=torch.float32)
    spread = torch.tensor([[0.10], [0.07]])
    vectors = (vectors + spread * torch.randn(count, 2, 3, generator=generator)).clamp_min(0.02)
    vectors = (
        F.normalize(vectors, dim=2) * torch.stack([uniform(0.5, 1.4, count), uniform(0.4, 1.4, count)], 1)[..., None]
    )
    lamp = uniform(0.7, 1, count, 1) * (1 - uniform(0, 0.08, count, 3))
    side = torch.linspace(-1, 1, size)
    slopes = uniform(-0.15, 0.15, count, 2)
    field = 1 + slopes[:, 0, None, None] * side + slopes[:, 1, None, None] * side[:, None]
    light = lamp[..., None, None] * field[:, None] * 10 ** -torch.einsum("nshw,nsc->nchw", maps, vectors)
    light = light + 0.012 * torch.randn(light.shape, generator=generator)
    return light.clamp(0, 1) * 2 - 1
