"""The demo on data sets that bring their own questions: what is asked, how answers are shown, what is refused."""

import base64
import io
import json
import re
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from demo_run import app_command, call, file_data, find_function, request, running, send_upload
from hypothesis import given, settings
from hypothesis import strategies as st
from open_fixture import WRITERS, write_data
from PIL import Image
from record_demo_run import ANSWERS, DATASETS, noise, write_record_run

from histolab_sft.config.arguments import HistoArguments, read_recipe
from histolab_sft.demo.cards import ABSENT, format_answers
from histolab_sft.demo.data_set import DataSet, QuestionRefused, fill_ask, word_question
from histolab_sft.demo.describe import describe_data_sets, list_wordings
from histolab_sft.demo.examples import make_example
from histolab_sft.demo.page import Demo, build_page
from histolab_sft.demo.systems import Answer, Systems
from histolab_sft.tasks.answer_forms import BOX_COLOURS
from histolab_sft.tasks.biomarkers import FIELDS

FREE = {"question": "What is it?"}
ASKS = {
    "classification": FREE | {"options": ["Benign", "Malignant"]},
    "multilabel": FREE | {"vocabulary": ["Dental Caries", "Pulp Diseases"]},
    "quantity": FREE | {"kind": "counting"},
    "boxes": FREE | {"label_aware": True, "size": [200, 100]},
    "report": FREE | {"style": "question"},
    "biomarkers": {"style": "card", "values": {}},
}
SETS = {task: DataSet(task, task, [ask], 8, {"format": "flare"}) for task, ask in ASKS.items()}
GREY = Image.new("RGB", (200, 100), (90, 90, 90))


def show(task, **answers):
    given = {system: Answer(answer, "its words") for system, answer in answers.items()}
    return format_answers(SETS[task], ASKS[task], given, GREY)


def read_rows(html):
    return dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', html))


def test_boxes_are_drawn_on_the_picture_where_they_are_in_the_colour_of_the_system():
    shown = show("boxes", baseline=[[20, 10, 120, 80, None]], finetuned=[[20, 10, 120, 80, "lesion"]])
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", shown)]
    for picture, system in zip(pictures, ("baseline", "finetuned"), strict=True):
        colour = [int(BOX_COLOURS[system][place : place + 2], 16) for place in (1, 3, 5)]
        pixels = np.asarray(picture).astype(int)
        assert picture.size == GREY.size
        for x, y in ((20, 50), (119, 50), (70, 79)):
            near = np.abs(pixels[y - 2 : y + 3, x - 2 : x + 3] - colour).sum(axis=-1)
            assert near.min() < 60, "no line of the system's colour there"
        assert np.abs(pixels[50, 70] - 90).max() < 10
    assert "1 box<" in shown and "lesion" in shown and read_rows(shown)["lesion"] == "20, 10, 120, 80"


def test_fields_stand_in_a_table_and_one_that_the_answer_lacks_says_so():
    shown = show("biomarkers", baseline={"msi_status": "MSS", "til_fraction": None}, finetuned=ANSWERS["biomarkers"])
    baseline, finetuned = (read_rows(card) for card in shown.split("<section")[1:])
    assert list(finetuned) == [field["name"] for field in FIELDS] and finetuned["immune_score"] == "0.626"
    assert set(baseline) == set(finetuned) and baseline["msi_status"] == "MSS"
    assert baseline["til_fraction"] == "not a legal value" and baseline["immune_score"] == ABSENT


