"""Find things in a picture: the question, the target, the parser of answers that are boxes.

Boxes are stored in pixels of the original picture (`histolab_sft.metrics.boxes.Box`); a codec says how they stand in
the text. A picture reaches the model resized to its input square, so pixels mean nothing to it: the default is
MedGemma 1.5's `box_2d`, on a scale of its own.
"""

from collections.abc import Mapping, Sequence

from PIL import Image

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.errors import say_count
from histolab_sft.metrics.boxes import Box, compute_boxes
from histolab_sft.metrics.measures import boxes_measure
from histolab_sft.metrics.weighted import Measure
from histolab_sft.tasks.answer_forms import draw_boxes
from histolab_sft.tasks.parsing import box_codecs
from histolab_sft.tasks.parsing.box_codecs import DecodedBoxes
from histolab_sft.tasks.parsing.box_geometry import Placement, Size, move_boxes, place_whole, restore_boxes

CODECS = {
    "box_2d": (box_codecs.encode_box_2d, box_codecs.decode_box_2d),
    "loc": (box_codecs.encode_loc, box_codecs.decode_loc),
    "normalised": (box_codecs.encode_normalised, box_codecs.decode_normalised),
    "pixels": (box_codecs.encode_pixels, box_codecs.decode_pixels),
    "coco": (box_codecs.encode_coco, box_codecs.decode_coco),
}
NAME = "boxes"
HEADLINE = "box_f1"
MAX_NEW_TOKENS = 512
ANSWER_IS = "boxes"
SCORED_AS = (
    "A box is found where it overlaps a true one of its label by half or more, each in one pair at most. Dice and IoU "
    "compare the areas that all boxes of a picture cover, where it has a true one."
)
list_fields = None
DEFAULT_CODEC = "box_2d"
# A data set's own question may name another convention (FLARE's ask for pixels), hence the last word on it here.
INSTRUCTIONS = {
    "box_2d": (
        'Give every box as [y0, x0, y1, x1] on a scale of 0 to 1000 in one JSON list of objects with "box_2d" and '
        '"label", for instance ```json[{"box_2d": [800, 3, 840, 471], "label": "car"}]```. Use this format whatever '
        "coordinates the question asks for, and [] if there is nothing to box."
    ),
    "loc": (
        "Give every box as <locYYYY><locXXXX><locYYYY><locXXXX> followed by what it shows, top left corner first, on "
        "a scale of 0000 to 1023, with ; between boxes. Use this format whatever coordinates the question asks for, "
        "and [] if there is nothing to box."
    ),
    "normalised": (
        "Give the boxes as one JSON list of [x_min, y_min, x_max, y_max], each number a fraction of the width or "
        "height; with names, as one JSON object that maps each name to such a list. Use this format whatever "
        "coordinates the question asks for, and [] if there is nothing to box."
    ),
    "pixels": (
        "Give the boxes as one JSON list of [x_min, y_min, x_max, y_max] in pixels of a picture {width} wide and "
        "{height} high; with names, as one JSON object that maps each name to such a list; [] if there is nothing to "
        "box."
    ),
    "coco": (
        'Give the boxes as one JSON list of objects with "bbox" as [x, y, width, height] in pixels of a picture '
        '{width} wide and {height} high and "label"; [] if there is nothing to box.'
    ),
}
# The one with which MedGemma 1.5 was trained to localise: Google-Health/medgemma, cxr_anatomy_localization notebook.
# It asks for reasoning, so it serves to score the base model, not to train on bare boxes.
OFFICIAL_PROMPT = """Instructions:
The following user query will require outputting bounding boxes. The format of bounding boxes coordinates is [y0, x0, \
y1, x1] where (y0, x0) must be top-left corner and (y1, x1) the bottom-right corner. This implies that x0 < x1 and \
y0 < y1. Always normalize the x and y coordinates the range [0, 1000], meaning that a bounding box starting at 15% of \
the image width would be associated with an x coordinate of 150. You MUST output a single parseable json list of \
objects enclosed into ```json...``` brackets, for instance ```json[{"box_2d": [800, 3, 840, 471], "label": "car"}, \
{"box_2d": [400, 22, 600, 73], "label": "dog"}]``` is a valid output. Now answer to the user query.

Remember "left" refers to the patient's left side where the heart is and sometimes underneath an L in the upper right \
corner of the image.

Query:
Where is the {object}? Don't give a final answer without reasoning. Output the final answer in the format "Final \
Answer: X" where X is a JSON list of objects. The object needs a "box_2d" and "label" key. Answer:"""
LOCATE_QUESTION = "Locate abnormalities."


