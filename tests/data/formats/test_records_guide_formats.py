"""LLaVA conversations, COCO boxes and YOLO polygons all become the common table."""

import json
import logging

import pytest
from PIL import Image

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.formats.coco import read_coco
from histolab_sft.data.formats.llava import read_llava
from histolab_sft.data.formats.rows import COLUMNS
from histolab_sft.data.formats.yolo_seg import read_yolo_seg
from histolab_sft.tasks import TASKS

SIZE = (200, 100)


def config(**keys):
    return DatasetConfig(**{"name": "guide", "source": ".", "format": "guide"} | keys)


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def turns(*words):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(words)]


def talk(image, *words, **keys):
    return {"image": image, "conversations": turns(*words), "modality": "ct"} | keys


TALKS = [
    talk("ct/0001.png", "<image>\nDescribe the findings.", "A nodule in the left lobe."),
    talk("ct/0002.png", "<image>\nIs it large?", "No.", "Where is it?", "At the apex.", "Is it new?", "Yes."),
    talk(["ct/0001.png", "ct/0002.png"], "<image>\n<image>\nWhat changed?", "It grew.", dataset_split="test"),
]


def write_talks(path, talks=TALKS):
    for name in ("ct/0001.png", "ct/0002.png"):
        picture(path.parent / name)
    path.write_text("\n".join(map(json.dumps, talks)) + "\n" if path.suffix == ".jsonl" else json.dumps(talks))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_conversations_give_one_row_a_question(tmp_path, suffix):
    table = read_llava(write_talks(tmp_path / f"data{suffix}"), config())
    assert list(table.columns) == COLUMNS and set(table["task"]) == {"report"}
    assert [(ask["question"], answer) for ask, answer in zip(table["ask"], table["answer"], strict=True)] == [
        ("Describe the findings.", "A nodule in the left lobe."),
        ("Is it large?", "No."),
        ("Where is it?", "At the apex."),
        ("Is it new?", "Yes."),
        ("What changed?", "It grew."),
    ]
    assert table["id"].tolist() == [f"guide/data{suffix}/{i}" for i in ("0/0", "1/0", "1/1", "1/2", "2/0")]
    assert [len(images) for images in table["images"]] == [1, 1, 1, 1, 2]
    assert table["images"][1] == table["images"][3] == [str(tmp_path / "ct/0002.png")]
    assert table["split"].tolist() == ["", "", "", "", "test"]
    assert all(group is None for group in table["group"])


def test_a_conversation_asks_its_own_question(tmp_path):
    row = read_llava(write_talks(tmp_path / "a.jsonl"), config()).iloc[0]
    given = config(instruction="{question}")
    assert TASKS["report"].format_question(row["ask"], given) == "Describe the findings."
    assert TASKS["report"].format_answer(row["ask"], row["answer"], given) == row["answer"]


def test_a_folder_of_split_files_names_the_splits(tmp_path):
    write_talks(tmp_path / "train.jsonl")
    write_talks(tmp_path / "val.jsonl", TALKS[:1])
    table = read_llava(tmp_path, config())
    assert table["split"].value_counts().to_dict() == {"train": 4, "val": 1, "test": 1}


def test_pictures_can_lie_in_a_folder_of_their_own(tmp_path):
    for name in ("ct/0001.png", "ct/0002.png"):
        picture(tmp_path / "images" / name)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, TALKS)))
    assert len(read_llava(tmp_path / "a.jsonl", config(), image_folder="images")) == 5
    with pytest.raises(FileNotFoundError, match="2 pictures that aren't there"):
        read_llava(tmp_path / "a.jsonl", config())


def test_marker_anywhere_in_the_first_turn_or_nowhere_and_other_names_of_the_speakers(tmp_path):
    talks = [
        talk("ct/0001.png", "What is it?\n<image>", "A cyst."),
        talk("ct/0001.png", "What is it?", "A cyst."),
        {
            "image": "ct/0001.png",
            "conversations": [
                {"from": "user", "value": "<image>What is it?"},
                {"from": "assistant", "value": "A cyst."},
            ],
        },
    ]
    table = read_llava(write_talks(tmp_path / "a.jsonl", talks), config())
    assert [ask["question"] for ask in table["ask"]] == ["What is it?"] * 3


