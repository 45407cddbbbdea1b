"""The check that all scores share: one answer for each true value."""

from collections.abc import Sized


def check_pairs(gold: Sized, predicted: Sized, things: str, unread: str) -> None:
    """Raise ValueError unless there are as many answers as true values, and at least one.

    Args:
        things (`str`): What the true values are, in the plural.
        unread (`str`): What kind of answer stands there as None.
    """
    if len(gold) != len(predicted) or len(gold) == 0:
        raise ValueError(
            f"{len(gold)} {things} and {len(predicted)} answers, expected as many of both and at least one; keep "
            f"{unread} as None"
        )
