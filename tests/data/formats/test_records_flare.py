"""FLARE's files, as they are published, become questions with answers; nothing is read twice or left out."""

import json
import logging
import shutil

import pytest
from flare_fixture import (
    HIDDEN,
    KARYOTYPE,
    LOSS,
    MARROW,
    PERIAPICAL,
    QUESTIONS,
    SIZE,
    TOOTH,
    record,
    without,
    write_flare,
    write_questions,
)
from PIL import Image

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.flare import list_flare, read_flare
from histolab_sft.data.formats.flare_answers import TASK_TYPES, find_kind, parse_label_list, parse_options
from histolab_sft.data.pictures.decoding import open_patch, read_size
from histolab_sft.tasks import TASKS

CONFIG = DatasetConfig(name="flare", source=".", format="flare")


@pytest.fixture(scope="module")
def flare(tmp_path_factory):
    return write_flare(tmp_path_factory.mktemp("flare"))


@pytest.fixture(scope="module")
def table(flare):
    return read_flare(flare, CONFIG).set_index("id")


def one_question(folder, values, split="training", size=SIZE):
    """Read a data set of a single record."""
    write_questions(folder / split / "Xray" / "set" / "set_questions_train.json", [values], size)
    return read_flare(folder, CONFIG).iloc[0]


def test_every_question_of_every_split_is_one_row(table):
    assert table["split"].value_counts().to_dict() == QUESTIONS
    assert set(table["task"]) == {"classification", "multilabel", "quantity", "boxes", "report"}


def test_rows_are_sorted_and_the_same_each_time(flare, table):
    again = read_flare(flare, CONFIG)
    assert again["id"].is_monotonic_increasing
    assert again.set_index("id").equals(table)


def test_ids_are_those_of_the_published_predictions(table):
    name = "validation:bcn20000:bcn20000_questions_val:BCN20000_03396-1:disease_diagnosis_classification:0"
    assert table.loc[name, "answer"] == "Nevus"


def test_every_answer_becomes_a_target_that_its_task_reads_back(table):
    config = DatasetConfig(name="flare", source=".", format="flare", instruction="{question}")
    for row in table[table["answer"].notna()].itertuples():
        task = TASKS[row.task]
        answer, mended = task.read_answer(task.format_answer(row.ask, row.answer, config), row.ask, config)
        assert not mended
        if row.task == "boxes":
            # MedGemma 1.5's scale has 1000 units on the longer side of the picture.
            unit = max(SIZE) / 1000
            assert [box[4] for box in answer] == [box[4] for box in row.answer]
            assert all(
                abs(got - true) <= unit
                for box, gold in zip(answer, row.answer, strict=True)
                for got, true in zip(box[:4], gold[:4], strict=True)
            )
        elif row.task == "quantity":
            assert answer == pytest.approx(row.answer, abs=0.05)
        else:
            assert answer == row.answer
        assert row.ask["question"] in task.format_question(row.ask, config)


def test_letters_beyond_e_are_answers(table):
    row = table.loc[
        "train:bone_marrow:bone_marrow_questions_train:bone_marrow_00001:disease_diagnosis_classification:0"
    ]
    assert row["answer"] == "Acute lymphoblastic leukemia"
    assert len(row["ask"]["options"]) == 11 and row["ask"]["question"] == MARROW


def test_text_answers_have_the_options_of_questions_that_share_an_answer(table):
    rows = table[table.index.str.contains(":CMMD:")]
    options = {row.ask["question"]: row.ask["options"] for row in rows.itertuples()}
    assert options == {
        "Nature?": ["Benign", "Malignant"],
        "What is its nature?": ["Benign", "Malignant"],
        "Subtype?": ["Her2-enriched", "Luminal b"],
    }
    assert rows["answer"].value_counts().to_dict() == {
        "Benign": 2,
        "Malignant": 2,
        "Luminal b": 1,
        "Her2-enriched": 1,
    }


