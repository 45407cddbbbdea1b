"""The report: one file that says what results.json says, shows a ladder and its warnings, and names no patient."""

import base64
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from fabricated_evaluation import fabricate_evaluation, list_synthetic_datasets
from html_page import Page
from PIL import Image

from histolab_sft.data.rows import select_datasets
from histolab_sft.embedded.synthetic import GROUP_BY, write_colour_only_patches, write_synthetic_patches
from histolab_sft.evaluation.answer_findings import warn_constant
from histolab_sft.evaluation.error_atlas import list_mistakes
from histolab_sft.evaluation.html_report import _say_least_p, write_report
from histolab_sft.evaluation.predictions import write_predictions
from histolab_sft.evaluation.report_tables import flatten, format_p, list_rungs, list_warnings
from histolab_sft.evaluation.score_names import format_score
from histolab_sft.tasks.answer_forms import encode_picture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Results, tables, patches and report of one data set with everything, and the folder of the report."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_synthetic_patches(folder / "patches", {"pcam": 60})
        datasets = list_synthetic_datasets(["pcam"])
        results, tables, patches = fabricate_evaluation(folder, datasets, sensitivity="all", sensitivity_samples=20)
    write_report(results, tables, patches, folder / "evaluation")
    return results, tables, patches, folder / "evaluation"


@pytest.fixture(scope="module")
def page(evaluated):
    return (evaluated[3] / "report.html").read_text(encoding="utf-8")


def test_the_report_needs_no_other_file_and_no_network(page):
    addresses = Page(page).addresses
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    for image in Page(page).images:
        kind, _, data = image["src"].partition(";base64,")
        content = base64.b64decode(data)
        if kind == "data:image/svg+xml":
            assert b"<image" not in content and not re.search(rb'href="(?!#)', content)


def test_headings_go_down_one_step_at_a_time_and_every_picture_has_a_text(page):
    headings = Page(page).headings
    assert headings.count(1) == 1 and headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(headings, headings[1:], strict=False))
    assert all(len(image["alt"]) > 20 for image in Page(page).images)


def test_scores_stand_in_the_report_as_in_the_results(evaluated, page):
    entry = evaluated[0]["datasets"]["pcam"]
    text = " ".join(Page(page).words)
    for system in ("baseline", "finetuned"):
        for metric, scale, digits in (("balanced_accuracy", 100, 1), ("auroc", 1, 3), ("brier", 1, 3)):
            score = entry[system][metric]
            assert f"{scale * score['value']:.{digits}f}" in text
            assert f"{scale * score['ci95'][0]:.{digits}f} to {scale * score['ci95'][1]:.{digits}f}" in text
        assert f"{100 * entry[system]['unparsed_rate']['value']:.1f} %" in text
        assert f"{100 * entry[system]['agreement']['value']:.1f} %" in text
    gain = entry["difference"]["balanced_accuracy"]
    assert f"{100 * gain['value']:+.1f} points" in text
    warnings = list_warnings(entry)
    assert warnings and all(warning in text for warning in warnings)
    assert "For research use only." in text and "f00d" in text


def test_the_ladder_goes_from_nothing_to_the_fine_tuned_model(evaluated, page):
    rungs = list_rungs(evaluated[0]["datasets"]["pcam"])
    assert [rung["name"] for rung in rungs] == [
        *("majority class", "mean colour", "colour histogram", "file alone", "linear probe"),
        *("zero-shot, raw", "zero-shot, corrected", "fine-tuned"),
    ]
    assert rungs[0]["score"]["value"] == 0.5 < rungs[-1]["score"]["value"]
    ladder = next(image["alt"] for image in Page(page).images if "majority class" in image["alt"])
    for rung in rungs:
        assert f"{rung['name']} {100 * rung['score']['value']:.1f} %" in ladder


def test_a_second_report_is_the_same_and_leaves_no_old_figures(evaluated):
    results, tables, patches, folder = evaluated
    for kind in ("png", "pdf"):
        (folder / "figures" / f"confusion_finetuned_old.{kind}").write_bytes(b"of a data set that is gone")
    page = (folder / "report.html").read_text(encoding="utf-8")
    write_report(json.loads(json.dumps(results)), tables, patches, folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == page
    names = {path.name for path in (folder / "figures").iterdir()}
    kinds = {"ladder", "confusion_baseline", "confusion_finetuned", "reliability_baseline", "reliability_finetuned"}
    kinds |= {
        "coverage",
        "roc",
        "precision_recall",
        "decision",
        "wordings",
        "orders",
        "positions",
        "stain",
        "jpeg",
        "blur",
        "magnification",
        "orientation",
    }
    assert names == {f"{kind}_pcam.{file}" for kind in kinds for file in ("png", "pdf")}
    for path in (folder / "figures").iterdir():
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF")
            continue
        with Image.open(path) as image:
            assert image.width > 500


def test_patches_and_patients_are_named_by_hashes_alone(evaluated, page, tmp_path):
    _, tables, _, _ = evaluated
    write_predictions(tables, tmp_path)
    hashes = set(pd.read_parquet(tmp_path / "predictions.parquet")["id"])
    table = tables["pcam", "finetuned"]
    shown = set(re.findall(r"<code>([0-9a-f]{16})</code>", page))
    assert shown and shown <= hashes
    for name in {*table["id"], *table["group"]}:
        assert not re.search(rf"\b{re.escape(name)}\b", page)


def test_a_thumbnail_keeps_pixels_and_nothing_else():
    patch = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8))
    patch.info = {"comment": b"patient 17", "icc_profile": b"scanner", "exif": b"Exif\0\0patient 17"}
    data = base64.b64decode(encode_picture(patch, 160).partition(",")[2])
    assert b"patient" not in data and b"scanner" not in data
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (160, 96) and not image.getexif() and "icc_profile" not in image.info


