"""Patches that were turned by any angle, mirrored and cropped are found again, and different ones aren't."""

import json

import joblib
import numpy as np
import pandas as pd
import pytest
from audited_patches import make_patch
from conftest import PCAM_CLASSES

pytest.importorskip("cv2", reason="needs the extra `siblings`")

from benchmarks.siblings import turn_patch
from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.audit.audit import format_audit
from histolab_sft.data.audit.siblings import describe_patches, find_siblings, mirror
from histolab_sft.data.rows import audit_recipe

COUNT = 40


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """Where forty patches lie, and after them one turned copy of each."""
    folder, random = tmp_path_factory.mktemp("patches"), np.random.default_rng(0)
    images = [make_patch(seed) for seed in range(COUNT)]
    images += [turn_patch(image, random) for image in images]
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    return [place(folder / f"{number}.png") for number in range(2 * COUNT)]


def place(path):
    return {"path": str(path), "row": -1, "column": "image", "rendering": ""}


@pytest.mark.slow
def test_turned_mirrored_and_cropped_patches_are_found_and_no_others(patches, tmp_path):
    origins = np.arange(2 * COUNT) % COUNT
    pairs, alike, controls, passed = find_siblings(patches, origins, tmp_path)
    assert (origins[pairs[:, 0]] == origins[pairs[:, 1]]).all()
    assert len(pairs) >= 0.9 * COUNT and (alike >= 0.25).all()
    assert (origins[controls[:, 0]] != origins[controls[:, 1]]).all()
    assert len(passed) >= COUNT and not passed.any()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_where_nothing_is_known_to_be_different_nothing_is_tried(patches, tmp_path):
    pairs, _, controls, _ = find_siblings(patches[: COUNT + 5], np.full(COUNT + 5, -1), tmp_path)
    assert len(pairs) >= 4 and len(controls) == 0


def test_a_mirrored_picture_has_mirrored_features(tmp_path):
    image = make_patch(3, side=128)
    image.save(tmp_path / "a.png")
    image.transpose(0).save(tmp_path / "b.png")
    references = [place(tmp_path / name) for name in ("a.png", "b.png")]
    features = describe_patches(references, tmp_path, joblib.Parallel(n_jobs=1))
    (points, others), (first, second) = (
        [array[at, : features.counts[at]].astype(float) for at in (0, 1)]
        for array in (features.points, features.descriptors)
    )
    distances = np.abs(points[:, None] - ([127, 0] + [-1, 1] * others)[None]).sum(axis=2)
    same = distances.min(axis=1) < 0.5
    second = mirror(second)[distances.argmin(axis=1)]
    closeness = np.linalg.norm(first - second, axis=1)[same] / np.linalg.norm(first, axis=1)[same]
    assert same.sum() > 20 and np.median(closeness) < 0.1
    assert np.array_equal(mirror(mirror(first)), first)


def test_pictures_that_cannot_be_read_or_show_nothing_have_no_siblings(tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    make_patch(0).resize((1, 200)).save(tmp_path / "b.png")
    make_patch(0).point(lambda value: 255).save(tmp_path / "c.png")
    references = [place(tmp_path / name) for name in ("a.png", "b.png", "c.png", "gone.png")]
    pairs, alike, controls, _ = find_siblings(references, np.arange(4), tmp_path)
    assert len(pairs) == len(alike) == len(controls) == 0


@pytest.fixture
def augmented(tmp_path, monkeypatch):
    """A recipe on class folders in which twelve patches of test are turned patches of train."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(1)
    images = {f"{seed}": make_patch(seed) for seed in range(36)}
    images |= {f"{seed}t": turn_patch(images[f"{seed}"], random) for seed in range(12)}
    for name, image in images.items():
        number = int(name.strip("t"))
        split = "test" if name.endswith("t") else ("train", "train", "validation")[number // 12]
        path = tmp_path / "pcam" / split / list(PCAM_CLASSES)[number % 2] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)

    def audit(**keys):
        entry = {"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES}
        return audit_recipe(HistoArguments(datasets=[entry], data_dir=str(tmp_path), **keys), tmp_path / "out")

    return audit


@pytest.mark.slow
def test_siblings_are_looked_for_when_the_recipe_says_so(augmented, tmp_path):
    for find in (False, True):
        _, audit, _ = augmented(find_siblings=find)
        found = {finding["check"]: finding["count"] for finding in audit["findings"]}
        assert ("siblings_across_splits" in found) == find
    assert found["siblings_across_splits"] >= 11 and audit["siblings"]["control"]["passed"] == 0
    assert audit == json.loads((tmp_path / "out/audit.json").read_text())
    assert "from different classes" in format_audit(audit) and "0 passed for siblings" in format_audit(audit)
    kinds = pd.read_parquet(tmp_path / "out/copies.parquet").groupby("kind")["set"].nunique()
    assert kinds["sibling"] == found["siblings_across_splits"]


@pytest.mark.slow
def test_siblings_are_dropped_with_the_leaks_and_dealt_together(augmented):
    patches, audit, _ = augmented(find_siblings=True, leaks="drop")
    assert "siblings_across_splits" not in {finding["check"] for finding in audit["findings"]}
    assert sum(entry["rows"] for entry in audit["dropped"] if entry["reason"] == "sibling") >= 11
    for seed in range(3):
        patches, audit, _ = augmented(find_siblings=True, split_protocol="seed", split_seed=seed)
        assert "siblings_across_splits" not in {finding["check"] for finding in audit["findings"]}
        assert len(patches) == 48


@pytest.mark.slow
def test_siblings_are_looked_for_once(augmented, tmp_path):
    augmented(find_siblings=True)
    [kept] = (tmp_path / "cache").rglob("siblings/*.json")
    kept.write_text('{"siblings": [], "controls": []}')
    _, audit, _ = augmented(find_siblings=True)
    assert audit["siblings"]["pairs"] == 0 and "isn't known" in format_audit(audit)
