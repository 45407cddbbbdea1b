"""How likely the model is to give each of a few answers: class probabilities without parsing a word.

The log-likelihood of an answer is the sum over its tokens, end of turn included, of log p(token | picture, question,
tokens before). Picture, question and the words that all answers begin with are read once a patch; every answer then
continues on a copy of their keys and values.
"""

import copy
import logging
from collections.abc import Sequence
from functools import cache
from itertools import takewhile

import numpy as np
import torch
from PIL import Image
from scipy.special import softmax
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin
from transformers.cache_utils import DummyLayer, DynamicLayer, LinearAttentionCacheLayerMixin

from histolab_sft.models.generate import (
    check_lengths,
    encode_prompts,
    evaluating,
    render_completion,
    render_prompt,
    unwrap_adapter,
)

logger = logging.getLogger(__name__)


def label_log_likelihoods(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image],
    questions: list[str],
    candidates: list[str] | list[list[str]],
    batch_size: int = 8,
    candidate_batch_size: int = 32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score whole answers for every patch.

    Args:
        images (`Sequence` of N pictures): Read one batch at a time.
        questions (`list` of N strings): The user's words, without turn markers.
        candidates (`list` of K strings, or N such lists): The answers, for all patches or for each; one may be the
            beginning of another, because the end of turn is scored.
        batch_size (`int`): Patches that are read at once.
        candidate_batch_size (`int`): Copies of a patch's keys and values held at once, which bounds the memory.

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
    score = _score_on_shared_prefix if shares_prefix(model) else _score_whole
    hidden = len(questions) <= batch_size or None
    with evaluating(model), tqdm(total=len(questions), desc="scoring", unit="patch", disable=hidden) as progress:
        for answers, rows in groups.items():
            tokens = tokenize_answers(processor, questions[rows[0]], answers)
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                prompts = [render_prompt(processor, questions[row]) for row in batch]
                inputs = encode_prompts(processor, [images[row] for row in batch], prompts).to(model.device)
                scores = score(model, dict(inputs), tokens, max(1, candidate_batch_size // len(batch)))
                log_likelihoods[batch, : len(tokens)] = scores.cpu()
                counts[batch, : len(tokens)] = torch.tensor([len(answer) for answer in tokens])
                progress.update(len(batch))
    return log_likelihoods, counts


def probabilities(
    log_likelihoods: torch.Tensor | np.ndarray,
    token_counts: torch.Tensor | np.ndarray | None = None,
    length_correction: bool = False,
    prior: Sequence[float] | None = None,
) -> np.ndarray:
    """Return class probabilities: float64, shape (N, K), rows summing to 1.

    Args:
        log_likelihoods (`(N, K)`): From `label_log_likelihoods`.
        token_counts (`(N, K)`, *optional*): From the same; needed for the correction.
        length_correction (`bool`): Take the mean over an answer's tokens in place of the sum. The sum is the
            probability that the model gives this answer and none of the others; the mean is no probability, but
            doesn't lean towards short names where the answers were never trained (Brown et al. 2020, section 2.4).
        prior (K floats, *optional*): What the model gives each class before it has seen a patch, such as the mean of
            its probabilities over many patches; it is divided out (contextual calibration, Zhao et al. 2021).

    Raises:
        ValueError: The correction lacks the counts, or a prior isn't positive.
    """
    scores = np.asarray(log_likelihoods, dtype=np.float64)
    if length_correction:
        if token_counts is None:
            raise ValueError("length_correction=True without token_counts; pass those that came with the scores")
        scores = scores / np.maximum(np.asarray(token_counts), 1)
    if prior is not None:
        prior = np.asarray(prior, dtype=np.float64)
        if prior.shape != scores.shape[1:] or not (prior > 0).all():
            raise ValueError(f"prior {prior.tolist()}, expected {scores.shape[1]} positive numbers, one a class")
        scores = scores - np.log(prior)
    return softmax(scores, axis=1)


def tokenize_answers(processor: ProcessorMixin, question: str, answers: Sequence[str]) -> list[list[int]]:
    """Return the token ids that training puts labels on for each answer: its words and the end of the turn."""
    completions = [render_completion(processor, question, answer) for answer in answers]
    return processor(text=completions, add_special_tokens=False)["input_ids"]


def shares_prefix(model: PreTrainedModel) -> bool:
    """Return whether the model's cache can be copied for each answer: keys and values in every layer, nothing else.

    Recurrent layers (Mamba, linear attention, short convolutions) keep a state that `batch_repeat_interleave` doesn't
    repeat. Such a model reads the picture and the question once for every answer.
    """
    shared = all(
        isinstance(layer, DynamicLayer | DummyLayer) and not isinstance(layer, LinearAttentionCacheLayerMixin)
        for layer in DynamicCache(config=model.config).layers
    )
    if not shared:
        _say_once(type(model).__name__)
    return shared


@cache
def _say_once(model: str) -> None:
    logger.warning("%s keeps more than keys and values: each answer is scored with the whole prompt, slowly", model)


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


def _score_on_shared_prefix(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], answers: list[list[int]], chunk: int
) -> torch.Tensor:
    """Return `(B, K)` log-likelihoods with one pass over picture, question and common words, and one over the rest."""
    # At least one token of each answer is left to be scored on its own.
    shared = min(_count_shared(answers), min(map(len, answers)) - 1)
    inputs = _append(model, inputs, answers[0][:shared])
    positions = _find_positions(model, inputs)
    prefix = DynamicCache(config=model.config)
    logits = _forward(model, inputs, positions, prefix, True, shared + 1)
    # The last prompt token and the common words but the last predict the common words; the last predicts what differs.
    common = _pick(logits[:, :-1], inputs["input_ids"][:, -shared:] if shared else inputs["input_ids"][:, :0])
    tails = [torch.tensor(answer[shared:]) for answer in answers]
    first = logits[:, -1].float().log_softmax(-1)[:, [tail[0] for tail in tails]].double()
    scores = common.sum(-1, keepdim=True) + first
    length = max(map(len, tails)) - 1
    if not length:
        return scores
    padded = pad_sequence(tails, batch_first=True).to(model.device)
    mask = pad_sequence([torch.ones_like(tail) for tail in tails], batch_first=True).to(model.device)
    for start in range(0, len(tails), chunk):
        part = slice(start, min(start + chunk, len(tails)))
        ids, seen = padded[part].repeat(len(scores), 1), mask[part].repeat(len(scores), 1)
        repeats = part.stop - part.start
        copied = prefix if part.stop == len(tails) else copy.deepcopy(prefix)
        copied.batch_repeat_interleave(repeats)
        # The last token predicts nothing, so it is not read.
        rest = {
            "input_ids": ids[:, :-1],
            "attention_mask": torch.cat([inputs["attention_mask"].repeat_interleave(repeats, 0), seen[:, :-1]], dim=1),
        }
        # Text follows the prompt one place at a time under every rotary scheme, pictures' own positions included.
        last = positions[..., -1:].repeat_interleave(repeats, -2)
        logits = _forward(model, rest, last + torch.arange(1, length + 1, device=last.device), copied, False, 0)
        picked = _pick(logits, ids[:, 1:]) * seen[:, 1:]
        scores[:, part] += picked.sum(-1).view(-1, repeats)
    return scores


def _score_whole(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], answers: list[list[int]], chunk: int
) -> torch.Tensor:
    """Return `(B, K)` log-likelihoods with one pass over everything for each answer."""
    scores = []
    for answer in answers:
        whole = _append(model, inputs, answer)
        logits = _forward(model, whole, _find_positions(model, whole), None, True, len(answer) + 1)
        scores.append(_pick(logits[:, :-1], whole["input_ids"][:, -len(answer) :]).sum(-1))
    return torch.stack(scores, dim=1)


