"""Copies of a picture stay on one side of every split that is dealt here; `leaks: drop` takes those of given ones."""

import json

import numpy as np
import pandas as pd
import pytest
from audited_patches import compress, make_patch
from conftest import PCAM_CLASSES
from PIL import Image

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.audit.audit import format_audit
from histolab_sft.data.audit.copies import find_near_copies, list_copies
from histolab_sft.data.rows import audit_recipe, list_patches

COPIES = {
    "exact": lambda image: image,
    **{turn.name: lambda image, turn=turn: image.transpose(turn) for turn in Image.Transpose},
    "JPEG": lambda image: compress(image, 60),
    "rescaled": lambda image: image.resize((64, 64)),
    "turned, rescaled, JPEG": lambda image: compress(image.transpose(Image.Transpose.TRANSVERSE).resize((70, 70)), 80),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pictures():
    """Sixty pictures, and of twelve of them one copy of each kind under the other label."""
    originals = [make_patch(seed) for seed in range(60)]
    copies = [change(originals[number]) for number, change in enumerate(COPIES.values())]
    return originals, copies


def write(folder, pictures, splits=("",)):
    """Write the originals and their copies, one class each in turn; copies go to the last split."""
    for number, image in enumerate([*pictures[0], *pictures[1]]):
        split = splits[-1] if number >= len(pictures[0]) else splits[number % len(splits)]
        path = folder / split / list(PCAM_CLASSES)[number // len(splits) % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def arguments(folder, *names, **keys):
    entries = [{"name": name, "source": name, "class_names": PCAM_CLASSES} for name in names or ["pcam"]]
    return HistoArguments(datasets=entries, data_dir=str(folder), **keys)


def checks_of(audit):
    return {finding["check"]: finding["count"] for finding in audit["findings"]}


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"split_protocol": "seed"}, {"split_protocol": "seed", "max_samples": 60}])
@pytest.mark.parametrize("seed", range(3))
def test_dealt_splits_divide_no_copies(tmp_path, pictures, keys, seed):
    write(tmp_path / "pcam", pictures, splits=("train", "test") if "split_protocol" in keys else ("",))
    histo_args = arguments(tmp_path, split_seed=seed, **keys)
    patches, audit, intake = audit_recipe(histo_args, tmp_path / "out")
    found = checks_of(audit)
    assert not {"copies_across_splits", "near_copies_across_splits"} & set(found)
    assert found["near_copies_within_split"] >= (5 if "max_samples" in keys else len(COPIES) - 1)
    assert len(patches) == len(intake) == keys.get("max_samples", 60 + len(COPIES))
    # Preflight, training and scoring deal alike, whichever of these they ask.
    assert list_patches(histo_args)[["id", "split"]].equals(patches[["id", "split"]])
    assert patches["split"].value_counts(normalize=True)["train"] == pytest.approx(0.7, abs=0.1)


@pytest.mark.slow
def test_a_validation_part_that_is_cut_out_of_train_divides_no_copies(tmp_path, pictures):
    write(tmp_path / "pcam", pictures, splits=("train",))
    write(tmp_path / "pcam", ([make_patch(seed) for seed in range(100, 120)], []), splits=("test",))
    for seed in range(3):
        patches, audit, _ = audit_recipe(arguments(tmp_path, split_seed=seed), tmp_path / "out")
        assert "near_copies_across_splits" not in checks_of(audit) and audit["refusals"] == 0
        assert patches["split"].value_counts()["test"] == 20 and patches["protocol"].unique() == ["official"]


@pytest.mark.slow
def test_copies_in_two_data_sets_are_dealt_to_one_split(tmp_path, pictures):
    write(tmp_path / "first", (pictures[0], []))
    write(tmp_path / "second", ([*(image.rotate(90) for image in pictures[0][:30]), *pictures[1]], []))
    for seed in range(3):
        patches, audit, _ = audit_recipe(arguments(tmp_path, "first", "second", split_seed=seed), tmp_path / "out")
        assert not {"copies_across_splits", "near_copies_across_splits"} & set(checks_of(audit))
        assert (patches.groupby(["dataset", "split"]).size() >= 3).all()


@pytest.mark.slow
def test_leaks_drop_takes_near_copies_out_of_the_earlier_split_and_counts_them(tmp_path, pictures):
    # The originals stand in train and validation, the copies in test, which stays whole.
    write(tmp_path / "pcam", pictures, splits=("train", "validation", "test"))
    patches, audit, _ = audit_recipe(arguments(tmp_path, leaks="drop"), tmp_path / "out")
    found = checks_of(audit)
    assert not {"copies_across_splits", "near_copies_across_splits"} & set(found) and audit["refusals"] == 0
    test_before = len(list((tmp_path / "pcam/test").rglob("*.png")))
    assert (patches["split"] == "test").sum() == test_before
    assert audit == json.loads((tmp_path / "out/audit.json").read_text())
    gone = pd.DataFrame(audit["dropped"])
    assert gone["rows"].sum() == 60 + len(COPIES) - len(patches) == 8  # of twelve originals, four are in test already
    assert set(gone["reason"]) == {"equal pixels", "near copy"} and set(gone["split"]) == {"train", "validation"}
    lines = [line for line in format_audit(audit).splitlines() if line.startswith("leaks: drop left out")]
    assert len(lines) == 2 and "leaks: drop left out 4 rows of pcam's train split" in lines[0]


