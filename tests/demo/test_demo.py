import csv
import dataclasses
import io
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from demo_run import DATASETS, SCORE, SCORED, write_evaluation, write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.special import softmax
from transformers import AutoModelForImageTextToText

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.data.pictures.steps import show_scales
from histolab_sft.demo import cards
from histolab_sft.demo.batch import BatchRefused, answer_batch, format_csv, list_uploads
from histolab_sft.demo.data_set import DataSet, word_question
from histolab_sft.demo.describe import NOT_SCORED, choose_threshold, describe_data_sets, describe_score
from histolab_sft.demo.examples import read_examples
from histolab_sft.demo.history import record_case, say_briefly, write_history
from histolab_sft.demo.load import NO_ADAPTER, load_demo
from histolab_sft.demo.picture_notes import check_patch
from histolab_sft.demo.space import PAINTED
from histolab_sft.demo.systems import (
    Answer,
    answer_case,
    answer_patches,
    decide,
    use_system,
    write_reasoning,
)
from histolab_sft.embedded.synthetic import TISSUES, write_synthetic_patches
from histolab_sft.models.generate import render_completion, render_prompt
from histolab_sft.models.likelihood import label_log_likelihoods, probabilities
from histolab_sft.tasks import classification
from recipes.app import parse_options

SURE = {"threshold": [0.9, 0.7, 0.5, 0.3], "coverage": [0.25, 0.5, 0.75, 1.0], "accuracy": [1.0, 0.92, 0.8, 0.7]}
OPTIONS = ["Adipose", "Tumor"]
DATA_SET = DataSet(
    "crc",
    "classification",
    [{"options": OPTIONS, "style": "generic"}],
    8,
    {"class_names": {option: option for option in OPTIONS}},
    {"finetuned": 0.7, "baseline": None},
    0.9,
)
WITHHELD = Answer("Tumor", probabilities=[0.35, 0.65], withheld=True)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    return write_synthetic_patches(tmp_path_factory.mktemp("painted") / "patches", 2)


@pytest.fixture(scope="module")
def large_patch(tmp_path_factory):
    folder = write_synthetic_patches(tmp_path_factory.mktemp("large") / "patches", {"bach": 1}, size=224)
    return Image.open(next(folder.glob("bach/Normal/*.png"))).convert("RGB")


@pytest.fixture(scope="module")
def run(tmp_path_factory, untrained_model):
    return write_run(tmp_path_factory.mktemp("run"), untrained_model)


@pytest.fixture(scope="module")
def demo(run):
    return load_demo(*parse_recipe(["--config", str(run)]))


NO_DATA = "No test rows as examples of crc, pcam: their data can't be read here."


def png(size=(32, 32), colour=(200, 80, 160)):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_the_threshold_is_the_lowest_confidence_that_reaches_the_target():
    assert choose_threshold(SURE, 0.9) == 0.7
    assert choose_threshold(SURE, 0.7) == 0.3
    assert choose_threshold(SURE | {"accuracy": [0.5] * 4}, 0.9) is None


def test_an_answer_is_withheld_below_the_threshold_and_where_none_was_reached():
    row = np.array([0.35, 0.65])
    answer = decide(row, DATA_SET, "finetuned")
    assert answer == WITHHELD and answer.confidence == 0.65
    assert not decide(np.array([0.3, 0.7]), DATA_SET, "finetuned").withheld
    assert decide(np.array([0.0, 1.0]), DATA_SET, "baseline").withheld
    assert not decide(row, dataclasses.replace(DATA_SET, thresholds={}), "finetuned").withheld


def test_confidence_is_compared_with_the_threshold_at_the_temperature_that_it_was_chosen_at():
    row = softmax(np.array([3.0, 1.0]))
    cooled = dataclasses.replace(DATA_SET, thresholds={"finetuned": 0.85}, temperatures={"finetuned": 2.0})
    assert cooled.measure_confidence("finetuned", row) == pytest.approx(softmax(np.array([1.5, 0.5])).max())
    assert row.max() > 0.85 and decide(row, cooled, "finetuned").withheld
    assert not decide(row, dataclasses.replace(cooled, temperatures={}), "finetuned").withheld


