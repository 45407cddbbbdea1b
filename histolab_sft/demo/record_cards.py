"""Answers to records as HTML, each in its task's own form, the systems side by side."""

from PIL import Image

from histolab_sft.demo.cards import WAITING, escape_text, format_words
from histolab_sft.demo.records import RecordAnswer, RecordSet
from histolab_sft.demo.systems import TITLES
from histolab_sft.tasks import TASKS
from histolab_sft.tasks.answer_forms import encode_picture

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
    task, config = TASKS[record_set.task], record_set.config
    form = task.describe_answer(value)
    said = "".join(f'<p class="hs-decision">{escape_text(part)}</p>' for part in form["parts"])
    if task.draw_answers:
        drawn = task.draw_answers(image, {"size": image.size}, {system: value}, SIDE)
        said += f'<img class="hs-boxes" src="{encode_picture(drawn, SIDE)}" alt="The picture with the answer on it">'
    if form["kind"] == "sections":
        return said + "".join(f"<h3>{escape_text(name)}</h3>{_format_text(body)}" for name, body in form["sections"])
    if form["kind"] == "rows":
        fields = task.list_fields(config) if task.list_fields else ()
        absent = [(field["name"], ABSENT) for field in fields if field["name"] not in value]
        return said + _format_rows([*form["rows"], *absent], form["caption"])
    return said or _format_text(form["text"])


def _format_rows(rows: list[tuple[str, str]], caption: str) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape_text(name)}</th><td>{escape_text(value)}</td></tr>' for name, value in rows
    )
    table = f'<table class="hs-fields"><caption>{caption}</caption><tbody>{cells}</tbody></table>'
    return f'<div class="hs-rows" tabindex="0">{table}</div>'


def _format_text(text: str) -> str:
    return f'<p class="hs-text">{escape_text(text)}</p>' if text else '<p class="hs-muted">Nothing.</p>'
