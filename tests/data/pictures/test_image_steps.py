"""Boxes stay where their objects are, whatever is done to the picture: painted, moved, and found again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from histolab_sft.data.pictures.steps import apply_steps, find_bright_area
from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks.parsing.box_geometry import move_boxes, restore_boxes

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


def follow(image, boxes, *steps):
    """The picture after the steps, and its boxes."""
    image, placement = apply_steps(image, [list(step) for step in steps])
    return image, move_boxes(boxes, placement), placement


def stays(painted, *steps):
    """Whether the painted box is where the moved one is, and comes back to where it was."""
    image, moved, placement = follow(painted[0], [painted[1]], *steps)
    assert image.size == placement.size and len(moved) == 1 and moved[0].label == "nodule"
    [back], part = restore_boxes(moved, placement), clip_box(painted[1], placement.seen)
    assert back.label == "nodule" and np.allclose(back[:4], part, atol=1e-6)
    return np.abs(find(image) - np.array(moved[0][:4])).max() <= 1


def clip_box(box, area):
    return [np.clip(side, area[i % 2], area[i % 2 + 2]) for i, side in enumerate(box[:4])]


@given(painted_pictures(), st.data())
def test_bug_17_a_box_survives_a_crop_through_it(painted, data):
    image, box = painted
    left, top = data.draw(st.integers(0, int(box.x2) - 1)), data.draw(st.integers(0, int(box.y2) - 1))
    right = data.draw(st.integers(max(left, int(box.x1)) + 1, image.width))
    bottom = data.draw(st.integers(max(top, int(box.y1)) + 1, image.height))
    assert stays(painted, ["crop", left, top, right, bottom])


@given(painted_pictures())
def test_bug_17_a_box_survives_padding_to_a_square(painted):
    assert stays(painted, ["pad_to_square"])
    assert follow(*painted[:1], [], ["pad_to_square"])[0].size == (max(painted[0].size),) * 2


@given(painted_pictures(), st.integers(40, 200), st.integers(40, 200))
def test_bug_17_a_box_survives_a_resize(painted, width, height):
    assert stays(painted, ["resize", width, height])


@given(painted_pictures(), st.integers(0, 15), st.integers(0, 15), st.integers(64, 256))
def test_a_box_survives_crop_padding_and_resize_together(painted, left, top, side):
    image, box = painted
    area = (min(left, int(box.x1)), min(top, int(box.y1)), image.width, image.height)
    assert stays(painted, ["crop", *area], ["pad_to_square"], ["resize", side, side])


@given(painted_pictures(), st.integers(0, 20), st.integers(0, 20))
def test_boxes_never_leave_their_picture(painted, left, top):
    image, box = painted
    boxes = [box, Box(-50, -50, 5, 5), Box(500, 0, 600, 10), Box(box.x2, box.y2, box.x1, box.y1)]
    for step in (["crop", left, top, 40, 40], ["pad_to_square"], ["resize", 64, 32]):
        shown, moved, _ = follow(image, boxes, step)
        for x1, y1, x2, y2, _ in moved:
            assert 0 <= x1 < x2 <= shown.width and 0 <= y1 < y2 <= shown.height


def test_padding_uncovers_nothing_of_a_box_that_a_crop_has_cut():
    image = paint((60, 40), (5, 5, 15, 15))
    boxes = [Box(5, 5, 15, 15), Box(50, 0, 60, 10), Box(10, 0, 30, 10)]
    _, moved, placement = follow(image, boxes, ["crop", 0, 0, 20, 40], ["pad_to_square"])
    assert moved == [Box(15, 5, 25, 15), Box(20, 0, 30, 10)]
    # What the model may say of the padding is nowhere in the picture.
    assert restore_boxes([Box(0, 0, 12, 9), Box(0, 0, 9, 9)], placement) == [Box(0, 0, 2, 9)]
    assert follow(paint((60, 20), (0, 0, 9, 9)), [Box(0, -15, 10, 10)], ["pad_to_square"])[1] == [Box(0, 20, 10, 30)]


def test_a_step_leaves_its_inputs_as_they_were():
    image, boxes = paint((60, 20), (0, 0, 10, 10), "RGB"), [Box(-5, 0, 10, 10)]
    before = image.tobytes()
    for step in (["crop", 1, 1, 9, 9], ["pad_to_square"], ["resize", 7, 7], ["crop_dark_edges"]):
        assert follow(image, boxes, step)[0].mode == "RGB"
    assert image.tobytes() == before and boxes == [Box(-5, 0, 10, 10)]


@pytest.mark.parametrize("area", [(0, 0, 61, 20), (-1, 0, 5, 5), (5, 5, 5, 9), (9, 0, 5, 5)])
def test_a_crop_outside_the_picture_is_refused(area):
    with pytest.raises(ValueError, match="inside 60 x 20 pixels"):
        apply_steps(Image.new("L", (60, 20)), [["crop", *area]])


def test_a_square_is_no_larger_than_a_picture_may_be():
    with pytest.raises(ValueError, match="5001 x 5001 pixels, expected at most 25000000"):
        apply_steps(Image.new("L", (5001, 2)), [["pad_to_square"]])


def test_a_crop_of_padding_alone_is_refused():
    with pytest.raises(ValueError, match="not of padding alone"):
        apply_steps(Image.new("L", (60, 20)), [["pad_to_square"], ["crop", 0, 0, 60, 20]])


def frame(size, area, value=200):
    image = Image.new("L", size)
    image.paste(value, area)
    return image


def test_a_dark_frame_is_cut_off_with_the_boxes():
    image = frame((200, 180), (20, 10, 190, 170))
    shown, moved, _ = follow(image, [Box(30, 20, 60, 50, "nodule"), Box(0, 0, 10, 10)], ["crop_dark_edges"])
    assert shown.size == (170, 160) and np.asarray(shown).min() == 200
    assert moved == [Box(10, 10, 40, 40, "nodule")]


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
