"""The tokens that tell the classes apart are those at which the answers branch."""

from collections import Counter
from math import log

import pytest
import torch

from histolab_sft.training.answer_tokens import compute_guessing_level, find_branches, mask_deciding_tokens

# "is Tu mor <end>", "is Stro ma <end>", "is Normal <end>", "is Normal like <end>"
ANSWERS = Counter({(1, 10, 11, 9): 4, (1, 20, 21, 9): 2, (1, 30, 9): 1, (1, 30, 31, 9): 1})


def test_answers_branch_at_the_class_and_where_one_is_the_beginning_of_another():
    assert find_branches(ANSWERS) == {(1,), (1, 30)}


def test_only_labels_at_a_branch_count():
    labels = torch.tensor([[-100, -100, 1, 10, 11, 9], [-100, 1, 30, 31, 9, -100]])
    mask = mask_deciding_tokens(labels, find_branches(ANSWERS))
    assert mask.int().tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 1, 1, 0, 0]]


def test_in_free_text_every_label_counts():
    labels = torch.tensor([[-100, 1, 10, 9]])
    assert mask_deciding_tokens(labels, set()).int().tolist() == [[0, 1, 1, 1]]


def test_the_shelf_is_the_entropy_of_the_class_frequencies():
    level = compute_guessing_level(ANSWERS)
    at_class = -(4 * log(4 / 8) + 2 * log(2 / 8) + 2 * log(2 / 8))
    at_end = -(log(1 / 2) + log(1 / 2))
    assert level["answer_loss"] == pytest.approx((at_class + at_end) / 10)
    assert level["answer_accuracy"] == pytest.approx((4 + 1) / 10)
    assert compute_guessing_level(Counter()) == {}


def test_who_has_learnt_other_shares_guesses_by_those():
    answers = Counter({(1, 10, 9): 59, (1, 20, 9): 1})
    even = compute_guessing_level(answers, Counter({(1, 10, 9): 30.0, (1, 20, 9): 30.0}))
    assert even == {"answer_loss": pytest.approx(log(2)), "answer_accuracy": pytest.approx(0.5)}
    turned = compute_guessing_level(answers, Counter({(1, 10, 9): 15.0, (1, 20, 9): 45.0}))
    assert turned["answer_loss"] == pytest.approx(-(59 * log(1 / 4) + log(3 / 4)) / 60)
    assert turned["answer_accuracy"] == pytest.approx(1 / 60)
