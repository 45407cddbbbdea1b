"""Scores of one class per patch, by scikit-learn's definitions; an answer that names no class is wrong."""

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
)

from histolab_sft.metrics.calibration import check_probabilities, compute_brier, compute_ece, compute_nll

UNPARSED = "unparsed"


def compute_classification(
    labels: np.ndarray,
    predictions: np.ndarray,
    classes: list[str],
    probabilities: np.ndarray | None = None,
    positive: int = 1,
) -> dict:
    """Return every score of one system on one data set, ready for JSON: no NaN stands in it.

    Args:
        labels (`np.ndarray`): str, shape (patches,), true classes.
        predictions (`np.ndarray`): str, shape (patches,), the class named, or `"unparsed"`.
        classes (`list[str]`): All classes, in the order of the columns of `probabilities`.
        probabilities (`np.ndarray`, *optional*): float64, shape (patches, classes), rows summing to 1.
        positive (`int`): Column of the class that is ranked, where there are two.

    Returns:
        `dict`: `accuracy`; `balanced_accuracy` and `macro_f1`, means over the classes present in `labels`;
        `unparsed_rate`; `per_class` with `recall`, `precision`, `f1`, `support`, where recall and F1 of a class
        without patches and precision of a class never named are None; `confusion_matrix` with `labels` (the classes,
        then `"unparsed"`) and square `rows` (true class down, answer across; the last row is 0). With
        `probabilities` also `brier`, `nll`, `ece`, `auroc` and `average_precision` (see `compute_ranking`), the last
        two None with `auroc_reason` and `average_precision_reason` where they have no value.

    Raises:
        ValueError: A label or answer outside `classes`, lengths that differ, a row of `probabilities` that isn't a
            distribution, no patches; the message names the row.
    """
    gold, answers = encode_answers(labels, predictions, classes)
    results = {
        "accuracy": float(np.mean(gold == answers)),
        "balanced_accuracy": compute_balanced_accuracy(gold, answers),
        "macro_f1": compute_macro_f1(gold, answers),
        "unparsed_rate": float(np.mean(answers == len(classes))),
        "per_class": compute_per_class(gold, answers, classes),
        "confusion_matrix": compute_confusion_matrix(gold, answers, classes),
    }
    if probabilities is not None:
        probabilities, gold = check_probabilities(probabilities, gold)
        check_columns(probabilities, classes)
        results |= compute_ranking(gold, probabilities, positive)
        results["brier"] = compute_brier(probabilities, gold)
        results["nll"] = compute_nll(probabilities, gold)
        results["ece"] = compute_ece(probabilities, gold)
    return results


def compute_balanced_accuracy(gold: np.ndarray, answers: np.ndarray) -> float:
    """Return the mean recall over the classes present in `gold`; both int arrays from `encode_answers`."""
    return float(recall_score(gold, answers, labels=np.unique(gold), average="macro", zero_division=0))


def compute_macro_f1(gold: np.ndarray, answers: np.ndarray) -> float:
    """Return the mean F1 over the classes present in `gold`; both int arrays from `encode_answers`.

    A class that is only ever answered doesn't enter the mean by itself: its answers already cost the recall of the
    true classes. Scikit-learn's own default would average over it as well.
    """
    return float(f1_score(gold, answers, labels=np.unique(gold), average="macro", zero_division=0))


def compute_per_class(gold: np.ndarray, answers: np.ndarray, classes: list[str]) -> dict:
    """Return `{class: {"recall", "precision", "f1", "support"}}`; None where nothing can be divided by."""
    precision, recall, f1, support = precision_recall_fscore_support(
        gold, answers, labels=np.arange(len(classes)), zero_division=0
    )
    named = np.bincount(answers, minlength=len(classes) + 1)
    return {
        name: {
            "recall": float(recall[index]) if support[index] else None,
            "precision": float(precision[index]) if named[index] else None,
            "f1": float(f1[index]) if support[index] else None,
            "support": int(support[index]),
        }
        for index, name in enumerate(classes)
    }


def compute_confusion_matrix(gold: np.ndarray, answers: np.ndarray, classes: list[str]) -> dict:
    """Return `{"labels": [..., "unparsed"], "rows": [[int]]}`, true class down and answer across."""
    rows = confusion_matrix(gold, answers, labels=np.arange(len(classes) + 1))
    return {"labels": [*classes, UNPARSED], "rows": rows.tolist()}


def compute_ranking(gold: np.ndarray, probabilities: np.ndarray, positive: int = 1) -> dict:
    """Return `auroc` and `average_precision`, or None and the reason.

    Two classes: of the positive one. More: one class against the rest, mean over the classes present in `gold`. A
    class can't be ranked when no patch has it or all have it.

    Args:
        gold (`np.ndarray`): int, shape (patches,), column of the true class.
        probabilities (`np.ndarray`): float64, shape (patches, classes).
        positive (`int`): Column of the positive one of two classes.
    """
    present = np.unique(gold)
    if len(present) < 2:
        reason = f"all {len(gold)} patches are of one class; a ranking needs patches of two"
        keys = ("auroc", "auroc_reason", "average_precision", "average_precision_reason")
        return {key: reason if key.endswith("reason") else None for key in keys}
    ranked = [positive] if probabilities.shape[1] == 2 else present
    return {
        "auroc": float(np.mean([roc_auc_score(gold == k, probabilities[:, k]) for k in ranked])),
        "average_precision": float(np.mean([average_precision_score(gold == k, probabilities[:, k]) for k in ranked])),
    }


def encode_answers(labels: np.ndarray, predictions: np.ndarray, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and predictions as positions in `classes`, `len(classes)` for `"unparsed"`; both int, (patches,).

    Raises:
        ValueError: See `compute_classification`.
    """
    classes = list(classes)
    if len(set(classes)) != len(classes) or UNPARSED in classes:
        raise ValueError(f"classes are {classes}, expected different names, none of them {UNPARSED!r}; rename them")
    if len(labels) != len(predictions) or len(labels) == 0:
        raise ValueError(
            f"{len(labels)} labels and {len(predictions)} predictions, expected as many of both and at least one; "
            f"keep an answer without a class as {UNPARSED!r}"
        )
    index = {name: position for position, name in enumerate(classes)}
    gold = _encode(labels, index, "label")
    return gold, _encode(predictions, index | {UNPARSED: len(classes)}, "prediction")


def check_columns(probabilities: np.ndarray, classes: list[str]) -> None:
    """Raise ValueError unless there is one column per class."""
    if probabilities.shape[1] != len(classes):
        raise ValueError(
            f"probabilities have {probabilities.shape[1]} columns, expected {len(classes)}, one for each of "
            f"{classes}; score every class"
        )


def _encode(names: np.ndarray, index: dict[str, int], kind: str) -> np.ndarray:
    names = [str(name) for name in names]
    codes = np.array([index.get(name, -1) for name in names])
    if (codes < 0).any():
        row = int(np.argmin(codes))
        raise ValueError(f"row {row}: {kind} {names[row]!r}, expected one of {list(index)}; check the class names")
    return codes
