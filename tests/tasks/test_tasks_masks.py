"""Outlines: from the polygons of a data set to target, answer and score."""

import json
import math

import numpy as np
import pytest
import yaml
from chest_fixture import make_config
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from recipe_commands import CPU, SMALL, run

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.data_sets import list_rows, load_source
from histolab_sft.data.formats.coco import read_coco
from histolab_sft.data.formats.yolo_seg import read_yolo_seg
from histolab_sft.data.rows import load_patches
from histolab_sft.demo.cards import format_answers
from histolab_sft.demo.data_set import DataSet, QuestionRefused, fill_ask
from histolab_sft.demo.systems import Answer
from histolab_sft.metrics.masks import Outline, compute_masks
from histolab_sft.tasks import masks
from histolab_sft.tasks.answer_forms import BOX_COLOURS, draw_outlines

SIZE = (400, 300)
GREY = Image.new("RGB", (200, 100), (90, 90, 90))
TRIANGLE = [40.0, 30.0, 200.0, 60.0, 80.0, 240.0]
ASK = {"question": masks.OUTLINE_QUESTION, "size": list(SIZE), "label_aware": True}


def circle(corners, centre=(200, 150), radius=100):
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return [n for a in angles for n in (centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a))]


def test_a_target_is_a_polygon_on_a_scale_of_a_thousand():
    target = masks.format_target([Outline(TRIANGLE, "polyp")], SIZE)
    assert target == '```json[{"polygon": [[100, 100], [500, 200], [200, 800]], "label": "polyp"}]```'
    assert masks.format_target([], SIZE) == "```json[]```"
    assert "[x, y]" in masks.format_prompt() and masks.format_prompt("Where?", "").strip() == "Where?"


@pytest.mark.parametrize("label", [None, "lesion", "carcinoma in situ, 'left'"])
def test_a_target_comes_back_as_what_it_was_made_of(label):
    config = make_config("x", "coco", task="masks")
    answer = [[TRIANGLE, label], [circle(12), label]]
    read, repaired = masks.read_answer(masks.format_answer(ASK, answer, config), ASK, config)
    assert not repaired and [entry[1] for entry in read] == [label, label]
    assert all(np.allclose(back[0], true[0], atol=0.3) for back, true in zip(read, answer, strict=True))


def test_an_outline_of_many_points_has_few_in_the_target_and_nearly_its_area():
    truth = Outline(circle(500))
    target = masks.format_target([truth], SIZE)
    [entry] = json.loads(target.strip("`json"))
    assert len(entry["polygon"]) == masks.MAX_POINTS
    [read] = masks.parse(target, SIZE)[0]
    assert compute_masks([[truth]], [[read]], [SIZE])["mask_dice"] > 0.98


def test_simplifying_keeps_corners_and_drops_points_on_a_side():
    square = np.array([[0, 0], [5, 0], [10, 0], [10, 5], [10, 10], [0, 10]], dtype=float)
    assert masks.simplify(square, 4).tolist() == [[0, 0], [10, 0], [10, 10], [0, 10]]
    assert masks.simplify(square, 6) is square


