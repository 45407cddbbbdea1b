"""Which tokens of an answer tell the classes apart. The loss itself is in `trainer.py`.

In `The answer is: Tumor<end_of_turn>` every token but one or two is the same for all classes, or follows from the ones
before it. The constant words are learnt within a few steps, long before the class is: the mean loss then stands low
and still, and the share of right tokens reads 0.9 while the model guesses. The tokens that decide are those at which
the answers of the data set branch.
"""

from collections import Counter
from collections.abc import Sequence
from math import log

import torch
from datasets import Dataset

# A data set with more different answers than this has free text, where every token counts.
MAX_FIXED_ANSWERS = 256


def read_answers(
    dataset: Dataset, collator, shares: Sequence[float] | None
) -> tuple[set[tuple[int, ...]], dict[str, float]]:
    """Return `find_branches` and `compute_guessing_level` of the answers of a training set.

    Args:
        shares: How often, or how heavily, each row is learnt, None where all are alike.
    """
    answers = collect_answers(dataset, collator)
    learnt = answers if shares is None else collect_answers(dataset, collator, shares)
    return find_branches(answers), compute_guessing_level(answers, learnt)


def collect_answers(dataset: Dataset, collator, shares: Sequence[float] | None = None) -> Counter[tuple[int, ...]]:
    """Count the answers of a training set as tuples of token ids, as the collator labels them.

    A row counts as much as `shares` says, one number a row, or as 1.

    Rows without options have free text, however few answers a small set has: they aren't counted. Returns an empty
    counter where there is nothing else.
    """
    columns = dataset.with_format(None).select_columns(["completion", "options"])
    texts = {i: row["completion"][0]["content"] for i, row in enumerate(columns) if row["options"]}
    first = {text: i for i, text in reversed(texts.items())}
    if len(first) > MAX_FIXED_ANSWERS:
        return Counter()
    answers = {}
    for text, i in first.items():
        labels = collator([dataset[i]])["labels"][0]
        answers[text] = tuple(labels[labels != -100].tolist())
    counts = Counter()
    for i, text in texts.items():
        counts[answers[text]] += 1 if shares is None else float(shares[i])
    return counts


def find_branches(answers: Counter[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Return the beginnings (tuples of token ids) after which the answers go on in more than one way."""
    ways: dict[tuple[int, ...], set[int]] = {}
    for answer in answers:
        for i, token in enumerate(answer):
            ways.setdefault(answer[:i], set()).add(token)
    return {beginning for beginning, tokens in ways.items() if len(tokens) > 1}


def mask_deciding_tokens(labels: torch.Tensor, branches: set[tuple[int, ...]]) -> torch.Tensor:
    """Mark the labels that stand at a branch.

    Args:
        labels (`torch.Tensor` of shape `(batch, length)`): Token ids, -100 where nothing is learnt.
        branches (`set`): From `find_branches`; if empty, every label counts.

    Returns:
        `torch.BoolTensor` of shape `(batch, length)`.
    """
    mask = labels != -100
    if not branches:
        return mask
    for row, keep in zip(labels, mask, strict=True):
        positions = keep.nonzero().flatten()
        answer = tuple(row[positions].tolist())
        deciding = [answer[:i] in branches for i in range(len(answer))]
        keep[positions] = torch.tensor(deciding, dtype=torch.bool, device=keep.device)
    return mask


def compute_guessing_level(
    answers: Counter[tuple[int, ...]], learnt: Counter[tuple[int, ...]] | None = None
) -> dict[str, float]:
    """Return `answer_loss` (nats) and `answer_accuracy` of a model that only knows how frequent the answers are.

    At each branch they are the cross-entropy of the empirical distribution and the share of the most frequent token.
    Empty where the answers are free text.

    Args:
        answers: As often as they are asked for.
        learnt: As often, or as heavily, as the model has learnt them, where that isn't the same. It says then what is
            frequent in what it has learnt, the mean over them where several are most frequent.
    """
    loss, right, tokens = 0.0, 0.0, 0.0
    for beginning in find_branches(answers):
        asked, known = (_count_tokens(counts, beginning) for counts in (answers, learnt or answers))
        most = max(known.values())
        favourites = [token for token, count in known.items() if count >= most * (1 - 1e-9)]
        loss -= sum(count * log(known[token] / known.total()) for token, count in asked.items())
        right += sum(asked[token] for token in favourites) / len(favourites)
        tokens += asked.total()
    return {"answer_loss": loss / tokens, "answer_accuracy": right / tokens} if tokens else {}


def _count_tokens(answers: Counter[tuple[int, ...]], beginning: tuple[int, ...]) -> Counter[int]:
    """Count how answers that begin so go on."""
    going_on = Counter()
    for answer, count in answers.items():
        if answer[: len(beginning)] == beginning and len(answer) > len(beginning):
            going_on[answer[len(beginning)]] += count
    return going_on
