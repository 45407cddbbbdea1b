import pytest

from histolab_sft.tasks import quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("13", 13),
        ("There are 13 cells.", 13),
        ("13 cells in all. Answer: 13", 13),
        ("Answer: 1,234", 1234),
        ("12,345,678", 12345678),
        ("1.5e2", 150),
        ("<unused94>maybe 7 or 8<unused95>9", 9),
        ("I count 10 and 3. The answer is: 13", 13),
        ("40 CD8 cells at T2", 40),
        ("0", 0),
        ("13<end_of_turn>99", 13),
    ],
)
def test_a_count_is_read(text, value):
    assert quantity.parse(text, "counting") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("33.3 %", 33.3), ("22.9%", 22.9), ("-1.5", -1.5), ("\N{MINUS SIGN}1.5", -1.5), ("about 12mm", 12), ("0.0", 0)],
)
def test_a_measurement_is_read(text, value):
    assert quantity.parse(text, "regression") == value


@pytest.mark.parametrize(
    "text",
    ["", "many", "thirteen", "10-20", "10 to 20", "5/10", "33,3", "1,2", "1.2.3", "12 of 13", "1e999", "9" * 400]
    + ["values 1,2 and total 5", "Answer:", "nan", "inf", "٣"],
)
def test_what_could_mean_two_numbers_or_none_is_unparsed(text):
    assert quantity.parse(text, "regression") is None


@pytest.mark.parametrize("text", ["13.5", "-3", "1e12"])
def test_a_count_is_a_whole_number_from_zero_up(text):
    assert quantity.parse(text, "counting") is None


@pytest.mark.parametrize("value", [0, 0.04, 33.3333333333333, 100.0, -2.26])
def test_a_target_is_read_back_to_its_last_decimal(value):
    assert quantity.parse(quantity.format_target("regression", value), "regression") == pytest.approx(value, abs=0.051)
    assert quantity.parse(quantity.format_target("regression", value, 3), "regression") == round(value, 3)


def test_a_count_is_written_without_a_point():
    assert quantity.format_target("counting", 13.0) == "13"
    assert quantity.parse(quantity.format_target("counting", 2500), "counting") == 2500


@pytest.mark.parametrize(("kind", "value"), [("counting", 1.5), ("counting", -1), ("regression", float("nan"))])
def test_a_target_that_could_not_be_read_back_is_refused(kind, value):
    with pytest.raises(ValueError, match="correct or leave out the row"):
        quantity.format_target(kind, value)


def test_the_instruction_stands_before_the_question_and_can_be_replaced():
    assert quantity.format_prompt("counting", "How many cells?").endswith(
        "integer count requested.\n\nHow many cells?"
    )
    assert quantity.format_prompt("regression", "¿Cuánto?", "Un número.") == "Un número.\n\n¿Cuánto?"
    assert quantity.format_prompt("regression", "How much?", "") == "How much?"
