"""Above all scores stands what they amount to: five runs that are broken and some that aren't, as readers see them."""

import re

import numpy as np
import pytest
from fabricated_evaluation import fabricate_captions, fabricate_evaluation, list_synthetic_datasets
from html_page import Page

from histolab_sft.embedded.synthetic import GROUP_BY, write_colour_only_patches, write_synthetic_patches
from histolab_sft.evaluation.html_report import write_report
from histolab_sft.evaluation.verdict import judge_dataset, judge_run


def name_one_class(table, classes):
    scores = np.stack(table["log_likelihoods"]) + 100 * np.eye(len(classes))[1]
    return table.assign(log_likelihoods=list(scores), answer=classes[1], generated=classes[1])


def write_nothing_readable(table, classes):
    texts = np.where(np.arange(len(table)) % 3, "As an assistant I can't say.", "It depends.")
    return table.assign(answer=texts, generated="unparsed")


def cut_off(table, classes):
    return table.assign(truncated=True)


def guess(table, classes):
    scores = np.random.default_rng(0).normal(size=(len(table), len(classes)))
    return table.assign(log_likelihoods=list(scores))


BROKEN = {
    "constant class": (name_one_class, r"Not usable: .* names the class “Tumor” for every patch"),
    "all unparsed": (write_nothing_readable, r"100\.0% can't be read, most often “As an assistant I can't say\.”"),
    "cut off": (cut_off, r"Not usable: .* cut off in 100\.0% of its answers by the limit of tokens"),
    "below colour": (guess, r"Not usable: below .*colour alone \(−\d+\.\d points, −.* to −"),
    "copied captions": (lambda true, i: "A lesion.", r"Not usable: .* one answer to 40 of 40 questions"),
}


def write_broken_run(kind, folder):
    """Write the report of a run that is broken in one way; return its results and its page."""
    change, _ = BROKEN[kind]
    if kind == "copied captions":
        results, tables, rows = fabricate_captions(folder, change)
        (folder / "evaluation").mkdir()
        write_report(results, tables, rows, folder / "evaluation")
    else:
        if kind == "below colour":
            write_colour_only_patches(folder / "patches" / "tints", 120)
            classes = {"Blue": "Blue", "Red": "Red"}
            datasets = [{"name": "tints", "source": "tints", "class_names": classes, "group_by": GROUP_BY}]
        else:
            write_synthetic_patches(folder / "patches", {"pcam": 40})
            datasets = list_synthetic_datasets(["pcam"])
        results, tables, rows = fabricate_evaluation(folder, datasets, change=change)
        write_report(results, tables, rows, folder / "evaluation")
    return results, (folder / "evaluation" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_run_opens_with_the_verdict_that_says_so(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    results, page = write_broken_run(kind, tmp_path)
    verdict = results["verdict"]
    assert verdict["level"] == "fails" and re.search(BROKEN[kind][1], verdict["text"])
    sections = re.split(r'<h2[^>]* id="', page)
    assert [section.partition('"')[0] for section in sections[1:4]] == ["verdict", "data", "overview"]
    assert verdict["text"] in " ".join(Page(sections[1]).words)


@pytest.mark.slow
def test_a_run_that_holds_says_by_how_much(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_synthetic_patches(tmp_path / "patches", {"pcam": 80})
    results, _, _ = fabricate_evaluation(tmp_path, list_synthetic_datasets(["pcam"]))
    verdict = results["verdict"]
    assert verdict["level"] == "holds" and verdict["text"].startswith("Better than the base model (+")
    gain = results["datasets"]["pcam"]["difference"]["balanced_accuracy"]
    assert f"+{100 * gain['value']:.1f} points, +{100 * gain['ci95'][0]:.1f} to" in verdict["text"]
    assert "colour alone (+" in verdict["text"] and "in balanced accuracy, on" in verdict["text"]


def score(value, low, high):
    return {"value": value, "ci95": [low, high]}


def entry(gain, floor, **keys):
    return {
        "n": 200,
        "n_groups": None,
        "split_protocol": "official",
        "finetuned": {},
        "difference": {"balanced_accuracy": gain},
        "above_floors": {"mean_rgb": {"balanced_accuracy": floor}, "file": {"balanced_accuracy": score(-1, -1, -1)}},
    } | keys


@pytest.mark.parametrize(
    ("gain", "floor", "level", "start"),
    [
        ((0.1, 0.05, 0.15), (0.2, 0.1, 0.3), "holds", "Better than the base model (+10.0 points, +5.0 to +15.0) and"),
        ((0.01, -0.02, 0.04), (0.2, 0.1, 0.3), "unclear", "No gain shown over the base model (+1.0 points, −2.0 to"),
        ((0.1, 0.05, 0.15), (0.0, -0.1, 0.1), "unclear", "No gain shown over colour alone (0.0 points, −10.0 to"),
        ((0.1, 0.05, 0.15), (-0.2, -0.3, -0.1), "fails", "Not usable: below colour alone (−20.0 points"),
        ((-0.1, -0.2, -0.05), (0.2, 0.1, 0.3), "fails", "Not usable: below the base model (−10.0 points"),
        ((-0.1, -0.2, -0.05), (-0.2, -0.3, -0.1), "fails", "Not usable: below the base model (−10.0 points"),
    ],
)
def test_the_sentence_follows_from_the_intervals(gain, floor, level, start):
    verdict = judge_dataset(entry(score(*gain), score(*floor)))
    assert verdict["level"] == level and verdict["text"].startswith(start)
    assert verdict["text"].endswith(", in balanced accuracy, on 200 test patches.")


def test_an_error_is_better_where_it_is_smaller():
    keys = {"headline": "mae", "task": "quantity", "difference": {"mae": score(-2.0, -3.0, -1.0)}}
    fewer = judge_dataset(entry(None, None, above_floors={"constant": {"mae": score(-1.0, -2.0, -0.5)}}, **keys))
    assert fewer["level"] == "holds" and "than the base model (−2.000, −3.000 to −1.000)" in fewer["text"]
    more = judge_dataset(entry(None, None, above_floors={"constant": {"mae": score(1.0, 0.5, 2.0)}}, **keys))
    assert more["level"] == "fails" and more["text"].startswith("Not usable: worse than the constant answer (+1.000")


def test_a_gain_without_an_interval_holds_nothing():
    verdict = judge_dataset(entry({"value": 0.3, "ci95": None}, score(0.2, 0.1, 0.3)))
    assert verdict["level"] == "unclear" and "no interval" in verdict["text"]


def test_a_run_is_as_good_as_its_worst_data_set():
    good = entry(score(0.1, 0.05, 0.15), score(0.2, 0.1, 0.3))
    bad = entry(score(0.1, 0.05, 0.15), score(-0.2, -0.3, -0.1))
    verdict = judge_run({"crc": good, "pcam": bad, "bach": good})
    assert verdict["level"] == "fails" and verdict["text"] == "Not usable on pcam; a gain on crc, bach."
    assert verdict["datasets"]["crc"]["level"] == "holds"


def test_a_random_split_of_unknown_patients_and_a_part_of_an_official_one_are_named():
    gain, floor = score(0.1, 0.05, 0.15), score(0.2, 0.1, 0.3)
    assert "scores may leak" in judge_dataset(entry(gain, floor, split_protocol="seed"))["text"]
    assert "on 200 of 1,039 test patches" in judge_dataset(entry(gain, floor, n_available=1039))["text"]
