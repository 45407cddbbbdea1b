"""The shared parser trusts exact answers, then the only whole-word mention, and never guesses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histolab_sft.config.class_names import check_class_names, reading_key
from histolab_sft.tasks.classification import format_target
from histolab_sft.tasks.parsing.answers import UNPARSED, parse_answer

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


HER2 = ["HER2-", "HER2+"]
SHARES = ["1%", "<1%", "1-49%", ">=50%"]
SCORES = ["0", "1+", "2+", "3+"]
YES_NO = ["No", "Yes"]
TWO = ["Normal", "Tumor"]


@pytest.mark.parametrize(
    ("text", "options", "answer"),
    [
        ("HER2+", HER2, "HER2+"),
        ("The answer is: HER2-", HER2, "HER2-"),
        ("This tumor is her2+.", HER2, "HER2+"),
        ("**HER2 +**", HER2, "HER2+"),
        ("HER2\N{MINUS SIGN}", HER2, "HER2-"),
        ("HER2", HER2, UNPARSED),
        ("HER2 - as far as I can see", HER2, UNPARSED),
        ("HER2+/HER2-", HER2, UNPARSED),
        ("HER2++", HER2, UNPARSED),
        ("<1%", SHARES, "<1%"),
        ("about < 1 %", SHARES, "<1%"),
        ("1 %", SHARES, "1%"),
        ("≥50%", SHARES, ">=50%"),
        ("50%", SHARES, UNPARSED),
        ("1 - 49 %", SHARES, "1-49%"),
        ("1\N{EN DASH}49%", SHARES, "1-49%"),
        ("1-5%", SHARES, UNPARSED),
        ("0.1%", SHARES, UNPARSED),
        ("2+", SCORES, "2+"),
        ("The score is 2+", SCORES, "2+"),
        ("2", SCORES, UNPARSED),
        ("10", ["1", "10"], "10"),
        ("1.0", ["1", "0"], UNPARSED),
        ("-1", ["1", "-1"], "-1"),
        ("- 1", ["1", "0"], UNPARSED),
        ("Gleason 3+4=7", ["Gleason 3", "Gleason 4"], UNPARSED),
        ("Gleason 3+4", ["Gleason 3+4", "Gleason 4+3"], "Gleason 3+4"),
        ("There is no tumor in this patch.", TWO, UNPARSED),
        ("Tumor is not present", TWO, UNPARSED),
        ("It isn't tumor", TWO, UNPARSED),
        ("negative for tumor", TWO, UNPARSED),
        ("tumor-free tissue", TWO, UNPARSED),
        ("non-tumor", TWO, UNPARSED),
        ("Kein Tumor", TWO, UNPARSED),
        ("I rule out normal tissue, so tumor", TWO, UNPARSED),
        ("no tumor", ["Tumor", "No tumor"], "No tumor"),
        ("There is no tumor", ["Tumor", "No tumor"], "No tumor"),
        ("nontumor tissue", ["Tumor", "Non-tumor"], "Non-tumor"),
        ("No, there is no tumor", YES_NO, "No"),
        ("No, it isn't", YES_NO, "No"),
        ("Yes, without doubt", YES_NO, UNPARSED),
        ("a typical case", ["Typical", "Atypical"], "Typical"),
        ("an atypical case", ["Typical", "Atypical"], "Atypical"),
        ("normal mucosa-like tissue", ["Normal", "Normal mucosa"], UNPARSED),
        ("A B C", ["A B", "B C"], UNPARSED),
        ("Normal tumor normal", ["Normal tumor", "Tumor normal"], UNPARSED),
        ("Gefa\u0308ß", ["Gefäß", "Nerv"], "Gefäß"),
        ("GEFÄSS", ["Gefäß", "Nerv"], "Gefäß"),
        ("A. Tumor", TWO, UNPARSED),
        ("(B) Tumor", TWO, "Tumor"),
        ("A", ["B", "A"], "A"),
        ("B", ["O", "AB"], UNPARSED),
        ("II", ["I", "II", "III"], "II"),
    ],
)
def test_signs_digits_denials_and_parts_of_words_are_read_as_what_they_are(text, options, answer):
    assert parse_answer(text, options) == answer


words = st.sampled_from(
    "tumor Tumor normal NORMAL mucosa HER2 PD-L1 InSitu Situ in T1a T1 Gefäß Gefa\u0308ß no No non "
    "grade 1 10 0 1.5 3 49 2".split()
)
signs = st.sampled_from(["", "", "", "+", "-", "%", "<", ">=", "≥", " ", "²", "/", "±", "(", ")", "."])
spelt = st.lists(st.tuples(signs, words, signs).map("".join), min_size=1, max_size=3)
names = st.tuples(spelt, st.sampled_from([" ", " ", "-", "_", "", "/"])).map(lambda pair: pair[1].join(pair[0]))
SENTENCES = ["{}.", "**{}**", "This patch shows {}.", "{}, I think", "I see {} here", "The answer is: {}\n", '"{}"']


@st.composite
def class_lists(draw):
    """Two to six names that a recipe may have together."""
    kept = []
    for name in draw(st.lists(names | st.text("abAB12 +-%<.", min_size=1, max_size=5), min_size=2, max_size=6)):
        try:
            kept = list(check_class_names({str(i): each for i, each in enumerate([*kept, name])}).values())
        except ValueError:
            continue
    return kept


def check_that_no_other_class_is_read(options, sentence, first, second):
    if len(options) < 2:
        return
    name, other = options[first % len(options)], options[second % len(options)]
    assert parse_answer(name, options) == parse_answer(format_target(name), options) == name
    assert parse_answer(name.upper(), options) in (name, UNPARSED)
    assert parse_answer(name.replace(" ", "\n"), options) in (name, UNPARSED)
    # A name with a letter first may stand there as an option's letter: "A. b" is no sentence about `a b`.
    for text in (sentence.format(name), sentence.format(name.lower())):
        assert parse_answer(text, options) in (name, UNPARSED), text
    denied = parse_answer(f"There is no {name} in it", options)
    assert denied == UNPARSED or reading_key(denied).startswith("no"), denied
    if other != name:
        assert parse_answer(f"I see {name} or {other}", options) == UNPARSED


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(class_lists(), st.sampled_from(SENTENCES), st.integers(0, 5), st.integers(0, 5))
def test_an_answer_is_read_as_the_class_that_it_names_or_not_at_all(options, sentence, first, second):
    check_that_no_other_class_is_read(options, sentence, first, second)


@pytest.mark.thorough
@settings(max_examples=10_000, deadline=None)
@given(class_lists(), st.sampled_from(SENTENCES), st.integers(0, 5), st.integers(0, 5))
def test_ten_thousand_answers_are_read_as_the_class_that_they_name_or_not_at_all(options, sentence, first, second):
    check_that_no_other_class_is_read(options, sentence, first, second)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(class_lists(), st.lists(names | st.sampled_from(["no", "or", "the", ",", "\n"]), max_size=6).map(" ".join))
def test_whatever_is_read_stands_in_the_answer(options, text):
    # With a letter among the names, no other letter stands for an option.
    read = parse_answer(text, [*options, "q"])
    assert read == UNPARSED or reading_key(read).replace(" ", "") in reading_key(text).replace(" ", "")
