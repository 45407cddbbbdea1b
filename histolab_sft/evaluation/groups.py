"""From answers about patches to answers about slides or patients."""

import numpy as np
import pandas as pd
from scipy.special import softmax

from histolab_sft.evaluation.uncertainty import score_systems
from histolab_sft.metrics.classification import UNPARSED, encode_answers


def name_units(table: pd.DataFrame) -> np.ndarray | None:
    """Return the patient or slide of each row, for the bootstrap; a row of an unknown one is a unit of its own.

    None where not one is known: patches are drawn then.

    Args:
        table: `group` (None if unknown) and `id`.
    """
    if table["group"].isna().all():
        return None
    return table["group"].where(table["group"].notna(), "\0" + table["id"].astype(str)).to_numpy(str)


def warn_of_unknown(table: pd.DataFrame) -> list[str]:
    """Return what a reader of intervals has to know where some patients or slides are known and others aren't."""
    unknown = table["group"].isna()
    if not unknown.any() or unknown.all():
        return []
    return [
        f"the patient or slide of {unknown.sum():,} of {len(table):,} rows is unknown: each counts as one of its own, "
        "and intervals are too narrow if some belong together"
    ]


def score_groups(
    table: pd.DataFrame, groups: np.ndarray, classes: list[str], predictions: np.ndarray, positive: int
) -> dict:
    """Score the answers of whole slides or patients, by mean log-probability and by vote.

    Args:
        table: `label` and `log_likelihoods` of one system.
        groups, classes, predictions: As of `aggregate_groups`.
        positive (`int`): As of `compute_classification`.

    Returns:
        `n`, `n_mixed`, `n_ties`; where a group has a label also `mean_log_probability` and `majority_vote`, each the
        scores of `score_systems`.
    """
    scores = np.stack(table["log_likelihoods"])
    answers = aggregate_groups(table["label"].to_numpy(str), groups, classes, predictions, scores)
    described = {"n": len(answers["groups"]), "n_mixed": len(answers["mixed"]), "n_ties": answers["n_ties"]}
    if not described["n"]:
        return described
    systems = {
        "mean_log_probability": (answers["mean_log_probability"], answers["probabilities"]),
        "majority_vote": (answers["majority_vote"], None),
    }
    return described | score_systems(answers["labels"], systems, classes, positive=positive)[0]


def aggregate_groups(
    labels: np.ndarray,
    groups: np.ndarray,
    classes: list[str],
    predictions: np.ndarray,
    log_likelihoods: np.ndarray | None = None,
) -> dict:
    """Return one answer per group whose patches all have one label, for `score_systems` to score.

    A group of patches with different labels has no label of its own: it is listed in `mixed` and not scored. Where
    patches of one patient show different tissues by design, that is every group and nothing remains.

    Args:
        labels, predictions (`np.ndarray`): str, shape (patches,); a prediction may be `"unparsed"`.
        groups (`np.ndarray`): shape (patches,), slide or patient of each patch.
        log_likelihoods (`np.ndarray`, *optional*): float, shape (patches, classes), finite, up to a constant per row.

    Returns:
        `dict`: `groups`, `labels` and `majority_vote` (str, shape (groups,)); `n_ties`, groups whose vote had no
        single winner and therefore is `"unparsed"`; `mixed` (list of groups left out). Votes for no class aren't
        counted unless there are no others. With `log_likelihoods` also `probabilities` (float64, (groups, classes)),
        the softmax of the mean log-probability over the patches, and `mean_log_probability` (str), their class.

    Raises:
        ValueError: See `compute_classification`; also when `groups` or `log_likelihoods` have another length, or a
            log-likelihood isn't finite.
    """
    gold, answers = encode_answers(labels, predictions, classes)
    if len(groups) != len(gold):
        raise ValueError(f"{len(groups)} groups for {len(gold)} patches, expected one for each; give all or none")
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    size = (len(names), len(classes))
    present, votes = np.zeros(size), np.zeros(size)
    np.add.at(present, (index, gold), 1)
    parsed = answers < len(classes)
    np.add.at(votes, (index[parsed], answers[parsed]), 1)

    pure = (present > 0).sum(axis=1) == 1
    most = votes.max(axis=1, keepdims=True)
    single = ((votes == most).sum(axis=1) == 1) & (most[:, 0] > 0)
    tied = ((votes == most).sum(axis=1) > 1) & (most[:, 0] > 0)
    class_names = np.asarray([*classes, UNPARSED], dtype=str)
    result = {
        "groups": names[pure],
        "labels": class_names[present.argmax(axis=1)][pure],
        "majority_vote": class_names[np.where(single, votes.argmax(axis=1), len(classes))][pure],
        "n_ties": int(tied[pure].sum()),
        "mixed": names[~pure].tolist(),
    }
    if log_likelihoods is not None:
        means = _mean_log_likelihood(log_likelihoods, index, size)[pure]
        result["probabilities"] = softmax(means, axis=1)
        result["mean_log_probability"] = class_names[means.argmax(axis=1)]
    return result


def _mean_log_likelihood(log_likelihoods: np.ndarray, index: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    log_likelihoods = np.asarray(log_likelihoods, dtype=np.float64)
    if log_likelihoods.shape != (len(index), size[1]):
        raise ValueError(
            f"log_likelihoods have shape {log_likelihoods.shape}, expected {(len(index), size[1])}; score every class "
            "for every patch"
        )
    finite = np.isfinite(log_likelihoods).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(
            f"row {row}: log_likelihoods {log_likelihoods[row].tolist()}, expected finite numbers; score it again"
        )
    sums = np.zeros(size)
    # A constant added to a row moves all classes of its group alike, so the rows need no normalising.
    np.add.at(sums, index, log_likelihoods)
    return sums / np.bincount(index, minlength=size[0])[:, None]
