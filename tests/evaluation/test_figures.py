"""Figures stay legible for few and many classes, with short and long names, and labels leave boxes free."""

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from histolab_sft.evaluation import figures
from histolab_sft.tasks.answer_forms import BOX_COLOURS, draw_boxes

LONG = "Invasive ductal carcinoma of no special type with extensive necrosis, grade {}"
NAMES = {"short": "C{}", "long": LONG, "wordless": "Adenocarcinoma{}InSituOfTheColonAndTheRectumWithMucin"}


def draw_matrix(n_classes, names, unparsed=True):
    counts = np.random.default_rng(0).integers(0, 40, size=(n_classes + 1, n_classes + 1))
    counts[-1] = 0
    counts[:, -1] *= unparsed
    labels = [NAMES[names].format(number) for number in range(n_classes)]
    return {"labels": [*labels, "unparsed"], "rows": counts.tolist()}


def find_overprints(figure):
    """Pairs of texts of a figure, turned ones by their corners, that lie on each other."""
    renderer = figure.canvas.get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    flat = [(text, text.get_window_extent(renderer)) for text in texts if not text.get_rotation()]
    return [
        (one.get_text(), other.get_text())
        for place, (one, first) in enumerate(flat)
        for other, second in flat[place + 1 :]
        if first.shrunk(0.9, 0.8).overlaps(second.shrunk(0.9, 0.8))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("n_classes", [2, 5, 9, 20, 52])
def test_no_name_and_no_count_of_a_confusion_matrix_lies_on_another(n_classes, names):
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.draw_confusion(draw_matrix(n_classes, names), "finetuned")
        FigureCanvasAgg(figure).draw()
        assert find_overprints(figure) == []
        axes = figure.axes[0].get_window_extent()
    # The field itself keeps a good part of the figure, whatever stands around it.
    assert axes.width > 0.4 * figure.bbox.width and axes.height > 0.25 * figure.bbox.height


def test_a_long_name_keeps_what_tells_it_from_others():
    shown = [figures.shorten(LONG.format(grade)) for grade in (1, 2)]
    assert shown[0] != shown[1] and all(len(name) <= figures.LONGEST for name in shown)
    assert figures.shorten("Tumor") == "Tumor"


def test_a_name_is_wrapped_into_lines_about_as_long():
    assert figures._wrap("Invasive duct…osis, grade 1") == "Invasive\nduct…osis,\ngrade 1"
    assert figures._wrap("Tumor") == "Tumor"


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 5, 9, 20, 52])
def test_every_text_of_the_places_in_the_list_lies_within_the_figure(n_classes):
    bias = [{"value": 0.01 * place, "ci95": [-0.1, 0.1]} for place in range(n_classes)]
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.draw_positions({system: {"bias": bias} for system in ("baseline", "finetuned")})
        FigureCanvasAgg(figure).draw()
        renderer = figure.canvas.get_renderer()
        boxes = [text.get_window_extent(renderer) for text in figure.findobj(Text) if text.get_text().strip()]
    top = figure.axes[0].title.get_window_extent(renderer).y1
    label = figure.axes[0].yaxis.label.get_window_extent(renderer)
    assert 0 <= label.y0 and label.y1 <= top and all(box.x0 >= -1 for box in boxes)


def test_the_only_ladder_of_a_report_is_twice_as_wide():
    rungs = [{"name": "zero-shot, raw", "kind": "baseline", "score": {"value": 0.5, "ci95": [0.4, 0.6]}}]
    alone, one = (figures.draw_ladder(rungs, 0.5, alone).get_figwidth() for alone in (True, False))
    assert alone == 2 * one


@pytest.mark.parametrize("box", [[150, 150, 158, 158], [2, 2, 10, 10], [290, 290, 298, 298], [290, 2, 298, 10]])
def test_a_label_leaves_its_small_box_free(box):
    shown = draw_boxes(Image.new("RGB", (300, 300)), (300, 300), {"truth": [[*box, "lesion"]]})
    colour = tuple(int(BOX_COLOURS["truth"][i : i + 2], 16) for i in (1, 3, 5))
    pixels = np.asarray(shown)
    inside = pixels[box[1] + 4 : box[3] - 3, box[0] + 4 : box[2] - 3]
    assert inside.size and (inside == 0).all()
    # More of its colour than the four lines have: the label is on the picture, all of it.
    assert (pixels == colour).all(axis=2).sum() > 120
