"""An external cohort is asked as the run's data set is, and what is wrong with its block is told at once."""

import json

import pytest
import yaml
from recipe_args import BASE, PCAM

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.config.external import ASKED

COHORT = {"name": "elsewhere", "source": "data/elsewhere"}
CAPTIONS = {"name": "captions", "source": "data/captions", "format": "captions"}


def parse(tmp_path, *external, **keys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE | {"external": list(external)} | keys))
    return parse_recipe(["--config", str(path)])[0]


def test_a_cohort_has_the_question_the_words_and_the_steps_of_its_training_data_set(tmp_path):
    trained = PCAM | {"question": "Which of {options}?", "multi_scale": 2, "image_steps": ["pad_to_square"]}
    [config] = parse(tmp_path, COHORT | {"class_names": {"b": "Tumor", "a": "Tumor"}}, datasets=[trained]).external
    assert config.options == ["Normal", "Tumor"] and config.question == "Which of {options}?"
    assert config.multi_scale == 2 and config.image_steps == ["pad_to_square"]
    assert config.class_names == {"b": "Tumor", "a": "Tumor"}
    own = COHORT | {"image_steps": ["crop_dark_edges"]}
    assert parse(tmp_path, own, datasets=[trained]).external[0].image_steps == ["crop_dark_edges"]


def test_without_class_names_labels_are_those_of_training(tmp_path):
    assert parse(tmp_path, COHORT).external[0].class_names == PCAM["class_names"]


def test_labels_stay_text_and_null_under_one_leaves_its_rows_out(tmp_path):
    path = tmp_path / "recipe.yaml"
    block = "external: [{name: e, source: s, class_names: {No: Normal, 01: Tumor, null: null, x: }}]"
    path.write_text(yaml.safe_dump(BASE) + block)
    [config] = parse_recipe(["--config", str(path)])[0].external
    assert config.class_names == {"No": "Normal", "01": "Tumor", "null": None, "x": None}


def test_the_command_line_adds_cohorts_as_json(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    flags = ["--config", str(path), "--external", json.dumps([COHORT | {"class_names": {"x": None, "y": "Tumor"}}])]
    assert parse_recipe(flags)[0].external[0].class_names == {"x": None, "y": "Tumor"}


@pytest.mark.parametrize(
    ("change", "datasets", "message"),
    [
        ({"class_names": {"a": "Tumour"}}, [PCAM], "'Tumour', expected one of the class words.*did you mean 'Tumor'"),
        ({"class_names": {"a": None}}, [PCAM], "null for every label"),
        ({"class_names": {}}, [PCAM], "class_names is {}, expected a mapping"),
        ({"external_of": "crc"}, [PCAM], "external_of is 'crc', expected .*pcam"),
        ({}, [PCAM, PCAM | {"name": "other"}], "external_of is None, expected .*pcam, other; add it"),
        ({"name": "pcam"}, [PCAM], "pcam is the name of two"),
        ({"leaks": "perhaps"}, [PCAM], "leaks is 'perhaps', expected one of stop, drop, allow"),
        ({"splits": {"train": "a", "test": "b"}}, [PCAM], "expected test alone"),
        ({"splits": "bach_official"}, [PCAM], "expected test alone"),
        ({"format": "captions"}, [PCAM], "format: captions, expected none"),
        ({}, [CAPTIONS], "format: class_folders, expected one"),
        ({"sourse": "x"}, [PCAM], "unknown key .*did you mean 'source'"),
        *(({key: "x"}, [PCAM], f"has {key}, expected none: what is asked") for key in ASKED),
    ],
)
def test_what_is_wrong_with_a_cohort_is_told(tmp_path, change, datasets, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, COHORT | change, datasets=datasets)


@pytest.mark.parametrize("entries", [{"name": "a"}, ["a"], 3])
def test_external_is_a_list_of_cohorts(tmp_path, entries):
    with pytest.raises(ValueError, match="external is .*, expected a list of cohorts"):
        parse(tmp_path, external=entries)


def test_a_cohort_without_a_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks source"):
        parse(tmp_path, {"name": "elsewhere"})