def test_a_last_question_without_an_answer_is_hidden(tmp_path):
    table = read_llava(
        write_talks(tmp_path / "a.jsonl", [talk("ct/0001.png", "<image>What?", "This.", "Why?")]), config()
    )
    assert table["answer"].tolist() == ["This.", None]


def test_groups_come_from_the_record_or_from_the_path(tmp_path):
    talks = [talk("ct/0001.png", "<image>What?", "This.", patient_id=7, scan="s1")]
    path = write_talks(tmp_path / "a.jsonl", talks)
    assert read_llava(path, config())["group"].tolist() == ["7"]
    assert read_llava(path, config(group_by="scan"))["group"].tolist() == ["s1"]
    assert read_llava(write_talks(path, TALKS[:1]), config(group_by=r"(\d+)\.png"))["group"].tolist() == ["0001"]
    with pytest.raises(ValueError, match=r"a.jsonl\[0\]: group_by 'patient-"):
        read_llava(path, config(group_by=r"patient-\d"))
    with pytest.raises(ValueError, match="doesn't match"):  # where the data happen to lie
        read_llava(path, config(group_by=path.parent.name))


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (talk(None, "What?", "This."), "expected `image`"),
        (talk([], "What?", "This."), "expected `image`"),
        ([1], "expected `image`"),
        (talk("ct/0001.png"), r"conversations \[\], expected"),
        ({"image": "ct/0001.png"}, "conversations None, expected"),
        ({"image": "ct/0001.png", "conversations": [{"from": "gpt", "value": "This."}]}, r"\['gpt'\], expected"),
        ({"image": "ct/0001.png", "conversations": [{"from": "human", "value": 3}]}, "expected `from` and `value`"),
        (
            {"image": "ct/0001.png", "conversations": [{"from": "human", "value": "a"}] * 2},
            r"\['human', 'human'\], expected",
        ),
        (talk("ct/0001.png", "<image><image>What?", "This."), r"<image> in turns \[2, 0\], expected 1"),
        (talk(["ct/0001.png", "ct/0002.png"], "<image>What?", "This."), "expected 2 in the first"),
        (talk("ct/0001.png", "What?", "This.", "<image>And?", "That."), r"in turns \[0, 0, 1, 0\]"),
        (talk("ct/0001.png", "<image>", "This."), "turn 0 has no words"),
        (talk("ct/0001.png", "<image>What?", " "), "turn 1 has no words"),
    ],
)
def test_a_broken_conversation_is_named(tmp_path, entry, found):
    with pytest.raises(ValueError, match=found) as error:
        read_llava(write_talks(tmp_path / "a.jsonl", [TALKS[0], entry]), config())
    assert "a.jsonl[1]: " in str(error.value) and "1 row of" in str(error.value)


def test_lines_that_are_no_json_are_counted(tmp_path):
    path = write_talks(tmp_path / "a.jsonl")
    path.write_text(path.read_text() + "\n{broken\n\n{\n")
    with pytest.raises(ValueError, match=r"2 rows (.|\n)*a.jsonl\[4\](.|\n)*a.jsonl\[6\]"):
        read_llava(path, config())
    with pytest.raises(ValueError, match="holds dict, expected a list"):
        read_llava(write_json(tmp_path / "b.json", {"a": 1}), config())


def coco(**keys):
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "width": 200, "height": 100},
            {"id": 3, "file_name": "a.png", "width": 200, "height": 100},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 20, 30.5, 40]},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [150, 50, 100, 25]},
        ],
        "categories": [{"id": 1, "name": "polyp"}, {"id": 2, "name": "ulcer"}],
    } | keys


def write_coco(path, content=None):
    for name in ("a.png", "b.png"):
        picture(path.parent / name)
    return write_json(path, coco() if content is None else content)


def test_coco_boxes_are_corners_with_names_and_a_picture_without_boxes_has_an_empty_list(tmp_path):
    table = read_coco(write_coco(tmp_path / "boxes.json"), config())
    assert list(table.columns) == COLUMNS and set(table["task"]) == {"boxes"}
    assert table["id"].tolist() == ["guide/boxes.json/a.png", "guide/boxes.json/b.png"]
    # The second box ends outside of the picture, 200 pixels wide.
    assert table["answer"].tolist() == [[], [[10, 20, 40.5, 60, "ulcer"], [150, 50, 200, 75, "polyp"]]]
    assert all(ask["size"] == [200, 100] and ask["label_aware"] for ask in table["ask"])
    task = TASKS["boxes"]
    for row in table.itertuples():
        answer, _ = task.read_answer(task.format_answer(row.ask, row.answer, config()), row.ask, config())
        assert [box[4] for box in answer] == [box[4] for box in row.answer]