@pytest.mark.model
def test_a_picture_is_asked_about_in_the_scales_of_training(demo):
    images = [Image.fromarray(np.random.default_rng(n).integers(0, 255, (40, 40, 3), np.uint8)) for n in (0, 1)]
    first = demo.data_sets[0]
    several = dataclasses.replace(first, keys=first.keys | {"multi_scale": 2})
    asked = answer_patches(demo.systems, "finetuned", images, several)
    targets = [classification.format_target(option) for option in several.options]
    scales = [show_scales(image, 2) for image in images]
    scores, _ = label_log_likelihoods(
        demo.systems.model, demo.systems.processor, scales, [word_question(first, first.asks[0])] * 2, targets, 8
    )
    np.testing.assert_allclose([answer.probabilities for answer in asked], probabilities(scores, None), atol=1e-6)
    assert asked != answer_patches(demo.systems, "finetuned", images, demo.data_sets[0])


@pytest.mark.model
def test_thresholds_come_from_the_evaluation_of_this_adapter(tmp_path, untrained_model):
    histo_args, training_args, _ = parse_recipe(["--config", str(write_run(tmp_path, untrained_model))])
    output_dir = tmp_path / "out"
    write_evaluation(output_dir, crc={"baseline": SURE, "finetuned": SURE})
    entries, remarks = describe_data_sets(histo_args, output_dir)
    assert entries[0].thresholds == {"baseline": 0.7, "finetuned": 0.7} and not remarks
    histo_args.datasets[0].target_accuracy = 0.95
    [strict, _] = describe_data_sets(histo_args, output_dir)[0]
    assert strict.thresholds["finetuned"] == 0.9 and strict.target == 0.95
    # As soon as the report has a threshold for this target, the page has the same.
    fitted = {"temperature": 2.0, "abstention": {"target": 0.95, "threshold": 0.8}}
    lacking = {"temperature": 0.5, "abstention": {"target": 0.95, "reason": "too few"}}
    points = {
        "baseline": {"operating_points": {"fitted": fitted}},
        "finetuned": {"operating_points": {"fitted": lacking}},
    }
    path = output_dir / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    for system, own in points.items():
        results["datasets"]["crc"][system] |= own
    path.write_text(json.dumps(results))
    [strict, _] = describe_data_sets(histo_args, output_dir)[0]
    assert strict.thresholds == {"baseline": 0.8, "finetuned": None}
    assert strict.temperatures == {"baseline": 2.0, "finetuned": 0.5}
    histo_args.datasets[0].target_accuracy = None
    assert entries[1].thresholds == {"baseline": None, "finetuned": 0.0}
    assert entries[1].log_priors == {"baseline": [-1.0, -1.0]}
    results = json.loads((output_dir / "evaluation" / "results.json").read_text())
    results["datasets"]["crc"]["classes"].reverse()
    (output_dir / "evaluation" / "results.json").write_text(json.dumps(results))
    assert not describe_data_sets(histo_args, output_dir)[0][0].thresholds
    results["provenance"]["adapter_sha256"] = "another"
    (output_dir / "evaluation" / "results.json").write_text(json.dumps(results))
    entries, remarks = describe_data_sets(histo_args, output_dir)
    assert remarks == [NOT_SCORED] and not any(entry.thresholds for entry in entries)


def test_patches_in_order_get_no_note(painted, large_patch):
    noted = [path for path in painted.glob("*/*/*.*") if check_patch(Image.open(path).convert("RGB"))]
    total = 2 * sum(map(len, TISSUES.values()))
    assert len(noted) <= 0.1 * total and check_patch(large_patch) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, note",
    [
        (lambda image: image.resize((40, 40)), "Small"),
        (lambda image: image.resize((3000, 3000)), "Large"),
        (lambda image: image.resize((448, 224)), "Not square"),
        (lambda image: image.filter(ImageFilter.GaussianBlur(3)), "Maybe out of focus"),
        (lambda image: Image.new("RGB", (224, 224), (240, 238, 242)), "Hardly any tissue"),
        (lambda image: Image.new("RGB", (224, 224), (200, 80, 160)), "Hardly any contrast"),
        (lambda image: image.convert("L").convert("RGB"), "Maybe not H&E"),
        (lambda image: Image.merge("RGB", [image.getchannel(c) for c in "GRB"]), "Maybe not H&E"),
    ],
)
def test_a_doubtful_patch_gets_a_note(large_patch, change, note):
    assert [text.split(":")[0] for text in check_patch(change(large_patch))][0].startswith(note)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_what_a_model_says_cannot_become_markup_or_a_template(text):
    answer = Answer("Tumor", f"<img src=x>{text}${{value}}{{{{value}}}}", probabilities=[0.4, 0.6])
    shown = cards.format_answers(DATA_SET, DATA_SET.asks[0], {"baseline": answer})
    words = shown.split("<blockquote>")[1].split("</blockquote>")[0]
    assert not set("<>${}\"'") & set(words)


