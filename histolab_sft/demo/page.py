"""The page: one patch or a batch of them, the base model and the fine-tuned one side by side."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES, ImageRefused
from histolab_sft.demo import cards
from histolab_sft.demo.batch import MAX_PATCHES, BatchRefused, classify_batch, format_csv, open_upload
from histolab_sft.demo.picture_notes import check_patch
from histolab_sft.demo.record_page import build_record_page, show_examples
from histolab_sft.demo.records import RecordSet
from histolab_sft.demo.server import ON_THE_MODEL
from histolab_sft.demo.systems import (
    DataSet,
    Systems,
    answer_patches,
    write_answer,
    write_reasoning,
)

# Uploads and results are looked for every ten minutes and deleted once they are an hour old.
DELETE_CACHE = (600, 3600)


@dataclass
class Demo:
    """What the page shows: the systems, what they can be asked, examples, and remarks on this set-up.

    Args:
        base_model: Its name, for the title.
        examples: (picture, data set, caption) each.
    """

    systems: Systems
    data_sets: list[DataSet | RecordSet]
    base_model: str
    remarks: list[str] = field(default_factory=list)
    examples: list[tuple[Image.Image, str, str]] = field(default_factory=list)


def build_page(demo: Demo) -> gr.Blocks:
    """Return the page. Files are kept in `GRADIO_TEMP_DIR`, which is read here."""
    with gr.Blocks(title="HistoLab demo", analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        gr.HTML(cards.format_head(demo.base_model, len(demo.systems.names) > 1, demo.remarks))
        asked = [entry for entry in demo.data_sets if isinstance(entry, RecordSet)]
        chosen = replace(demo, data_sets=[entry for entry in demo.data_sets if isinstance(entry, DataSet)])
        names = {entry.name for entry in chosen.data_sets}
        chosen.examples = [example for example in demo.examples if example[1] in names]
        if not chosen.data_sets:
            build_record_page(demo.systems, asked, demo.examples)
            return page
        with gr.Tabs():
            with gr.Tab("One patch"):
                _build_patch_tab(chosen)
            with gr.Tab("Batch"):
                _build_batch_tab(chosen)
            if asked:
                with gr.Tab("Questions"):
                    build_record_page(
                        demo.systems, asked, [example for example in demo.examples if example[1] not in names], "case-"
                    )
    return page


def _build_patch_tab(demo: Demo) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            upload = gr.File(label="Upload a patch", file_types=[*IMAGE_SUFFIXES], height=150, elem_id="upload")
            picture = gr.Image(
                label="What the model sees",
                type="filepath",  # decoded by the project's own rules, as in training, not by Gradio's
                image_mode=None,
                format="png",
                interactive=False,
                buttons=[],
                height=260,
                alt_text="The patch that is classified",
                elem_id="picture",
            )
            notes = gr.HTML(elem_id="notes")
            if demo.examples:
                gallery = show_examples(demo.examples)
        with gr.Column(scale=4, min_width=300):
            asked = _choose_data_set(demo, "asked")
            describe = gr.Checkbox(
                label="Describe first, then decide",
                info="A second, slower look in writing. It has no probability.",
                elem_id="describe",
            )
            button = gr.Button("Classify", variant="primary", elem_id="classify")
            answers = gr.HTML(cards.format_placeholder(), elem_id="answers")
            reasoned = gr.HTML(elem_id="reasoned")

    def show_upload(path: str | None, name: str):
        if path is None:
            return gr.skip(), gr.skip(), *cleared()
        try:
            image, conversions = open_upload(path, _find_data_set(demo, name).rendering)
        except ImageRefused as error:
            return None, cards.format_refusal(cards.describe_unusable(error.reason)), *cleared()
        converted = [f"Converted: {done}." for done in conversions]
        return image, cards.format_notes([*converted, *check_patch(image)]), *cleared()

    def show_example(event: gr.SelectData):
        image, name, _ = demo.examples[event.index]
        return None, image, name, cards.format_notes(check_patch(image)), *cleared()

    def classify(path: str | None, name: str, reason: bool) -> Iterator[tuple[str, str]]:
        if path is None:
            yield cards.format_refusal("No picture yet: upload a patch or choose an example."), ""
        else:
            yield from _classify(demo, path, name, reason)

    def cleared() -> tuple[str, str]:
        return cards.format_placeholder(), ""

    private = {"api_visibility": "private"}
    outputs = [answers, reasoned]
    upload.upload(show_upload, [upload, asked], [picture, notes, *outputs], **private)
    upload.clear(lambda: (None, "", *cleared()), None, [picture, notes, *outputs], **private)
    # Each data set has a way of its own to show a stored picture.
    asked.input(show_upload, [upload, asked], [picture, notes, *outputs], **private)
    button.click(classify, [picture, asked, describe], outputs, **private, **ON_THE_MODEL)
    if demo.examples:
        gallery.select(show_example, None, [upload, picture, asked, notes, *outputs], **private)


def _classify(demo: Demo, path: str, name: str, reason: bool) -> Iterator[tuple[str, str]]:
    """Yield the page's answers as they come: probabilities, then words, then reasoning."""
    systems, data_set = demo.systems, _find_data_set(demo, name)
    try:
        image, _ = open_upload(path)
    except ImageRefused as error:
        yield cards.format_refusal(cards.describe_unusable(error.reason)), ""
        return
    answers = {system: answer_patches(systems, system, [image], data_set)[0] for system in systems.names}
    words, reasoned = {}, {system: None for system in systems.names if reason}
    yield cards.format_answers(data_set, answers, words), ""
    for system in systems.names:
        words[system] = write_answer(systems, system, image, data_set)
    shown = cards.format_answers(data_set, answers, words)
    yield shown, cards.format_reasoning(reasoned) if reason else ""
    for system in reasoned:
        reasoned[system] = write_reasoning(systems, system, image, data_set)
        yield shown, cards.format_reasoning(reasoned)