@pytest.mark.parametrize(
    ("file", "pictures", "split"),
    [
        ("annotations/instances_val.json", "val", "val"),
        ("annotations/instances_train.json", "images/train", "train"),
        ("annotations/boxes.json", "images", ""),
        ("valid/_annotations.coco.json", "valid", "valid"),
        ("test.json", "images", "test"),
    ],
)
def test_coco_layouts_of_splits_and_pictures(tmp_path, file, pictures, split):
    write_json(tmp_path / file, coco())
    for name in ("a.png", "b.png"):
        picture(tmp_path / pictures / name)
    table = read_coco(tmp_path, config())
    assert set(table["split"]) == {split}
    assert table["images"][0] == [str(tmp_path / pictures / "a.png")]


def test_a_split_of_coco_can_have_a_name_of_its_own(tmp_path):
    write_json(tmp_path / "annotations/instances_val2017.json", coco())
    for name in ("a.png", "b.png"):
        picture(tmp_path / "val2017" / name)
    table = read_coco(tmp_path, config(splits={"test": "val2017"}))
    assert set(table["split"]) == {"val2017"}


def test_coco_without_annotations_hides_the_answers(tmp_path):
    content = coco()
    del content["annotations"]
    table = read_coco(write_coco(tmp_path / "test.json", content), config())
    assert table["answer"].tolist() == [None, None]
    assert read_coco(write_coco(tmp_path / "test.json", coco(annotations=[])), config())["answer"].tolist() == [[], []]


def test_boxes_around_crowds_are_left_out_and_counted(tmp_path, caplog):
    content = coco()
    content["annotations"][0]["iscrowd"] = 1
    with caplog.at_level(logging.WARNING):
        table = read_coco(write_coco(tmp_path / "a.json", content), config())
    assert [len(answer) for answer in table["answer"]] == [0, 1]
    assert "1 boxes around crowds left out" in caplog.text


def broken_box(**keys):
    content = coco()
    content["annotations"][1] |= keys
    return content


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (broken_box(bbox=[10, 20, 0, 40]), r"annotations\[1\]: bbox \[10, 20, 0, 40\]"),
        (broken_box(bbox=[10, 20, -5, 40]), "above 0"),
        (broken_box(bbox=[10, 20, 30]), r"annotations\[1\]"),
        (broken_box(bbox=[10, 20, 30, "40"]), r"annotations\[1\]"),
        (broken_box(bbox=None), "bbox None"),
        (broken_box(bbox=[250, 20, 30, 40]), "image 7: Box.*expected a box inside 200 x 100 pixels"),
        (broken_box(category_id=9), "category 9"),
        (broken_box(image_id=9), "image 9"),
        (coco(categories=[]), "ids of `categories`"),
        (coco(images=[{"id": 7, "file_name": "b.png", "width": 400, "height": 200}], annotations=[]), "400 x 200"),
        (coco(images=[*coco()["images"], {"id": 7, "file_name": "a.png"}]), "2 images with the id 7"),
        (coco(images=[*coco()["images"], {"id": 8}]), r"images\[2\]: .*expected an object with id and file_name"),
        (coco(annotations={"a": 1}), "has annotations"),
        ({"a": 1}, "holds no list `images`"),
        ([], "holds no list `images`"),
    ],
)
def test_a_broken_coco_file_is_named(tmp_path, content, found):
    with pytest.raises(ValueError, match=found) as error:
        read_coco(write_coco(tmp_path / "boxes.json", content), config())
    assert "boxes.json" in str(error.value)


def test_missing_pictures_of_coco_are_counted(tmp_path):
    with pytest.raises(FileNotFoundError, match="2 pictures"):
        read_coco(write_json(tmp_path / "boxes.json", coco()), config())


# Five points; the first two alone would give the box 20, 30, 100, 20.
POLYGON = "1 0.1 0.3 0.5 0.2 0.9 0.4 0.7 0.8 0.2 0.6\n"