def test_a_withheld_answer_says_so_and_still_shows_its_bars():
    shown = cards.format_answers(DATA_SET, DATA_SET.asks[0], {"baseline": WITHHELD, "finetuned": WITHHELD})
    assert shown.count("No answer") == 2 and shown.count('data-probability="0.65"') == 2
    assert "no confidence was high enough for 90% right answers" in shown and "90% right from 70.0% on" in shown


@pytest.mark.parametrize(
    "answer, truth, said",
    [
        (Answer("Tumor", "", probabilities=[0.1, 0.9]), "Tumor", "✓ Right"),
        (Answer("Tumor", "", probabilities=[0.1, 0.9]), "Adipose", "✗ Wrong: the truth is Adipose"),
        (WITHHELD, "Tumor", "✓ The likeliest class is right"),
        (WITHHELD, "Adipose", "✗ The likeliest class is wrong: the truth is Adipose"),
        (WITHHELD, None, ""),
    ],
)
def test_an_answer_is_called_right_or_wrong_where_the_truth_is_known(answer, truth, said):
    shown = cards.format_answers(DATA_SET, DATA_SET.asks[0], {"baseline": answer}, truth=truth)
    found = re.findall(r'<p class="hs-verdict hs-\w+">(.*?)</p>', shown)
    assert found == ([said] if said else [])
    assert ("hs-faded" in shown) == answer.withheld and 'class="key baseline"' in shown


def test_the_score_stands_beside_the_answer_with_interval_floor_and_warnings(tmp_path):
    told = describe_score(SCORED | dict.fromkeys(("baseline", "finetuned"), {"balanced_accuracy": SCORE}))
    shown = cards.format_score(dataclasses.replace(DATA_SET, scored=told), True)
    for words in ("75.0 % (60.0 to 90.0)", "50.0 % (40.0 to 60.0)", "Floor: colour alone", "40 test rows", "7 groups"):
        assert words in shown
    assert "make evaluate" in cards.format_score(DATA_SET, True) and "make train" in cards.format_score(
        DATA_SET, False
    )


def test_the_history_is_a_table_and_two_files_without_formulas_or_markup():
    answers = {"baseline": WITHHELD, "finetuned": dataclasses.replace(WITHHELD, text="=<b>1+1</b>", withheld=False)}
    entries = [record_case(DATA_SET, DATA_SET.asks[0], answers, "Adipose", 1)] * 2
    shown, files = cards.format_history(entries), write_history(entries)
    assert shown.count("No answer (Tumor 65.0%)") == 2 and shown.count("<td>Adipose</td>") == 2
    assert json.loads(files["history.json"]) == entries
    [row, _] = csv.DictReader(io.StringIO(files["history.csv"].decode()))
    assert row["finetuned"] == "Tumor" and row["finetuned_written"] == "'=<b>1+1</b>" and row["truth"] == "Adipose"
    hostile = entries[0] | {"question": "<img src=x>${1}", "truth": "<b>{{x}}</b>"}
    assert not {"<img", "<b>", "{{"} & set(re.findall(r"<img|<b>|\{\{", cards.format_history([hostile])))
    assert "Nothing was asked" in cards.format_history([])
    assert say_briefly("multilabel", ["Mass", "Cyst"]) == "Mass, Cyst" and say_briefly("boxes", []) == "No box"


