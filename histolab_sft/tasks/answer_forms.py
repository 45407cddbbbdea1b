"""Each task's answer in the form in which a person reads it: fields, sections, labels, boxes on the picture."""

import base64
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks.parsing.box_geometry import resize_boxes
from histolab_sft.tasks.report import read_sections

SIDE = 320  # pixels of a shown picture
# Okabe & Ito 2008, told apart under every form of colour blindness.
BOX_COLOURS = {"truth": "#00795C", "baseline": "#D55E00", "finetuned": "#0072B2"}


def describe_answer(task: str, answer: object) -> dict:
    """Return `kind` (`text`, `rows` or `sections`) and what a template shows of an answer in its task's form.

    `rows` is a list of (name, value), `sections` one of (heading, text), `text` a string.
    """
    if task == "biomarkers":
        return {"kind": "rows", "rows": [(name, _write(value)) for name, value in answer.items()]}
    if task == "boxes":
        rows = [(label or "box", ", ".join(f"{n:.0f}" for n in numbers)) for *numbers, label in answer]
        return {"kind": "rows", "rows": rows} if rows else {"kind": "text", "text": "no box"}
    if task == "masks":
        rows = [(label or "outline", f"{len(points) // 2} points") for points, label in answer]
        return {"kind": "rows", "rows": rows} if rows else {"kind": "text", "text": "no outline"}
    if task == "multilabel":
        return {"kind": "text", "text": "; ".join(answer) or "none"}
    if task == "report" and (sections := read_sections(answer)):
        return {"kind": "sections", "sections": [(name.capitalize(), body) for name, body in sections.items()]}
    return {"kind": "text", "text": _write(answer)}


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


def draw_outlines(image: Image.Image, size: tuple[int, int], outlines: Mapping[str, list]) -> Image.Image:
    """Return a copy of at most `SIDE` pixels a side with outlines `[[x1, y1, x2, y2, ...], label]` on it.

    Args:
        size, outlines: As in `draw_boxes`.
    """
    shown = Image.fromarray(np.asarray(image.convert("RGB")))
    shown.thumbnail((SIDE, SIDE))
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


def _write(value: object) -> str:
    if value is None:
        return "not a legal value"
    return f"{value:.10g}" if isinstance(value, int | float) else str(value)
