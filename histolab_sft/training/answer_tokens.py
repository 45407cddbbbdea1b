"""Which tokens of an answer tell the classes apart.

In `The answer is: Tumor<end_of_turn>` every token but one or two is the same for all classes, or follows from the ones
before it. The constant words are learnt within a few steps, long before the class is: the mean loss then stands low
and still, and the share of right tokens reads 0.9 while the model guesses. The tokens that decide are those at which
the answers of the data set branch.
"""

from collections import Counter
from math import log

import torch
from datasets import Dataset

# A data set with more different answers than this has free text, where every token counts.
MAX_FIXED_ANSWERS = 256


def collect_answers(dataset: Dataset, collator) -> Counter[tuple[int, ...]]:
    """Count the answers of a training set as tuples of token ids, as the collator labels them.

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
    return Counter(answers[text] for text in texts.values())


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


def compute_guessing_level(answers: Counter[tuple[int, ...]]) -> dict[str, float]:
    """Return `answer_loss` (nats) and `answer_accuracy` of a model that only knows how frequent the answers are.

    At each branch they are the cross-entropy of the empirical distribution and the share of the most frequent token.
    Empty where the answers are free text.
    """
    loss, right, tokens = 0.0, 0, 0
    for beginning in find_branches(answers):
        going_on = Counter()
        for answer, count in answers.items():
            if answer[: len(beginning)] == beginning and len(answer) > len(beginning):
                going_on[answer[len(beginning)]] += count
        seen = going_on.total()
        loss -= sum(count * log(count / seen) for count in going_on.values())
        right += max(going_on.values())
        tokens += seen
    return {"answer_loss": loss / tokens, "answer_accuracy": right / tokens} if tokens else {}
