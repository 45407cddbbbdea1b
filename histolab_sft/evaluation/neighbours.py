"""A vote of the nearest train patches: what features hold without anything being fitted to them."""

from collections.abc import Mapping

import numpy as np
from sklearn.neighbors import NearestNeighbors

from histolab_sft.evaluation.floors import describe_fit, rate_fit

NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07  # of Wu et al. 2018 (arXiv 1805.01978) and DINO (Caron et al. 2021, arXiv 2104.14294)


def compute_neighbours(
    features: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], classes: list[str]
) -> dict:
    """Score the vote of each test patch's k nearest train patches.

    Nearness is the cosine of the features as they are, and a vote weighs exp(cosine / 0.07), as for DINO. Of
    `NEIGHBOURS`, k is the one with the best balanced accuracy on validation, of several the one with the least error
    there by log-likelihood.

    Args:
        features, labels, classes: As in `compute_linear_probe`.

    Returns:
        The dict of `compute_classification`, plus `predictions` and `probabilities` as in `compute_linear_probe`, and
        `fitted` with `n_neighbours`.
    """
    codes = {split: np.array([classes.index(name) for name in names]) for split, names in labels.items()}
    numbers = [k for k in NEIGHBOURS if k <= len(codes["train"])]
    index = NearestNeighbors(n_neighbors=numbers[-1], metric="cosine", algorithm="brute").fit(features["train"])
    votes = {}
    for split in ("validation", "test"):
        distances, rows = index.kneighbors(features[split])
        # The nearest one weighs 1, so that none of the sums is too small.
        weights = np.exp((distances[:, :1] - distances) / TEMPERATURE)
        # A class at a time, and only the sums that are asked for: all of them are gigabytes for many classes.
        ends = np.array(numbers) - 1
        sums = [np.cumsum(weights * (codes["train"][rows] == code), axis=1)[:, ends] for code in range(len(classes))]
        votes[split] = np.stack(sums, axis=-1)
    shares = {
        k: {split: found[:, place] / found[:, place].sum(axis=1, keepdims=True) for split, found in votes.items()}
        for place, k in enumerate(numbers)
    }
    best = max(numbers, key=lambda k: rate_fit(shares[k]["validation"], codes["validation"]))
    return describe_fit(labels["test"], shares[best]["test"], classes) | {"fitted": {"n_neighbours": best}}
