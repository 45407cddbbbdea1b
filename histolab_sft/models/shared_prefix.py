"""Log-likelihoods of several continuations of one prompt, with what they share computed once.

Pictures, question and the words that all continuations begin with are read once; then the continuations, as one tree
where the model's attention allows it, else each from a copy of their keys and values.
"""

import copy
import logging
import math
from functools import cache
from itertools import takewhile

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from histolab_sft.models.one_pass import score_in_one_pass, takes_one_pass

logger = logging.getLogger(__name__)


def score_answers(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], answers: list[list[int]], chunk: int
) -> torch.Tensor:
    """Return `(B, K)` float64 log-likelihoods of the same K answers (token ids) after each of B prompts.

    Args:
        inputs (`dict`): From `encode_prompts`, on the model's device.
        chunk (`int`): Answers that are continued at once.
    """
    if takes_one_pass(model, inputs, answers):
        held = chunk * len(inputs["input_ids"])
        return score_in_one_pass(model, inputs, answers, _find_positions(model, inputs), held)
    score = _score_on_shared_prefix if shares_prefix(model) else _score_whole
    return score(model, inputs, answers, chunk)


def score_slots(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], slots: list[list[list[int]]], chunk: int
) -> list[torch.Tensor]:
    """Return for each slot of one text the log-likelihoods of its K alternatives: float64, `(K,)`, up to a constant.

    Prompt and text are read once, from slot to slot.

    Args:
        inputs (`dict`): Of one prompt, from `encode_prompts`.
        slots (`list`): For each slot, in the order of the text, the token ids of the text up to there with each of
            the alternatives.
    """
    if not shares_prefix(model):
        return [_score_whole(model, inputs, answers, chunk)[0] for answers in slots]
    prefix, scores, read = DynamicCache(config=model.config), [], 0
    for number, answers in enumerate(slots):
        # The alternatives of a slot and all later text begin with the same words.
        later = [answer for others in slots[number:] for answer in others]
        shared = _count_shared(later)
        inputs = _append(model, inputs, later[0][read:shared])
        if number == 0:
            positions = _find_positions(model, inputs)
            logits = _forward(model, inputs, positions, prefix, True, 1)
        elif shared > read:
            positions = positions[..., -1:] + torch.arange(1, shared - read + 1, device=positions.device)
            step = {"input_ids": inputs["input_ids"][:, read - shared :], "attention_mask": inputs["attention_mask"]}
            logits = _forward(model, step, positions, prefix, False, 1)
        tails = [answer[shared:] for answer in answers]
        scores.append(_score_tails(model, inputs, positions, prefix, logits[:, -1], tails, chunk)[0])
        read = shared
    return scores


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
    tails = [answer[shared:] for answer in answers]
    return common.sum(-1, keepdim=True) + _score_tails(model, inputs, positions, prefix, logits[:, -1], tails, chunk)


def _score_tails(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    positions: torch.Tensor,
    prefix: DynamicCache,
    logits: torch.Tensor,
    tails: list[list[int]],
    chunk: int,
) -> torch.Tensor:
    """Return `(B, K)` log-likelihoods of what follows a prefix; `logits` `(B, vocabulary)` predict its first token.

    The prefix is afterwards as it was.
    """
    scores = logits.float().log_softmax(-1)[:, [tail[0] for tail in tails]].double()
    for start in range(0, len(tails), chunk):
        part = slice(start, min(start + chunk, len(tails)))
        if max(map(len, tails[part])) > 1:
            score = _score_tree if _takes_trees(model, prefix, sum(map(len, tails[part]))) else _score_rows
            scores[:, part] += score(model, inputs, positions, prefix, tails[part])
    return scores


