import math

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from histolab_sft.metrics.text import bleu_from_counts, compute_text, count_ngrams, score_texts

REFERENCES = ["The heart is normal in size.", "No pleural effusion or pneumothorax is seen."]
PREDICTIONS = ["The heart is normal.", "Small pleural effusion is seen on the left side today."]


def test_scores_by_hand():
    [reference, answer] = ["the heart is normal in size", "the heart is big in size"]
    results = compute_text([reference], [answer])
    # n-grams found: 5 of 6, 3 of 5, 1 of 4, 0 of 3
    assert results["bleu4"] == 0
    assert results["rouge_l"] == pytest.approx(5 / 6)
    assert results["token_f1"] == pytest.approx(5 / 6)
    # Precision and recall 5/6 weigh to 5/6; two chunks of five matches cost half the cube of 2/5.
    assert results["meteor_without_synonyms"] == pytest.approx(5 / 6 * (1 - 0.5 * (2 / 5) ** 3))
    assert results["exact_match"] == 0


def test_bleu_by_hand():
    # The four words of the answer are all in the reference of six: the brevity penalty is what is left.
    assert compute_text(["the heart is normal in size"], ["the heart is normal"])["bleu4"] == pytest.approx(
        math.exp(1 - 6 / 4)
    )


def test_bleu_is_that_of_sacrebleu_over_the_corpus():
    whole = BLEU(lowercase=True, smooth_method="none").corpus_score(PREDICTIONS, [REFERENCES]).score / 100
    assert whole > 0
    assert compute_text(REFERENCES, PREDICTIONS)["bleu4"] == pytest.approx(whole)
    counts = count_ngrams(REFERENCES, PREDICTIONS)
    doubled = BLEU(lowercase=True, smooth_method="none").corpus_score(
        [PREDICTIONS[0], *PREDICTIONS], [[REFERENCES[0], *REFERENCES]]
    )
    assert bleu_from_counts(counts[[0, 0, 1]].sum(axis=0)) == pytest.approx(doubled.score / 100)


def test_the_same_text_scores_one_whatever_its_case_and_points():
    results = compute_text(REFERENCES, [text.upper().rstrip(".") + " ." for text in REFERENCES])
    assert results["bleu4"] == pytest.approx(1)
    assert results["exact_match"] == results["token_f1"] == results["rouge_l"] == 1
    assert results["meteor_without_synonyms"] > 0.99


@pytest.mark.parametrize("nothing", [None, "", " ... "])
def test_an_empty_or_unparsed_answer_scores_zero(nothing):
    results = compute_text(REFERENCES, [nothing, nothing])
    assert results["unparsed_rate"] == (nothing is None)
    assert results["bleu4"] < 1e-9
    assert all(
        results[name] == 0 for name in ("rouge_l", "meteor_without_synonyms", "token_f1", "exact_match", "cider_d")
    )


def test_bug_15_an_unparsed_text_stays_in_the_mean():
    assert compute_text(REFERENCES, [REFERENCES[0], None])["token_f1"] == 0.5


def test_letters_of_other_languages_count():
    scores = score_texts(["opacificación del lóbulo"], ["opacificación del hígado"])
    assert scores["rouge_l"][0] == pytest.approx(2 / 3)
    scores = score_texts(["сердце не увеличено"], ["сердце не увеличено"])
    assert [scores[name][0] for name in ("rouge_l", "token_f1", "exact_match")] == [1, 1, 1]


def test_scores_stand_by_patch():
    assert np.allclose(score_texts(["a b", "c"], ["a", "c"])["token_f1"], [2 / 3, 1])


def test_bug_19_no_score_is_called_green():
    assert not [name for name in compute_text(REFERENCES, PREDICTIONS) if "green" in name.lower()]


def test_cider_weighs_words_by_all_references():
    results = compute_text(REFERENCES, PREDICTIONS)
    assert 0 < results["cider_d"] < 10 and "cider_d_reason" not in results
    assert compute_text(REFERENCES, REFERENCES)["cider_d"] == pytest.approx(10)
    alone = compute_text(REFERENCES[:1], REFERENCES[:1])
    assert alone["cider_d"] is None and "references that differ" in alone["cider_d_reason"]


def test_an_empty_reference_is_refused_by_row():
    with pytest.raises(ValueError, match="row 1: reference '-' has no word"):
        compute_text(["a", "-"], ["a", "b"])
    with pytest.raises(ValueError, match="0 references"):
        compute_text([], [])