def test_the_atlas_holds_the_surest_mistakes_of_the_most_frequent_confusions(evaluated):
    results, tables, patches, _ = evaluated
    rows = select_datasets(patches["test"], "pcam")
    classes = results["datasets"]["pcam"]["classes"]
    pairs = list_mistakes(tables["pcam", "finetuned"], rows, classes)
    counts = results["datasets"]["pcam"]["finetuned"]["confusion_matrix"]
    for pair in pairs:
        row, column = counts["labels"].index(pair["true"]), counts["labels"].index(pair["answer"])
        assert row != column and counts["rows"][row][column] == pair["n"]
        sure = [mistake["confidence"] for mistake in pair["mistakes"]]
        assert sure == sorted(sure, reverse=True)
    assert [pair["n"] for pair in pairs] == sorted((pair["n"] for pair in pairs), reverse=True)


def test_patches_of_another_run_are_refused(evaluated):
    results, tables, patches, folder = evaluated
    others = patches.copy()
    others["test"] = patches["test"].select(range(len(patches["test"]) - 1, -1, -1))
    with pytest.raises(ValueError, match="aren't those that were scored, expected the same rows .*; score them again"):
        write_report(results, tables, others, folder)


def test_a_report_comes_without_generation_sensitivity_and_groups(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_synthetic_patches(tmp_path / "patches", {"bach": 24})
    (tmp_path / "patches" / "bach" / "licence.txt").write_text("CC0")
    datasets = [entry | {"group_by": None} for entry in list_synthetic_datasets(["bach"])]
    results, tables, patches = fabricate_evaluation(tmp_path, datasets, generate=False)
    write_report(results, tables, patches, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No answers were generated" in page and "groups unknown" in page
    assert "patches of one patient stand on both sides" in page and "exact McNemar" in page
    assert "What shouldn't matter" not in page and "files not read: 1 .txt." in page


def test_a_data_set_with_a_hostile_name_is_text_and_stays_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_synthetic_patches(tmp_path / "patches", {"pcam": 20})
    name = '../<script>alert("1")</script>'
    datasets = [entry | {"name": name} for entry in list_synthetic_datasets(["pcam"])]
    results, tables, patches = fabricate_evaluation(tmp_path, datasets, generate=False)
    write_report(results, tables, patches, tmp_path / "evaluation")
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert {path.suffix for path in (tmp_path / "evaluation" / "figures").iterdir()} == {".png", ".pdf"}
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("kind", ["colour alone", "texture"])
def test_a_data_set_that_colour_alone_separates_is_flagged_and_another_is_not(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(fabricate_evaluation.__globals__["SKILLS"], "finetuned", 12.0)  # right on nearly every patch
    if kind == "texture":
        write_synthetic_patches(tmp_path / "patches", {"pcam": 120})
        datasets = list_synthetic_datasets(["pcam"])
    else:
        write_colour_only_patches(tmp_path / "patches" / "tints", 60)
        classes = {"Blue": "Blue", "Red": "Red"}
        datasets = [{"name": "tints", "source": "tints", "class_names": classes, "group_by": GROUP_BY}]
    results, _, _ = fabricate_evaluation(tmp_path, datasets, generate=False)
    (entry,) = results["datasets"].values()
    assert entry["finetuned"]["accuracy"]["value"] > 0.95
    flagged = any("no evidence that the model reads tissue" in warning for warning in list_warnings(entry))
    assert flagged == (kind == "colour alone")


def test_scores_are_written_with_unit_sign_and_interval():
    score = {"value": 0.8125, "ci95": [0.75, 0.875]}
    assert format_score(score, True)["text"] == "81.2 % (75.0 to 87.5)"
    assert format_score(score, False)["text"] == "0.812 (0.750 to 0.875)"
    assert (
        format_score({"value": -0.05, "ci95": [-0.1, 0.0]}, True, signed=True)["text"] == "−5.0 points (−10.0 to 0.0)"
    )
    assert format_score({"value": 1.0, "ci95": [1.0, 1.0]}, True)["text"] == "100.0 %"
    assert format_score({"value": 0.5}, True)["interval"] == ""
    for zero in (0.0, -0.0, -1e-9, 1e-9):
        assert format_score({"value": zero, "ci95": [zero, zero]}, False, signed=True)["text"] == "0.000"
    assert format_score({"value": None, "ci95": None}, False)["value"] == format_score(None, True)["value"] == "–"


def test_p_values_and_records_are_written_as_text():
    assert format_p(0.0004) == "p < 0.001" and format_p(0.0314) == "p = 0.031"
    assert flatten({"base_model": {"name": "x", "revision": None}, "seed": 1}) == [
        ("base model name", "x"),
        ("seed", "1"),
    ]
    assert flatten(None) == []


@pytest.mark.parametrize(
    ("n_groups", "said"), [(None, ""), (0, ""), (6, ""), (5, "; they differ in 5 groups, and p can't be below 0.0625")]
)
def test_few_groups_are_said_to_keep_p_large(n_groups, said):
    assert _say_least_p(n_groups) == said


def test_a_constant_answer_as_good_is_told_in_the_units_of_the_tables():
    [told] = warn_constant({"value": 0.0, "ci95": [-0.012, 0.031]}, "balanced_accuracy")
    assert told.endswith("in balanced accuracy they differ by 0.0 points (−1.2 to +3.1)")
    [told] = warn_constant({"value": 0.0, "ci95": [0.0, 0.0]}, "mae")
    assert told.endswith("in mae they differ by 0.000")
    assert warn_constant({"value": -1.0, "ci95": [-2.0, -0.5]}, "mae") == []