def test_answers_are_joined_over_questions_that_share_only_a_part_of_them(tmp_path):
    pairs = [("What?", "Mass"), ("What?", "Both"), ("Which?", "Both"), ("Which?", "Calcification"), ("How?", "Benign")]
    pairs.append(("How?", "Malignant"))
    rows = [record("cls", f"imagesTr/{i}.png", *pair) for i, pair in enumerate(pairs)]
    write_questions(tmp_path / "training/X/set/q.json", rows)
    options = {ask["question"]: ask["options"] for ask in read_flare(tmp_path, CONFIG)["ask"]}
    kinds = ["Both", "Calcification", "Mass"]
    assert options == {"What?": kinds, "Which?": kinds, "How?": ["Benign", "Malignant"]}


def test_a_label_that_holds_commas_stays_whole(table):
    rows = table[table.index.str.startswith("train:periapical:")]
    assert rows["answer"].tolist() == [[PERIAPICAL[-1]], ["Dental Caries", PERIAPICAL[-1]]]
    assert all(ask["vocabulary"] == PERIAPICAL for ask in rows["ask"])


def test_comma_joined_labels_have_the_labels_of_the_whole_data_set(table):
    rows = table[table.index.str.contains(":chestdr:") & (table["task"] == "multilabel")]
    assert rows["answer"].tolist() == [["Pleural Effusion", "Pneumonia"], ["Normal"], ["Cardiomegaly"]]
    vocabulary = ["Cardiomegaly", "Normal", "Pleural Effusion", "Pneumonia"]
    assert all(ask["vocabulary"] == vocabulary for ask in rows["ask"])


def test_one_data_set_can_hold_two_tasks(table):
    assert table[table.index.str.contains(":chestdr:")]["task"].value_counts().to_dict() == {
        "multilabel": 3,
        "classification": 1,
    }


def test_labels_without_a_list_are_never_cut_at_commas_where_the_data_set_writes_semicolons(tmp_path):
    rows = [record("multi label", f"imagesTr/{i}.png", "Which?", text) for i, text in enumerate(["a; b, c", "b, c"])]
    write_questions(tmp_path / "training/X/set/q.json", rows)
    assert read_flare(tmp_path, CONFIG)["answer"].tolist() == [["a", "b, c"], ["b, c"]]


def test_numbers_are_counts_or_measurements_whether_text_int_or_float(table):
    rows = table[(table["task"] == "quantity") & table.index.str.startswith("train:")]
    assert [(row.ask["kind"], row.answer) for row in rows.itertuples()] == [
        ("regression", 33.3333333333333),
        ("regression", 22.9),
        ("regression", 0.0),
        ("counting", 13),
        ("counting", 2104),
        ("counting", 7),
    ]
    assert [type(answer) for answer in rows["answer"]] == [float] * 3 + [int] * 3


def test_a_missing_task_type_is_told_by_the_record_and_counted(flare, caplog):
    with caplog.at_level(logging.WARNING):
        read_flare(flare, CONFIG)
    assert "1 question without TaskType" in caplog.text


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        (LOSS, "B", "classification"),
        (LOSS, None, "classification"),
        (TOOTH, "Dental Caries", "multilabel"),
        ("How many cells?", None, "counting"),
        ("Give the count.", "13", "counting"),
        ("What percentage is lost?", "33.3", "regression"),
        ("Box the lesion.", [[1, 2, 3, 4]], "detection"),
        ("Give the bounding box.", None, "detection"),
        (KARYOTYPE, {"1": [[1, 2, 3, 4]]}, "instance detection"),
    ],
)
@pytest.mark.parametrize("task_type", [None, float("nan"), " "])
def test_without_task_type_question_and_answer_decide(question, answer, kind, task_type):
    assert find_kind({"TaskType": task_type, "Question": question, "Answer": answer}) == kind


def test_a_record_that_leaves_its_task_open_is_refused():
    with pytest.raises(ValueError, match="no TaskType.*expected a TaskType"):
        find_kind({"Question": "What is it?", "Answer": "Benign"})


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        *((spelling, kind) for kind, spellings in TASK_TYPES.items() for spelling in spellings),
        ("Multi-label Classification", "multilabel"),
        ("multi_label_classification", "multilabel"),
        ("instance_detection", "instance detection"),
        ("Report_Generation", "report"),
        ("  Cell  Counting ", "counting"),
    ],
)
def test_every_spelling_of_task_type_is_known(spelling, kind):
    assert find_kind({"TaskType": spelling}) == find_kind({"TaskType": spelling.upper()}) == kind


