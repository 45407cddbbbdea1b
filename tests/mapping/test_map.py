"""Maps: every square is asked as the page asks, once, and lands where it was cut from."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from biomarker_fixture import SIZE, paint_slide, write_pyramid
from demo_run import write_run
from PIL import Image
from recipe_commands import run

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.data.slides.grid import grid_picture
from histolab_sft.demo.data_set import DataSet
from histolab_sft.demo.load import load_demo
from histolab_sft.demo.systems import answer_patches
from histolab_sft.mapping import score
from histolab_sft.mapping.arguments import MapArguments
from histolab_sft.mapping.figure import count_answers, draw_map, say_share
from histolab_sft.mapping.files import describe_map, list_features
from histolab_sft.mapping.run import choose_data_set, choose_squares
from histolab_sft.mapping.score import PROBABILITY

CLASSES = ["Adipose", "Stroma", "Tumor"]


def write_map(recipe, monkeypatch, *flags):
    return run("map", ["--config", recipe, *flags], monkeypatch)


def read_map(folder):
    [path] = folder.glob("out/maps/*/*/squares.csv")
    return path.parent, pd.read_csv(path)


def make_table(options=CLASSES, rows=2, columns=3, seed=0, withheld=()):
    """Return a picture's grid and what a system might say about each of its squares."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 200, (rows * 20 + 7, columns * 20 + 3, 3), dtype=np.uint8)
    grid = grid_picture(Image.fromarray(pixels), 20)
    squares = np.argwhere(grid.tissue >= 0)
    chances = rng.dirichlet(np.ones(len(options)), len(squares))
    table = pd.DataFrame({"row": squares[:, 0], "column": squares[:, 1]})
    table["x"], table["y"] = 20 * table["column"], 20 * table["row"]
    table["answer"] = [options[place] for place in chances.argmax(axis=1)]
    table["confidence"] = chances.max(axis=1)
    table["withheld"] = [number in withheld for number in range(len(table))]
    return grid, table.assign(**{PROBABILITY + name: chances[:, place] for place, name in enumerate(options)})


@pytest.mark.model
def test_a_map_says_of_each_square_what_the_page_says_of_the_same_patch(
    tmp_path, untrained_model, monkeypatch, capsys
):
    recipe = write_run(tmp_path, untrained_model)
    pixels = paint_slide(1, 0.5)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    flags = ["--pictures", tmp_path / "large.png", "--patch_size", SIZE, "--min_tissue", 0.3]
    assert write_map(recipe, monkeypatch, *flags, "--dataset", "pcam") == 0
    folder, table = read_map(tmp_path)
    assert len(table) == 9 and table["column"].min() == 1  # the left column is glass
    assert "9 squares of 64 px; 3 left out, less than 0.3 of them tissue" in capsys.readouterr().out

    demo = load_demo(*parse_recipe(["--config", str(recipe)]))
    patches = [
        Image.fromarray(pixels[y : y + SIZE, x : x + SIZE]) for x, y in zip(table["x"], table["y"], strict=True)
    ]
    answers = answer_patches(demo.systems, "finetuned", patches, demo.data_sets[1])
    assert table["answer"].tolist() == [answer.value for answer in answers]
    assert table["withheld"].tolist() == [answer.withheld for answer in answers]
    found = table[[PROBABILITY + name for name in ("Normal", "Tumor")]].to_numpy()
    assert np.allclose(found, [answer.probabilities for answer in answers], atol=1e-5)
    told = json.loads((folder / "map.json").read_text())
    assert told["squares"] == {"asked": 9, "of": 12} and sum(told["answers"].values()) == 9
    assert {path.name for path in folder.iterdir()} == {
        "map.json", "map.pdf", "map.png", "squares.csv", "squares.geojson"
    }  # fmt: skip


