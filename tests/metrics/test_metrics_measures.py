"""With weights of one, the measures of the bootstrap are the scores themselves; whole weights repeat rows."""

import numpy as np
import pytest

from histolab_sft.metrics import measures
from histolab_sft.metrics.biomarkers import compute_biomarkers
from histolab_sft.metrics.boxes import Box, compute_boxes
from histolab_sft.metrics.masks import Outline, compute_masks
from histolab_sft.metrics.multilabel import compute_multilabel
from histolab_sft.metrics.quantity import compute_quantity
from histolab_sft.metrics.text import compute_text, score_texts

RNG = np.random.default_rng(0)
N = 24
LABELS = ["mass", "nodule", "effusion"]
FIELDS = [{"name": "msi", "values": ["MSI-H", "MSS"]}, {"name": "til", "range": [0, 1]}]
WORDS = "the heart is large and both lungs are clear without any effusion or mass".split()


def draw_labels():
    return [label for label in LABELS if RNG.random() < 0.5]


def draw_boxes():
    corners = RNG.integers(0, 40, (RNG.integers(0, 4), 2))
    return [Box(x, y, x + 20, y + 20, str(RNG.choice(LABELS))) for x, y in corners.tolist()]


def draw_outlines():
    """Squares for outlines, as other shapes teach no more of weights."""
    return [Outline([b.x1, b.y1, b.x2, b.y1, b.x2, b.y2, b.x1, b.y2], b.label) for b in draw_boxes()]


def draw_text():
    return " ".join(RNG.choice(WORDS, 9))


def draw_record():
    return {"msi": str(RNG.choice(["MSI-H", "MSS"])), "til": round(RNG.random(), 1)}


def some_lost(answers):
    return [None if row % 7 == 3 else answer for row, answer in enumerate(answers)]


def build(kind):
    """Give gold, answers, a function that builds the measure, and one that computes the scores."""
    draw = {
        "multilabel": draw_labels,
        "boxes": draw_boxes,
        "masks": draw_outlines,
        "text": draw_text,
        "biomarkers": draw_record,
    }
    if kind == "quantity":
        gold, answers = RNG.integers(0, 9, N).tolist(), some_lost(RNG.integers(0, 9, N).tolist())
        return (
            gold,
            answers,
            lambda g, a: measures.quantity_measure(g, a, [4] * len(g)),
            (lambda g, a: compute_quantity(g, a, 4)),
        )
    gold, answers = [draw[kind]() for _ in range(N)], some_lost([draw[kind]() for _ in range(N)])
    if kind == "multilabel":
        return gold, answers, measures.multilabel_measure, compute_multilabel
    if kind == "boxes":
        return gold, answers, lambda g, a: measures.boxes_measure(g, a, True), compute_boxes
    if kind == "masks":
        return (
            gold,
            answers,
            lambda g, a: measures.masks_measure(g, a, [(60, 60)] * len(g), True),
            lambda g, a: compute_masks(g, a, [(60, 60)] * len(g)),
        )
    if kind == "text":
        # A copied text, so that BLEU-4 isn't zero
        answers[0] = gold[0]
        return gold, answers, measures.text_measure, compute_text
    guess = {"msi": "MSS", "til": 0.4}
    train = [guess] * 5
    return (
        gold,
        answers,
        lambda g, a: measures.biomarkers_measure(g, a, [guess] * len(g), FIELDS),
        (lambda g, a: flatten(compute_biomarkers(g, a, train, FIELDS))),
    )


def flatten(scores):
    fields = scores.pop("fields")
    return scores | {f"{name}_{key}": value for name, entry in fields.items() for key, value in entry.items()}


KINDS = ("multilabel", "quantity", "boxes", "masks", "text", "biomarkers")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_give_the_scores_themselves(kind):
    gold, answers, measure, compute = build(kind)
    expected = compute(gold, answers)
    values = measure(gold, answers)(np.ones((N, 1)))
    shared = set(values) & set(expected)
    assert len(shared) >= (4 if kind == "masks" else 5)
    for score in shared:
        assert values[score][0] == pytest.approx(expected[score]), score


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_two_is_the_row_twice(kind):
    gold, answers, measure, _ = build(kind)
    weights = RNG.integers(0, 3, (N, 3))
    values = measure(gold, answers)(weights.astype(float))
    for draw in range(3):
        rows = np.repeat(np.arange(N), weights[:, draw])
        repeated = measure([gold[row] for row in rows], [answers[row] for row in rows])(np.ones((len(rows), 1)))
        # Where rows repeat, their words are no longer rare: the measure weighs words once, by all references.
        for score in set(values) - {"cider_d"}:
            assert values[score][draw] == pytest.approx(repeated[score][0], nan_ok=True), score


def test_cider_of_a_draw_is_the_mean_of_its_rows():
    gold, answers, measure, _ = build("text")
    weights = RNG.integers(0, 3, (N, 3)).astype(float)
    rows = score_texts(gold, answers)["cider_d"]
    assert measure(gold, answers)(weights)["cider_d"] == pytest.approx(rows @ weights / weights.sum(axis=0))


def test_a_constant_answer_has_no_correlation():
    values = measures.quantity_measure([1, 2, 3], [5, 5, None], [5, 5, 5])(np.ones((3, 1)))
    assert np.isnan(values["spearman"][0]) and np.isnan(values["pearson"][0]) and values["mae"][0] == 3