def test_boxes_are_pixels_of_the_original_however_they_are_written(table):
    rows = table[table.index.str.contains(":BUSI-det:")]
    assert rows["answer"].tolist() == [
        [[111, 102, 289, 150, None]],
        [[1, 2, 30, 40, None], [50, 60, 70, 80, None]],
        [[1, 2, 30, 40, None]],
        [],
    ]
    assert all(ask["size"] == list(SIZE) and not ask["label_aware"] for ask in rows["ask"])


def test_chromosomes_keep_their_ids_in_objects_and_in_text(table):
    rows = table[table.index.str.startswith("train:chromosome:")]
    assert rows["answer"].tolist() == [
        [[10, 20, 40, 60, "1"], [100, 20, 130, 60, "1"], [50, 80, 70, 90, "17"], [1, 2, 3, 4, "X"]],
        [[5, 6, 7, 8, "Y"]],
    ]
    assert all(ask["label_aware"] for ask in rows["ask"])


def test_several_pictures_of_a_case_stay_in_order_in_one_row(table):
    row = table[table.index.str.contains("neojaundice")].iloc[0]
    assert [path.rsplit("-", 1)[1] for path in row["images"]] == ["1.jpg", "2.jpg", "3.jpg"]
    assert row["answer"] == "Treatment Required"


def test_reports_keep_the_question_of_their_row(table):
    rows = table[table["task"] == "report"]
    assert [ask["question"] for ask in rows["ask"]] == ["Describe the heart.", "Describe the lungs.", "Describe it."]
    assert rows["answer"].tolist() == ["Heart is normal.", "Lungs are clear.", "Clear lungs."]


def test_the_group_is_the_case_without_its_view(table):
    groups = {row.images[0].rsplit("/", 1)[1]: row.group for row in table.itertuples()}
    assert groups["NeoJaundice_00672-1.jpg"] == "NeoJaundice_00672"
    assert groups["CMMD_D1-0002-1.png"] == "CMMD_D1-0002"
    assert groups["IUGC_00445-53.png"] == "IUGC_00445"
    assert groups["IU-XRay_CXR3030_IM-1405-0.png"] == "IU-XRay_CXR3030"
    assert groups["bone_marrow_00001.jpg"] == "bone_marrow_00001"


def test_group_by_of_the_recipe_counts_before_the_name(flare):
    table = read_flare(flare, DatasetConfig(name="f", source=".", format="flare", group_by=r"([A-Za-z0-9_]+)[^/]*$"))
    assert "IUGC_00445" in set(table["group"]) and "CMMD_D1" in set(table["group"])


def test_bug_flare_hidden_split_counted_twice(flare, tmp_path, table):
    hidden = table[table["split"] == "validation-hidden"]
    assert len(hidden) == sum(map(len, HIDDEN.values())) and hidden["answer"].notna().all()
    without_answers = read_flare(write_flare(tmp_path, with_answers=False), CONFIG)
    without_answers = without_answers[without_answers["split"] == "validation-hidden"]
    assert without_answers["id"].tolist() == hidden.index.tolist()
    assert all(answer is None for answer in without_answers["answer"])
    assert without_answers["task"].tolist() == hidden["task"].tolist()


def test_testing_has_questions_without_answers(table):
    rows = table[table["split"] == "testing"]
    assert all(answer is None for answer in rows["answer"])
    assert rows["ask"].iloc[1]["options"] == ["No loss", "Single tooth loss", "Consecutive multiple loss"]


def test_hidden_numbers_alone_are_none_not_nan(tmp_path):
    values = record("Counting", "imagesVal/cell_1.png", "How many?", "", "val")
    other = record("Counting", "imagesTr/cell_2.png", "How many?", 3)
    write_questions(tmp_path / "validation-hidden/M/cells/q.json", [values])
    write_questions(tmp_path / "training/M/cells/q.json", [other])
    assert read_flare(tmp_path, CONFIG)["answer"].tolist() == [3, None]