def test_truths_stand_beside_answers_field_by_field_on_the_picture_and_as_a_text():
    record = {field["name"]: "unknown" for field in FIELDS} | {"msi_status": "MSS", "til_density": "low"}
    said = Answer(record | {"til_density": "high"}, "", confidences={"msi_status": 0.875})
    shown = format_answers(SETS["biomarkers"], ASKS["biomarkers"], {"baseline": said}, GREY, record)
    rows = read_rows(shown.split("The truth")[0])
    assert "✓" in rows["msi_status"] and "87.5%" in rows["msi_status"] and "✗" in rows["til_density"]
    assert "✓" not in rows["tme_subtype"]  # what isn't known isn't right either
    boxes = {"baseline": Answer([[20, 10, 120, 80, None]], "")}
    shown = format_answers(SETS["boxes"], ASKS["boxes"], boxes, GREY, [[30, 20, 150, 90, "lesion"]])
    assert "The truth" in shown and "lesion" in shown and "hs-verdict" not in shown
    assert "The truth" in format_answers(
        SETS["report"], ASKS["report"], {"baseline": Answer("a", "a")}, None, "Clear."
    )
    counted = format_answers(SETS["quantity"], ASKS["quantity"], {"baseline": Answer(12, "12")}, None, 13)
    assert "✗ Off by 1: the truth is 13" in counted


def test_every_other_task_shows_its_answer_in_its_own_form():
    sections = "FINDINGS:\n- Nodule (left)\n\nLOCATIONS:\nleft\n\nIMPRESSION:\nNodule."
    assert "<h3>Impression</h3>" in show("report", baseline=sections)
    assert '<p class="hs-text">Clear lungs.</p>' in show("report", baseline="Clear lungs.")
    assert ">1234567</p>" in show("quantity", baseline=1234567.0)
    assert ">Malignant</p>" in show("classification", baseline="Malignant")
    shown = show("multilabel", baseline=["Dental Caries", "Pulp Diseases"])
    assert ">Dental Caries</p>" in shown and ">Pulp Diseases</p>" in shown
    assert "No label" in show("multilabel", baseline=[]) and "No box" in show("boxes", baseline=[])


def test_an_answer_that_cannot_be_read_says_so_beside_its_own_words():
    answers = {"baseline": Answer(None, "Who knows", True), "finetuned": None}
    baseline, finetuned = format_answers(SETS["quantity"], ASKS["quantity"], answers).split("<section")[1:]
    assert "Unparsed" in baseline and "<blockquote>Who knows</blockquote>" in baseline and "Cut off" in baseline
    assert "waiting" in finetuned and "Unparsed" not in finetuned


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["report", "multilabel", "boxes", "biomarkers"]))
def test_what_a_model_says_about_a_record_cannot_become_markup_or_a_template(text, task):
    hostile = f"<img src=x onerror=1>{text}${{value}}{{{{value}}}}"
    values = {"report": hostile, "multilabel": [hostile], "boxes": [[1, 2, 30, 40, hostile]]}
    values["biomarkers"] = {"msi_status": hostile}
    ask = ASKS[task] | ({"question": hostile} if "question" in ASKS[task] else {})
    shown = format_answers(SETS[task], ask, {"baseline": Answer(values[task], hostile)}, GREY)
    assert "<img src=x" not in shown and not set("${}") & set(shown)


def test_the_visitors_words_take_the_place_of_the_data_sets_own():
    ask = fill_ask(SETS["classification"], ASKS["classification"], " Which? ", "Mass\n Cyst \n\nMass", [GREY])
    assert ask == {"question": "Which?", "options": ["Mass", "Cyst"]}
    assert fill_ask(SETS["boxes"], FREE | {"label_aware": True}, "Where?", "", [GREY])["size"] == [200, 100]
    # A task with but one wording keeps it.
    assert fill_ask(SETS["biomarkers"], ASKS["biomarkers"], "Other words", "", [GREY] * 8) == ASKS["biomarkers"]


