"""Write boxes as text and read them back, in each convention that a data set or a model uses.

A codec is a pair: `encode(boxes, size) -> str` and `decode(text, size) -> DecodedBoxes | None`. `size` is (width,
height) of the original picture in pixels; boxes are always original-pixel xyxy outside the text. Encoding moves an
edge by less than one unit of the codec; a box thinner than a unit becomes one unit thick rather than nothing.
"""

import json
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks.parsing.box_geometry import Size, clip_boxes, square_padding
from histolab_sft.tasks.parsing.final_text import read_final
from histolab_sft.tasks.parsing.json_text import read_json

LOC_BINS = 1024  # PaliGemma's <loc0000> to <loc1023>
SQUARE_UNITS = 1000  # MedGemma 1.5's box_2d
NORMALISED_UNITS = 10_000  # four decimals
# A box object of one convention must not be read as another's, nor as a class with this name.
BOX_KEYS = {"box_2d", "bbox"}
EMPTY = "[]"
MAX_NUMBER = 1e9
_DECIMAL = re.compile(r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?")
_LOC = re.compile(r"((?:<loc[0-9]{4}>\s*)+)([^;<]*)")


class DecodedBoxes(NamedTuple):
    """Boxes of one answer and what it took to read them."""

    boxes: list[Box]
    dropped: int  # entries that are no box: not four finite numbers, or no area inside the picture
    repaired: bool
    truncated: bool


def encode_pixels(boxes: list[Box], size: Size) -> str:
    """FLARE: `[[x1, y1, x2, y2], ...]` in whole pixels; with labels `{"17": [[x1, y1, x2, y2], ...], ...}`."""
    return _encode_nested([(list(_bins(box, size, size)), box.label) for box in boxes])


def decode_pixels(text: str, size: Size) -> DecodedBoxes | None:
    """Read `encode_pixels`; a single flat box and boxes joined by `;` are taken too, as FLARE's files have them."""
    return _decode_json(text, size, None, lambda numbers: numbers)


def encode_normalised(boxes: list[Box], size: Size) -> str:
    """PadChest-GR: as `encode_pixels`, with sides of 1 instead of pixels, four decimals."""
    units = (NORMALISED_UNITS, NORMALISED_UNITS)
    return _encode_nested([([n / NORMALISED_UNITS for n in _bins(box, size, units)], box.label) for box in boxes])


def decode_normalised(text: str, size: Size) -> DecodedBoxes | None:
    """Read `encode_normalised`."""
    return _decode_json(text, size, None, lambda numbers: [n * size[i % 2] for i, n in enumerate(numbers)])


def encode_coco(boxes: list[Box], size: Size) -> str:
    """COCO: `[{"bbox": [x, y, width, height], "label": ...}, ...]` in whole pixels."""
    bins = [_bins(box, size, size) for box in boxes]
    return _encode_objects("bbox", [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in bins], boxes)


def decode_coco(text: str, size: Size) -> DecodedBoxes | None:
    """Read `encode_coco`; a bare list of four is x, y, width, height as well."""
    return _decode_json(text, size, "bbox", lambda n: [n[0], n[1], n[0] + n[2], n[1] + n[3]])


def encode_box_2d(boxes: list[Box], size: Size) -> str:
    """MedGemma 1.5: `[{"box_2d": [y0, x0, y1, x1], "label": ...}]`, 0 to 1000 of the picture padded to a square."""
    left, top, side = square_padding(size)
    shifted = [Box(b.x1 + left, b.y1 + top, b.x2 + left, b.y2 + top) for b in boxes]
    bins = [_bins(box, (side, side), (SQUARE_UNITS, SQUARE_UNITS)) for box in shifted]
    return f"```json{_encode_objects('box_2d', [[y1, x1, y2, x2] for x1, y1, x2, y2 in bins], boxes)}```"


def decode_box_2d(text: str, size: Size) -> DecodedBoxes | None:
    """Read `encode_box_2d`; what lies in the padding is cut off."""
    left, top, side = square_padding(size)
    unit = side / SQUARE_UNITS
    return _decode_json(
        text,
        size,
        "box_2d",
        lambda n: [n[1] * unit - left, n[0] * unit - top, n[3] * unit - left, n[2] * unit - top],
    )


def encode_loc(boxes: list[Box], size: Size) -> str:
    """PaliGemma: `<locYYYY><locXXXX><locYYYY><locXXXX> label ; ...`, 1024 bins a side; `[]` without boxes.

    Raises:
        ValueError: A label holds `;` or `<`, which end it.
    """
    parts = []
    for box in boxes:
        if box.label is not None and re.search("[;<]", box.label):
            raise ValueError(f"label {box.label!r} holds ';' or '<', expected plain words; rename it or use box_2d")
        x1, y1, x2, y2 = _bins(box, size, (LOC_BINS, LOC_BINS), floor=True)
        parts.append(f"<loc{y1:04d}><loc{x1:04d}><loc{y2:04d}><loc{x2:04d}> {box.label or ''}".strip())
    return " ; ".join(parts) or EMPTY


def decode_loc(text: str, size: Size) -> DecodedBoxes | None:
    """Read `encode_loc`: an edge is where its bin begins."""
    text = read_final(text)
    if text == EMPTY:
        return DecodedBoxes([], 0, False, False)
    entries = []
    for chunk in _LOC.finditer(text):
        bins = [int(n) / LOC_BINS for n in re.findall("[0-9]{4}", chunk[1])]
        label = chunk[2].strip(" .,\n") or None
        for y1, x1, y2, x2 in zip(*[iter(bins)] * 4, strict=False):
            entries.append(([x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1]], label))
        if len(bins) % 4:
            entries.append((None, label))
    truncated = "<" in _LOC.sub("", text) or (bool(entries) and entries[-1][0] is None)
    return _collect(entries, size, truncated, truncated) if entries or truncated else None