def _build_batch_tab(demo: Demo) -> None:
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
                "They are deleted after an hour."
            )
        with gr.Column(scale=4, min_width=300):
            asked = _choose_data_set(demo, "batch-asked")
            button = gr.Button("Classify all", variant="primary", elem_id="classify-all")
            summary = gr.HTML(min_height=60, elem_id="summary")
            table = gr.File(label="Answers as CSV", interactive=False, elem_id="csv")

    def classify_all(paths: list[str] | None, name: str, progress=gr.Progress()):  # noqa: B008 (how Gradio finds it)
        if not paths:
            return cards.format_refusal("No pictures yet: choose some, or a zip."), None
        data_set = _find_data_set(demo, name)
        try:
            answers = classify_batch(
                demo.systems, data_set, paths, lambda done, total: progress((done, total), unit="pictures")
            )
        except BatchRefused as error:
            return cards.format_refusal(str(error)), None
        refused = answers.loc[answers["refused"] != "", ["file", "refused"]].itertuples(index=False, name=None)
        withheld = {
            system: int((answers[f"{system}_withheld"] == "yes").sum())
            for system in demo.systems.names
            if f"{system}_withheld" in answers
        }
        name = f"{re.sub(r'[^A-Za-z0-9_-]', '_', data_set.name)}.csv"
        path = save_bytes_to_cache(format_csv(answers).encode(), name, table.GRADIO_CACHE)
        return cards.format_batch(len(answers), list(refused), withheld), path

    button.click(classify_all, [files, asked], [summary, table], api_visibility="private", **ON_THE_MODEL)


def _choose_data_set(demo: Demo, elem_id: str) -> gr.Radio:
    choices = [(f"{data_set.name}: {', '.join(data_set.options)}", data_set.name) for data_set in demo.data_sets]
    return gr.Radio(choices, value=demo.data_sets[0].name, label="Data set, and so the classes", elem_id=elem_id)


def _find_data_set(demo: Demo, name: str) -> DataSet:
    return next(data_set for data_set in demo.data_sets if data_set.name == name)
