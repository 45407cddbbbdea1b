"""The challenge's file holds the questions as they came, each with its answer."""

import json

import pandas as pd
import pytest
from flare_fixture import HIDDEN, PERIAPICAL, write_flare

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.flare import read_flare
from histolab_sft.evaluation.submission import list_submitted, write_submission, write_submissions

CONFIG = DatasetConfig(name="flare", source=".", format="flare")


@pytest.fixture(scope="module")
def flare(tmp_path_factory):
    return write_flare(tmp_path_factory.mktemp("flare"))


@pytest.fixture
def answers(flare):
    table = read_flare(flare, CONFIG)
    return table.loc[table["split"] == "validation-hidden", ["id", "answer"]].reset_index(drop=True)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_answers_come_back_as_they_were_given(flare, answers, tmp_path):
    path = tmp_path / "out" / "predictions.json"
    assert write_submission(answers, flare, CONFIG, path) == 0
    # In the place of the organisers' file with answers, what was written reads as what was given.
    copy = write_flare(tmp_path / "copy")
    submitted = {(entry["ImageName"], entry["Question"]): entry for entry in read(path)}
    for file in copy.rglob("*_withGT.json"):
        rows = [submitted[entry["ImageName"], entry["Question"]] for entry in json.loads(file.read_text())]
        file.write_text(json.dumps(rows))
    table = read_flare(copy, CONFIG)
    table = table.loc[table["split"] == "validation-hidden", ["id", "answer"]].reset_index(drop=True)
    assert table.to_dict("records") == answers.to_dict("records")


def test_every_question_stands_there_as_it_came(flare, answers, tmp_path):
    write_submission(answers, flare, CONFIG, tmp_path / "predictions.json")
    written = read(tmp_path / "predictions.json")
    questions = [values for name in sorted(HIDDEN) for values in HIDDEN[name]]
    assert all(
        list(entry) == ["TaskType", "Modality", "ImageName", "Question", "Answer", "Split"] for entry in written
    )
    assert sorted(json.dumps(entry | {"Answer": ""}) for entry in written) == sorted(
        json.dumps(values | {"Answer": ""}) for values in questions
    )


def test_answers_are_text_in_the_challenges_forms(flare, answers, tmp_path):
    write_submission(answers, flare, CONFIG, tmp_path / "predictions.json")
    found = {
        (entry["ImageName"].split("/")[1], entry["TaskType"]): entry["Answer"]
        for entry in read(tmp_path / "predictions.json")
    }
    assert found == {
        ("IUGC_00445-53.png", "Detection"): "[[100, 37, 307, 90]]",
        ("IUGC_00445-53.png", "Classification"): "B",
        ("PXMT_00326.png", "Classification"): "C",
        ("PRML_00411.jpg", "multi-label classification"): f"Pulp Diseases; {PERIAPICAL[-1]}",
        ("boneresorption_00506.jpg", "Regression"): "12.5",
        ("IU-XRay_CXR1_IM-0001-0.png", "report_generation"): "Clear lungs.",
        ("Chrm_00030.png", "instance_detection"): '{"2": [[5, 6, 50, 60]]}',
        ("cell_00101.png", "Counting"): "41",
    }


