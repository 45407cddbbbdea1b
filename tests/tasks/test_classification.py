"""The wording of the classification task, to the letter, since a published table hangs on it."""

import pytest

from histolab_sft.tasks.classification import format_prompt, format_target, parse

BACH = ["Normal", "Benign", "InSitu", "Invasive"]


@pytest.mark.parametrize(
    ("name", "style", "question"),
    [
        (
            "pcam",
            "generic",
            "Classify this histopathology image. The possible tissue types are: Normal, Benign, InSitu, Invasive. "
            "What type of tissue is shown? Answer with only the tissue type name.",
        ),
        (
            "crc",
            "dataset_specific",
            "This is an H&E stained colorectal tissue patch at 20x magnification. Classify the tissue type. "
            "Options: [Normal, Benign, InSitu, Invasive]. Answer with only the tissue type.",
        ),
        (
            "pcam",
            "dataset_specific",
            "This is an H&E stained lymph node tissue section. Does this patch contain metastatic tumor tissue? "
            "Options: [Normal, Benign, InSitu, Invasive]. Answer with only Normal or Tumor.",
        ),
        (
            "bach",
            "dataset_specific",
            "This is an H&E stained breast tissue biopsy at high magnification. Classify the tissue as one of: "
            "[Normal, Benign, InSitu, Invasive]. Answer with only the classification.",
        ),
    ],
)
def test_the_questions_are_histolabs_own(name, style, question):
    assert format_prompt(name, BACH, style) == question


def test_a_data_set_without_its_own_question_gets_the_generic_one():
    assert format_prompt("prostate", BACH, "dataset_specific") == format_prompt("prostate", BACH, "generic")


def test_the_recipes_question_wins_and_keeps_its_own_braces():
    assert format_prompt("crc", BACH, "generic", "Which {one} of {options}?") == (
        "Which {one} of Normal, Benign, InSitu, Invasive?"
    )


def test_every_target_parses_back_to_its_class():
    assert format_target("InSitu") == "The answer is: InSitu"
    assert [parse(format_target(name), BACH) for name in BACH] == BACH
