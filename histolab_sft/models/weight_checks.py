"""Check that files hold every weight of a model and no other: a missing one would be random, without an error."""

from collections.abc import Collection
from pathlib import Path


class WeightsError(ValueError):
    """Files and model don't have the same weights, and the message says which."""


def check_loaded(name: str | Path, missing: Collection[str], unexpected: Collection[str]) -> None:
    """Raise `WeightsError` for a weight that files lack, which would be random, or that has no place in the model."""
    complaints = [
        f"{word} {len(keys)} weights, {sorted(keys)[0]} among them"
        for word, keys in (("lacks", missing), ("has no place for", unexpected))
        if keys
    ]
    if complaints:
        raise WeightsError(
            f"{name}: {' and '.join(complaints)}, expected every weight of the model and no other; "
            "correct model_name_or_path, or train again"
        )
