"""Move boxes along with the picture they belong to. Boxes are original-pixel xyxy, sizes (width, height)."""

from typing import NamedTuple

from histolab_sft.metrics.boxes import Box

Size = tuple[int, int]
Area = tuple[float, float, float, float]


class Placement(NamedTuple):
    """Where a picture is in the one made of it: its part `seen` fills `drawn`, an area of the new one of `size`.

    Both areas are left, top, right and bottom in pixels, of the one and of the other.
    """

    size: Size
    seen: Area
    drawn: Area


def place_whole(size: Size) -> Placement:
    """Return where a picture of `size` is in itself."""
    return Placement(size, (0, 0, *size), (0, 0, *size))


def move_boxes(boxes: list[Box], placement: Placement) -> list[Box]:
    """Return the parts of `boxes` that are seen, in pixels of the new picture."""
    seen, drawn = placement.seen, placement.drawn
    sizes = [(right - left, bottom - top) for left, top, right, bottom in (seen, drawn)]
    return pad_boxes(resize_boxes(crop_boxes(boxes, seen), *sizes), *drawn[:2])


def restore_boxes(boxes: list[Box], placement: Placement) -> list[Box]:
    """Return boxes of the new picture in pixels of the original: what `move_boxes` undoes, but for what it cut off."""
    return move_boxes(boxes, placement._replace(seen=placement.drawn, drawn=placement.seen))


def clip_boxes(boxes: list[Box], size: Size) -> list[Box]:
    """Return the parts of `boxes` inside a picture of `size`; a box with no area left is dropped.

    Corners given the wrong way round are swapped.
    """
    clipped = []
    for x1, y1, x2, y2, label in boxes:
        left, right = sorted(min(max(x, 0), size[0]) for x in (x1, x2))
        top, bottom = sorted(min(max(y, 0), size[1]) for y in (y1, y2))
        if right > left and bottom > top:
            clipped.append(Box(left, top, right, bottom, label))
    return clipped


def crop_boxes(boxes: list[Box], area: tuple[int, int, int, int], min_visible: float = 0.0) -> list[Box]:
    """Return `boxes` in the picture that `image.crop(area)` gives.

    Args:
        area: Left, top, right, bottom in pixels, as Pillow takes it.
        min_visible (`float`): A box of which less than this share of its area is left is dropped.
    """
    left, top, right, bottom = area
    kept = []
    for box in boxes:
        part = clip_boxes([shift_box(box, -left, -top)], (right - left, bottom - top))
        if part and box_area(part[0]) >= min_visible * box_area(box):
            kept += part
    return kept


def pad_boxes(boxes: list[Box], left: int, top: int) -> list[Box]:
    """Return `boxes` in a picture with `left` and `top` pixels added before it; the other sides move nothing."""
    return [shift_box(box, left, top) for box in boxes]


def resize_boxes(boxes: list[Box], size: Size, new_size: Size) -> list[Box]:
    """Return `boxes` in the picture that `image.resize(new_size)` gives of one of `size`, sides scaled apart."""
    x, y = new_size[0] / size[0], new_size[1] / size[1]
    return [Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y, box.label) for box in boxes]


def square_padding(size: Size) -> tuple[int, int, int]:
    """Return left and top padding and the side of the square that a picture of `size` is centred in, in pixels.

    As in the localisation notebook of Google-Health/medgemma, which pads with black on both sides; an odd pixel goes
    to the right or the bottom.
    """
    side = max(size)
    return (side - size[0]) // 2, (side - size[1]) // 2, side


def shift_box(box: Box, x: float, y: float) -> Box:
    """Return `box` moved `x` pixels to the right and `y` down."""
    return Box(box.x1 + x, box.y1 + y, box.x2 + x, box.y2 + y, box.label)


def box_area(box: Box) -> float:
    """Return the area of `box` in square pixels."""
    return (box.x2 - box.x1) * (box.y2 - box.y1)
