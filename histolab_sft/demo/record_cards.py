"""Answers to records as HTML, each in its task's own form, the systems side by side."""

from PIL import Image

from histolab_sft.demo.cards import WAITING, escape_text, format_words
from histolab_sft.demo.records import RecordAnswer, RecordSet
from histolab_sft.demo.systems import TITLES
from histolab_sft.tasks.answer_forms import describe_answer, draw_boxes, draw_outlines, encode_picture
from histolab_sft.tasks.biomarkers import FIELDS

SIDE = 640  # pixels of a picture with boxes
ABSENT = "not in the answer"
UNPARSED = "No answer could be read from its words; in scoring it counts as wrong."


def format_record_answers(
    record_set: RecordSet, question: str, answers: dict[str, RecordAnswer | None], image: Image.Image
) -> str:
    """Return one card a system; None is a system that is still writing.

    Args:
        image: The picture that boxes are drawn on.
    """
    cards = "".join(_format_card(record_set, system, answer, image) for system, answer in answers.items())
    return (
        f'<div class="hs-cards hs-records" role="status">{cards}</div>'
        '<details class="hs-question"><summary>The question, word for word</summary>'
        f"<p>{escape_text(question)}</p></details>"
    )


def _format_card(record_set: RecordSet, system: str, answer: RecordAnswer | None, image: Image.Image) -> str:
    if answer is None:
        body = f'<p class="hs-muted">{WAITING}</p>'
    elif answer.value is None:
        body = (
            f'<p class="hs-decision hs-withheld">Unparsed</p><p class="hs-muted">{UNPARSED}</p>'
            f"<h3>In its own words</h3>{format_words(answer.text, answer.truncated)}"
        )
    else:
        words = format_words(answer.text, answer.truncated)
        body = (
            f"{_format_value(record_set, system, answer.value, image)}"
            f'<details class="hs-question"><summary>In its own words</summary>{words}</details>'
        )
        if answer.truncated:
            body = f'<p class="hs-muted">Cut off: the answer may lack its end.</p>{body}'
    return f'<section class="hs-card hs-{system}" data-system="{system}"><h2>{TITLES[system]}</h2>{body}</section>'


def _format_value(record_set: RecordSet, system: str, value: object, image: Image.Image) -> str:
    form = describe_answer(record_set.task, value)
    if form["kind"] == "sections":
        return "".join(f"<h3>{escape_text(name)}</h3>{_format_text(body)}" for name, body in form["sections"])
    if record_set.task == "boxes":
        drawn = encode_picture(draw_boxes(image, image.size, {system: value}, SIDE), SIDE)
        count = f"{len(value)} box{'es' * (len(value) != 1)}"
        picture = f'<img class="hs-boxes" src="{drawn}" alt="The picture with {count} on it">'
        table = _format_rows(form["rows"], "Left, top, right, bottom in pixels of the picture") if value else ""
        return f'<p class="hs-decision">{count if value else "No box"}</p>{picture}{table}'
    if record_set.task == "masks" and value:
        drawn = encode_picture(draw_outlines(image, image.size, {system: value}), SIDE)
        count = f"{len(value)} outline{'s' * (len(value) != 1)}"
        picture = f'<img class="hs-boxes" src="{drawn}" alt="The picture with {count} on it">'
        return f'<p class="hs-decision">{count}</p>{picture}{_format_rows(form["rows"], "Outline by outline")}'
    if form["kind"] == "rows":
        absent = [field["name"] for field in record_set.config.fields or FIELDS if field["name"] not in value]
        return _format_rows([*form["rows"], *((name, ABSENT) for name in absent)], "Field by field")
    if record_set.task == "multilabel":
        return "".join(f'<p class="hs-decision">{escape_text(label)}</p>' for label in value or ["No label"])
    return _format_text(form["text"], "" if record_set.task == "report" else "hs-decision")


def _format_rows(rows: list[tuple[str, str]], caption: str) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape_text(name)}</th><td>{escape_text(value)}</td></tr>' for name, value in rows
    )
    table = f'<table class="hs-fields"><caption>{caption}</caption><tbody>{cells}</tbody></table>'
    return f'<div class="hs-rows" tabindex="0">{table}</div>'


def _format_text(text: str, css_class: str = "") -> str:
    return f'<p class="hs-text {css_class}">{escape_text(text)}</p>' if text else '<p class="hs-muted">Nothing.</p>'
