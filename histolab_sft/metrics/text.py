"""Scores of free text against one reference each, by words alone: no model judges the answers.

Words are runs of letters and digits in lower case, in any script that separates words by blanks.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from histolab_sft.metrics.cider import compute_cider_d
from histolab_sft.metrics.pairs import check_pairs

ORDER = 4


class _Words:
    """Splits text into words; rouge_score's own tokenizer deletes every letter outside a-z."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.casefold())


class _NoSynonyms:
    """Stands in for WordNet, which would have to be downloaded and knows English only."""

    def synsets(self, word: str) -> list:
        return []


WORDS, NO_SYNONYMS = _Words(), _NoSynonyms()
ROUGE = RougeScorer(["rougeL"], tokenizer=WORDS)


def compute_text(references: Sequence[str], predictions: Sequence[str | None]) -> dict:
    """Return the scores of one system on one data set, ready for JSON, each from 0 to 1 but for `cider_d`, 0 to 10.

    Args:
        references: True texts, shape (patches,), not empty.
        predictions: Texts answered, None for unparsed, which scores 0 everywhere and is counted.

    Returns:
        `dict`: `bleu4` (over the corpus, sacrebleu, `13a` tokens, no smoothing), the means of `score_texts`, and
        `unparsed_rate`. `cider_d` is None, with `cider_d_reason`, where the references are all alike.

    Raises:
        ValueError: Different numbers of texts, none, or an empty reference.
    """
    check_pairs(references, predictions, "references", "an unparsed answer")
    empty = [row for row, reference in enumerate(references) if not WORDS.tokenize(reference)]
    if empty:
        raise ValueError(f"row {empty[0]}: reference {references[empty[0]]!r} has no word; leave the row out")
    results = {
        "bleu4": bleu_from_counts(count_ngrams(references, predictions).sum(axis=0)),
        **{name: float(values.mean()) for name, values in score_texts(references, predictions).items()},
        "unparsed_rate": float(np.mean([text is None for text in predictions])),
    }
    if np.isnan(results["cider_d"]):
        results |= {"cider_d": None, "cider_d_reason": "CIDEr-D needs references that differ in their words"}
    return results


def score_texts(references: Sequence[str], predictions: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Return the scores of each text, float64, shape (patches,) each.

    `rouge_l` (F1 of the longest common subsequence), `meteor_without_synonyms` (Lavie and Agarwal 2007 with the exact
    and the English stem matcher, not WordNet's, so below a METEOR that has it), `token_f1` (F1 of the words as a bag),
    `exact_match` (the same words in the same order), `cider_d` (`metrics.cider`, which weighs words by all references
    given; NaN where they are all alike).
    """
    truths, answers = ([WORDS.tokenize(text or "") for text in side] for side in (references, predictions))
    cider = compute_cider_d(truths, answers)
    rows = []
    for reference, prediction, truth, answer in zip(references, predictions, truths, answers, strict=True):
        shared = (Counter(truth) & Counter(answer)).total()
        rows.append(
            {
                "rouge_l": ROUGE.score(reference, prediction or "")["rougeL"].fmeasure,
                "meteor_without_synonyms": single_meteor_score(truth, answer, wordnet=NO_SYNONYMS) if answer else 0.0,
                "token_f1": 2 * shared / (len(truth) + len(answer)) if truth or answer else 0.0,
                "exact_match": float(prediction is not None and truth == answer),
            }
        )
    scores = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return scores | {"cider_d": np.full(len(rows), np.nan) if cider is None else cider}


def count_ngrams(references: Sequence[str], predictions: Sequence[str | None]) -> np.ndarray:
    """Return what BLEU-4 sums over a corpus, int, shape (patches, 10).

    Columns: n-grams of the answer found in the reference for n = 1 to 4, n-grams of the answer for n = 1 to 4, words
    of the answer, words of the reference. Sums over any choice of rows give the BLEU of that choice
    (`bleu_from_counts`), which is what a bootstrap needs.
    """
    bleu = BLEU(effective_order=True, lowercase=True)
    scores = [bleu.sentence_score(p or "", [r]) for r, p in zip(references, predictions, strict=True)]
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores], dtype=int)


def bleu_from_counts(counts: np.ndarray) -> float:
    """Return BLEU-4 from 0 to 1 (Papineni et al. 2002) of summed rows of `count_ngrams`."""
    counts = [int(n) for n in counts]
    score = BLEU.compute_bleu(counts[:ORDER], counts[ORDER : 2 * ORDER], counts[-2], counts[-1], smooth_method="none")
    return score.score / 100