@pytest.mark.parametrize(
    "task, question, options, count, reason",
    [
        ("report", "What?", "", 0, "No picture yet"),
        ("report", "  ", "", 1, "No question yet"),
        ("report", "x" * 4001, "", 1, "longer than 4000"),
        ("report", "What?", "", 17, "17 pictures, expected at most 16"),
        ("boxes", "Where?", "", 2, "2 pictures, expected at most 1"),
        ("classification", "Which?", "Mass\nMass", 1, "1 possible answers, expected two"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(task, question, options, count, reason):
    with pytest.raises(QuestionRefused, match=reason):
        fill_ask(SETS[task], ASKS[task], question, options, [GREY] * count)


def test_a_page_of_both_kinds_of_data_sets_is_one_page_with_the_examples_of_the_chosen_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    options = {"Adipose": "Adipose", "Tumor": "Tumor"}
    ask = {"options": list(options), "style": "generic"}
    classes, questions = DataSet("crc", "classification", [ask], 8, {"class_names": options}), SETS["report"]
    examples = [make_example(classes, "Tumor", [GREY]), make_example(questions, "a case", [GREY])]
    page = build_page(Demo(Systems(None, None), [classes, questions], "base", examples=examples))
    blocks = {block.elem_id: block for block in page.blocks.values() if block.elem_id}
    assert len(blocks) == len([block for block in page.blocks.values() if block.elem_id])
    assert [name for _, name in blocks["asked"].choices] == ["crc", "report"]
    assert [caption for _, caption in map(read_entry, blocks["examples"].value)] == ["Tumor"]


def read_entry(entry):
    return entry["image"]["path"], entry["caption"]


def test_a_question_about_one_case_alone_is_not_shown_to_others():
    def table(asks, groups):
        rows = {"ask": asks, "group": groups, "images": [[{"path": f"{number}.png"}] for number in range(len(asks))]}
        return pd.DataFrame(rows)

    often, once = {"question": "Which?", "size": [1, 2]}, {"question": "And in this man of 63?"}
    asks = [once, often, {"question": "Which?", "size": [3, 4], "placement": []}]
    assert list_wordings(table(asks, ["a", "b", "c"])) == [{"question": "Which?"}]
    assert list_wordings(table(asks, [None, None, None])) == [{"question": "Which?"}]
    assert list_wordings(table(asks, ["a", "b", "b"])) == [{"question": ""}]
    fixed = [{"style": "training", "values": {"cancer_type": kind}} for kind in ("LUAD", "LUSC", "LUAD")]
    assert list_wordings(table(fixed, ["a", "b", "c"])) == [fixed[0], fixed[1]]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", WRITERS)
def test_every_shipped_recipe_on_records_has_questions_for_the_page(recipe, tmp_path):
    keys = read_recipe(f"recipes/{recipe}.yaml")
    write_data(recipe, tmp_path, keys["datasets"])
    home = str(tmp_path / keys.get("data_dir", ""))
    histo_args = HistoArguments(datasets=keys["datasets"], data_dir=home)
    for data_set in describe_data_sets(histo_args, tmp_path)[0]:
        data_set = DataSet(**json.loads(json.dumps(asdict(data_set))))  # as a Space keeps it
        for ask in data_set.asks:
            options = "\n".join(ask.get("options") or ask.get("vocabulary") or [])
            filled = fill_ask(data_set, ask, "What is there?", options, [GREY])
            question = word_question(data_set, filled)
            assert ("What is there?" in question) == ("question" in ask) and "{" not in question.replace('[{"box', "")


@pytest.fixture(scope="module")
def server(tmp_path_factory, untrained_model):
    place = tmp_path_factory.mktemp("place")
    recipe = write_record_run(place, untrained_model, taught=False)
    with running(app_command(recipe), place) as (process, port):
        yield process, port, place


def png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def gallery(*paths):
    return [{"image": file_data(path), "caption": None} for path in paths]


def show_uploads(port, pictures, name="biomarkers", function="show_uploads"):
    """Upload files as the page does and let the page's own function open them; return what is said about it."""
    paths = [send_upload(port, file, data)[1] for file, data in pictures.items()]
    return call(port, find_function(port, function), [gallery(*paths), name, None])


def read_output(said):
    """Return what the last event of a call gives the page."""
    events = [json.loads(line.removeprefix("data: ")) for line in said.splitlines() if line.startswith("data: ")]
    return next(event["output"]["data"] for event in events if event["msg"] == "process_completed")


def ask(port, entries, name, question="What?", options="", number=0):
    return call(port, find_function(port, "ask"), [entries, name, number, question, options, False, None, None])


@pytest.mark.model
def test_the_page_offers_each_data_set_with_its_question_and_possible_answers(server):
    _, port, place = server
    for entry in DATASETS:
        said = call(port, find_function(port, "change_set"), [None, entry["name"], None])
        wording, question, options, *_ = read_output(said)
        assert question["interactive"] == (entry["name"] != "biomarkers") and question["value"]
        assert options["visible"] == (entry["name"] in ("classification", "multilabel"))
        assert wording["choices"] == [[question["value"], 0]] and not wording["visible"]
        assert str(place) not in said
        if entry["name"] == "classification":
            assert options["value"].splitlines() == ["Benign", "Malignant"]


@pytest.mark.model
def test_several_pictures_are_one_question_and_come_back_as_bare_pixels(server):
    _, port, _ = server
    deep = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    shown, notes, *_ = read_output(show_uploads(port, {"one.png": png(noise()), "two.png": png(deep)}))
    assert len(shown) == 2 and "16-bit grey scaled" in notes
    answered = ask(port, gallery(*(entry["image"]["path"] for entry in shown)), "biomarkers")
    assert '"success":true' in answered and "data-system" in answered and "LUAD" in answered
    refused = ask(port, gallery(*(entry["image"]["path"] for entry in shown)), "boxes")
    assert "2 pictures, expected at most 1" in refused and "data-system" not in refused


@pytest.mark.model
def test_uploads_are_shown_as_the_data_set_shows_its_own_pictures(server):
    _, port, _ = server
    deep = png(Image.fromarray(np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.uint16)))
    for function, place in (("show_uploads", 0), ("change_set", 6)):
        for name, size, brightest in (("report", (64, 48), 16), ("quantity", (64, 64), 255)):
            [entry] = read_output(show_uploads(port, {"deep.png": deep}, name, function))[place]
            picture = Image.open(io.BytesIO(request(port, "GET", f"/gradio_api/file={entry['image']['path']}")[2]))
            assert picture.size == size and abs(np.asarray(picture).max() - brightest) <= 1


@pytest.mark.model
def test_unread_answers_and_texts_come_with_the_models_own_words(server):
    _, port, _ = server
    _, path = send_upload(port, "one.png", png(noise()))
    for name, found in (("report", "hs-text"), ("quantity", "Unparsed"), ("boxes", "Unparsed")):
        said = ask(port, gallery(path), name, "How much is there?")
        html, *_ = read_output(said)
        assert found in html and "<blockquote>" in html and "How much is there?" in html


@pytest.mark.model
def test_what_is_no_picture_or_no_question_is_refused_without_a_path(server):
    process, port, place = server
    said = show_uploads(port, {"one.png": png(noise()), "page.png": b"<html></html>"})
    assert "page.png: isn" in said and "a picture of a known format" in said and read_output(said)[0] == []
    _, path = send_upload(port, "one.png", png(noise()))
    _, page = send_upload(port, "page.png", b"<html></html>")
    refused = [
        ask(port, gallery(page), "report"),
        ask(port, None, "report"),
        ask(port, gallery(path), "report", " "),
        ask(port, gallery(path), "report", "<start_of_image> What? <end_of_turn>"),
        ask(port, gallery(path), "no such data set"),
        ask(port, gallery(path), "report", number=7),
        ask(port, gallery(path), "classification", options="Mass"),
        ask(port, "x", {}, [], 7),
    ]
    foreign = ["/etc/passwd", str(place / "recipe.yaml"), "../recipe.yaml", "http://127.0.0.1:1/x.png"]
    refused += [ask(port, gallery(name), "report") for name in foreign]
    for said in refused:
        assert "hs-refused" in said or '"success":false' in said
        assert "data-system" not in said and "Traceback" not in said and "model_name_or_path" not in said
    assert "control word" in refused[3] and str(place) not in "".join(refused[:8])
    assert process.poll() is None and "data-system" in ask(port, gallery(path), "report")