def test_one_data_set_can_be_read_by_itself(flare):
    table = read_flare(flare, CONFIG, subset="dental")
    assert table["split"].value_counts().to_dict() == {"training": 2, "validation-hidden": 1, "testing": 1}


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("validation_public", "validation-public"),
        ("val", "validation-public"),
        ("validation_hidden", "validation-hidden"),
        ("train", "training"),
        ("train/training", "training"),
        ("val/validation-hidden", "validation-hidden"),
        ("test", "testing"),
    ],
)
def test_split_folders_have_several_names(tmp_path, folder, split):
    assert one_question(tmp_path, record("cls", "images/a.png", LOSS, "A"), folder)["split"] == split


@pytest.mark.parametrize("key", ["questions", "data", "annotations", "items"])
def test_a_file_may_hold_its_list_under_a_key(tmp_path, key):
    path = tmp_path / "training/Xray/set/q.json"
    write_questions(path, [record("cls", "imagesTr/a.png", LOSS, "A")])
    path.write_text(json.dumps({"version": 1, key: json.loads(path.read_text())}))
    assert read_flare(tmp_path, CONFIG)["answer"].tolist() == ["No loss"]


def test_pictures_are_found_where_the_archive_put_them(tmp_path):
    write_questions(tmp_path / "training/Xray/set/q.json", [record("cls", "imagesTr/a.png", LOSS, "A")])
    folder = tmp_path / "training/Xray/set/imagesTr"
    (folder / "imagesTr").mkdir()
    shutil.move(folder / "a.png", folder / "imagesTr" / "a.png")
    assert read_flare(tmp_path, CONFIG)["images"][0] == [str(folder / "imagesTr" / "a.png")]


