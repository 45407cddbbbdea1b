"""Fixtures shared by all tests: patches in the real layouts, the tiny base model, no network."""

import os
import re
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
from PIL import Image

# A shell that runs the tests in the background has them ignore SIGINT, and what they start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path, config):
    """Don't import a file whose `pytestmark` is among the marks that `-m "not ... and not ..."` leaves out."""
    if collection_path.suffix != ".py" or not re.fullmatch(r"not \w+( and not \w+)*", config.option.markexpr):
        return None
    source = collection_path.read_text(encoding="utf-8")
    found = re.search(r"^pytestmark = .*(?:\n[ \]].*)*", source, re.MULTILINE)
    marks = set(re.findall(r"pytest\.mark\.(\w+)", found[0])) if found else set()
    return True if marks & set(re.findall(r"not (\w+)", config.option.markexpr)) else None


CRC_CLASSES = {
    "ADI": "Adipose",
    "BACK": "Background",
    "DEB": "Debris",
    "LYM": "Lymphocyte",
    "MUC": "Mucus",
    "MUS": "Muscle",
    "NORM": "Normal",
    "STR": "Stroma",
    "TUM": "Tumor",
}
PCAM_CLASSES = {"Normal": "Normal", "Tumor": "Tumor"}
BACH_CLASSES = {name: name for name in ("Normal", "Benign", "InSitu", "Invasive")}


def write_class_folders(folder, classes, per_class=8, suffix=".png", size=32, slides=4):
    """Write noise patches as `folder/<LABEL>/<LABEL>-S<slide>-<number>.<suffix>`, each different from the others."""
    rng = np.random.default_rng(len(str(folder)) + len(classes))
    for label in classes:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{label}-S{i % slides:02d}-{i:04d}{suffix}")
    return folder


@pytest.fixture
def histolab_folders(tmp_path):
    """`data/datasets/{crc,pcam,bach}` in HistoLab's layout under the returned folder, small noise patches."""
    root = tmp_path / "data" / "datasets"
    write_class_folders(root / "crc", CRC_CLASSES, suffix=".tif")
    write_class_folders(root / "pcam", PCAM_CLASSES)
    write_class_folders(root / "bach", BACH_CLASSES)
    return tmp_path


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory):
    """Folder of the tiny base model with random weights: the interface of the real one, made in a second."""
    from histolab_sft.embedded.tiny_model import build_untrained_tiny_model

    return build_untrained_tiny_model(tmp_path_factory.mktemp("untrained"))