def _forward(model, inputs: dict, positions: torch.Tensor, cache: DynamicCache | None, first: bool, keep: int):
    """Return logits `(batch, length or keep, vocabulary)`; how a model wants its inputs, it says itself."""
    prepared = model.prepare_inputs_for_generation(
        **inputs,
        position_ids=positions,
        past_key_values=cache,
        is_first_iteration=first,
        use_cache=cache is not None,
        logits_to_keep=keep,
    )
    return model(**prepared).logits


def _find_positions(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    # Padding on the left and pictures have their own positions in each architecture; `generate` asks the same method.
    return model._prepare_position_ids_for_generation(inputs["input_ids"], inputs)


def _append(model, inputs: dict[str, torch.Tensor], tokens: list[int]) -> dict[str, torch.Tensor]:
    """Return the inputs with the same text tokens after every prompt."""
    ids = inputs["input_ids"].new_tensor(tokens).expand(len(inputs["input_ids"]), -1)
    new = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # Of which type an answer's tokens are (no picture's, or of PaliGemma's causal part) is asked of the same method as
    # in `generate`, for one token.
    types = {name: inputs[name] for name in ("token_type_ids", "mm_token_type_ids") if name in inputs}
    for name, grown in model._update_model_kwargs_for_generation({}, dict(types), num_new_tokens=1).items():
        new[name] = grown[:, -1:].expand_as(ids)
    return inputs | {name: torch.cat([inputs[name], values], dim=1) for name, values in new.items()}


def _pick(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities `(batch, length)` of the tokens `ids`; `logits[:, i]` predict `ids[:, i]`."""
    logits = logits.float()
    # Long answers add up to hundreds of nats, where float32 has only five decimals left.
    return (logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)).double()


def _count_shared(answers: list[list[int]]) -> int:
    return len(list(takewhile(lambda tokens: len(set(tokens)) == 1, zip(*answers, strict=False))))