def read_outlines(text: str, size: Size) -> list[tuple[list[float], str]]:
    """Return the polygons of a YOLO segmentation file in pixels, `[x1, y1, x2, y2, ...]`, each with its class.

    Each line is `class x1 y1 ... xn yn`, on sides of 1. An empty file is a picture without any.

    Raises:
        ValueError: A line isn't a class and three or more points.
    """
    polygons = []
    for number, line in enumerate(text.splitlines(), start=1):
        label, *words = line.split() or [""]
        if not line.strip():
            continue
        if len(words) < 6 or len(words) % 2 or not all(_DECIMAL.fullmatch(word) for word in words):
            raise ValueError(
                f"line {number}: {line[:60]!r}, expected a class and at least three points x y in 0 to 1; "
                "check that it is a segmentation file, not one of YOLO boxes"
            )
        polygons.append(([float(word) * size[i % 2] for i, word in enumerate(words)], label))
    return polygons


def read_polygons(text: str, size: Size) -> list[Box]:
    """Return the box around all points of each polygon of `read_outlines`, the class as label.

    Raises:
        ValueError: As `read_outlines`.
    """
    outlines = read_outlines(text, size)
    boxes = [Box(min(p[::2]), min(p[1::2]), max(p[::2]), max(p[1::2]), label) for p, label in outlines]
    return clip_boxes(boxes, size)


def _bins(box: Box, size: Size, units: tuple[int, int], floor: bool = False) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 in whole units, `units` of which span `size`; at least one unit thick.

    `floor` numbers bins, of which the last is `units - 1`, instead of rounding to the nearest edge.
    """
    edges = []
    for low, high, side, count in zip(box[:2], box[2:4], size, units, strict=True):
        last = count - 1 if floor else count
        low, high = (value * count / side for value in (low, high))
        low, high = (math.floor(v) if floor else round(v) for v in (low, high))
        high = min(max(high, low + 1, 1), last)
        edges.append((min(max(low, 0), high - 1), high))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def _encode_nested(boxes: list[tuple[list, str | None]]) -> str:
    labels = [label for _, label in boxes]
    if not any(label is not None for label in labels):
        return json.dumps([numbers for numbers, _ in boxes])
    if None in labels:
        raise ValueError(f"labels are {labels}, expected one for each box or for none; name the boxes without a label")
    by_label = {label: [numbers for numbers, name in boxes if name == label] for label in labels}
    return json.dumps(by_label, ensure_ascii=False)


def _encode_objects(key: str, numbers: list[list[int]], boxes: list[Box]) -> str:
    labels = [{} if box.label is None else {"label": box.label} for box in boxes]
    return json.dumps([{key: n} | label for n, label in zip(numbers, labels, strict=True)], ensure_ascii=False)


def _decode_json(text: str, size: Size, key: str | None, to_pixels: Callable) -> DecodedBoxes | None:
    found = read_json(text)
    if not found.values:
        return None
    entries = [entry for value in found.values for entry in _entries(value, key, None)]
    entries = [(numbers and to_pixels(numbers), label) for numbers, label in entries]
    return _collect(entries, size, found.repaired, found.truncated)


def _entries(value: object, key: str | None, label: str | None) -> list[tuple[list | None, str | None]]:
    """Return the boxes in a JSON value as (four numbers, label), None in place of numbers that are no box."""
    if isinstance(value, dict) and key in value:
        name = value.get("label")
        return [(_four(value[key]), name if isinstance(name, str) else None)]
    if isinstance(value, dict) and not BOX_KEYS & set(value):
        return [entry for name, inner in value.items() for entry in _entries(inner, key, name)]
    if isinstance(value, list) and all(isinstance(item, list | dict) for item in value):
        return [entry for item in value for entry in _entries(item, key, label)]
    return [(_four(value), label)]


def _four(value: object) -> list[float] | None:
    numbers = value if isinstance(value, list) else []
    fits = len(numbers) == 4 and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    # Beyond this a number is no coordinate, and an int may not even fit a float.
    return numbers if fits and all(-MAX_NUMBER < n < MAX_NUMBER for n in numbers) else None


def _collect(entries: list, size: Size, repaired: bool, truncated: bool) -> DecodedBoxes | None:
    """Keep what is a box. None where there were entries and not one is: a garbled answer doesn't say "no boxes"."""
    boxes = [box for numbers, label in entries if numbers for box in clip_boxes([Box(*numbers, label)], size)]
    if not boxes and (entries or truncated):
        return None
    return DecodedBoxes(boxes, len(entries) - len(boxes), repaired, truncated)
