"""What the tasks share when they show an answer as a person reads it: words, tables, places on the picture.

The form of an answer, as a task's `describe_answer` gives it, has `kind` (`text`, `rows` or `sections`) and under its
name a string, a list of (name, value) with the table's `caption`, or a list of (heading, text); and `parts`, the words
that a page sets in large type, one a line.
"""

import base64
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks.parsing.box_geometry import resize_boxes

SIDE = 320  # pixels of a shown picture
# Okabe & Ito 2008, told apart under every form of colour blindness.
BOX_COLOURS = {"truth": "#00795C", "baseline": "#D55E00", "finetuned": "#0072B2"}
# The mark beside a system's name on every page: a ring and a filled diamond, told apart without colour too.
MARK_STYLE = f"""\
:root {{ --baseline: {BOX_COLOURS["baseline"]}; --finetuned: {BOX_COLOURS["finetuned"]}; }}
.key {{ display: inline-block; width: 10px; height: 10px; margin-right: 6px; border: 2px solid; vertical-align: 0; }}
.key.baseline {{ border-color: var(--baseline); border-radius: 50%; }}
.key.finetuned {{ border-color: var(--finetuned); background: var(--finetuned); rotate: 45deg; scale: 0.85; }}
"""


def describe_text(answer: object) -> dict:
    """Return the form of an answer that is a word or a number, and is set in large type."""
    return {"kind": "text", "text": write_value(answer), "parts": [write_value(answer)]}


def draw_boxes(image: Image.Image, size: tuple[int, int], boxes: Mapping[str, list], side: int = SIDE) -> Image.Image:
    """Return a copy of at most `side` pixels a side with boxes on it.

    Args:
        size: (width, height) of the picture that the boxes are of; `image` may be another size of it.
        boxes: `truth`, `baseline` or `finetuned` -> boxes `[x1, y1, x2, y2, label or None]`, the first drawn lowest.
    """
    shown = Image.fromarray(np.asarray(image.convert("RGB")))
    shown.thumbnail((side, side))
    canvas, longest = ImageDraw.Draw(shown), max(shown.size)
    font, width = ImageFont.load_default(size=max(10, longest // 32)), max(2, longest // 200)
    for name, drawn in boxes.items():
        for box in resize_boxes([Box(*box) for box in drawn], size, shown.size):
            # A pixel of air at the edge, where half a line would be cut off.
            corners = [max(box.x1, 1), max(box.y1, 1), min(box.x2, shown.width - 2), min(box.y2, shown.height - 2)]
            canvas.rectangle(_order(corners), width=width, outline=BOX_COLOURS[name])
            if box.label:
                place = _place_label(canvas, box.label, font, corners, shown.size)
                # On a ground of its own: tissue and bone leave no letter legible.
                canvas.rectangle(canvas.textbbox(place, box.label, font), fill=BOX_COLOURS[name])
                canvas.text(place, box.label, "white", font)
    return shown


def draw_outlines(
    image: Image.Image, size: tuple[int, int], outlines: Mapping[str, list], side: int = SIDE
) -> Image.Image:
    """Return a copy of at most `side` pixels a side with outlines `[[x1, y1, x2, y2, ...], label]` on it.

    Args:
        size, outlines: As in `draw_boxes`.
    """
    shown = Image.fromarray(np.asarray(image.convert("RGB")))
    shown.thumbnail((side, side))
    canvas = ImageDraw.Draw(shown)
    for name, drawn in outlines.items():
        for points, _ in drawn:
            corners = [n * shown.size[i % 2] / size[i % 2] for i, n in enumerate(points)]
            canvas.line([*corners, *corners[:2]], width=2, fill=BOX_COLOURS[name])
    return shown


def encode_picture(image: Image.Image, side: int = SIDE) -> str:
    """Return the picture as a data address: at most `side` pixels, written anew from its pixels and nothing else."""
    bare = Image.fromarray(np.asarray(image.convert("RGB")))
    bare.thumbnail((side, side))
    buffer = io.BytesIO()
    bare.save(buffer, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _place_label(
    canvas: ImageDraw.ImageDraw, label: str, font: ImageFont.ImageFont, corners: list[float], size: tuple[int, int]
) -> tuple[float, float]:
    """Place of a label outside of its box, which it would hide: above, below, or inside where neither has room."""
    _, _, right, bottom = canvas.textbbox((0, 0), label, font)
    x = max(0, min(corners[0], size[0] - right))
    if corners[1] - bottom >= 0:
        return x, corners[1] - bottom
    return (x, corners[3] + 1) if corners[3] + bottom < size[1] else (x, corners[1])


def _order(corners: list[float]) -> list[float]:
    """Corners of a box thinner than the line, in the order that Pillow wants."""
    left, right = sorted(corners[::2])
    top, bottom = sorted(corners[1::2])
    return [left, top, right, bottom]


def write_value(value: object) -> str:
    """Return a word or a number as text."""
    if value is None:
        return "not a legal value"
    return f"{value:.10g}" if isinstance(value, int | float) else str(value)