def write_yolo(root, pictures=("images/train/a.png",), labels=None, names="names: [2_VTQ, 7_LHTT]"):
    for name in pictures:
        picture(root / name)
    for name, text in ({"labels/train/a.txt": POLYGON} if labels is None else labels).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "data.yaml").write_text(names)
    return root


def test_polygons_become_boxes_around_all_their_points(tmp_path):
    row = read_yolo_seg(write_yolo(tmp_path), config()).iloc[0]
    assert row["answer"] == [[pytest.approx(20), pytest.approx(20), pytest.approx(180), pytest.approx(80), "7_LHTT"]]
    assert (row["task"], row["split"], row["id"]) == ("boxes", "train", "guide/images/train/a.png")
    assert row["ask"]["size"] == [200, 100] and row["ask"]["label_aware"]


@pytest.mark.parametrize(
    ("image", "label", "split"),
    [
        ("images/val/a.png", "labels/val/a.txt", "val"),
        ("test/images/a.png", "test/labels/a.txt", "test"),
        ("a.png", "a.txt", ""),
        ("images/a.png", "labels/a.txt", ""),
    ],
)
def test_yolo_layouts_of_pictures_and_labels(tmp_path, image, label, split):
    row = read_yolo_seg(write_yolo(tmp_path, [image], {label: POLYGON}), config()).iloc[0]
    assert len(row["answer"]) == 1 and row["split"] == split


def test_a_picture_without_labels_shows_none_and_a_folder_without_any_hides_them(tmp_path):
    pictures = ["images/train/a.png", "images/train/b.png", "images/train/c.png", "images/test/d.png"]
    labels = {"labels/train/a.txt": POLYGON, "labels/train/b.txt": ""}
    table = read_yolo_seg(write_yolo(tmp_path, pictures, labels), config()).set_index("id")
    answers = {name.rsplit("/", 1)[1]: answer for name, answer in table["answer"].items()}
    assert len(answers.pop("a.png")) == 1
    assert answers == {"b.png": [], "c.png": [], "d.png": None}


@pytest.mark.parametrize("names", ["names: [a, b]", "names:\n  0: a\n  1: b\n", "names: {1: b, 0: a}"])
def test_class_names_are_a_list_or_a_mapping(tmp_path, names):
    assert read_yolo_seg(write_yolo(tmp_path, names=names), config())["answer"][0][0][4] == "b"


def test_class_names_can_stand_in_a_text_file(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="no data.yaml or data.yml or classes.txt"):
        read_yolo_seg(tmp_path, config())
    (tmp_path / "classes.txt").write_text("polyp\nulcer\n")
    assert read_yolo_seg(tmp_path, config())["answer"][0][0][4] == "ulcer"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1 0.5 0.5 0.2 0.2\n", "line 1: .*not one of YOLO boxes"),
        (POLYGON + "9 0.1 0.1 0.2 0.2 0.3 0.1\n", "line 2: class '9', expected 0 to 1"),
        (POLYGON + "ulcer 0.1 0.1 0.2 0.2 0.3 0.1\n", "line 2: class 'ulcer'"),
        ("1 10 10 20 20 30 10\n", "line 1: .*not pixels"),
        ("1 0.1 0.1 0.2 0.1 0.3 0.1\n", "1 of 1 polygons have no area"),
        ("1 0.1 0.1 0.2 x 0.3 0.1\n", "line 1"),
    ],
)
def test_a_broken_file_of_polygons_is_named(tmp_path, text, found):
    with pytest.raises(ValueError, match=found) as error:
        read_yolo_seg(write_yolo(tmp_path, labels={"labels/train/a.txt": text}), config())
    assert "a.txt" in str(error.value) and "1 row of" in str(error.value)


def test_labels_without_a_picture_are_refused(tmp_path):
    write_yolo(tmp_path, labels={"labels/train/a.txt": POLYGON, "labels/train/z.txt": POLYGON})
    with pytest.raises(FileNotFoundError, match="1 files of labels have no picture, such as .*z.txt"):
        read_yolo_seg(tmp_path, config())


@pytest.mark.parametrize("names", ["names: 3", "nc: 2", "names: {1: a, 2: b}", "- a"])
def test_a_file_without_class_names_is_refused(tmp_path, names):
    with pytest.raises(ValueError, match="data.yaml has names"):
        read_yolo_seg(write_yolo(tmp_path, names=names), config())
