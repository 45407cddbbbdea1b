"""The page: a case or a batch of them, and what the base model and the fine-tuned one say, side by side."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES, ImageRefused
from histolab_sft.data.pictures.decoding import hash_pixels
from histolab_sft.demo import cards
from histolab_sft.demo.batch import MAX_PATCHES, BatchRefused, answer_batch, format_csv, open_upload
from histolab_sft.demo.data_set import (
    MAX_LETTERS,
    MAX_PICTURES,
    DataSet,
    QuestionRefused,
    check_words,
    fill_ask,
    find_choices,
    word_question,
)
from histolab_sft.demo.examples import Example
from histolab_sft.demo.history import MOST, record_case, write_history
from histolab_sft.demo.picture_notes import note_picture
from histolab_sft.demo.server import ON_THE_MODEL
from histolab_sft.demo.systems import Systems, answer_case, write_reasoning
from histolab_sft.tasks import TASKS

# Uploads and results are looked for every ten minutes and deleted once they are an hour old.
DELETE_CACHE = (600, 3600)
FEW = 4  # classes that a data set is listed with; its question names them all
PRIVATE = {"api_visibility": "private"}


@dataclass
class Demo:
    """What the page shows: the systems, what they can be asked, examples, and remarks on this set-up.

    Args:
        base_model: Its name, for the title.
    """

    systems: Systems
    data_sets: list[DataSet]
    base_model: str
    remarks: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    def find(self, name: str) -> DataSet:
        return next(data_set for data_set in self.data_sets if data_set.name == name)

    def list_examples(self, name: str) -> list[Example]:
        return [example for example in self.examples if example.data_set == name]


@dataclass
class Form:
    """The components that say what is asked."""

    data_set: gr.Radio
    wording: gr.Dropdown
    question: gr.Textbox
    choices: gr.Textbox

    @property
    def asked(self) -> list:
        return [self.data_set, self.wording, self.question, self.choices]


def build_page(demo: Demo) -> gr.Blocks:
    """Return the page. Files are kept in `GRADIO_TEMP_DIR`, which is read here."""
    with gr.Blocks(title="HistoLab demo", analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        gr.HTML(cards.format_head(demo.base_model, len(demo.systems.names) > 1, demo.remarks))
        form = _build_form(demo)
        with gr.Tabs():
            with gr.Tab("One case"):
                history = _build_case_tab(demo, form)
            with gr.Tab("Batch"):
                _build_batch_tab(demo, form)
            with gr.Tab("History") as tab:
                _build_history_tab(history, tab)
    return page


def _build_form(demo: Demo) -> Form:
    first = demo.data_sets[0]
    with gr.Row(equal_height=False):
        data_set = gr.Radio(
            [(f"{entry.name}: {_say_answer(entry)}", entry.name) for entry in demo.data_sets],
            value=first.name,
            label="Data set, and so what is asked",
            elem_id="asked",
        )
        with gr.Column(min_width=300):
            wording = gr.Dropdown(**_list_wordings(first), label="A question of the data", elem_id="wording")
            question = gr.Textbox(**_show_question(first, first.asks[0]), lines=4, max_lines=8, elem_id="question")
            choices = gr.Textbox(
                **_show_choices(first.asks[0]), label="Possible answers, one a line", lines=2, elem_id="options"
            )
    return Form(data_set, wording, question, choices)


def _build_case_tab(demo: Demo, form: Form) -> gr.State:
    """Add the tab, and return what was asked in it in this visit."""
    first = demo.data_sets[0]
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            pictures = gr.Gallery(
                label="Pictures of one case, as the model sees them",
                type="filepath",  # decoded by the project's own rules, as in training, not by Gradio's
                file_types=[*IMAGE_SUFFIXES],
                format="png",
                height="auto",
                columns=1,
                interactive=True,
                object_fit="contain",
                buttons=["fullscreen"],
                elem_id="pictures",
            )
            notes = gr.HTML(elem_id="notes")
            gallery = gr.Gallery(
                **_show_examples(demo, first.name),
                label="Examples",
                format="png",
                height="auto",
                allow_preview=False,
                interactive=False,
                object_fit="cover",
                buttons=[],
                elem_id="examples",
            )
        with gr.Column(scale=4, min_width=300):
            describe = gr.Checkbox(
                label="Describe first, then decide",
                info="A second, slower look in writing. It has no probability.",
                visible=bool(first.options),
                elem_id="describe",
            )
            button = gr.Button("Ask", variant="primary", elem_id="ask")
            answers = gr.HTML(cards.format_placeholder(), elem_id="answers")
            reasoned = gr.HTML(elem_id="reasoned")
            score = gr.HTML(cards.format_score(first, len(demo.systems.names) > 1), elem_id="score")
    # Pixels of each picture that is shown -> the file it was made of, None where it is shown as it was given.
    origins = gr.State({})
    chosen = gr.State(None)  # the number of the example that is shown
    history = gr.State([])

    def show_uploads(shown: list | None, name: str, known: dict) -> tuple:
        return *_render(shown, demo.find(name), known or {}), None, *cleared()

    def show_example(event: gr.SelectData, name: str, number: int) -> tuple:
        example, data_set = demo.list_examples(name)[event.index], demo.find(name)
        asked = example.ask or data_set.asks[number]
        texts = gr.Textbox(**_show_question(data_set, asked)), gr.Textbox(**_show_choices(asked))
        try:
            images = example.open_pictures()
        except ImageRefused as error:
            refused = cards.format_refusal(cards.describe_unusable(error.reason))
            return *texts, [], refused, {}, None, *cleared()
        known = {hash_pixels(image): None for image in images}
        return *texts, images, _note(images, [], data_set), known, event.index, *cleared()

    def change_set(shown: list | None, name: str, known: dict) -> tuple:
        data_set = demo.find(name)
        texts = gr.Dropdown(**_list_wordings(data_set)), *change_wording(name, 0)[:2]
        tab = gr.Checkbox(visible=bool(data_set.options)), gr.Gallery(**_show_examples(demo, name))
        tab += (cards.format_score(data_set, len(demo.systems.names) > 1),)
        # Each data set has a way of its own to show a stored picture.
        return *texts, *tab, *show_uploads(shown, name, known)

    def change_wording(name: str, number: int) -> tuple:
        data_set = demo.find(name)
        asked = data_set.asks[number]
        # What the example is known to be answers its own question alone.
        return gr.Textbox(**_show_question(data_set, asked)), gr.Textbox(**_show_choices(asked)), None, *cleared()

    def ask(
        shown: list | None,
        name: str,
        number: int,
        words: str,
        listed: str,
        reason: bool,
        picked: int | None,
        before: list | None,
    ) -> Iterator[tuple]:
        data_set = demo.find(name)
        example = None if picked is None else demo.list_examples(name)[picked]
        own = example and example.ask or data_set.asks[number]
        try:
            images = [open_upload(Path(path))[0] for path, _ in (shown or [])[: MAX_PICTURES + 1]]
            filled = fill_ask(data_set, own, words, listed, images)
            check_words(word_question(data_set, filled), demo.systems.processor.tokenizer)
        except QuestionRefused as error:
            yield cards.format_refusal(str(error)), "", gr.skip()
            return
        except ImageRefused as error:
            yield cards.format_refusal(cards.describe_unusable(error.reason)), "", gr.skip()
            return
        unchanged = example is not None and word_question(data_set, filled) == word_question(data_set, own)
        truth = example.truth if unchanged else None
        reasoning = reason and bool(data_set.options)
        for step in _ask(demo, images, data_set, filled, truth, reasoning):
            yield *step[:2], gr.skip()
        said, reasons, answered = step
        entry = record_case(data_set, filled, answered, truth, len(images))
        yield said, reasons, [*(before or []), entry][-MOST:]

    said = [answers, reasoned]
    shown = [pictures, notes, origins, chosen, *said]
    pictures.upload(show_uploads, [pictures, form.data_set, origins], shown, **PRIVATE)
    pictures.delete(show_uploads, [pictures, form.data_set, origins], shown, **PRIVATE)
    texts = [form.question, form.choices]
    form.data_set.input(
        change_set,
        [pictures, form.data_set, origins],
        [form.wording, *texts, describe, gallery, score, *shown],
        **PRIVATE,
    )
    form.wording.input(change_wording, [form.data_set, form.wording], [*texts, chosen, *said], **PRIVATE)
    gallery.select(show_example, [form.data_set, form.wording], [*texts, *shown], **PRIVATE)
    button.click(ask, [pictures, *form.asked, describe, chosen, history], [*said, history], **PRIVATE, **ON_THE_MODEL)
    return history


def _build_batch_tab(demo: Demo, form: Form) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            files = gr.File(
                label="Pictures or zip",
                file_count="multiple",
                file_types=[".zip", *IMAGE_SUFFIXES],
                height=180,
                elem_id="batch-upload",
            )
            gr.Markdown(
                f"Pictures, or zip archives with folders of pictures: at most {MAX_PATCHES} pictures, 10 MB a file. "
                "Each is asked about by itself. They are deleted after an hour."
            )
        with gr.Column(scale=4, min_width=300):
            button = gr.Button("Ask about all", variant="primary", elem_id="ask-all")
            summary = gr.HTML(min_height=60, elem_id="summary")
            table = gr.File(label="Answers as CSV", interactive=False, visible=False, elem_id="csv")

    def ask_all(paths: list[str] | None, name: str, number: int, words: str, listed: str, progress=gr.Progress()):  # noqa: B008 (how Gradio finds it)
        if not paths:
            return cards.format_refusal("No pictures yet: choose some, or a zip."), gr.File(visible=False)
        data_set = demo.find(name)

        def fill(image: Image.Image) -> dict:
            return fill_ask(data_set, data_set.asks[number], words, listed, [image])

        try:
            # Refused before a picture is read; a question is of the same words for every picture.
            check_words(word_question(data_set, fill(Image.new("RGB", (1, 1)))), demo.systems.processor.tokenizer)
            answers = answer_batch(
                demo.systems, data_set, fill, paths, lambda done, total: progress((done, total), unit="pictures")
            )
        except (BatchRefused, QuestionRefused) as error:
            return cards.format_refusal(str(error)), gr.File(visible=False)
        refused = answers.loc[answers["refused"] != "", ["file", "refused"]].itertuples(index=False, name=None)
        withheld = {
            system: int((answers[f"{system}_withheld"] == "yes").sum())
            for system in demo.systems.names
            if f"{system}_withheld" in answers
        }
        name = f"{re.sub(r'[^A-Za-z0-9_-]', '_', data_set.name)}.csv"
        path = save_bytes_to_cache(format_csv(answers).encode(), name, table.GRADIO_CACHE)
        return cards.format_batch(len(answers), list(refused), withheld), gr.File(value=path, visible=True)

    button.click(ask_all, [files, *form.asked], [summary, table], **PRIVATE, **ON_THE_MODEL)


def _build_history_tab(history: gr.State, tab: gr.Tab) -> None:
    listed = gr.HTML(cards.format_history([]), elem_id="history")
    files = gr.File(
        label="History as CSV and JSON", file_count="multiple", interactive=False, visible=False, elem_id="export"
    )
    gr.Markdown("It holds questions and answers of this visit, and no picture. Reload the page to forget it.")

    def show_history(entries: list | None) -> tuple:
        if not entries:
            return cards.format_history([]), gr.File(visible=False)
        written = write_history(entries)
        paths = [save_bytes_to_cache(data, name, files.GRADIO_CACHE) for name, data in written.items()]
        return cards.format_history(entries), gr.File(value=paths, visible=True)

    tab.select(show_history, history, [listed, files], **PRIVATE)


def _ask(
    demo: Demo, images: list[Image.Image], data_set: DataSet, ask: dict, truth: object | None, reason: bool
) -> Iterator[tuple[str, str, dict]]:
    """Yield what the page shows as it comes (what is chosen, then words, then reasoning), and the answers."""
    systems, reasoned = demo.systems, {system: None for system in demo.systems.names if reason}
    for answers in answer_case(systems, images, data_set, ask):
        said = cards.format_answers(data_set, ask, answers, images[0], truth)
        yield said, "", answers
    for system in reasoned:
        yield said, cards.format_reasoning(reasoned), answers
        reasoned[system] = write_reasoning(systems, system, images, data_set)
    if reason:
        yield said, cards.format_reasoning(reasoned), answers


def _render(shown: list | None, data_set: DataSet, known: dict[str, str | None]) -> tuple[list, str, dict]:
    """Return pictures as the data set shows them, notes on them, and what each was made of.

    Args:
        shown: (path, caption) each: uploads, and what was rendered before.
        known: Pixels of what was rendered before -> the upload that it was made of.
    """
    given, converted, refused = [], [], []
    for path, _ in shown or []:
        try:
            image, _ = open_upload(Path(path))
            fresh = hash_pixels(image) not in known
            origin = known.get(hash_pixels(image), path)
            if origin is not None:
                image, conversions = open_upload(Path(origin), data_set.rendering)
                converted += conversions
            given.append((image, origin, fresh))
        except ImageRefused as error:
            refused.append(f"{Path(path).name}: {error.reason}")
    if refused:
        return [], cards.format_refusal(cards.describe_unusable("; ".join(refused))), {}
    if data_set.most_pictures == 1 and any(fresh for *_, fresh in given):
        given = [entry for entry in given if entry[-1]]  # a new picture takes the place of the one before
    images = [image for image, *_ in given]
    origins = {hash_pixels(image): origin for image, origin, _ in given}
    return images, _note(images, converted, data_set), origins


def _note(images: list[Image.Image], conversions: list[str], data_set: DataSet) -> str:
    said = [f"Converted: {done}." for done in conversions]
    said += [note for image in images for note in note_picture(image, data_set)]
    return cards.format_notes(list(dict.fromkeys(said)))


def cleared() -> tuple[str, str]:
    return cards.format_placeholder(), ""


def _say_answer(data_set: DataSet) -> str:
    options = data_set.options
    if not options:
        return TASKS[data_set.task].ANSWER_IS
    return ", ".join(options) if len(options) <= FEW else f"{len(options)} classes"


def _show_examples(demo: Demo, name: str) -> dict:
    examples = demo.list_examples(name)
    return {
        "value": [(example.thumbnail, example.caption) for example in examples],
        "visible": bool(examples),
    }


def _list_wordings(data_set: DataSet) -> dict:
    """What the list of questions shows; it is left out where there is nothing to choose."""
    choices = [(_word(data_set, ask), number) for number, ask in enumerate(data_set.asks)]
    return {"choices": choices, "value": 0, "visible": len(choices) > 1}


def _show_question(data_set: DataSet, ask: dict) -> dict:
    free = "question" in ask
    return {
        "value": _word(data_set, ask),
        "label": "Question, yours to change" if free else "Question, fixed for this data set",
        "interactive": free,
        "max_length": MAX_LETTERS,
    }


def _show_choices(ask: dict) -> dict:
    key = find_choices(ask)
    return {
        "value": "\n".join(ask[key]) if key else "",
        "visible": key is not None,
        "max_length": MAX_LETTERS,
    }


def _word(data_set: DataSet, ask: dict) -> str:
    """Return the data set's own words where they can be changed, else the whole question."""
    return ask["question"] if "question" in ask else word_question(data_set, ask)
