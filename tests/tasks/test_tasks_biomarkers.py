import json

import pytest

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.data_sets import list_rows
from histolab_sft.tasks import biomarkers
from histolab_sft.tasks.biomarkers import FIELDS, check_fields, format_prompt, format_target, parse

RECORD = {
    "cd274_expression": "high",
    "msi_status": "MSS",
    "tme_subtype": "IE/F",
    "til_fraction": 0.570,
    "til_density": "high",
    "immune_phenotype": "inflamed",
    "cd8_infiltration": "moderate",
    "immune_score": 0.625678,
}
TARGET = """{
  "cd274_expression": "high",
  "msi_status": "MSS",
  "tme_subtype": "IE/F",
  "til_fraction": 0.570,
  "til_density": "high",
  "immune_phenotype": "inflamed",
  "cd8_infiltration": "moderate",
  "immune_score": 0.626
}"""
CARD = """Analyze this H&E histopathology patch from a lung cancer biopsy.
Predict the tumor immune microenvironment and return a JSON object with these fields:
- cd274_expression: "high" or "low"
- msi_status: "MSI-H" or "MSS"
- tme_subtype: one of "IE", "IE/F", "F", "D"
- til_fraction: float 0-1
- til_density: "high", "moderate", or "low"
- immune_phenotype: "inflamed", "excluded", or "desert"
- cd8_infiltration: "high", "moderate", or "low"
- immune_score: float 0-1"""


def test_the_target_is_the_published_example():
    assert format_target(RECORD) == TARGET
    assert parse(TARGET) == (RECORD | {"immune_score": 0.626}, False, False)


def test_the_card_prompt_comes_out_of_the_fields_word_for_word():
    assert format_prompt(FIELDS, "card") == CARD


def test_the_training_prompt_names_the_cancer_and_differs_from_the_card():
    prompt = format_prompt(FIELDS, "training", cancer_type="lung adenocarcinoma")
    assert prompt.startswith("Analyze these H&E-stained histopathology images from a lung adenocarcinoma tumor.\n\n")
    assert prompt.endswith("Provide your analysis as a JSON object.")
    with pytest.raises(ValueError, match="expected \\['cancer_type'\\]"):
        format_prompt(FIELDS, "training")
    with pytest.raises(ValueError, match="values for \\['cancer_type'\\]"):
        format_prompt(FIELDS, "card", cancer_type="x")


def test_fields_of_a_users_own_need_no_code():
    fields = json.loads(
        '[{"name": "grade", "values": ["1", "2", "3"], "aliases": ["Nottingham grade"]},'
        ' {"name": "ki67", "range": [0, 100], "decimals": 0}]'
    )
    check_fields(fields)
    assert format_prompt(fields, question="Wie?\n{fields}") == 'Wie?\n- grade: "1", "2", or "3"\n- ki67: float 0-100'
    target = format_target({"grade": "2", "ki67": 37.2}, fields)
    assert target == '{\n  "grade": "2",\n  "ki67": 37\n}'
    assert parse(target, fields).values == {"grade": "2", "ki67": 37}
    assert parse("{'Nottingham Grade': '3'}", fields).values == {"grade": "3"}