def format_prompt(
    question: str = LOCATE_QUESTION, codec: str = "box_2d", size: Size | None = None, instruction: str | None = None
) -> str:
    """Return the question that training and scoring both ask.

    Args:
        question (`str`): What to find, a data set's own words.
        codec (`str`): A key of `CODECS`.
        size: (width, height) of the original picture, needed by the codecs that count pixels.
        instruction (`str`, *optional*): Replaces the wording about the format, in another language for instance; empty
            asks the bare question. A text with `{object}` in it (`OFFICIAL_PROMPT`) takes the question there.
    """
    instruction = INSTRUCTIONS[codec] if instruction is None else instruction
    if "{width}" in instruction:
        if size is None:
            raise ValueError(f"no picture size with codec {codec!r}, expected (width, height); pass it or use box_2d")
        instruction = instruction.replace("{width}", str(size[0])).replace("{height}", str(size[1]))
    if "{object}" in instruction:
        return instruction.replace("{object}", question)
    return f"{instruction}\n\n{question}".strip()


def format_target(boxes: list[Box], size: Size, codec: str = "box_2d") -> str:
    """Return the whole answer that the model learns to give; no boxes is an answer too."""
    return CODECS[codec][0](boxes, size)


def parse(text: str, size: Size, codec: str = "box_2d") -> DecodedBoxes | None:
    """Return the boxes in the model's `text` in pixels of the original picture, None for unparsed.

    An empty list is an answer, a text without a list is not; nor is one whose entries are all garbled, or that was cut
    off before its first whole box.
    """
    return CODECS[codec][1](text, size)


def format_question(ask: Mapping, config: DatasetConfig) -> str:
    """Return the prompt of a record, in the data set's codec."""
    return format_prompt(ask["question"], _codec(config), place(ask).size, config.instruction)


def format_answer(ask: Mapping, answer: list, config: DatasetConfig) -> str:
    """Return the target of a record: boxes `[x1, y1, x2, y2, label or None]` in the data set's codec."""
    placement = place(ask)
    return format_target(move_boxes([Box(*box) for box in answer], placement), placement.size, _codec(config))


def read_answer(text: str, ask: Mapping, config: DatasetConfig) -> tuple[list | None, bool]:
    """Return the boxes in the model's `text`, None for unparsed, and whether their list had to be mended."""
    placement = place(ask)
    found = parse(text, placement.size, _codec(config))
    if found is None:
        return None, False
    return [list(box) for box in restore_boxes(found.boxes, placement)], found.repaired


def place(ask: Mapping) -> Placement:
    """Return where the stored picture, in whose pixels boxes are kept, is in the one that the model sees."""
    if "placement" not in ask:
        return place_whole(tuple(ask["size"]))
    return Placement(*map(tuple, ask["placement"]))


def count_cut(ask: Mapping, answer: list | None) -> int:
    """Return how many boxes of an answer lie outside of the picture that the model sees."""
    boxes = [Box(*box) for box in answer or []]
    return len(boxes) - len(move_boxes(boxes, place(ask)))


def describe_answer(answer: list) -> dict:
    """Return the form of an answer, see `answer_forms`."""
    if not answer:
        return {"kind": "text", "text": "no box", "parts": ["No box"]}
    rows = [(label or "box", ", ".join(f"{n:.0f}" for n in numbers)) for *numbers, label in answer]
    caption = "Left, top, right, bottom in pixels of the picture"
    return {"kind": "rows", "rows": rows, "caption": caption, "parts": [say_count(len(answer), "box")]}


def draw_answers(picture: Image.Image, ask: Mapping, answers: Mapping[str, list | None], side: int) -> Image.Image:
    """Return a copy of the picture that the model saw with boxes of the stored one on it; see `draw_boxes`."""
    placement = place(ask)
    moved = {name: move_boxes([Box(*box) for box in drawn or []], placement) for name, drawn in answers.items()}
    return draw_boxes(picture, placement.size, moved, side)


def guess_answers(train: Sequence[tuple[Mapping, list]], asks: Sequence[Mapping], config: DatasetConfig) -> list:
    """Return the constant answer of the floor: no box."""
    return [[]] * len(asks)


def measure_answers(
    gold: Sequence, predicted: Sequence, asks: Sequence[Mapping], guesses: Sequence, config: DatasetConfig
) -> tuple[Measure, dict]:
    """Return the measure for the bootstrap, and what `compute_boxes` says of the same answers.

    Labels count for the records that have any to be told; for the others only where the boxes are.
    """
    label_aware = any(ask["label_aware"] for ask in asks)
    truth, answers = (
        [
            None if boxes is None else [Box(*(box if ask["label_aware"] else box[:4])) for box in boxes]
            for ask, boxes in zip(asks, side, strict=True)
        ]
        for side in (gold, predicted)
    )
    return boxes_measure(truth, answers, label_aware), compute_boxes(truth, answers, label_aware)


def _codec(config: DatasetConfig) -> str:
    return config.codec or DEFAULT_CODEC
