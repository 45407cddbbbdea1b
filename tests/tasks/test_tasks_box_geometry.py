import numpy as np
import pytest
from PIL import Image, ImageOps

from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks.parsing.box_geometry import clip_boxes, crop_boxes, pad_boxes, resize_boxes, square_padding

BOX = Box(40, 20, 100, 50, "nodule")


@pytest.fixture
def picture():
    image = Image.new("L", (240, 120))
    image.paste(255, tuple(int(v) for v in BOX[:4]))
    return image


def painted(image):
    rows, columns = np.where(np.asarray(image) > 127)
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_bug_17_boxes_move_with_a_crop(picture):
    area = (30, 10, 90, 100)
    assert crop_boxes([BOX], area) == [Box(*painted(picture.crop(area)), "nodule")] == [Box(10, 10, 60, 40, "nodule")]


def test_bug_17_boxes_move_with_padding(picture):
    padded = ImageOps.expand(picture, (7, 3, 0, 11))
    assert pad_boxes([BOX], 7, 3) == [Box(*painted(padded), "nodule")]


def test_bug_17_boxes_move_with_a_resize_that_changes_the_aspect_ratio(picture):
    resized = picture.resize((480, 60), Image.Resampling.NEAREST)
    assert resize_boxes([BOX], picture.size, resized.size) == [Box(*painted(resized), "nodule")]


def test_boxes_survive_crop_pad_and_resize_one_after_the_other(picture):
    cropped = picture.crop((20, 10, 220, 110))
    left, top, side = square_padding(cropped.size)
    square = Image.new("L", (side, side))
    square.paste(cropped, (left, top))
    small = square.resize((100, 100), Image.Resampling.NEAREST)
    moved = pad_boxes(crop_boxes([BOX], (20, 10, 220, 110)), left, top)
    assert resize_boxes(moved, square.size, small.size) == [Box(*painted(small), "nodule")]


def test_a_box_outside_the_crop_is_dropped_and_one_barely_inside_if_asked():
    assert crop_boxes([BOX], (100, 0, 240, 120)) == []
    assert crop_boxes([BOX], (94, 0, 240, 120)) == [Box(0, 20, 6, 50, "nodule")]
    assert crop_boxes([BOX], (94, 0, 240, 120), min_visible=0.2) == []


def test_square_padding_centres_and_puts_an_odd_pixel_last():
    assert square_padding((100, 300)) == (100, 0, 300)
    assert square_padding((300, 99)) == (0, 100, 300)


def test_clipping_swaps_corners_and_drops_what_has_no_area():
    assert clip_boxes([Box(9, 9, 1, 1), Box(3, 3, 3, 8), Box(20, 0, 30, 5)], (10, 10)) == [Box(1, 1, 9, 9)]