@pytest.mark.parametrize(
    ("text", "polygons", "repaired"),
    [
        ("[]", [], False),
        ("There is nothing: ```json[]```", [], False),
        ('[{"polygon": [[0, 0], [1000, 0], [0, 1000]]}]', [[0, 0, 400, 0, 0, 300]], False),
        ('{"polygon": [[0, 0], [1000, 0], [0, 1000]]}', [[0, 0, 400, 0, 0, 300]], False),
        ('[{"polygon": [[-9, 0], [2000, 0], [0, 1000]]}]', [[0, 0, 400, 0, 0, 300]], False),
        ("[{'polygon': [[0, 0], [1000, 0], [0, 1000]]}]", [[0, 0, 400, 0, 0, 300]], True),
        # Cut off by the limit: the points that are whole make a polygon where they are three.
        ('[{"polygon": [[0, 0], [1000, 0], [0, 1000], [5', [[0, 0, 400, 0, 0, 300]], True),
        ('[{"polygon": [[0, 0], [1000', None, None),
        ('[{"polygon": [[0, 0], [10, 0]]}]', None, None),
        ('[{"polygon": [0, 0, 10, 0, 5, 5]}]', None, None),
        ('[{"polygon": [["a", 0], [10, 0], [5, 5]]}]', None, None),
        ('[{"polygon": [[1e999, 0], [10, 0], [5, 5]]}]', None, None),
        ('[{"box_2d": [0, 0, 10, 10]}]', None, None),
        ("no abnormality", None, None),
        ("", None, None),
    ],
)
def test_answers_are_read_as_outlines_or_not_at_all(text, polygons, repaired):
    found = masks.parse(text, SIZE)
    assert (found is None) == (polygons is None)
    if found:
        assert [outline.points for outline in found[0]] == polygons and found[1] is repaired


@given(st.text(max_size=80) | st.text('[]{}",:polygn0123456789. -', max_size=80))
def test_no_answer_is_an_error(text):
    found = masks.parse(text, SIZE)
    assert found is None or all(len(outline.points) >= 6 for outline in found[0])


def write_yolo(folder, count=14):
    """Pictures in three splits; every second has a square of its own and a triangle, the others nothing."""
    for i in range(count):
        split = "train" if i < count - 6 else "val" if i < count - 3 else "test"
        picture, label = folder / f"images/{split}/{i}.png", folder / f"labels/{split}/{i}.txt"
        for path in (picture, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(picture)
        label.write_text(f"0 0.1 0.1 0.{2 + i % 7} 0.1 0.2 0.8\n1 0.5 0.5 1 0.5 1 1 0.5 1\n" if i % 2 == 0 else "")
    (folder / "classes.txt").write_text("polyp\nulcer\n")
    return folder


def test_yolo_polygons_are_answers_of_masks_and_boxes_without_the_key(tmp_path):
    write_yolo(tmp_path)
    table = read_yolo_seg(tmp_path, make_config(tmp_path, "yolo_seg", task="masks"))
    assert set(table["task"]) == {"masks"} and table["ask"][0] == ASK | {"size": [40, 30]}
    row = table[table["id"] == "chest/images/train/0.png"].iloc[0]
    assert row["answer"] == [[[4, 3, 8, 3, 8, 24], "polyp"], [[20, 15, 40, 15, 40, 30, 20, 30], "ulcer"]]
    assert table[table["id"] == "chest/images/train/1.png"].iloc[0]["answer"] == []
    boxes = read_yolo_seg(tmp_path, make_config(tmp_path, "yolo_seg"))
    assert set(boxes["task"]) == {"boxes"} and boxes["ask"][0]["question"] != masks.OUTLINE_QUESTION


def write_coco(folder, segmentation):
    Image.new("RGB", SIZE).save(folder / "a.png")
    entry = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [40, 30, 160, 210], "segmentation": segmentation}
    content = {"images": [{"id": 7, "file_name": "a.png"}], "annotations": [entry]}
    (folder / "train.json").write_text(json.dumps(content | {"categories": [{"id": 3, "name": "mass"}]}))
    return read_coco(folder, make_config(folder, "coco", task="masks"))


def test_each_polygon_of_a_coco_segmentation_is_an_outline(tmp_path):
    [row] = write_coco(tmp_path, [TRIANGLE, circle(5)]).to_dict("records")
    assert row["task"] == "masks" and row["answer"] == [[TRIANGLE, "mass"], [circle(5), "mass"]]


@pytest.mark.parametrize(
    "segmentation", [None, [], {"counts": "abc", "size": [1, 2]}, [[1, 2, 3, 4]], [[1, 2] * 3 + [1]]]
)
def test_a_coco_segmentation_that_is_no_polygon_is_named(tmp_path, segmentation):
    with pytest.raises(ValueError, match=r"(?s)train.json, annotations\[0\]: segmentation .*as polygons"):
        write_coco(tmp_path, segmentation)


