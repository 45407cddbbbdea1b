"""Choose the patients of a preparation, split them, and label them."""

import pandas as pd

from histolab_sft.config.dataset import SPLITS
from histolab_sft.data.biomarkers.label_rules import (
    apply_label_rules,
    compute_signatures,
    fit_label_rules,
    fit_signatures,
)
from histolab_sft.data.splits import split_patches


def assemble_cohort(
    expression: pd.DataFrame, clinical: pd.DataFrame, patches: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Return the clinical rows of patients with expression, cancer type and usable patches, and why others aren't.

    Args:
        expression: log2(TPM + 1), indexed by patient.
        clinical: From `clinical_tables.read_clinical`.
        patches: Columns `patient` and `reason` ("" for a usable patch).

    Returns:
        The cohort, indexed by patient in sorted order, and reason -> patients left out for it.

    Raises:
        ValueError: Nobody is left.
    """
    typed = clinical.index[clinical["cancer_type"].notna()]
    whole = expression.index[expression.notna().all(axis=1)]
    have = {
        "no gene expression": set(expression.index),
        "gaps in the gene expression": set(whole),
        "no cancer type in the clinical tables": set(typed),
        "no patches": set(patches["patient"]),
        "no usable patch": set(patches.loc[patches["reason"] == "", "patient"]),
    }
    left_out = {reason: [] for reason in have}
    cohort = []
    for patient in sorted(set(expression.index) | set(clinical.index) | set(patches["patient"])):
        reason = next((reason for reason, patients in have.items() if patient not in patients), None)
        (cohort if reason is None else left_out[reason]).append(patient)
    left_out = {reason: patients for reason, patients in left_out.items() if patients}
    if not cohort:
        counts = {reason: len(patients) for reason, patients in left_out.items()}
        raise ValueError(
            f"no patient has all of expression, cancer type and patches ({counts}), expected some; check that the "
            "tables and the slides name patients alike"
        )
    return clinical.loc[cohort], left_out


def split_patients(
    cohort: pd.DataFrame,
    cd274: pd.Series,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 42,
) -> pd.Series:
    """Return `train`, `validation` or `test` of each patient, balanced by cancer type and CD274.

    For this split alone CD274 is cut at the median of all patients. The label is cut at that of the training patients,
    who are known only after the split.

    Args:
        cohort: Column `cancer_type`, indexed by patient in sorted order.
        cd274: log2(TPM + 1) of the gene, same index.

    Raises:
        ValueError: A stratum has fewer than three patients.
    """
    level = (cd274 >= cd274.median()).map({True: "high", False: "low"})
    strata = cohort["cancer_type"] + ", CD274 " + level
    counts = strata.value_counts()
    if counts.min() < len(SPLITS):
        raise ValueError(
            f"{counts.min()} patients with {counts.idxmin()}, expected at least {len(SPLITS)}, one for each split; "
            "bring more or leave that cancer type out"
        )
    table = pd.DataFrame({"path": cohort.index, "label": strata.to_numpy(), "split": "", "group": None})
    table = split_patches(table, validation_fraction, test_fraction, seed)
    return pd.Series(table["split"].to_numpy(), index=cohort.index)


def label_patients(
    expression: pd.DataFrame, cohort: pd.DataFrame, split: pd.Series, fitted: dict | None = None
) -> tuple[pd.DataFrame, dict]:
    """Return the eight labels of each patient, and the statistics fitted on the training patients.

    Args:
        expression: log2(TPM + 1) of the cohort.
        cohort: Columns `tme_subtype` and `msi_status`, same index.
        split: From `split_patients`, same index.
        fitted: `signatures` and `label_rules` of an earlier preparation, in place of fitting.

    Raises:
        ValueError: `fitted` saw a validation or test patient, or the statistics can't be fitted.
    """
    train, held_out = split.index[split == "train"], split.index[split != "train"]
    signatures = fit_signatures(expression.loc[train]) if fitted is None else fitted["signatures"]
    table = compute_signatures(signatures, expression, held_out)
    rules = fit_label_rules(table.loc[train]) if fitted is None else fitted["label_rules"]
    labels = apply_label_rules(rules, table.join(cohort[["msi_status", "tme_subtype"]]), held_out)
    return labels, {"signatures": signatures, "label_rules": rules}
