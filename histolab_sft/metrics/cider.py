"""CIDEr-D (Vedantam et al. 2015, CVPR, section 7): how many n-grams two texts share, rare ones weighted more.

The usual library, pycocoevalcap, was last published in 2020 and brings a hundred megabytes of Java programs that this
score doesn't need. The tests compare this file with its values.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDER = 4
SIGMA = 6.0  # words of difference in length at which a text has lost 40 % of its score
SCALE = 10.0


def compute_cider_d(references: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> np.ndarray | None:
    """Return CIDEr-D of each answer against its reference, 0 to 10, float64, shape (texts,).

    For n = 1 to 4 the cosine of both texts' n-grams, each weighted by its count times `log(texts / references that
    hold it)`, an answer's weight cut at the reference's, times `exp(-(difference in words)^2 / (2 * 6^2))`; ten times
    the mean over n, so that a text of fewer than four words has less than 10 even where it equals its reference. What
    n-grams weigh follows from all `references`, so a score is one of this choice of texts. One reference a text.

    Args:
        references, answers: Words of each text, as many texts of both.

    Returns:
        None where no n-gram weighs anything: there is one text, or all references have the same n-grams.
    """
    truths = [_count(words) for words in references]
    held = Counter(gram for counts in truths for gram in counts)
    if all(count == len(truths) for count in held.values()):
        return None
    weights = {gram: math.log(len(truths) / count) for gram, count in held.items()}
    scores = []
    for truth, reference, answer in zip(truths, references, answers, strict=True):
        known, given = (_weigh(counts, weights, len(truths)) for counts in (truth, _count(answer)))
        cosines = []
        for n in range(1, ORDER + 1):
            shared = sum(min(w, known[n][gram]) * known[n][gram] for gram, w in given[n].items() if gram in known[n])
            lengths = [math.sqrt(sum(w * w for w in side[n].values())) for side in (known, given)]
            cosines.append(shared / math.prod(lengths) if all(lengths) else 0.0)
        penalty = math.exp(-((len(answer) - len(reference)) ** 2) / (2 * SIGMA**2))
        scores.append(SCALE * penalty * sum(cosines) / ORDER)
    return np.array(scores)


def _count(words: Sequence[str]) -> Counter:
    return Counter(tuple(words[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(words) - n + 1))


def _weigh(counts: Counter, weights: dict[tuple, float], texts: int) -> dict[int, dict[tuple, float]]:
    """Return n -> n-gram -> weight; one that no reference has weighs as if one had."""
    weighed = {n: {} for n in range(1, ORDER + 1)}
    for gram, count in counts.items():
        weighed[len(gram)][gram] = count * weights.get(gram, math.log(texts))
    return weighed
