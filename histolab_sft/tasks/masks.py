"""Outline things in a picture: the question, the target, the parser of answers that are polygons.

Outlines are stored in pixels of the original picture (`histolab_sft.metrics.masks.Outline`). In the text they are on a
scale of their own, as a picture reaches the model resized, and have few points, as each costs some nine tokens.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.errors import say_count
from histolab_sft.metrics.masks import Outline, compute_masks
from histolab_sft.metrics.measures import masks_measure
from histolab_sft.metrics.weighted import Measure
from histolab_sft.tasks.answer_forms import draw_outlines
from histolab_sft.tasks.parsing.box_geometry import Size
from histolab_sft.tasks.parsing.json_text import read_json

UNITS = 1000
MAX_POINTS = 24  # of an outline in a target; the truth that scores are made with keeps all
INSTRUCTION = (
    "Give every outline as a polygon of [x, y] points on a scale of 0 to 1000 in one JSON list of objects with "
    '"polygon" and "label", for instance ```json[{"polygon": [[120, 80], [310, 95], [205, 260]], "label": "polyp"}]```'
    ", and [] if there is nothing to outline."
)
OUTLINE_QUESTION = "Outline abnormalities."
NAME = "masks"
HEADLINE = "mask_dice"
MAX_NEW_TOKENS = 1024
ANSWER_IS = "outlines"
SCORED_AS = "Dice compares the pixels inside of all outlines of a picture with those of the truth, where it has one."
count_cut = list_fields = None


def format_prompt(question: str = OUTLINE_QUESTION, instruction: str | None = None) -> str:
    """Return the question that training and scoring both ask; `instruction` replaces the wording about the format."""
    return f"{INSTRUCTION if instruction is None else instruction}\n\n{question}".strip()


def format_target(outlines: list[Outline], size: Size) -> str:
    """Return the whole answer that the model learns to give; no outline is an answer too."""
    entries = []
    for points, label in outlines:
        corners = simplify(np.array(points, dtype=float).reshape(-1, 2) / size * UNITS, MAX_POINTS)
        polygon = np.clip(corners.round(), 0, UNITS).astype(int).tolist()
        entries.append({"polygon": polygon} | ({} if label is None else {"label": label}))
    return f"```json{json.dumps(entries, ensure_ascii=False)}```"


def parse(text: str, size: Size) -> tuple[list[Outline], bool] | None:
    """Return the outlines in the model's `text` in pixels of the original picture, and whether it had to be mended.

    None for unparsed: a text without a list, or one whose entries are all garbled or cut off. A polygon of fewer than
    three points is left out.
    """
    found = read_json(text)
    entries = [entry for value in found.values for entry in (value if isinstance(value, list) else [value])]
    read = [outline for entry in entries if (outline := _read_entry(entry, size))]
    if not read and (entries or found.truncated or not found.values):
        return None
    return read, found.repaired


def simplify(points: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the corners of a polygon, float, shape (corners, 2), in their order.

    Time and again the corner goes whose triangle with its neighbours is the smallest (Visvalingam and Whyatt 1993).
    """
    while len(points) > most:
        before, after = np.roll(points, 1, axis=0) - points, np.roll(points, -1, axis=0) - points
        areas = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])
        points = np.delete(points, areas.argmin(), axis=0)
    return points


def format_question(ask: Mapping, config: DatasetConfig) -> str:
    """Return the prompt of a record."""
    return format_prompt(ask["question"], config.instruction)


def format_answer(ask: Mapping, answer: list, config: DatasetConfig) -> str:
    """Return the target of a record: outlines `[[x1, y1, x2, y2, ...], label or None]`."""
    return format_target([Outline(*outline) for outline in answer], tuple(ask["size"]))


def read_answer(text: str, ask: Mapping, config: DatasetConfig) -> tuple[list | None, bool]:
    """Return the outlines in the model's `text`, None for unparsed, and whether their list had to be mended."""
    found = parse(text, tuple(ask["size"]))
    return (None, False) if found is None else ([list(outline) for outline in found[0]], found[1])


def describe_answer(answer: list) -> dict:
    """Return the form of an answer, see `answer_forms`."""
    if not answer:
        return {"kind": "text", "text": "no outline", "parts": ["No outline"]}
    rows = [(label or "outline", f"{len(points) // 2} points") for points, label in answer]
    parts = [say_count(len(answer), "outline")]
    return {"kind": "rows", "rows": rows, "caption": "Outline by outline", "parts": parts}


def draw_answers(picture: Image.Image, ask: Mapping, answers: Mapping[str, list | None], side: int) -> Image.Image:
    """Return a copy of the picture with outlines on it; see `draw_outlines`."""
    return draw_outlines(picture, ask["size"], {name: drawn or [] for name, drawn in answers.items()}, side)


def guess_answers(train: Sequence[tuple[Mapping, list]], asks: Sequence[Mapping], config: DatasetConfig) -> list:
    """Return the constant answer of the floor: no outline."""
    return [[]] * len(asks)


def measure_answers(
    gold: Sequence, predicted: Sequence, asks: Sequence[Mapping], guesses: Sequence, config: DatasetConfig
) -> tuple[Measure, dict]:
    """Return the measure for the bootstrap, and what `compute_masks` says of the same answers."""
    truth, answers = (
        [None if outlines is None else [Outline(*outline) for outline in outlines] for outlines in side]
        for side in (gold, predicted)
    )
    sizes = [tuple(ask["size"]) for ask in asks]
    label_aware = any(ask["label_aware"] for ask in asks)
    return masks_measure(truth, answers, sizes, label_aware), compute_masks(truth, answers, sizes, label_aware)


def _read_entry(entry: object, size: Size) -> Outline | None:
    """Return the outline in an object of the answer, cut at the picture's sides, None where it is none."""
    points = entry.get("polygon") if isinstance(entry, dict) else None
    pairs = points if isinstance(points, list) else []
    whole = all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e9 for n in pair)
        for pair in pairs
    )
    if len(pairs) < 3 or not whole:
        return None
    label = entry.get("label")
    corners = np.clip(np.array(pairs, dtype=float) / UNITS, 0, 1) * size
    return Outline(corners.ravel().tolist(), label if isinstance(label, str) else None)