def _takes_trees(model: PreTrainedModel, prefix: DynamicCache, tokens: int) -> bool:
    """Return whether this many tokens after the prefix may each see a choice of those before.

    Of all ways to compute attention, PyTorch's own is one that takes any mask; and a layer with a sliding window must
    have kept all of the prefix, so that one mask holds for all layers.
    """
    windows = [layer.sliding_window for layer in prefix.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    fits = prefix.get_seq_length() + tokens < min(windows, default=math.inf)
    return fits and model.get_decoder().config._attn_implementation == "sdpa"


def _score_tree(model, inputs: dict, positions, prefix: DynamicCache, tails: list[list[int]]):
    """Return `(B, K)` log-likelihoods of the tails but their first tokens, which stand once each as a tree in one row.

    What tails begin with in common is one path, and the prefix isn't copied: SpecInfer's tree attention (Miao et al.
    2024, section 4). A token sees the prompt and its own path.
    """
    # The last token predicts nothing, so it is not read.
    nodes = list(dict.fromkeys(tuple(tail[:end]) for tail in tails for end in range(1, len(tail))))
    number = {node: i for i, node in enumerate(nodes)}
    sees = torch.tensor([[node[: len(other)] == other for other in nodes] for node in nodes], device=model.device)
    prompts, size = inputs["attention_mask"].bool(), len(nodes)
    count = len(prompts)
    mask = torch.cat([prompts[:, None].expand(-1, size, -1), sees.expand(count, -1, -1)], dim=-1)[:, None]
    # Text follows the prompt one position at a time under every rotary scheme, pictures' own positions included.
    depths = torch.tensor([len(node) for node in nodes], device=model.device)
    ids = torch.tensor([node[-1] for node in nodes], device=model.device).expand(count, -1)
    step = {"input_ids": ids, "attention_mask": mask}
    logits = _forward(model, step, positions[..., -1:] + depths, prefix, False, 0).float()
    prefix.crop(-size)
    owners, sources, words = zip(
        *((k, number[tuple(tail[:end])], tail[end]) for k, tail in enumerate(tails) for end in range(1, len(tail))),
        strict=True,
    )
    # Long answers add up to hundreds of nats, where float32 has only five decimals left.
    picked = (logits[:, sources, words] - logits.logsumexp(-1)[:, sources]).double()
    owners = torch.tensor(owners, device=model.device)
    return picked.new_zeros(count, len(tails)).index_add_(1, owners, picked)


def _score_rows(model, inputs: dict, positions, prefix: DynamicCache, tails: list[list[int]]):
    """Return the same with a row for each prompt and tail, each on a copy of the prompt's keys and values."""
    repeats, count = len(tails), len(inputs["input_ids"])
    tokens = [torch.tensor(tail) for tail in tails]
    ids = pad_sequence(tokens, batch_first=True).to(model.device).repeat(count, 1)
    seen = pad_sequence([torch.ones_like(tail) for tail in tokens], batch_first=True).to(model.device).repeat(count, 1)
    copied = copy.deepcopy(prefix)
    copied.batch_repeat_interleave(repeats)
    rest = {
        "input_ids": ids[:, :-1],
        "attention_mask": torch.cat([inputs["attention_mask"].repeat_interleave(repeats, 0), seen[:, :-1]], dim=1),
    }
    end = positions[..., -1:].repeat_interleave(repeats, -2)
    logits = _forward(model, rest, end + torch.arange(1, ids.shape[1], device=end.device), copied, False, 0)
    return (_pick(logits, ids[:, 1:]) * seen[:, 1:]).sum(-1).view(-1, repeats)


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
    # Padding on the left and pictures have their own positions in each architecture; `generate` calls the same method.
    return model._prepare_position_ids_for_generation(inputs["input_ids"], inputs)


def _append(model, inputs: dict[str, torch.Tensor], tokens: list[int]) -> dict[str, torch.Tensor]:
    """Return the inputs with the same text tokens after every prompt."""
    ids = inputs["input_ids"].new_tensor(tokens).expand(len(inputs["input_ids"]), -1)
    new = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # The type of an answer's tokens (not a picture's; PaliGemma's causal part) comes from the method that `generate`
    # uses, for one token.
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
