"""The `evaluate` module: loaded from the package's folder, without any network."""

import evaluate
import numpy as np
import pytest
from drawn_answers import draw_answers

from histolab_sft.metrics import patch_classification
from histolab_sft.metrics.classification import compute_classification
from histolab_sft.metrics.patch_classification.patch_classification import PatchClassification

FOLDER = patch_classification.__path__[0]


@pytest.fixture
def scores(tmp_path, monkeypatch, socket_disabled):
    """The module as a user loads it, with sockets closed and the library's caches in a temporary folder."""
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return evaluate.load(FOLDER, cache_dir=str(tmp_path / "metrics"))


def test_module_loads_without_network_and_gives_the_same_scores(scores):
    labels, predictions, classes, probabilities, _ = draw_answers(0)
    found = scores.compute(references=labels, predictions=predictions, classes=classes, probabilities=probabilities)
    assert found == compute_classification(labels, predictions, classes, probabilities)


def test_answers_can_be_added_batch_by_batch(scores):
    labels, predictions, classes, _, _ = draw_answers(1)
    for rows in np.array_split(np.arange(len(labels)), 7):
        scores.add_batch(references=labels[rows], predictions=predictions[rows])
    assert scores.compute(classes=classes) == compute_classification(labels, predictions, classes)


def test_module_works_without_being_loaded(tmp_path):
    scores = PatchClassification(keep_in_memory=True, cache_dir=str(tmp_path))
    found = scores.compute(
        references=["Normal", "Tumor"], predictions=["Normal", "unparsed"], classes=["Normal", "Tumor"]
    )
    assert (found["accuracy"], found["unparsed_rate"]) == (0.5, 0.5)