def test_the_folders_of_an_archive_are_read_and_the_litter_in_it_is_not(tmp_path):
    members = {"a/one.png": png(), "a/b/two.PNG": png(), "c/three.tif": b"", "a/notes.txt": b"no picture"}
    litter = {"__MACOSX/a/._one.png": b"x", "a/._two.png": b"x", ".DS_Store": b"x"}
    archive = write_zip(tmp_path / "patches.zip", members | litter)
    (tmp_path / "loose.jpg").write_bytes(png())
    (tmp_path / "unpacked").mkdir()
    uploads = list_uploads([archive, tmp_path / "loose.jpg"], tmp_path / "unpacked")
    names = ["patches.zip/a/b/two.PNG", "patches.zip/a/one.png", "patches.zip/c/three.tif", "loose.jpg"]
    assert [upload.name for upload in uploads] == names


@pytest.mark.slow
@pytest.mark.parametrize(
    "members, reason",
    [
        ({"../../evil.png": png()}, "climbs to a parent folder"),
        ({"/etc/evil.png": png()}, "absolute"),
        ({"a/../../evil.png": png()}, "climbs"),
        ({"a/x.png": png(), "../evil.png": png()}, "climbs"),
        ({"C:\\evil.png": png()}, "lie in no folder"),
        ({"one.png": png()}, "lie in no folder"),
        ({"a/x.txt": b"nothing"}, "No picture found"),
        ({}, "No picture found"),
        ({f"{number}/x.png": b"" for number in range(51)}, "51 folders"),
        ({f"a/{number}.png": b"" for number in range(1001)}, "More than 1000"),
    ],
)
def test_an_unsafe_or_useless_archive_is_refused_without_a_path(tmp_path, members, reason):
    archive = write_zip(tmp_path / "patches.zip", members)
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(BatchRefused, match=reason) as refusal:
        list_uploads([archive], tmp_path / "unpacked")
    assert str(tmp_path) not in str(refusal.value)
    assert not list(tmp_path.rglob("evil.png"))


def test_a_damaged_archive_is_refused(tmp_path):
    (tmp_path / "patches.zip").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(BatchRefused, match="damaged"):
        list_uploads([tmp_path / "patches.zip"], tmp_path)


def test_an_archive_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.png", bytes(50 * 2**20))
    with pytest.raises(BatchRefused, match="bomb"):
        list_uploads([tmp_path / "bomb.zip"], tmp_path)


def test_examples_are_read_by_data_set_and_class(painted, tmp_path):
    pcam, other = (dataclasses.replace(DATA_SET, name=name) for name in ("pcam", "other"))
    examples = read_examples(painted, [pcam, other])
    found = [(example.data_set, example.caption) for example in examples]
    assert found == [("pcam", "Normal")] * 2 + [("pcam", "Tumor")] * 2
    with pytest.raises(FileNotFoundError, match="put examples there"):
        read_examples(tmp_path, [pcam])


def test_the_apps_own_options_leave_the_recipes_keys_alone():
    options, rest = parse_options(["--config", "r.yaml", "--port", "7000", "--output_dir", "x"])
    assert options.port == 7000 and rest == ["--config", "r.yaml", "--output_dir", "x"]


@pytest.mark.model
def test_the_demo_asks_in_the_words_that_are_trained_on(demo):
    from trl import apply_chat_template

    data_set = demo.data_sets[0]
    question, answer = word_question(data_set, data_set.asks[0]), "The answer is: Tumor"
    image, text = {"type": "image"}, {"type": "text", "text": question}
    trained = apply_chat_template(
        {
            "prompt": [{"role": "user", "content": [image, text]}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": answer}]}],
        },
        demo.systems.processor,
    )
    assert render_prompt(demo.systems.processor, question) == trained["prompt"]
    assert render_completion(demo.systems.processor, question, answer) == trained["completion"]


@pytest.mark.model
def test_the_baseline_is_the_base_model_and_the_adapter_is_on_again_after_it(demo, untrained_model):
    data_set, images = demo.data_sets[0], [example.open_pictures()[0] for example in demo.examples[:2]]
    first, baseline, again = (
        [answer.probabilities for answer in answer_patches(demo.systems, system, images, data_set)]
        for system in ("finetuned", "baseline", "finetuned")
    )
    base = AutoModelForImageTextToText.from_pretrained(untrained_model, dtype=torch.float32)
    alone = type(demo.systems)(base.eval(), demo.systems.processor)
    expected = [answer.probabilities for answer in answer_patches(alone, "baseline", images, data_set)]
    np.testing.assert_allclose(baseline, expected, atol=1e-5)
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.log(first) - np.log(baseline)).max() > 0.1
    np.testing.assert_allclose(np.sum(first, axis=1), 1, atol=1e-12)


