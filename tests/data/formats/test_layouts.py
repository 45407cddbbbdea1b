"""Layouts and tables as others leave them: what is meant is read whole, the rest is counted, or the run stops.

Each case is a folder of small pictures made here. What is read and what is counted add up to what lies there.
"""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from layout_cases import CASES, CLASSES, SHARED_CASES, Case, build, encode, recipe

from histolab_sft.data.audit.audit import format_audit
from histolab_sft.data.data_sets import load_source
from histolab_sft.data.pictures.decoding import open_stored
from histolab_sft.data.rows import audit_recipe, load_patches
from histolab_sft.errors import MISTAKE, plain_errors

SHARED = Path(__file__).parents[4] / "shared" / "cases"


def test_the_table_is_long_enough():
    assert len(CASES) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_layout_is_read_whole_or_stops_the_run_with_the_reason(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case, folder = CASES[name], tmp_path / "data"
    folder.mkdir()
    build(case, folder)
    if case.error:
        with pytest.raises(SystemExit) as end, plain_errors():
            load_patches(recipe(case, folder))
        said = capsys.readouterr().err
        assert end.value.code == MISTAKE and re.search(case.error, said) and "Traceback" not in said, said
        return
    patches = load_source(recipe(case, folder).datasets[0])
    assert Counter(patches["label"]) == case.labels
    assert Counter(patches["split"]) == (case.splits or {"": sum(case.labels.values())})
    assert patches["group"].nunique() == case.groups
    assert patches["id"].is_unique
    assert patches.attrs["not_read"] == case.unread
    for row in patches.iloc[:: max(len(patches) - 1, 1)].itertuples():
        assert open_stored(row.images[0]).size == (8, 8)
    if not case.source:
        there = sum(path.is_file() for path in folder.rglob("*"))
        assert (
            len({images[0]["path"] for images in patches["images"]}) + case.tables + sum(case.unread.values()) == there
        )


def test_links_are_followed_once_round(tmp_path):
    build(Case(f"data/{CLASSES}/0.png store/{{0,1}}.png"), tmp_path)
    (tmp_path / "data" / "Tumor" / "p2").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "Normal" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "Normal" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    patches = load_source(recipe(Case(source="data"), tmp_path).datasets[0])
    assert Counter(patches["label"]) == {"Normal": 2, "Tumor": 3}


@pytest.mark.slow
def test_audit_and_screen_say_what_was_not_read(tmp_path, caplog):
    files = {"Normal/a.xml": "x", "Normal/b.xml": "x", "Tumor/._a.png": "x"}
    build(Case(f"{CLASSES}/{{0,1,2,3,4,5,6,7}}.png", files), tmp_path)
    with caplog.at_level("INFO"):
        _, audit, _ = audit_recipe(recipe(Case(), tmp_path), tmp_path / "out")
    assert audit["not_read"] == {"d": {".xml": 2, "hidden or of the system": 1}}
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["not_read"] == audit["not_read"]
    assert "3 files of d not read: 2 .xml, 1 hidden or of the system" in format_audit(audit)
    assert "data set 'd': 3 files not read: 2 .xml, 1 hidden or of the system" in caplog.text


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    build(Case(f"{CLASSES}/0.png"), tmp_path)
    with open(os.fsencode(tmp_path / "Tumor") + b"/\xff.png", "wb") as file:
        file.write(encode())
    with pytest.raises(ValueError, match=r"1 picture in .* under a name that isn't UTF-8, such as Tumor/\\udcff.png"):
        load_source(recipe(Case(), tmp_path).datasets[0])


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of trial inputs isn't beside this checkout")
@pytest.mark.parametrize("name", SHARED_CASES)
def test_trial_inputs_give_what_was_meant(capsys, name):
    case = SHARED_CASES[name]
    if case.error:
        with pytest.raises(SystemExit), plain_errors():
            load_patches(recipe(case, SHARED / name))
        assert re.search(case.error, capsys.readouterr().err)
        return
    patches = load_source(recipe(case, SHARED / name).datasets[0])
    assert Counter(patches["label"]) == case.labels
    assert Counter(patches["split"]) == (case.splits or {"": sum(case.labels.values())})
    assert patches["group"].nunique() == case.groups and patches.attrs["not_read"] == case.unread
