"""The place of a field in an answer, and what could stand there."""

import pytest

from histolab_sft.tasks.biomarkers import FIELDS, format_target, parse
from histolab_sft.tasks.parsing.field_places import find_places, list_options

RECORD = {"cd274_expression": "high", "msi_status": "MSS", "tme_subtype": "IE/F", "til_fraction": 0.57}
WORDS = [field for field in FIELDS if "values" in field]


def find(text, fields=FIELDS):
    found = parse(text, fields)
    return find_places(text, found and found.values, fields)


def test_every_field_with_words_has_a_place_in_the_order_of_the_text():
    places = find(format_target(RECORD))
    assert list(places) == [field["name"] for field in WORDS]
    for field in WORDS:
        for (text, end), value in zip(places[field["name"]], list_options(field), strict=True):
            assert text[:end].endswith(f'"{field["name"]}": "{value}"')


def test_each_text_is_the_models_own_but_for_the_value():
    text = 'Sure:\n```json\n{"MSI-status": "mss", "til_density": "low", "note": "x"}\n```'
    places = find(text)
    assert set(places) == {"msi_status", "til_density"}
    assert places["msi_status"][0] == (text.replace('"mss"', '"MSI-H"'), text.index('"mss"') + len('"MSI-H"'))
    assert places["til_density"][-1][0] == text.replace('"low"', '"unknown"')


def test_the_models_own_quotes_and_names_are_kept():
    text = "{'cd274_proxy': 'low', 'tme_subtype': None}"
    places = find(text)
    assert [written for written, _ in places["cd274_expression"]][0] == text.replace("'low'", "'high'")
    assert [written for written, _ in places["tme_subtype"]][2] == text.replace("None", '"F"')


def test_names_and_values_of_any_script_have_a_place():
    fields = [{"name": 'la "clé"', "values": ["sí", "a\\b"]}]
    text = format_target({'la "clé"': "sí"}, fields)
    assert text == '{\n  "la \\"clé\\"": "sí"\n}'
    assert [written[:end] for written, end in find(text, fields)['la "clé"']] == [
        text.replace('"sí"\n}', option) for option in ('"sí"', '"a\\\\b"', '"unknown"')
    ]


def test_a_value_that_is_not_legal_still_has_a_place():
    assert set(find('{"msi_status": "perhaps"}')) == {"msi_status"}


@pytest.mark.parametrize(
    "text",
    [
        "no JSON at all",
        '{"msi_status": "MS',  # cut off in the value
        '{"msi_status": "MSS"} or {"msi_status": "MSI-H"}',  # unparsed
        '{"msi_status": {"value": "MSS"}}',
        '{"til_fraction": 0.5}',
    ],
)
def test_an_answer_that_does_not_give_the_field_has_no_place(text):
    assert find(text) == {}


def test_a_remark_before_the_answer_is_not_its_place():
    text = 'I thought of "msi_status": "MSI-H" first. {"msi_status": "MSS"}'
    [(written, end), *_] = find(text)["msi_status"]
    assert written[:end].endswith('{"msi_status": "MSI-H"')


def test_a_field_said_twice_differently_has_no_place():
    text = '{"cd274_expression": "high", "cd274_proxy": "low"}'
    assert parse(text).values["cd274_expression"] is None and find(text) == {}