def test_participants_without_the_answers_write_the_same_file(flare, answers, tmp_path):
    blind = write_flare(tmp_path / "blind", with_answers=False)
    write_submission(answers, flare, CONFIG, tmp_path / "a.json")
    write_submission(answers.sample(frac=1, random_state=0), blind, CONFIG, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_unparsed_answers_are_empty_and_counted(flare, answers, tmp_path, caplog):
    caplog.set_level("INFO")
    answers["answer"] = pd.Series([None, float("nan"), *answers["answer"][2:]], dtype=object)
    assert write_submission(answers, flare, CONFIG, tmp_path / "predictions.json") == 2
    assert [entry["Answer"] for entry in read(tmp_path / "predictions.json")].count("") == 2
    assert "2 of them empty" in caplog.text


def test_a_model_that_sees_nothing_can_say_so(flare, answers, tmp_path):
    answers["answer"] = [[] if isinstance(answer, list) else answer for answer in answers["answer"]]
    assert write_submission(answers, flare, CONFIG, tmp_path / "predictions.json") == 0
    found = {entry["TaskType"]: entry["Answer"] for entry in read(tmp_path / "predictions.json")}
    assert found["Detection"] == "[]" and found["instance_detection"] == "[]"
    assert found["multi-label classification"] == ""


def test_the_testing_split_can_be_submitted_too(flare, tmp_path):
    table = read_flare(flare, CONFIG)
    table = table[table["split"] == "testing"]
    given = {"boxes": [[1.4, 2.6, 30, 40, "3"]], "classification": "No loss"}
    answers = pd.DataFrame({"id": table["id"], "answer": [given[task] for task in table["task"]]})
    write_submission(answers, flare, CONFIG, tmp_path / "predictions.json", split="testing")
    assert [entry["Answer"] for entry in read(tmp_path / "predictions.json")] == ['{"3": [[1, 3, 30, 40]]}', "A"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda t: t[1:], "1 ids without an answer, such as validation_hidden:"),
        (lambda t: pd.concat([t, t[:2]]), "2 ids given twice"),
        (
            lambda t: t.assign(id=t["id"].replace(t["id"][0], "other")),
            "that are no question of the split, such as other",
        ),
    ],
)
def test_a_table_that_isnt_of_the_split_is_refused_and_nothing_written(flare, answers, tmp_path, change, found):
    with pytest.raises(ValueError, match=found):
        write_submission(change(answers), flare, CONFIG, tmp_path / "predictions.json")
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_is_no_option_leaves_the_old_file_as_it_was(flare, answers, tmp_path):
    path = tmp_path / "predictions.json"
    write_submission(answers, flare, CONFIG, path)
    before = path.read_bytes()
    answers["answer"] = answers["answer"].replace("Standard plane", "plane")
    with pytest.raises(ValueError, match="answer 'plane', expected one of"):
        write_submission(answers, flare, CONFIG, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_split_without_questions_is_refused(flare, answers, tmp_path):
    with pytest.raises(ValueError, match="no question of the split 'test'"):
        write_submission(answers, flare, CONFIG, tmp_path / "predictions.json", split="test")


TASKS_OF_HIDDEN = {
    "dental": ("classification",),
    "periapical": ("multilabel",),
    "boneresorption": ("quantity",),
    "iugc": ("classification", "boxes"),
}


def list_entries(root, tasks=TASKS_OF_HIDDEN, test="validation-hidden"):
    """Recipe arguments with one entry for each data set and task, and what the model says to their questions."""
    entries = [
        {"name": f"{subset}-{task}", "source": root.name, "format": "flare", "subset": subset, "task": task}
        | {"splits": {"train": "validation-public" if test == "training" else "training", "test": test}}
        for subset, listed in tasks.items()
        for task in listed
    ]
    histo_args = HistoArguments(datasets=entries, data_dir=str(root.parent))
    table = read_flare(root, CONFIG)
    answers = {}
    for config in histo_args.datasets:
        folder = table["id"].str.split(":").str[1]
        rows = table[(table["split"] == test) & (folder == config.subset) & (table["task"] == config.task)]
        answers[config.name] = rows[["id"]].assign(predicted=[json.dumps(answer) for answer in rows["answer"]])
    return histo_args, answers


def test_entries_of_one_split_share_a_file_that_is_whole_by_data_set(flare, tmp_path, caplog):
    histo_args, answers = list_entries(flare)
    answers["dental-classification"]["predicted"] = "null"
    written = write_submissions(answers, histo_args, tmp_path)
    path = tmp_path / "validation-hidden" / "predictions.json"
    assert written == {path: (5, 1)} and [entry.name for entry in tmp_path.rglob("*.json")] == ["predictions.json"]
    found = [(row["ImageName"].split("/")[1], row["TaskType"], row["Answer"]) for row in read(path)]
    assert ("IUGC_00445-53.png", "Detection", "[[100, 37, 307, 90]]") in found
    assert ("IUGC_00445-53.png", "Classification", "B") in found
    assert ("PXMT_00326.png", "Classification", "") in found
    assert "doesn't ask IU_XRay, chromosome, neurips22cell" in caplog.text


def test_a_data_set_without_an_entry_for_each_of_its_tasks_is_refused(flare, tmp_path):
    histo_args, answers = list_entries(flare, TASKS_OF_HIDDEN | {"iugc": ("boxes",)})
    with pytest.raises(ValueError, match="1 questions aren't asked, such as validation_hidden:iugc"):
        write_submissions(answers, histo_args, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_questions_of_the_train_split_are_never_submitted(flare, tmp_path):
    histo_args, answers = list_entries(flare, {"dental": ("classification",)}, test="training")
    with pytest.raises(ValueError, match="2 test questions are of FLARE's split training"):
        write_submissions(answers, histo_args, tmp_path)


def test_a_recipe_without_flare_or_with_two_copies_of_it_is_refused(flare):
    histo_args, _ = list_entries(flare)
    histo_args.datasets[0].source = "elsewhere"
    with pytest.raises(ValueError, match="expected one, since a file holds all"):
        list_submitted(histo_args)
    other = HistoArguments(datasets=[{"name": "captions", "source": "captions", "format": "captions"}])
    with pytest.raises(ValueError, match="no data set of format flare in the recipe, found the formats captions"):
        list_submitted(other)
