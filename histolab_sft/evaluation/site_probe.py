"""How well the site of a patch can be told from its features: what a model could use in place of the tissue."""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histolab_sft.data.splits import cap_patches
from histolab_sft.evaluation.uncertainty import bootstrap, interval
from histolab_sft.metrics.weighted import classification_measure

MAX_PATCHES = 5000  # spread over the sites
FOLDS = 5
PENALTY = 0.01  # scikit-learn's C for standardised features: strong, as there are often more of them than patches


def compute_site_probe(features: np.ndarray, sites: pd.Series, labels: np.ndarray, groups: np.ndarray | None) -> dict:
    """Score a logistic regression that tells the site, by cross-validation that keeps patients and slides whole.

    Args:
        features (`np.ndarray`): float, shape (patches, width).
        sites (`pd.Series`): Site of each patch, None where it isn't known.
        labels (`np.ndarray`): str, shape (patches,), class of each patch.
        groups (`np.ndarray`, *optional*): Patient or slide of each patch.

    Returns:
        `n`, `n_sites`, `n_left_out` (sites with fewer than two patients or slides), `folds`, `grouped` (whether
        patients or slides are known); `balanced_accuracy` of the probe; `from_class`, the same of a probe that is told
        the class alone: where sites hold other classes, they can be told without any look at stain or scanner; and
        `chance`, one divided by the number of sites. `n_sites` and a `reason` where fewer than two can be told apart.
    """
    units = np.arange(len(sites)).astype(str) if groups is None else groups
    table = pd.DataFrame({"label": sites, "class": labels, "unit": units, "split": "all"}).dropna(subset=["label"])
    several = table.groupby("label")["unit"].nunique()
    kept = table[table["label"].isin(several.index[several >= 2])]
    n_sites = kept["label"].nunique()
    left_out = {"n_sites": n_sites, "n_left_out": int((several < 2).sum())}
    if n_sites < 2:
        return left_out | {"reason": "fewer than two sites have two patients or slides"}
    kept = cap_patches(kept, MAX_PATCHES)
    site, unit = kept["label"].to_numpy(str), kept["unit"].to_numpy(str)
    folds = min(FOLDS, int(kept.groupby("label")["unit"].nunique().min()))
    probes = {"balanced_accuracy": features[kept.index], "from_class": pd.get_dummies(kept["class"]).to_numpy(float)}
    names = sorted(set(site))
    measures = {
        key: classification_measure(site, _tell_sites(values, site, unit, folds), names)
        for key, values in probes.items()
    }
    found = bootstrap(measures, len(site), None if groups is None else unit)
    scores = {key: interval(estimates["balanced_accuracy"]) for key, estimates in found.items()}
    counts = {"n": len(site), "folds": folds, "grouped": groups is not None, "chance": 1 / n_sites}
    return left_out | counts | scores


def _tell_sites(values: np.ndarray, site: np.ndarray, unit: np.ndarray, folds: int) -> np.ndarray:
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=1000))
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    return cross_val_predict(probe, values, site, groups=unit, cv=split)