@pytest.mark.model
def test_an_error_while_the_adapter_is_off_leaves_it_on_and_the_model_free(demo):
    [image], data_set = demo.examples[0].open_pictures(), demo.data_sets[0]
    before = answer_patches(demo.systems, "finetuned", [image], data_set)
    with pytest.raises(ZeroDivisionError), use_system(demo.systems, "baseline"):
        raise ZeroDivisionError
    assert answer_patches(demo.systems, "finetuned", [image], data_set) == before
    with pytest.raises(ValueError, match="expected one of"), use_system(demo.systems, "teacher"):
        pass


@pytest.mark.model
def test_both_systems_write_words_and_reason(demo):
    [image], data_set = demo.examples[0].open_pictures(), demo.data_sets[0]
    *early, last = answer_case(demo.systems, [image], data_set, data_set.asks[0])
    for system in demo.systems.names:
        [chosen] = answer_patches(demo.systems, system, [image], data_set)
        assert early[0][system] == chosen and last[system].probabilities == chosen.probabilities
        assert isinstance(last[system].text, str)
    text, truncated, option = write_reasoning(demo.systems, "finetuned", [image], data_set)
    assert option in (*data_set.options, "unparsed")


@pytest.mark.model
def test_without_an_adapter_the_base_model_answers_alone_and_the_page_says_so(tmp_path, untrained_model):
    recipe = write_run(tmp_path, untrained_model, adapter=False)
    demo = load_demo(*parse_recipe(["--config", str(recipe)]))
    assert demo.systems.names == ["baseline"] and demo.remarks == [NO_ADAPTER, NO_DATA, PAINTED]
    assert str(tmp_path) not in cards.format_head(demo.base_model, False, demo.remarks)


@pytest.mark.model
def test_a_batch_gives_a_row_for_every_picture_and_refusals_keep_their_reason(demo, painted, tmp_path):
    pictures = sorted(painted.glob("pcam/*/*.png"))
    members = {f"pcam/{number}.png": path.read_bytes() for number, path in enumerate(pictures * 5)}
    archive = write_zip(tmp_path / "patches.zip", members | {"pcam/page.png": b"<html></html>"})
    (tmp_path / "=1+1.png").write_bytes(png((20, 90)))
    reports = []
    paths = [str(archive), str(tmp_path / "=1+1.png")]
    table = answer_batch(demo.systems, demo.data_sets[1], dict, paths, lambda *done: reports.append(done))
    assert len(table) == 22 and (table["refused"] != "").sum() == 1
    assert reports == [(0, 22), (16, 22), (22, 22)]
    answered = table[table["refused"] == ""]
    for system, withheld in (("baseline", "yes"), ("finetuned", "no")):
        columns = [f"{system}: {option}" for option in ("Normal", "Tumor")]
        np.testing.assert_allclose(answered[columns].sum(axis=1), 1, atol=1e-12)
        assert set(answered[f"{system}_withheld"]) == {withheld}
    single = answer_patches(demo.systems, "finetuned", [Image.open(pictures[0]).convert("RGB")], demo.data_sets[1])[0]
    np.testing.assert_allclose(answered["finetuned_confidence"].iloc[0], single.confidence, atol=1e-5)
    csv = format_csv(table)
    assert "\n'=1+1.png," in csv and str(tmp_path) not in csv and "Small" in csv


@pytest.mark.model
def test_a_batch_of_nothing_but_refusals_is_a_table_too(demo, tmp_path):
    (tmp_path / "page.png").write_bytes(b"<html></html>")
    table = answer_batch(demo.systems, demo.data_sets[0], dict, [str(tmp_path / "page.png")], lambda *done: None)
    assert list(table["file"]) == ["page.png"] and str(tmp_path) not in format_csv(table)


@pytest.mark.model
def test_the_classes_and_the_question_are_those_of_the_recipe(demo):
    assert [data_set.name for data_set in demo.data_sets] == [entry["name"] for entry in DATASETS]
    for data_set in demo.data_sets:
        assert ", ".join(data_set.options) in word_question(data_set, data_set.asks[0])