def test_masks_have_no_image_steps(tmp_path):
    config = make_config(tmp_path, "yolo_seg", task="masks", image_steps=["pad_to_square"])
    with pytest.raises(ValueError, match="task: masks and image_steps, .* since outlines aren't moved along"):
        load_source(config)


def test_a_block_of_a_recipe_gives_targets_in_every_split(tmp_path):
    write_yolo(tmp_path)
    entry = {"name": "endoscopy", "source": str(tmp_path), "format": "yolo_seg", "task": "masks"}
    histo_args = HistoArguments(datasets=[entry])
    assert len(list_rows(histo_args.datasets[0], histo_args)) == 14
    splits = load_patches(histo_args)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 8, "validation": 3, "test": 3}
    targets = [row["completion"][0]["content"] for row in splits["train"].with_format(None)]
    assert "```json[]```" in targets and any('"label": "ulcer"' in target for target in targets)


def test_outlines_are_drawn_where_they_are_in_the_colour_of_their_system():
    drawn = draw_outlines(Image.new("RGB", SIZE), SIZE, {"truth": [[[40, 30, 360, 30, 360, 270, 40, 270], "mass"]]})
    assert drawn.size == (320, 240)
    colour = tuple(int(BOX_COLOURS["truth"][i : i + 2], 16) for i in (1, 3, 5))
    assert drawn.getpixel((160, 24)) == drawn.getpixel((32, 120)) == colour and drawn.getpixel((160, 120)) == (0, 0, 0)
    assert masks.describe_answer([[TRIANGLE, "mass"], [TRIANGLE, None]])["rows"] == [
        ("mass", "3 points"),
        ("outline", "3 points"),
    ]


def test_the_page_shows_outlines_and_asks_about_one_picture():
    data_set = DataSet("endoscopy", "masks", [ASK], 8, {"format": "yolo_seg"})
    ask = fill_ask(data_set, {key: ASK[key] for key in ("question", "label_aware")}, "Where?", "", [GREY])
    assert ask["size"] == list(GREY.size)
    with pytest.raises(QuestionRefused, match="at most 1 for masks"):
        fill_ask(data_set, ASK, "Where?", "", [GREY, GREY])
    page = format_answers(data_set, ask, {"baseline": Answer([[[20, 10, 120, 10, 80, 80], "polyp"]], "")}, GREY)
    assert "1 outline" in page and "polyp" in page and "3 points" in page
    assert "No outline" in format_answers(data_set, ask, {"baseline": Answer([], "[]")}, GREY)


@pytest.mark.model
@pytest.mark.thorough
def test_masks_go_the_whole_road(tmp_path, monkeypatch, capsys):
    write_yolo(tmp_path / "data")
    recipe = yaml.safe_load(open("recipes/captioning.yaml", encoding="utf-8"))
    recipe["datasets"] = [{"name": "endoscopy", "source": "data", "format": "yolo_seg", "task": "masks"}]
    (tmp_path / "masks.yaml").write_text(yaml.safe_dump(recipe))
    flags = ["--config", tmp_path / "masks.yaml", "--model_name_or_path", "embedded", "--data_dir", tmp_path]
    flags += ["--output_dir", tmp_path / "out", *CPU, *SMALL]
    for script in ("preflight", "sft", "evaluate"):
        assert run(script, flags, monkeypatch) == 0
    entry = json.loads((tmp_path / "out/evaluation/results.json").read_text())["datasets"]["endoscopy"]
    assert entry["headline"] == "mask_dice" and {"mask_dice", "mask_iou"} <= set(entry["difference"])
    page = (tmp_path / "out/evaluation/report.html").read_text()
    assert "mask dice" in page and "with what the truth and both answers mark" in page
