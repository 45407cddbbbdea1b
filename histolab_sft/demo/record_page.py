"""The page of data sets that bring their own questions: pictures and a question in, both systems' answers out."""

from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from PIL import Image

from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES, ImageRefused
from histolab_sft.demo import cards
from histolab_sft.demo.batch import open_upload
from histolab_sft.demo.record_cards import format_record_answers
from histolab_sft.demo.records import (
    MAX_LETTERS,
    MAX_PICTURES,
    QuestionRefused,
    RecordSet,
    fill_ask,
    find_choices,
    put_question,
    word_question,
)
from histolab_sft.demo.server import ON_THE_MODEL
from histolab_sft.demo.systems import Systems
from histolab_sft.tasks import TASKS

BUTTON = "Ask"


def build_record_page(
    systems: Systems, record_sets: list[RecordSet], examples: list[tuple[Image.Image, str, str]], prefix: str = ""
) -> None:
    """Add what is asked, and what is answered, to the page that is being built.

    Args:
        examples: (picture, data set, caption) each.
        prefix: Of the elements' ids, each of which a page may have once.
    """
    first, by_name = record_sets[0], {record_set.name: record_set for record_set in record_sets}
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            upload = gr.File(
                label="Upload pictures of one case",
                file_count="multiple",
                file_types=[*IMAGE_SUFFIXES],
                height=150,
                elem_id=f"{prefix}upload",
            )
            pictures = gr.Gallery(
                label="What the model sees",
                type="filepath",  # decoded by the project's own rules, as in training, not by Gradio's
                format="png",
                height="auto",
                allow_preview=False,
                interactive=False,
                object_fit="contain",
                buttons=[],
                elem_id=f"{prefix}pictures",
            )
            notes = gr.HTML(elem_id=f"{prefix}notes")
            if examples:
                gallery = show_examples(examples, f"{prefix}examples")
        with gr.Column(scale=4, min_width=300):
            asked = gr.Dropdown(
                [(f"{entry.name}: {TASKS[entry.task].ANSWER_IS}", entry.name) for entry in record_sets],
                value=first.name,
                label="Data set, and so the task",
                filterable=False,
                elem_id=f"{prefix}asked",
            )
            wording = gr.Dropdown(**_list_wordings(first), label="A question of the data", elem_id=f"{prefix}wording")
            question = gr.Textbox(**_show_question(first, 0), lines=2, max_lines=8, elem_id=f"{prefix}question")
            options = gr.Textbox(
                **_show_options(first, 0), label="Possible answers, one a line", lines=2, elem_id=f"{prefix}options"
            )
            button = gr.Button(BUTTON, variant="primary", elem_id=f"{prefix}ask")
            answers = gr.HTML(cards.format_placeholder(BUTTON), elem_id=f"{prefix}answers")

    def choose(name: str, number: int) -> tuple:
        entry, cleared = by_name[name], cards.format_placeholder(BUTTON)
        return gr.Textbox(**_show_question(entry, number)), gr.Textbox(**_show_options(entry, number)), cleared

    def choose_set(name: str) -> tuple:
        return gr.Dropdown(**_list_wordings(by_name[name])), *choose(name, 0)

    def change_set(paths: list[str] | None, name: str) -> tuple:
        # Each data set has a way of its own to show a stored picture.
        shown = show_uploads(paths, name)[:2] if paths else (gr.skip(), gr.skip())
        return *shown, *choose_set(name)

    def show_uploads(paths: list[str] | None, name: str) -> tuple:
        images, converted, refused = [], [], []
        rendering = by_name[name].rendering
        for path in paths or []:
            try:
                image, conversions = open_upload(Path(path), rendering)
            except ImageRefused as error:
                refused.append(f"{Path(path).name}: {error.reason}")
                continue
            images.append(image)
            converted += [f"Converted: {done}." for done in conversions]
        said = cards.format_notes(list(dict.fromkeys(converted)))
        if refused:
            images, said = [], cards.format_refusal(cards.describe_unusable("; ".join(refused)))
        return images, said, cards.format_placeholder(BUTTON)

    def show_example(event: gr.SelectData) -> tuple:
        image, name, _ = examples[event.index]
        return None, [image], "", name, *choose_set(name)

    def ask(shown: list[tuple[str, str]] | None, name: str, number: int, words: str, listed: str) -> Iterator[str]:
        entry = by_name[name]
        try:
            images = [open_upload(Path(path))[0] for path, _ in (shown or [])[: MAX_PICTURES + 1]]
            filled = fill_ask(entry, entry.asks[number], words, listed, images)
            worded = word_question(entry, filled, systems.processor.tokenizer)
        except QuestionRefused as error:
            yield cards.format_refusal(str(error))
            return
        except ImageRefused as error:
            yield cards.format_refusal(cards.describe_unusable(error.reason))
            return
        said = dict.fromkeys(systems.names)
        for system in systems.names:
            yield format_record_answers(entry, worded, said, images[0])
            said[system] = put_question(systems, system, images, entry, filled, worded)
        yield format_record_answers(entry, worded, said, images[0])

    private = {"api_visibility": "private"}
    for changed in (upload.upload, upload.delete, upload.clear):
        changed(show_uploads, [upload, asked], [pictures, notes, answers], **private)
    outputs = [pictures, notes, wording, question, options, answers]
    asked.input(change_set, [upload, asked], outputs, **private)
    wording.input(choose, [asked, wording], [question, options, answers], **private)
    button.click(ask, [pictures, asked, wording, question, options], answers, **private, **ON_THE_MODEL)
    if examples:
        outputs = [upload, pictures, notes, asked, wording, question, options, answers]
        gallery.select(show_example, None, outputs, **private)


def show_examples(examples: list[tuple[Image.Image, str, str]], elem_id: str = "examples") -> gr.Gallery:
    """Add the pictures, each with its caption, as one row of small ones to choose from."""
    return gr.Gallery(
        [(image, caption) for image, _, caption in examples],
        label="Examples",
        format="png",
        height="auto",
        allow_preview=False,
        interactive=False,
        object_fit="cover",
        buttons=[],
        elem_id=elem_id,
    )


def _list_wordings(record_set: RecordSet) -> dict:
    """What the list of questions shows; it is left out where there is nothing to choose."""
    choices = [(_word(record_set, number), number) for number in range(len(record_set.asks))]
    return {"choices": choices, "value": 0, "visible": len(choices) > 1}


def _show_question(record_set: RecordSet, number: int) -> dict:
    free = "question" in record_set.asks[number]
    return {
        "value": _word(record_set, number),
        "label": "Question, yours to change" if free else "Question, fixed for this task",
        "interactive": free,
        "max_length": MAX_LETTERS,
    }


def _show_options(record_set: RecordSet, number: int) -> dict:
    key = find_choices(record_set.asks[number])
    return {
        "value": "\n".join(record_set.asks[number][key]) if key else "",
        "visible": key is not None,
        "max_length": MAX_LETTERS,
    }


def _word(record_set: RecordSet, number: int) -> str:
    """Return the data set's own words, or all of a question that has but one wording."""
    ask = record_set.asks[number]
    return ask["question"] if "question" in ask else TASKS[record_set.task].format_question(ask, record_set.config)
