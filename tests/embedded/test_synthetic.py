"""Painted patches: same arguments same bytes, the layout of HistoLab, classes apart in texture and not in colour."""

import hashlib
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histolab_sft.embedded.painting import BLANK, balance_stains, draw_stain, draw_tissue, paint_tissue, stain_patch
from histolab_sft.embedded.synthetic import (
    GROUP_BY,
    MARKER,
    SLIDES,
    TISSUES,
    write_colour_only_patches,
    write_synthetic_patches,
)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    return write_synthetic_patches(tmp_path_factory.mktemp("painted") / "synthetic", 48)


def list_patches(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.suffix in (".png", ".tif"))


def hash_patches(folder):
    digest = hashlib.sha256()
    for path in list_patches(folder):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def measure_colour(path):
    """Mean, standard deviation and a 16-bin histogram of each channel: everything but the places of the pixels."""
    pixels = np.asarray(Image.open(path)).reshape(-1, 3) / 255
    histograms = [np.histogram(channel, bins=16, range=(0, 1))[0] / len(pixels) for channel in pixels.T]
    return np.concatenate([pixels.mean(axis=0), pixels.std(axis=0), *histograms])


def measure_texture(path):
    """Local differences at four lengths, relative to the contrast of the patch: next to no colour."""
    grey = np.asarray(Image.open(path).convert("L")).astype(float)
    grey = (grey - grey.mean()) / (grey.std() + 2)
    features = []
    for length in (1, 2, 4, 8):
        across, down = grey[:, length:] - grey[:, :-length], grey[length:] - grey[:-length]
        spread = sorted([across.std(), down.std()])
        features += [*spread, *np.quantile(across, [0.05, 0.5, 0.95]), *np.quantile(down, [0.05, 0.5, 0.95])]
    return np.array([*features, *np.quantile(grey, [0.02, 0.1, 0.9, 0.98])])


def score_probe(folder, measure):
    """Balanced accuracy of a linear fit on slides that it has not seen."""
    paths = list_patches(folder)
    features = np.stack([measure(path) for path in paths])
    labels = np.array([path.parent.name for path in paths])
    slides = [re.search(GROUP_BY, path.name)[1] for path in paths]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    predicted = cross_val_predict(probe, features, labels, groups=slides, cv=GroupKFold(4))
    return balanced_accuracy_score(labels, predicted)


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    first = write_synthetic_patches(tmp_path / "first", 2, seed=3)
    second = write_synthetic_patches(tmp_path / "second", 2, seed=3)
    other = write_synthetic_patches(tmp_path / "other", 2, seed=4)
    assert hash_patches(first) == hash_patches(second) != hash_patches(other)


@pytest.mark.slow
def test_the_folders_are_histolabs(painted):
    found = {name: sorted(path.name for path in (painted / name).iterdir()) for name in TISSUES}
    assert found == {
        "crc": ["ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"],
        "pcam": ["Normal", "Tumor"],
        "bach": ["Benign", "InSitu", "Invasive", "Normal"],
    }
    assert {path.suffix for path in list_patches(painted / "crc")} == {".tif"}
    assert {path.suffix for path in list_patches(painted / "bach")} == {".png"}
    assert len(list_patches(painted)) == 15 * 48


@pytest.mark.slow
@pytest.mark.parametrize("name", TISSUES)
def test_every_slide_holds_patches_of_several_classes(painted, name):
    classes = defaultdict(set)
    for path in list_patches(painted / name):
        assert re.fullmatch(rf"{path.parent.name}-S\d\d-\d\d\d\d\.\w+", path.name)
        classes[re.search(GROUP_BY, path.name)[1]].add(path.parent.name)
    assert len(classes) == SLIDES
    assert min(len(found) for found in classes.values()) >= 2


def test_patches_are_rgb_of_the_asked_size(tmp_path):
    folder = write_synthetic_patches(tmp_path / "large", {"pcam": 1}, size=96)
    pictures = [Image.open(path) for path in list_patches(folder)]
    assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", (96, 96))}
    assert not (folder / "crc").exists()


def test_a_complete_folder_is_left_alone(tmp_path):
    folder = write_synthetic_patches(tmp_path / "patches", {"bach": 1})
    victim = list_patches(folder)[0]
    victim.write_bytes(b"touched")
    write_synthetic_patches(folder, {"bach": 1})
    assert victim.read_bytes() == b"touched"


def test_a_folder_of_other_patches_is_refused(tmp_path):
    folder = write_synthetic_patches(tmp_path / "patches", {"bach": 1})
    before = hash_patches(folder)
    with pytest.raises(FileExistsError, match="expected patches painted with.*Choose another folder"):
        write_synthetic_patches(folder, {"bach": 2})
    assert hash_patches(folder) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="files of another origin"):
        write_synthetic_patches(tmp_path / "mine", 1)


def test_a_painter_that_dies_leaves_no_folder(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("histolab_sft.embedded.synthetic.stain_patch", die)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_patches(tmp_path / "patches", 1)
    assert not (tmp_path / "patches").exists()
    monkeypatch.undo()
    assert (write_synthetic_patches(tmp_path / "patches", 1) / MARKER).exists()


@pytest.mark.parametrize("asked", [{"crcs": 3}, {"crc": 0}, -1])
def test_an_impossible_order_is_refused(tmp_path, asked):
    with pytest.raises(ValueError, match="expected at least 1 patch of any of crc, pcam, bach"):
        write_synthetic_patches(tmp_path / "patches", asked)
    assert not (tmp_path / "patches").exists()


@pytest.mark.slow
def test_colour_alone_tells_little_and_texture_tells_more(painted):
    colour, texture = (score_probe(painted / "crc", measure) for measure in (measure_colour, measure_texture))
    assert colour < 0.66
    assert texture > colour + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pcam", "bach"])
def test_colour_does_not_solve_the_smaller_sets(painted, name):
    assert score_probe(painted / name, measure_colour) < 0.7


@pytest.mark.slow
def test_colour_alone_separates_the_colour_only_set(tmp_path):
    folder = write_colour_only_patches(tmp_path / "tints", 40)
    assert score_probe(folder, measure_colour) > 0.95
    assert score_probe(folder, measure_texture) < 0.75


def test_a_tissue_keeps_its_ranges():
    rng = np.random.default_rng(0)
    tissues = [draw_tissue({"radius": (3, 4)}, rng) for _ in range(50)]
    assert set(tissues[0]) == set(BLANK)
    assert all(3 <= tissue["radius"] <= 4 and tissue["fat"] == 0 for tissue in tissues)


def test_more_stain_makes_a_darker_patch():
    rng = np.random.default_rng(1)
    stain = draw_stain(rng)
    maps = paint_tissue(draw_tissue(TISSUES["crc"]["TUM"], rng), 64, rng)
    assert maps.shape == (2, 64, 64) and maps.min() >= 0
    pale, dark = (stain_patch(factor * maps, stain, rng) for factor in (0.5, 1.5))
    assert dark.dtype == np.uint8 and dark.mean() < pale.mean()


def test_balancing_makes_amounts_alike():
    rng = np.random.default_rng(2)
    ranges = [TISSUES["crc"]["TUM"], TISSUES["crc"]["STR"]]
    raw = np.array([[paint_tissue(draw_tissue(r, rng), 64, rng) for _ in range(30)] for r in ranges])
    balanced = np.array([[balance_stains(maps, rng) for maps in group] for group in raw])
    ratios = [np.divide(*group[:, :, 0].mean(axis=(1, 2, 3))) for group in (raw, balanced)]
    assert abs(np.log(ratios[1])) < abs(np.log(ratios[0])) / 2
