"""Log-likelihoods of given answers, and class probabilities from them. Nothing is generated or parsed.

The log-likelihood of an answer is the sum over its tokens, end of turn included, of log p(token | picture, question,
tokens before). `models.shared_prefix` reads picture, question and common words once a patch.

A model that tends to think aloud first gives the first token of every answer a lower probability, by the same factor.
The factor drops out of class probabilities.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy.special import log_softmax, softmax
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from histolab_sft.models.generate import (
    check_lengths,
    encode_prompts,
    evaluating,
    render_completion,
    render_prompts,
    unwrap_adapter,
)
from histolab_sft.models.picture_loader import prepare_ahead
from histolab_sft.models.precision import autocasting
from histolab_sft.models.shared_prefix import score_answers, score_slots


def label_log_likelihoods(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image],
    questions: list[str],
    candidates: list[str] | list[list[str]],
    batch_size: int = 8,
    candidate_batch_size: int = 96,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score whole answers for every patch.

    Args:
        images (`Sequence` of N pictures): Read one batch at a time.
        questions (`list` of N strings): The user's words, without turn markers.
        candidates (`list` of K strings, or N such lists): The answers, for all patches or for each; one may be the
            beginning of another, because the end of turn is scored.
        batch_size (`int`): Patches that are read at once.
        candidate_batch_size (`int`): Answers that are read at once, over all patches of a batch: bounds their logits.

    Returns:
        `(N, K)` float64 log-likelihoods in nats and `(N, K)` int64 numbers of tokens in each answer, on the CPU. Where
        rows have different numbers of answers, K is the largest and the rest is `-inf` and 0.

    Raises:
        ValueError: The numbers of images, questions and candidate lists differ, or a row has no answers or one twice.
    """
    model = unwrap_adapter(model)
    check_lengths(images, questions)
    if isinstance(candidates[0], str):
        candidates = [candidates] * len(questions)
    groups = _group_rows(questions, candidates)
    log_likelihoods = torch.full((len(questions), max(map(len, candidates))), -torch.inf, dtype=torch.float64)
    counts = torch.zeros_like(log_likelihoods, dtype=torch.int64)

    def encode(batch: list[int]) -> dict[str, torch.Tensor]:
        pictures = [images[row] for row in batch]
        prompts = render_prompts(processor, [questions[row] for row in batch], pictures)
        return dict(encode_prompts(processor, pictures, prompts))

    hidden = len(questions) <= batch_size or None
    with (
        evaluating(model),
        autocasting(model),
        tqdm(total=len(questions), desc="scoring", unit="patch", disable=hidden) as progress,
    ):
        for answers, rows in groups.items():
            # Neighbours of one length need no padding.
            rows = sorted(rows, key=lambda row: len(questions[row]))
            tokens = tokenize_answers(processor, questions[rows[0]], answers)
            batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
            for batch, encoded in zip(batches, prepare_ahead(encode, batches, len(rows)), strict=True):
                inputs = {name: values.to(model.device, non_blocking=True) for name, values in encoded.items()}
                scores = score_answers(model, inputs, tokens, max(1, candidate_batch_size // len(batch)))
                log_likelihoods[batch, : len(tokens)] = scores.cpu()
                counts[batch, : len(tokens)] = torch.tensor([len(answer) for answer in tokens])
                progress.update(len(batch))
    return log_likelihoods, counts


def slot_log_probabilities(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image | list[Image.Image]],
    questions: list[str],
    slots: list[list[list[tuple[str, int]]]],
    candidate_batch_size: int = 96,
) -> list[list[np.ndarray]]:
    """Return the probabilities of the values that could fill each slot of a text, given picture and text up to there.

    Args:
        images (`Sequence` of N pictures or lists of pictures): Read one row at a time.
        slots (`list` of N lists): Of each row its slots in the order of the text, at least one, and for each the
            alternatives `(text, end)`: the text with the alternative in it, and where that ends. The text is split
            into tokens as a whole, and those up to the one that holds the character before `end` count; what follows
            decides where that token ends, not how likely it is.

    Returns:
        For each slot of each row the natural logarithms of the alternatives' probabilities, which sum to 1: float64.
    """
    model = unwrap_adapter(model)
    check_lengths(images, questions)
    weighed = []
    with evaluating(model), autocasting(model):
        for row, question in enumerate(tqdm(questions, desc="weighing values", unit="row", disable=None)):
            tokens = [_tokenize_beginnings(processor, alternatives) for alternatives in slots[row]]
            pictures = [images[row]]
            inputs = encode_prompts(processor, pictures, render_prompts(processor, [question], pictures))
            scores = score_slots(model, dict(inputs.to(model.device)), tokens, candidate_batch_size)
            weighed.append([log_softmax(score.cpu().numpy()) for score in scores])
    return weighed


def probabilities(log_likelihoods: torch.Tensor | np.ndarray, log_prior: Sequence[float] | None = None) -> np.ndarray:
    """Return class probabilities: float64, shape (N, K), rows summing to 1.

    Args:
        log_likelihoods (`(N, K)`): From `label_log_likelihoods`.
        log_prior (K floats, *optional*): What the model gives each class whatever it sees, from
            `metrics.calibration.fit_log_prior`; it is taken away. The sum over an answer's tokens leans towards short
            names where the answers were never trained.
    """
    scores = np.asarray(log_likelihoods, dtype=np.float64)
    return softmax(scores if log_prior is None else scores - np.asarray(log_prior), axis=1)


def tokenize_answers(processor: ProcessorMixin, question: str, answers: Sequence[str]) -> list[list[int]]:
    """Return the token ids that training puts labels on for each answer: its words and the end of the turn."""
    completions = [render_completion(processor, question, answer) for answer in answers]
    return processor(text=completions, add_special_tokens=False)["input_ids"]


def _tokenize_beginnings(processor: ProcessorMixin, beginnings: list[tuple[str, int]]) -> list[list[int]]:
    texts = [text for text, _ in beginnings]
    encoded = processor.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        [token for token, (start, _) in zip(tokens, spans, strict=True) if start < end]
        for tokens, spans, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], beginnings, strict=True)
    ]


def _group_rows(questions: list[str], candidates: list[list[str]]) -> dict[tuple[str, ...], list[int]]:
    """Return {answers: rows}: rows of one group share their answers' tokens."""
    if len(candidates) != len(questions):
        raise ValueError(f"found {len(candidates)} lists of candidates and {len(questions)} questions; give one a row")
    groups = {}
    for row, answers in enumerate(candidates):
        if not answers or len(set(answers)) < len(answers):
            raise ValueError(f"row {row}: candidates {list(answers)}, expected different answers, at least one")
        groups.setdefault(tuple(answers), []).append(row)
    return groups