def test_what_a_record_lacks_is_written_as_unknown_and_read_back():
    target = format_target(RECORD | {"tme_subtype": None, "immune_score": float("nan")})
    assert '"tme_subtype": "unknown"' in target
    assert parse(target).values == RECORD | {"tme_subtype": "unknown", "immune_score": "unknown"}
    with pytest.raises(ValueError, match="'til_fraction' is 1.5, expected float 0-1"):
        format_target(RECORD | {"til_fraction": 1.5})


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{TARGET}\n```",
        f"Here is the analysis:\n{TARGET}\nNote that {{this}} is research.",
        f"<unused94>{{}}<unused95>Final Answer: {TARGET}<end_of_turn>",
        TARGET.replace("\n", ""),
        f"{TARGET}\n{TARGET}",
        TARGET.replace("IE/F", "ie_f").replace("MSS", "MSI-L"),
        TARGET.replace("cd274_expression", "CD274 RNA proxy").replace("immune_score", "Overall_Immune_Score"),
        TARGET.replace("0.570", '"0.570"'),
    ],
)
def test_the_object_is_found_whatever_stands_around_it(text):
    assert parse(text).values == RECORD | {"immune_score": 0.626}


def test_single_quotes_and_a_last_comma_are_repaired():
    answer = parse(TARGET.replace('"', "'").replace("0.626", "0.626,"))
    assert answer.values == RECORD | {"immune_score": 0.626}
    assert answer.repaired and not answer.truncated


def test_bug_18_a_truncated_object_keeps_its_finished_fields():
    answer = parse(TARGET[: TARGET.index("0.570") + 3])
    assert answer.values == {"cd274_expression": "high", "msi_status": "MSS", "tme_subtype": "IE/F"}
    assert answer.truncated
    for end in range(len(TARGET)):
        answer = parse(TARGET[:end])
        assert answer is None or answer.values.items() <= (RECORD | {"immune_score": 0.626}).items()


def test_an_illegal_value_is_told_from_a_missing_field():
    values = parse('{"cd274_expression": "medium", "til_fraction": 1.2, "til_density": null, "extra": 1}').values
    assert values == {"cd274_expression": None, "til_fraction": None, "til_density": None}


@pytest.mark.parametrize("value", ["true", "NaN", '"57%"', "1e999", "-1e999", "[0.5]", "9" * 5000, '"0,5"', "-0.1"])
def test_what_is_no_number_in_range_is_no_value(value):
    answer = parse(f'{{"til_fraction": {value}, "msi_status": "MSS"}}')
    assert answer is None or answer.values.get("til_fraction") is None


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "high", '{"a": 1} or {"msi_status": "MSS"}', "Answer:"])
def test_no_object_or_two_that_differ_is_unparsed(text):
    assert parse(text) is None


def test_a_field_under_two_names_with_two_values_has_none():
    assert parse('{"pdl1_expression": "low", "cd274_expression": "high"}').values == {"cd274_expression": None}
    assert parse('{"pdl1_expression": "low", "cd274_expression": "low"}').values == {"cd274_expression": "low"}


def test_bug_16_a_value_is_never_part_of_a_word():
    assert parse('{"tme_subtype": "IE/F or D"}').values == {"tme_subtype": None}
    assert parse('{"tme_subtype": "IEF"}').values == {"tme_subtype": None}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([{"name": "a", "values": ["x", "y"]}, {"name": "b", "range": [0, 1], "aliases": ["A"]}], "share the names"),
        ([{"name": "a"}], "either values or range"),
        ([{"name": "a", "values": ["x", "y"], "range": [0, 1]}], "either values or range"),
        ([{"name": "a", "values": ["x", "X"]}], "differ in more than case"),
        ([{"name": "a", "values": ["x", "unknown"]}], "differ in more than case"),
        ([{"name": "a", "values": ["x", "y"], "value_aliases": {"z": "w"}}], "aliases of these"),
        ([{"name": "a", "range": [1, 0]}], "swap them"),
        ([{"name": "a", "range": [0, 1], "unit": "mm"}], "expected other keys"),
    ],
)
def test_fields_that_cannot_be_read_back_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        check_fields(fields)


def test_the_fields_of_immunopath_pass_the_check():
    check_fields(FIELDS)
    assert list(RECORD) == [field["name"] for field in FIELDS]
    assert set(biomarkers.QUESTIONS) == {"generic", "card", "training"}


def test_the_fields_of_a_data_set_are_checked_before_its_rows_are_read(tmp_path):
    entry = {"name": "tme", "source": ".", "format": "biomarkers", "fields": [{"name": "a", "vales": ["x", "y"]}]}
    histo_args = HistoArguments(datasets=[entry], data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"data set 'tme': field 'a' has \['vales'\], expected other keys"):
        list_rows(histo_args.datasets[0], histo_args)
