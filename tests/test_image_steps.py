"""Boxes stay where their objects are, whatever is done to the picture: painted, moved, and found again."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from histolab_sft.data.image_steps import apply_steps, crop, crop_dark_edges, find_bright_area, pad_to_square, resize
from histolab_sft.metrics.boxes import Box

SMALLEST = 8  # pixels of a side: a box keeps a bright middle when it shrinks to a third


@st.composite
def painted_pictures(draw):
    """A black picture with one white box, wide to narrow (3:1 to 1:3)."""
    width, height = draw(st.integers(40, 120)), draw(st.integers(40, 120))
    x1, y1 = draw(st.integers(0, width - SMALLEST)), draw(st.integers(0, height - SMALLEST))
    x2, y2 = draw(st.integers(x1 + SMALLEST, width)), draw(st.integers(y1 + SMALLEST, height))
    return paint((width, height), (x1, y1, x2, y2)), Box(x1, y1, x2, y2, "nodule")


def paint(size, area, mode="L"):
    image = Image.new(mode, size)
    image.paste("white", area)
    return image


def find(image):
    """The box of what is white in a picture."""
    rows, columns = np.where(np.asarray(image.convert("L")) > 127)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def stays(framed):
    assert framed.dropped == 0 and len(framed.boxes) == 1
    assert framed.boxes[0].label == "nodule"
    return np.abs(find(framed.image) - np.array(framed.boxes[0][:4])).max() <= 1


@given(painted_pictures(), st.data())
def test_bug_17_a_box_survives_a_crop_through_it(painted, data):
    image, box = painted
    left, top = data.draw(st.integers(0, int(box.x2) - 1)), data.draw(st.integers(0, int(box.y2) - 1))
    right = data.draw(st.integers(max(left, int(box.x1)) + 1, image.width))
    bottom = data.draw(st.integers(max(top, int(box.y1)) + 1, image.height))
    framed = crop(image, [box], (left, top, right, bottom))
    assert framed.image.size == (right - left, bottom - top) and stays(framed)


@given(painted_pictures())
def test_bug_17_a_box_survives_padding_to_a_square(painted):
    framed = pad_to_square(painted[0], [painted[1]])
    assert framed.image.width == framed.image.height == max(painted[0].size) and stays(framed)


@given(painted_pictures(), st.integers(40, 200), st.integers(40, 200))
def test_bug_17_a_box_survives_a_resize(painted, width, height):
    framed = resize(painted[0], [painted[1]], (width, height))
    assert framed.image.size == (width, height) and stays(framed)


@given(painted_pictures(), st.integers(0, 15), st.integers(0, 15), st.integers(64, 256))
def test_a_box_survives_crop_padding_and_resize_together(painted, left, top, side):
    image, box = painted
    area = (min(left, int(box.x1)), min(top, int(box.y1)), image.width, image.height)
    framed = apply_steps(image, [box], [partial(crop, area=area), pad_to_square, partial(resize, size=(side, side))])
    assert framed.image.size == (side, side) and stays(framed)


@given(painted_pictures(), st.integers(0, 20), st.integers(0, 20))
def test_boxes_never_leave_their_picture_and_none_is_lost_uncounted(painted, left, top):
    image, box = painted
    boxes = [box, Box(-50, -50, 5, 5), Box(500, 0, 600, 10), Box(box.x2, box.y2, box.x1, box.y1)]
    for step in (partial(crop, area=(left, top, 40, 40)), pad_to_square, partial(resize, size=(64, 32))):
        framed = step(image, boxes)
        assert len(framed.boxes) + framed.dropped == len(boxes)
        for x1, y1, x2, y2, _ in framed.boxes:
            assert 0 <= x1 < x2 <= framed.image.width and 0 <= y1 < y2 <= framed.image.height


def test_a_box_outside_is_dropped_and_counted_over_all_steps():
    image, boxes = paint((60, 40), (5, 5, 15, 15)), [Box(5, 5, 15, 15), Box(50, 0, 60, 10), Box(20, 0, 30, 10)]
    framed = apply_steps(image, boxes, [partial(crop, area=(0, 0, 40, 40)), partial(crop, area=(0, 0, 20, 20))])
    assert framed.boxes == [Box(5, 5, 15, 15)] and framed.dropped == 2
    assert crop(image, boxes, (0, 0, 6, 40), min_visible=0.5).dropped == 3


def test_padding_uncovers_nothing_of_a_box_outside():
    framed = pad_to_square(paint((60, 20), (0, 0, 10, 10)), [Box(0, -15, 10, 10), Box(0, 20, 10, 40)])
    assert framed.boxes == [Box(0, 20, 10, 30)] and framed.dropped == 1


def test_a_step_leaves_its_inputs_as_they_were():
    image, boxes = paint((60, 20), (0, 0, 10, 10), "RGB"), [Box(-5, 0, 10, 10)]
    before = image.tobytes()
    for step in (partial(crop, area=(1, 1, 9, 9)), pad_to_square, partial(resize, size=(7, 7)), crop_dark_edges):
        assert step(image, boxes).image.mode == "RGB"
    assert image.tobytes() == before and boxes == [Box(-5, 0, 10, 10)]


@pytest.mark.parametrize("area", [(0, 0, 61, 20), (-1, 0, 5, 5), (5, 5, 5, 9), (9, 0, 5, 5)])
def test_a_crop_outside_the_picture_is_refused(area):
    with pytest.raises(ValueError, match="inside 60 x 20 pixels"):
        crop(Image.new("L", (60, 20)), [], area)


def frame(size, area, value=200):
    image = Image.new("L", size)
    image.paste(value, area)
    return image


def test_a_dark_frame_is_cut_off_with_the_boxes():
    image = frame((200, 180), (20, 10, 190, 170))
    framed = crop_dark_edges(image, [Box(30, 20, 60, 50, "nodule"), Box(0, 0, 10, 10)])
    assert framed.image.size == (170, 160) and np.asarray(framed.image).min() == 200
    assert framed.boxes == [Box(10, 10, 40, 40, "nodule")] and framed.dropped == 1


def test_at_most_a_sixth_of_a_side_is_cut_off_as_frame():
    assert find_bright_area(frame((180, 300), (80, 0, 180, 300))) == (30, 0, 180, 300)


@pytest.mark.parametrize(
    "image",
    [
        frame((200, 99), (20, 10, 190, 90)),  # small
        frame((200, 180), (20, 10, 190, 170), value=9),  # dark
        frame((200, 200), (40, 40, 160, 160)),  # less than 60 % of the area would stay
        Image.new("L", (200, 200)),
    ],
)
def test_a_picture_without_a_clear_frame_stays_whole(image):
    assert find_bright_area(image) == (0, 0, *image.size)
