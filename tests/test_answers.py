"""The shared parser trusts exact answers, then the only whole-word mention, and else says unparsed."""

import pytest

from histolab_sft.tasks.answers import UNPARSED, parse_answer

CRC = ["Adipose", "Background", "Debris", "Lymphocyte", "Mucus", "Muscle", "Normal", "Stroma", "Tumor"]
BACH = ["Normal", "Benign", "InSitu", "Invasive"]


@pytest.mark.parametrize(
    ("text", "options", "answer"),
    [
        ("The answer is: Tumor", CRC, "Tumor"),
        ("the answer is: tumor.", CRC, "Tumor"),
        ("Tumor<end_of_turn>", CRC, "Tumor"),
        ("I", CRC, "Tumor"),
        ("B", CRC, "Background"),
        ("(B)", CRC, "Background"),
        ("B.", CRC, "Background"),
        ("B: Background", CRC, "Background"),
        ("Final answer: (c)", CRC, "Debris"),
        ("It shows smooth muscle fibres.", CRC, "Muscle"),
        ("in situ", BACH, "InSitu"),
        ("In-situ carcinoma", BACH, "InSitu"),
        ("This is INSITU", BACH, "InSitu"),
        ("<unused94>Perhaps normal, perhaps tumor.<unused95>The answer is: Stroma", CRC, "Stroma"),
        ("Answer: Tumor. Answer: Stroma", CRC, "Stroma"),
    ],
)
def test_an_answer_that_names_one_class_is_that_class(text, options, answer):
    assert parse_answer(text, options) == answer


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", CRC),
        ("abnormal", CRC),
        ("The tissue is paranormal", CRC),
        ("Tumor or stroma", CRC),
        ("not sure", CRC),
        ("Z", CRC),
        ("B: Tumor", CRC),
        ("<unused94>Tumor, surely", CRC),
        ("Benign, invasive", BACH),
        ("I think", BACH),
    ],
)
def test_an_answer_that_names_no_class_or_two_is_unparsed(text, options):
    assert parse_answer(text, options) == UNPARSED


def test_a_name_inside_a_longer_one_is_not_mentioned_by_it():
    options = ["Normal", "Normal mucosa"]
    assert parse_answer("I see normal mucosa here", options) == "Normal mucosa"
    assert parse_answer("I see normal tissue here", options) == "Normal"
