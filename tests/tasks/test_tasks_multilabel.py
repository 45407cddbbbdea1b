import pytest

from histolab_sft.tasks import multilabel

COMMAS = "Endodontic Treatment, Restorative Treatment, and Complications"
PERIAPICAL = ["Dental Caries", "Periradicular Lesions", "Pulp Diseases", COMMAS]
CHEST = ["Pleural Effusion", "Pneumonia", "Cardiomegaly", "Calcification", "Aortic Calcification", "Normal"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("Pleural Effusion, Pneumonia, Cardiomegaly", ["Pleural Effusion", "Pneumonia", "Cardiomegaly"]),
        ("pleural effusion; CARDIOMEGALY.", ["Pleural Effusion", "Cardiomegaly"]),
        ("Answer: [Pneumonia]", ["Pneumonia"]),
        ('["Pneumonia", "Normal"]', ["Pneumonia", "Normal"]),
        ("- Pneumonia\n- Pleural-Effusion", ["Pneumonia", "Pleural Effusion"]),
        ("1. Pneumonia; 2. Normal", ["Pneumonia", "Normal"]),
        ("Pneumonia, Pneumonia", ["Pneumonia"]),
        ("Aortic Calcification", ["Aortic Calcification"]),
        ("None", []),
        ("none.", []),
    ],
)
def test_labels_are_read_with_commas_semicolons_and_lines(text, labels):
    assert multilabel.parse(text, CHEST) == labels


@pytest.mark.parametrize("other", [[], ["Dental Caries"], ["Dental Caries", "Pulp Diseases"]])
@pytest.mark.parametrize("separator", ["; ", ", ", "\n"])
def test_a_label_that_holds_commas_stays_whole(other, separator):
    for labels in ([*other, COMMAS], [COMMAS, *other]):
        assert multilabel.parse(separator.join(labels), PERIAPICAL) == labels


def test_bug_16_substring_matching_of_classes():
    assert multilabel.parse("abnormal", CHEST) is None
    assert multilabel.parse("no pleural effusion", CHEST) is None
    assert multilabel.parse("Pneumonia, no pleural effusion", CHEST) == ["Pneumonia", "no pleural effusion"]


@pytest.mark.parametrize("text", ["", "  ", ";,;", "Answer:", "<unused94>Pneumonia", "There is pneumonia and more."])
def test_an_answer_without_a_label_is_unparsed_not_empty(text):
    assert multilabel.parse(text, CHEST) is None


def test_none_is_a_label_where_the_vocabulary_has_it():
    assert multilabel.parse("None", ["Ulcer", "None"]) == ["None"]


@pytest.mark.parametrize("labels", [[], ["Pneumonia"], ["Normal", "Pneumonia"]])
def test_a_target_is_read_back(labels):
    assert multilabel.parse(multilabel.format_target(labels), CHEST) == labels


def test_answers_of_a_data_set_are_read_or_refused():
    assert multilabel.read_labels(f"Dental Caries; {COMMAS}", PERIAPICAL) == ["Dental Caries", COMMAS]
    assert multilabel.read_labels("", PERIAPICAL) == []
    assert multilabel.read_labels("None", PERIAPICAL) == []
    with pytest.raises(ValueError, match="holds \\['abscess'\\]"):
        multilabel.read_labels("Dental Caries; Abscess", PERIAPICAL)
    with pytest.raises(ValueError, match="add them to class_names"):
        multilabel.read_labels("Abscess", PERIAPICAL)


def test_bug_08_the_prompt_asks_for_the_separator_that_the_target_uses():
    prompt = multilabel.format_prompt("Which findings?", CHEST)
    assert "separated by semicolons" in prompt and "; ".join(CHEST) in prompt
    assert multilabel.format_target(CHEST[:2]) == "Pleural Effusion; Pneumonia"
    assert multilabel.format_prompt("¿Qué ve?", instruction="") == "¿Qué ve?"
