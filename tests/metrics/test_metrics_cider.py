import numpy as np
import pytest

from histolab_sft.metrics.cider import compute_cider_d

REFERENCES = [
    "the heart is normal in size and the lungs are clear",
    "no pleural effusion or pneumothorax is seen",
    "small left pleural effusion is seen",
    "the lungs are clear without effusion",
    "normal heart",
]
ANSWERS = [
    "the heart is normal and the lungs are clear",
    "small pleural effusion is seen on the left side today",
    "small left pleural effusion is seen",
    "the the the lungs lungs are clear",
    "heart",
]
# What pycocoevalcap 1.2 (`cider.cider.Cider`) gives for these texts
PUBLISHED = [5.829383137565424, 0.6244109078238264, 10.0, 1.7414862230877053, 1.7433843497601407]


def score(references, answers):
    return compute_cider_d(*([text.split() for text in side] for side in (references, answers)))


def test_scores_are_those_of_the_published_implementation():
    assert score(REFERENCES, ANSWERS) == pytest.approx(PUBLISHED, rel=1e-12)


def test_scores_by_hand():
    # Of two texts each word of its own weighs log 2: the unigrams' cosine is 1/2, nothing longer is shared.
    [first, _] = score(["left lung", "right heart"], ["left heart", "right heart"])
    assert first == pytest.approx(10 / 4 * 1 / 2)
    # Repeating a word gains nothing: its weight is cut at the reference's; the length costs exp(-1/72) a word.
    [once, _] = score(["left lung", "right heart"], ["left", "right heart"])
    [often, _] = score(["left lung", "right heart"], ["left left", "right heart"])
    assert once == pytest.approx(10 / 4 * np.sqrt(1 / 2) * np.exp(-1 / 72))
    assert often == pytest.approx(10 / 4 * np.sqrt(1 / 2) / 2)


def test_an_equal_text_has_ten_and_an_empty_one_nothing():
    assert score(REFERENCES[:4], REFERENCES[:4]) == pytest.approx([10] * 4)
    assert score(REFERENCES, [""] * 5).tolist() == [0] * 5


def test_words_that_every_reference_has_count_for_nothing():
    assert score(["the heart", "the lung"], ["the", "the"]).tolist() == [0, 0]


@pytest.mark.parametrize("references", [["normal chest"], ["normal chest", "normal chest"]])
def test_texts_that_nothing_tells_apart_have_no_score(references):
    assert score(references, references) is None