@pytest.mark.model
def test_a_map_that_was_stopped_asks_no_square_twice(tmp_path, untrained_model, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("histolab_sft.evaluation.answer_cache.CHUNK", 4)
    recipe = write_run(tmp_path, untrained_model)
    Image.fromarray(paint_slide(1, 0.5)).save(tmp_path / "large.png")
    asked, ask = [], score.label_log_likelihoods

    def count(model, processor, cases, *args):
        asked.append(len(cases))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(model, processor, cases, *args)

    monkeypatch.setattr(score, "label_log_likelihoods", count)
    flags = ["--pictures", tmp_path / "large.png", "--patch_size", SIZE, "--dataset", "crc"]
    with pytest.raises(KeyboardInterrupt):
        write_map(recipe, monkeypatch, *flags)
    assert write_map(recipe, monkeypatch, *flags) == 0 and asked == [4, 4, 4, 4]  # the second was cut off
    _, table = read_map(tmp_path)
    assert len(table) == 12
    # Another size of squares is another map, and leaves this one.
    assert write_map(recipe, monkeypatch, *flags, "--patch_size", 2 * SIZE) == 0 and sum(asked[4:]) == 2
    assert len(list(tmp_path.glob("out/maps/*/*/squares.csv"))) == 2


@pytest.mark.model
def test_a_slide_is_asked_at_the_resolution_that_was_named(tmp_path, untrained_model, monkeypatch):
    pytest.importorskip("openslide", reason="needs the extra `slides`")
    recipe = write_run(tmp_path, untrained_model)
    path = write_pyramid(tmp_path / "slide.tif", paint_slide(1, 0.25), 0.25)
    flags = ["--pictures", path, "--patch_size", SIZE, "--mpp", 0.5, "--dataset", "crc", "--min_tissue", 0.3]
    assert write_map(recipe, monkeypatch, *flags) == 0
    folder, table = read_map(tmp_path)
    assert len(table) == 9 and sorted(set(table["x"])) == [128, 256, 384]  # pixels of the finest level
    assert folder.name == "crc-64px-at-0.5-tissue-0.3"


def test_qupath_gets_each_square_in_its_place_with_its_class_unless_that_is_withheld():
    grid, table = make_table(withheld=[1])
    features = list_features(grid, table, CLASSES)["features"]
    assert len(features) == 6
    for number, feature in enumerate(features):
        [ring] = feature["geometry"]["coordinates"]
        x, y = table["x"][number], table["y"][number]
        assert ring == [[x, y], [x + 20, y], [x + 20, y + 20], [x, y + 20], [x, y]]
        assert feature["properties"]["measurements"][CLASSES[0]] == table[PROBABILITY + CLASSES[0]][number]
        named = feature["properties"].get("classification", {}).get("name")
        assert named == (None if number == 1 else table["answer"][number])
    json.dumps(features)


@pytest.mark.parametrize("n_classes", [2, 9, 12])
def test_the_figure_has_the_picture_the_classes_and_a_panel_of_each_class(n_classes):
    options = [f"class {number}" for number in range(n_classes)]
    grid, table = make_table(options, withheld=[0])
    figure = draw_map(grid, table, options, 0.5)
    titles = [axes.get_title(loc="center") for axes in figure.axes if axes.images]
    assert titles[:2] == ["picture", "likeliest class"] and len(titles) == 2 + n_classes
    _, classes, *likely = [axes for axes in figure.axes if axes.images]
    shown = classes.images[1].get_array()
    assert shown.shape == (2, 3, 4) and len({tuple(cell) for cell in shown.reshape(6, 4)}) > 1
    for axes, option in zip(likely, options, strict=True):
        assert np.allclose(axes.images[0].get_array().ravel(), table[PROBABILITY + option])
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    counts = count_answers(table, options)
    assert named == [f"{name} {count / 6:.0%}" for name, count in counts.items()] and counts["withheld"] == 1


@pytest.mark.parametrize(("count", "said"), [(1, "<1%"), (4, "<1%"), (6, "1%"), (50, "5%"), (1000, "100%")])
def test_a_share_of_some_squares_is_never_called_nothing(count, said):
    assert say_share(count, 1000) == said


def test_what_belongs_to_no_square_is_told():
    grid, table = make_table()
    told = describe_map("a.png", grid, table, CLASSES, MapArguments(["a.png"], 20))
    assert "6 squares of 20 px; 3 px at the right and 7 px at the bottom belong to no square" in told


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"patch_size": 0}, "patch_size is 0, expected pixels"),
        ({"mpp": 0.0}, "mpp is 0.0, expected µm per pixel"),
        ({"min_tissue": 50.0}, "min_tissue is 50.0, expected a part of 1"),
    ],
)
def test_a_key_that_cannot_be_meant_is_refused(keys, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MapArguments(**{"pictures": ["a.png"], "patch_size": 20} | keys)


@pytest.mark.parametrize(
    ("side", "keys", "message"),
    [
        (20, {}, "a.png has 20 x 20 px, expected room for a square of 64 px; lower patch_size"),
        (
            64,
            {"min_tissue": 0.5},
            "the most tissue that a square has is 0.00 of it, expected min_tissue, 0.5, or more",
        ),
    ],
)
def test_a_picture_without_a_square_to_ask_is_refused(side, keys, message):
    grid = grid_picture(Image.new("RGB", (side, side), "white"), 64)
    with pytest.raises(ValueError, match=re.escape(message)):
        choose_squares(grid, "a.png", MapArguments(["a.png"], 64, **keys))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "the recipe has crc, bach, reports, expected one data set"),
        ("pcam", "dataset is 'pcam', expected one of the recipe's: crc, bach, reports"),
        ("reports", "reports: its answers are written, expected a data set with classes"),
    ],
)
def test_one_data_set_with_classes_is_asked_for(name, message):
    keys = {"class_names": {"A": "A", "B": "B"}}
    described = [DataSet(entry, "classification", [], 8, keys) for entry in ("crc", "bach")]
    described.append(DataSet("reports", "report", [], 8, {"format": "records"}))
    with pytest.raises(ValueError, match=re.escape(message)):
        choose_data_set(described, name)
    assert choose_data_set(described, "bach") is described[1] and choose_data_set(described[:1], None) is described[0]
