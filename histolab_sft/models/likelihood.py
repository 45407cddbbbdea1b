"""Log-likelihoods of given answers, and class probabilities from them. Nothing is generated or parsed.

The log-likelihood of an answer is the sum over its tokens, end of turn included, of log p(token | picture, question,
tokens before). `models.shared_prefix` reads picture, question and common words once a patch.

A model that tends to think aloud first gives the first token of every answer a lower probability, by the same factor.
The factor drops out of class probabilities.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from scipy.special import log_softmax, softmax
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from histolab_sft.models.generate import (
    check_lengths,
    encode_ahead,
    evaluating,
    render_completion,
    unwrap_adapter,
)
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
    whole = [range(len(questions))]
    [found] = score_parts(model, processor, images, questions, candidates, whole, batch_size, candidate_batch_size)
    return found


def score_parts(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image],
    questions: list[str],
    candidates: list[str] | list[list[str]],
    parts: list[range],
    batch_size: int,
    candidate_batch_size: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what `label_log_likelihoods` returns for some of the rows, one part after the other.

    No batch has rows of two parts, but the pictures of the next part are prepared while one is scored.

    Args:
        parts (`list` of `range`): Rows that are scored.
    """
    model = unwrap_adapter(model)
    check_lengths(images, questions)
    if isinstance(candidates[0], str):
        candidates = [candidates] * len(questions)
    groups = [_group_rows(part, questions, candidates) for part in parts]
    tokens = {
        answers: tokenize_answers(processor, questions[rows[0]], answers)
        for group in groups
        for answers, rows in group.items()
    }
    batches = [
        [
            (answers, rows[start : start + batch_size])
            for answers, rows in group.items()
            for start in range(0, len(rows), batch_size)
        ]
        for group in groups
    ]
    total, flat = sum(map(len, parts)), [batch for part in batches for _, batch in part]
    ahead = encode_ahead(processor, images, questions, flat, model.device)
    with tqdm(total=total, desc="scoring", unit="patch", disable=total <= batch_size or None) as progress:
        for part, group, batched in zip(parts, groups, batches, strict=True):
            log_likelihoods = torch.full((len(part), max(map(len, group))), -torch.inf, dtype=torch.float64)
            counts = torch.zeros_like(log_likelihoods, dtype=torch.int64)
            for answers, batch in batched:
                inputs, at_once = next(ahead), max(1, candidate_batch_size // len(batch))
                with evaluating(model), autocasting(model):
                    scores = score_answers(model, inputs, tokens[answers], at_once)
                places = [part.index(row) for row in batch]
                log_likelihoods[places, : len(answers)] = scores.cpu()
                counts[places, : len(answers)] = torch.tensor([len(answer) for answer in tokens[answers]])
                progress.update(len(batch))
            yield log_likelihoods, counts


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
    rows = range(len(questions))
    ahead = encode_ahead(processor, images, questions, [[row] for row in rows], model.device)
    weighed = []
    with evaluating(model), autocasting(model):
        for row, inputs in zip(tqdm(rows, desc="weighing values", unit="row", disable=None), ahead, strict=True):
            tokens = [_tokenize_beginnings(processor, alternatives) for alternatives in slots[row]]
            scores = score_slots(model, inputs, tokens, candidate_batch_size)
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


def _group_rows(part: range, questions: list[str], candidates: list[list[str]]) -> dict[tuple[str, ...], list[int]]:
    """Return {answers: rows of the part}, rows by the length of their question: neighbours need no padding."""
    if len(candidates) != len(questions):
        raise ValueError(f"found {len(candidates)} lists of candidates and {len(questions)} questions; give one a row")
    groups = {}
    for row in sorted(part, key=lambda row: len(questions[row])):
        answers = candidates[row]
        if not answers or len(set(answers)) < len(answers):
            raise ValueError(f"row {row}: candidates {list(answers)}, expected different answers, at least one")
        groups.setdefault(tuple(answers), []).append(row)
    return groups
