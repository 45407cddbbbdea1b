"""The scores of boxes take from each record what it has."""

import numpy as np
import pytest

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.tasks.boxes import measure_answers

CONFIG = DatasetConfig(name="x", source="x", format="flare", task="boxes")
CORNERS = [0, 0, 10, 10]


def score(gold, predicted, aware):
    asks = [{"question": "Where?", "size": [20, 20], "label_aware": flag} for flag in aware]
    measure, scores = measure_answers(gold, predicted, asks, [[]] * len(asks), CONFIG)
    means = {name: values[0] for name, values in measure(np.ones((len(asks), 1))).items()}
    assert means["box_f1"] == pytest.approx(scores["box_f1"])
    return scores


def test_labels_count_for_the_records_that_have_them_and_for_no_other():
    gold = [[[*CORNERS, "17"]], [[*CORNERS, "X"]], [[*CORNERS, None]]]
    predicted = [[[*CORNERS, "17"]], [[*CORNERS, "Y"]], [[*CORNERS, "lesion"]]]
    scores = score(gold, predicted, [True, True, False])
    assert scores["box_f1"] == pytest.approx(2 / 3)
    assert {label: row["f1"] for label, row in scores["per_label"].items()} == {"17": 1, "x": 0, "y": 0}


def test_without_any_labels_only_the_place_counts_and_an_unparsed_answer_is_missed():
    scores = score([[[*CORNERS, None]]] * 2, [[[*CORNERS, "lesion"]], None], [False, False])
    assert scores["box_recall"] == 0.5 and scores["unparsed_rate"] == 0.5 and "per_label" not in scores
