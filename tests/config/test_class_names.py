"""Labels and class names are the recipe's own words, and names that an answer could confuse are refused."""

import json

import pytest

from histolab_sft.config.arguments import HistoArguments, parse_recipe
from histolab_sft.config.class_names import check_class_names, compose
from histolab_sft.config.recipe_file import read_yaml
from histolab_sft.tasks.classification import format_target
from histolab_sft.tasks.parsing.answers import parse_answer

WORDS = "No Yes no on off y null ~ 01 1e3 0x1F 1_000 1.50 2026-01-01 12:30:45 .inf .nan -1 true =".split()


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_words_of_a_data_set_are_text_as_they_stand_in_the_yaml(word, quote):
    written = f"{quote}{word}{quote}"
    entry = f"{{name: {written}, source: {written}, class_names: {{{written}: other, last: {written}}}, "
    entry += f"splits: {{train: {written}, test: [{written}, 7]}}, split_column: x}}"
    [read] = read_yaml(f"datasets: [{entry}]")["datasets"]
    assert read["class_names"] == {word: "other", "last": word}
    assert read["splits"] == {"train": word, "test": [word, "7"]}
    # A whole value that is null is no word: it is the key's default.
    assert read["name"] == read["source"] == (None if word in ("null", "~") and not quote else word)


def test_other_keys_of_a_recipe_keep_their_kinds():
    read = read_yaml("seed: 7\nbf16: no\ndatasets: [{max_samples: 10, streaming: no, intensity_window: [0, 4095]}]")
    [entry] = read.pop("datasets")
    assert read == {"seed": 7, "bf16": False}
    assert entry == {"max_samples": 10, "streaming": False, "intensity_window": [0, 4095]}


def test_words_reach_the_question_and_come_back_from_the_answer(tmp_path):
    names = ", ".join(f"{i}: {word}" for i, word in enumerate(["No", "Yes", "01", "null", "1e3"]))
    (tmp_path / "r.yaml").write_text(
        f"output_dir: out\nuse_cpu: true\nbf16: false\nuse_peft: false\n"
        f"datasets: [{{name: d, source: x, class_names: {{{names}}}}}]\n"
    )
    histo_args, _, _ = parse_recipe(["--config", str(tmp_path / "r.yaml")])
    assert histo_args.datasets[0].class_names == {"0": "No", "1": "Yes", "2": "01", "3": "null", "4": "1e3"}
    options = list(histo_args.datasets[0].class_names.values())
    assert [parse_answer(format_target(option), options) for option in options] == options


def test_one_label_twice_is_refused_where_yaml_would_keep_the_last():
    with pytest.raises(ValueError, match="the key '0' stands twice in the mapping of line 1"):
        read_yaml("datasets: [{class_names: {0: a, '0': b}}]")


@pytest.mark.parametrize("odd", [None, True, 0, 1.5, ["a"], {"a": "b"}])
def test_what_is_no_text_in_json_is_refused_with_the_cure(odd):
    datasets = json.dumps([{"name": "d", "source": "x", "class_names": {"0": "Normal", "1": odd}}])
    with pytest.raises(ValueError, match="expected text alone; quote it"):
        HistoArguments(datasets=datasets)


SAME = [
    ("Tumor", "tumor"),
    ("Tumor", "Tumor."),
    ("In Situ", "in-situ"),
    ("InSitu", "INSITU"),
    ("In_Situ", "In Situ"),
    ("Gefäß", "Gefa\u0308ß"),
    ("x²", "x2"),
    ("\N{GREEK SMALL LETTER MU}m", "\N{MICRO SIGN}m"),
    ("Tumor (high)", "Tumor, high"),
    ("≥1%", ">= 1 %"),
    ("1-5", "1\N{EN DASH}5"),
    ("Atypical", "A typical"),
]
DIFFERENT = [
    ("HER2+", "HER2-"),
    ("HER2", "HER2-"),
    ("<1%", "1%"),
    ("1%", "1"),
    ("1 0", "10"),
    ("1.0", "10"),
    ("T1", "T1a"),
    ("3+4", "4+3"),
    ("Tumor", "Non-tumor"),
    ("Normal tumor", "Tumor normal"),
    ("-1", "1"),
    ("1/2", "12"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_names_that_an_answer_could_confuse_are_refused(first, second):
    with pytest.raises(ValueError, match="two labels share one name"):
        check_class_names({"a": first, "b": second})


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_names_that_differ_in_signs_digits_or_order_are_told_apart(first, second):
    names = list(check_class_names({"a": first, "b": second}).values())
    for name in names:
        assert parse_answer(format_target(name), names) == name
        assert parse_answer(f"I see {name} here", names) == name


@pytest.mark.parametrize("name", ["", " ", "Tumor ", "\tTumor", "a\nb", "...", "Tu\u200bmor", "unparsed", "Answer: a"])
def test_a_name_that_no_answer_could_give_is_refused(name):
    with pytest.raises(ValueError, match="class_names has 'a'"):
        check_class_names({"a": name, "b": "Normal"})


def test_labels_that_are_one_in_another_unicode_form_are_refused():
    with pytest.raises(ValueError, match="the label 'Gefäß' twice"):
        check_class_names({"Gefäß": "a", "Gefa\u0308ß": "b"})
    assert check_class_names({"Gefa\u0308ß": "Gefa\u0308ß", "N": "Nerv"}) == {"Gefäß": "Gefäß", "N": "Nerv"}
    assert compose("Gefa\u0308ß") == "Gefäß"


def test_the_check_comes_before_anything_is_read():
    entry = {"name": "d", "source": "/not/there", "class_names": {"a": "Tumor", "b": "Tumor!"}}
    with pytest.raises(ValueError, match="data set 'd': two labels share one name"):
        HistoArguments(datasets=[entry])