@pytest.mark.slow
def test_every_pair_stands_beside_the_audit_and_the_screen_shows_the_first_few(tmp_path):
    originals = [make_patch(seed) for seed in range(70)]
    write(tmp_path / "pcam/train", (originals, []))
    write(tmp_path / "pcam/test", ([compress(image, 70) for image in originals[:65]], originals[65:]))
    _, audit, _ = audit_recipe(arguments(tmp_path, validation_fraction=0.3), tmp_path / "out")
    [near] = [finding for finding in audit["findings"] if finding["check"] == "near_copies_across_splits"]
    assert near["count"] == 65 and len(near["examples"]) == 50
    copies = pd.read_parquet(tmp_path / "out/copies.parquet")
    assert copies.groupby("kind")["set"].nunique().to_dict() == {"equal pixels": 5, "near copy": 65}
    assert (copies.groupby("set").size() == 2).all() and (copies.groupby("set")["split"].nunique() == 2).all()
    assert copies.loc[copies["kind"] == "near copy", "likeness"].between(0.985, 1).all()
    assert format_audit(audit).count("(test)") <= 3 * len(audit["findings"])


@pytest.mark.slow
def test_near_copies_with_two_labels_are_told(tmp_path):
    originals = [make_patch(seed) for seed in range(40)]
    write(tmp_path / "pcam", (originals, []))  # even numbers are Normal
    compress(originals[0], 70).save(tmp_path / "pcam/Tumor/other.png")
    compress(originals[2], 70).save(tmp_path / "pcam/Normal/same.png")
    _, audit, _ = audit_recipe(arguments(tmp_path), tmp_path / "out")
    [finding] = [finding for finding in audit["findings"] if finding["check"] == "conflicting_labels"]
    assert finding["count"] == 1 and "1 as near copies" in finding["message"]
    assert {patch["label"] for patch in finding["examples"][0]} == {"Normal", "Tumor"}


@pytest.mark.slow
def test_no_more_pictures_are_decoded_than_the_caps_take(tmp_path):
    write(tmp_path / "pcam", ([make_patch(seed, side=32) for seed in range(80)], []), splits=("train", "test"))
    for keys, count in (({"max_samples": 20}, 60), ({"max_samples": 20, "max_test_samples": 10}, 30)):
        assert len(audit_recipe(arguments(tmp_path, **keys), tmp_path / "out")[2]) == count
    # Of a test split that is dealt here, the cap has to wait until it is dealt.
    patches, _, intake = audit_recipe(
        arguments(tmp_path, split_protocol="seed", max_samples=40, max_test_samples=2), tmp_path / "out"
    )
    assert len(intake) == 40 and patches["split"].value_counts().to_dict() == {"train": 28, "validation": 6, "test": 2}


def test_splits_that_are_all_given_are_listed_without_decoding(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / "pcam" / split / "Normal").mkdir(parents=True)
        (tmp_path / "pcam" / split / "Tumor").mkdir(parents=True)
        for label in PCAM_CLASSES:
            (tmp_path / "pcam" / split / label / "a.png").write_bytes(b"never opened")
    assert len(list_patches(arguments(tmp_path))) == 6
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_pictures_of_one_even_colour_and_refused_ones_tie_nothing(tmp_path):
    write(tmp_path / "pcam", ([make_patch(seed) for seed in range(40)], [Image.new("RGB", (96, 96), "white")] * 20))
    for number in range(5):
        (tmp_path / "pcam/Normal" / f"broken{number}.png").write_bytes(b"broken")
    patches, audit, _ = audit_recipe(arguments(tmp_path, refused_images="quarantine"), tmp_path / "out")
    white = patches["id"].str.extract(r"(\d+)\.png")[0].astype(int) >= 40
    assert patches.loc[white, "split"].nunique() == 3 and {entry["rows"] for entry in audit["dropped"]} >= {1}


def test_a_near_pair_is_listed_once_for_every_two_splits():
    image = make_patch(0)
    thumbnail = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX)).tobytes()
    intake = pd.DataFrame({"path": list("abcd"), "row": -1, "verdict": "ok", "contrast": 30.0, "thumbnail": thumbnail})
    intake["file_sha256"], intake["pixel_sha256"] = list("1234"), list("xxyy")
    rows = intake[["path", "row"]].assign(label="Tumor", dataset="pcam", split=["train", "test", "train", "train"])
    near = find_near_copies(intake)
    assert len(near) == 1
    listed = list_copies(rows, intake, near)
    assert listed.groupby("kind")["set"].nunique().to_dict() == {"equal pixels": 2, "near copy": 2}