def test_a_picture_outside_of_the_data_set_is_never_taken(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    for name in ("../../../secret.png", str(tmp_path / "secret.png")):
        write_questions(tmp_path / "training/Xray/set/q.json", [])
        (tmp_path / "training/Xray/set/q.json").write_text(json.dumps([record("cls", name, LOSS, "A")]))
        listed = list_flare(tmp_path, CONFIG)[0].images
        assert listed == [str(tmp_path / "training/Xray/set/secret.png")]
        with pytest.raises(FileNotFoundError, match="1 pictures"):
            read_flare(tmp_path, CONFIG)


def test_missing_pictures_are_counted_with_the_first(flare, tmp_path):
    shutil.copytree(flare, tmp_path / "copy")
    for name in ("Xray/dental/imagesTr/PXMT_00001.png", "Ultrasound/BUSI-det/imagesTr/BUSI_00001.png"):
        (tmp_path / "copy/training" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"2 pictures that aren't there.*BUSI_00001.png"):
        read_flare(tmp_path / "copy", CONFIG)


GOOD = record("classification", "imagesTr/a.png", LOSS, "A")
BOXED = record("Detection", "imagesTr/a.png", "Box it.", [[1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (GOOD | {"TaskType": "Segmentation"}, "TaskType 'Segmentation', expected one of"),
        (GOOD | {"Answer": "T"}, "answer 'T', expected one of .*'C: Consecutive"),
        (GOOD | {"Answer": "No loss at all"}, "answer 'No loss at all'"),
        (GOOD | {"Answer": "A: Single tooth loss"}, "answer 'A: Single"),
        (GOOD | {"Answer": 3}, "answer 3, expected one of"),
        (GOOD | {"Question": "What is it?", "Answer": "Benign"}, "no options in question 'What is it"),
        (GOOD | {"Question": "What is it?", "Answer": "A"}, "no options in question"),
        (GOOD | {"Question": None}, "Question None, expected a text"),
        (without(GOOD, "Question"), "Question None"),
        (GOOD | {"Answer": ""}, "no Answer, expected one in the split 'training'"),
        (without(GOOD, "Answer"), "no Answer"),
        (record("multi label", "imagesTr/a.png", TOOTH, "Dental Caries; Gout"), "Gout"),
        (record("multi label", "imagesTr/a.png", TOOTH, 4), "answer 4, expected labels"),
        (
            record("counting", "imagesTr/a.png", "How many?", "about 3 or 4"),
            "answer 'about 3 or 4', expected one number",
        ),
        (record("counting", "imagesTr/a.png", "How many?", 3.5), "answer 3.5"),
        (record("counting", "imagesTr/a.png", "How many?", True), "answer True"),
        (record("regression", "imagesTr/a.png", "How much?", "1e300"), "1e300"),
        (record("report", "imagesTr/a.png", "Describe.", "..."), "expected words"),
        (BOXED | {"Answer": "no lesion"}, "answer 'no lesion', expected whole"),
        (BOXED | {"Answer": [[1, 2, 3]]}, r"answer '\[\[1, 2, 3\]\]'"),
        (BOXED | {"Answer": [[1, 2, 3, 4], [900, 900, 950, 950]]}, "inside the picture, 320 x 200 pixels"),
        (BOXED | {"Answer": '{"1": [[1, 2, 3, 4], [5, 6'}, "expected whole"),
        (BOXED | {"Answer": "[[1, 2, 3, 4], "}, "expected whole"),
        (BOXED | {"TaskType": "instance_detection"}, "expected boxes by name"),
        (BOXED | {"ImageName": ["imagesTr/a.png", "imagesTr/b.png"]}, "boxes on 2 pictures"),
    ],
)
def test_a_record_that_cant_be_understood_is_named_with_what_was_found(tmp_path, values, found):
    path = tmp_path / "training/Xray/set/set_questions_train.json"
    write_questions(path, [GOOD, values])
    with pytest.raises(ValueError, match=found) as error:
        read_flare(tmp_path, CONFIG)
    assert f"{path}[1]: " in str(error.value) and "1 row of" in str(error.value)


@pytest.mark.parametrize("names", [None, "", [], [""], {"a": 1}, [3]])
def test_a_record_without_a_picture_is_refused(tmp_path, names):
    path = tmp_path / "training/Xray/set/q.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([GOOD | {"ImageName": names}]))
    with pytest.raises(ValueError, match=r"q.json\[0\]: ImageName .*, expected a file name"):
        read_flare(tmp_path, CONFIG)


def test_all_bad_records_are_told_at_once(tmp_path):
    write_questions(tmp_path / "training/Xray/set/q.json", [GOOD | {"Answer": "Z"}] * 25)
    with pytest.raises(ValueError, match="25 rows") as error:
        read_flare(tmp_path, CONFIG)
    assert str(error.value).count("answer 'Z'") == 10 and "and 15 more" in str(error.value)


@pytest.mark.parametrize("content", ['{"a": 1}', "3", '"text"', "[1]", "{", "[", b"\xff\xfe"])
def test_a_file_that_holds_no_questions_is_named(tmp_path, content):
    path = tmp_path / "training/Xray/set/q.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"q\.json.*expected"):
        read_flare(tmp_path, CONFIG)


def test_files_outside_of_split_folders_and_submissions_are_no_questions(flare, tmp_path, table):
    shutil.copytree(flare, tmp_path / "copy")
    (tmp_path / "copy/dataset_info.json").write_text("{}")
    (tmp_path / "copy/validation-hidden/predictions.json").write_text("[]")
    assert len(read_flare(tmp_path / "copy", CONFIG)) == len(table)


def test_a_file_with_answers_that_lacks_questions_is_refused(flare, tmp_path):
    shutil.copytree(flare, tmp_path / "copy")
    path = tmp_path / "copy/validation-hidden/Ultrasound/iugc/iugc_questions_val_withGT.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))
    with pytest.raises(ValueError, match="has 1 questions and iugc_questions_val.json 2"):
        read_flare(tmp_path / "copy", CONFIG)


def test_an_answer_missing_among_others_of_a_hidden_file_is_refused(tmp_path):
    rows = [GOOD, without(GOOD, "Answer")]
    write_questions(tmp_path / "testing/Xray/set/q.json", rows)
    with pytest.raises(ValueError, match="no Answer"):
        read_flare(tmp_path, CONFIG)


def test_a_file_with_answers_that_has_none_is_refused(tmp_path):
    write_questions(tmp_path / "validation-hidden/Xray/set/q_withGT.json", [GOOD | {"Answer": ""}])
    with pytest.raises(ValueError, match="no Answer"):
        read_flare(tmp_path, CONFIG)


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected at least one"):
        read_flare(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Does this require treatment? A. No, B. Yes", ["No", "Yes"]),
        ("Is it? A: No, B: Yes", ["No", "Yes"]),
        ("Is it?\nA) No\nB) Yes\nC) Unclear", ["No", "Yes", "Unclear"]),
        ("Is it? (A) No (B) Yes", ["No", "Yes"]),
        ("Is it? A:No, B:Yes", ["No", "Yes"]),
        ("Age? A: Child (0-17), B: Young Adult (18-39), C: Elderly (65+)", None),
        ("Which? A: Class I (free-end), B: Class II, C: Normal (all teeth present)", None),
        ("Which? A: Normal, B: Lack of vitamin D. deficiency, C: Other", None),
        ("Is it hepatitis B. or not? A: No, B: Yes", ["No", "Yes"]),
        ("Is plaque A. stable? A: No, B: Yes, C: Unclear", ["No", "Yes", "Unclear"]),
        ("Which? A: No, B: Hepatitis A: acute, C: Other", ["No", "Hepatitis A: acute", "Other"]),
        ("Is it? A: No, B: Yes. Answer with one letter.", ["No", "Yes"]),
        ("Is there a mass? Answer A.", []),
        ("Is there a mass?", []),
        ("Which? A: Same, B: same", []),
    ],
)
def test_options_are_read_from_the_question(question, options):
    found = parse_options(question)
    assert "".join(found) == "ABCDEFGHIJK"[: len(found)]
    if options is None:
        assert len(found) == 3 and all(option in question for option in found.values())
        assert not any(option.endswith(",") for option in found.values())
    else:
        assert list(found.values()) == options


def test_labels_are_read_from_the_question():
    assert parse_label_list(TOOTH) == PERIAPICAL
    assert parse_label_list("Which findings are present?") == []


@pytest.mark.parametrize("answer", ["A", "a: No loss", "(A)", "A.", "A: No loss", "no loss", "No loss.", " A "])
def test_an_option_may_be_its_letter_or_its_words(tmp_path, answer):
    answer = answer if answer != "a: No loss" else "A) No loss"
    assert one_question(tmp_path, GOOD | {"Answer": answer})["answer"] == "No loss"


def test_several_letters_are_labels(tmp_path):
    question = "Which? Select all that apply. A: Cyst, B: Caries, C: Fracture"
    row = one_question(tmp_path, record("Multi-label Classification", "imagesTr/a.png", question, "A, C"))
    assert row["answer"] == ["Cyst", "Fracture"] and row["ask"]["vocabulary"] == ["Cyst", "Caries", "Fracture"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_in_the_header_is_that_of_the_upright_picture(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = str(tmp_path / f"a.{kind.lower()}")
    Image.new("RGB", (30, 20)).save(path, kind, exif=exif)
    assert read_size(path) == open_patch(path).size


def test_an_orientation_behind_the_pixels_counts_too(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png", exif=exif)
    whole = (tmp_path / "a.png").read_bytes()
    start = whole.index(b"eXIf") - 4
    chunk = whole[start : start + 12 + int.from_bytes(whole[start : start + 4], "big")]
    rest, end = whole.replace(chunk, b""), whole.index(b"IEND") - 4 - len(chunk)
    (tmp_path / "a.png").write_bytes(rest[:end] + chunk + rest[end:])
    assert read_size(str(tmp_path / "a.png")) == open_patch(str(tmp_path / "a.png")).size == (20, 30)


def test_the_size_comes_from_the_header_alone(tmp_path):
    Image.effect_noise((300, 200), 50).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:200])
    assert read_size(str(tmp_path / "a.png")) == (300, 200)
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="a.png: its size can't be read"):
        read_size(str(tmp_path / "a.png"))
