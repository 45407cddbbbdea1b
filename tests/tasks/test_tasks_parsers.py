"""Every parser over 10,000 strange answers: each is parsed to something legal or is unparsed (None)."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from histolab_sft.tasks import biomarkers, boxes, multilabel, quantity, report

SIZE = (640, 480)
VOCABULARY = ["Dental Caries", "Pulp Diseases", "Endodontic Treatment, Restorative Treatment, and Complications"]
RECORD = {"cd274_expression": "high", "tme_subtype": "IE/F", "til_fraction": 0.57, "immune_score": 0.626}
PIECES = [
    *"[]{}()<>,;:'\"\\/*#-+.%\n\t 0123456789eE",
    *("true", "null", "NaN", "Infinity", "1e999", "-1", "0.5", "9" * 400, "\N{MINUS SIGN}3", "٣", "1,234"),
    *("```json", "```", "Answer:", "Final Answer:", "<unused94>", "<unused95>", "<end_of_turn>", "<loc0123>", "<loc9"),
    *(
        '"box_2d"',
        '"bbox"',
        '"label"',
        "[1, 2, 30, 40]",
        '{"1": [[5, 6, 70, 80]]}',
        "'til_fraction': 0.5",
        "[[[[[[[[[",
    ),
    *('"cd274_expression": "high"', '"tme_subtype"', "IE_F", "unknown", "FINDINGS:", "LOCATIONS:", "IMPRESSION:"),
    *(
        "- nodule (left)",
        "No acute findings",
        "Dental Caries",
        VOCABULARY[2],
        "None",
        "\x00",
        "\u202e",
        "\ud800",
        "İ",
        "ß",
    ),
]
# Whole targets too, because a cut or a changed character in one goes deeper than any heap of pieces.
TARGETS = [
    boxes.format_target([boxes.Box(9, 9, 99, 99, "a"), boxes.Box(1, 2, 30, 40, "b")], SIZE, codec)
    for codec in boxes.CODECS
] + [
    biomarkers.format_target(RECORD),
    report.format_sections([("nodule", ["left", "apical"]), ("cardiomegaly", [])]),
    multilabel.format_target(VOCABULARY),
    "There are 1,234 cells.",
]
heaps = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
damaged = st.tuples(st.sampled_from(TARGETS), st.integers(0, 300), st.sampled_from(PIECES), st.booleans()).map(
    lambda t: t[0][: t[1]] + t[2] + (t[0][t[1] + 1 :] if t[3] else "")
)
answers = st.lists(heaps | damaged | st.text(max_size=20), min_size=20, max_size=20)


def check_boxes(texts):
    for text in texts:
        for codec in boxes.CODECS:
            answer = boxes.parse(text, SIZE, codec)
            for box in answer.boxes if answer else []:
                assert 0 <= box.x1 < box.x2 <= SIZE[0] and 0 <= box.y1 < box.y2 <= SIZE[1]


def check_numbers(texts):
    for text in texts:
        value = quantity.parse(text, "regression")
        assert value is None or math.isfinite(value)
        count = quantity.parse(text, "counting")
        assert count is None or (count == value and count >= 0 and count == int(count))


def check_reports(texts):
    for text in texts:
        caption, read = report.parse(text), report.parse_sections(text)
        assert caption is None or caption.strip()
        assert read is None or (read.findings and all(read.findings) and caption)


def check_fields(texts):
    legal = {field["name"]: field for field in biomarkers.FIELDS}
    for text in texts:
        answer = biomarkers.parse(text)
        for name, value in answer.values.items() if answer else []:
            assert value is None or biomarkers.read_value(value, legal[name]) == value


def check_labels(texts):
    for text in texts:
        labels = multilabel.parse(text, VOCABULARY)
        assert labels in (None, []) or set(labels) & set(VOCABULARY)


@pytest.mark.slow
@given(answers)
@settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_10_000_strange_answers_are_parsed_to_something_legal_or_unparsed(texts):
    check_boxes(texts)
    check_numbers(texts)
    check_reports(texts)
    check_fields(texts)
    check_labels(texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit", ["[", '{"a":', "[1,", '["', "['\"", "9", "a-", "\n", "- \n", "answer ", "<loc0001>", "1,", ";", " ", "# "]
)
def test_a_runaway_answer_of_100_000_characters_is_read(unit):
    # A pattern that looks back and forth takes hours here, and a nested reader overflows.
    text = unit * (100_000 // len(unit))
    assert biomarkers.parse(text) is None
    assert multilabel.parse(text, VOCABULARY) is None
    assert report.parse_sections("FINDINGS:" + text) is None
    quantity.parse(text, "regression")
    report.parse(text)
    for codec in boxes.CODECS:
        boxes.parse(text, SIZE, codec)
