"""Turn gene expression into ImmunoPath's eight labels, with statistics of the training patients only.

`fit_signatures` and `fit_label_rules` return their statistics as a dict for a JSON file, with a hash of every patient
that they were fitted on. The functions that apply them refuse statistics of a held-out patient. Tables are indexed by
patient; of a TCGA barcode the first twelve characters are the patient.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from histolab_sft.metrics.biomarkers import UNKNOWN

# Source: HetanshWaghela/immunopath at c15d32a.
GENE_SETS = {
    "cd8_signature": "CD8A CD8B GZMA GZMB PRF1 IFNG CXCL9 CXCL10".split(),
    "ifng_signature": (
        "IFNG STAT1 CCR5 CXCL9 CXCL10 CXCL11 IDO1 PRF1 GZMA HLA-DRA CXCR6 LAG3 NKG7 PSMB10 CMKLR1 CD8A TIGIT PDCD1LG2"
    ).split(),
    "til_signature": "CD3D CD3E CD3G CD4 CD8A CD8B FOXP3 CD19 MS4A1 NCAM1".split(),
    "pdl1_related": "CD274 PDCD1 PDCD1LG2 CTLA4 LAG3 TIGIT HAVCR2".split(),
    "exhaustion_signature": "PDCD1 CTLA4 LAG3 TIGIT HAVCR2 TOX ENTPD1".split(),
}
GENE_ALIASES = {"CD20": "MS4A1", "CD56": "NCAM1", "PD-L1": "CD274", "PD-1": "PDCD1"}
GENES = sorted({gene for genes in GENE_SETS.values() for gene in genes})
SCORE_PARTS = ["cd8_signature", "ifng_signature", "til_signature"]
FITTED_COLUMNS = [*SCORE_PARTS, "cd274_log2_tpm"]
DENSITY_EDGES = (-0.5, 0.5)  # below: low, below: moderate, else high; on the signature itself, no second z-score
MSISENSOR_HIGH, MANTIS_HIGH = 3.5, 0.4


def fit_signatures(train_expression: pd.DataFrame) -> dict:
    """Return mean and standard deviation (ddof 0) of each gene, and hashes of the patients.

    Args:
        train_expression: log2(TPM + 1), shape (training patients, genes).

    Raises:
        ValueError: A gene is missing, unknown in a patient or constant; a patient stands in two rows.
    """
    expression = _select(train_expression.rename(columns=GENE_ALIASES), GENES)
    spread = expression.std(ddof=0)
    if constant := sorted(spread.index[spread == 0]):
        raise ValueError(
            f"{constant} constant over {len(expression)} training patients, expected genes that vary; "
            "check the expression table"
        )
    return {
        "mean": expression.mean().to_dict(),
        "std": spread.to_dict(),
        "patients": sorted(map(_hash_patient, expression.index)),
    }


def compute_signatures(fitted: dict, expression: pd.DataFrame, held_out: Iterable[str]) -> pd.DataFrame:
    """Return the signatures (mean z-score of their genes) and `cd274_log2_tpm`, indexed by patient.

    Args:
        fitted: From `fit_signatures`.
        expression: log2(TPM + 1) of any patients, shape (patients, genes).
        held_out: The validation and test patients.

    Raises:
        ValueError: As `fit_signatures`, and if one of `held_out` was fitted on.
    """
    refuse_leak(fitted, held_out)
    expression = _select(expression.rename(columns=GENE_ALIASES), GENES)
    scores = (expression - pd.Series(fitted["mean"])) / pd.Series(fitted["std"])
    table = pd.DataFrame({name: scores[genes].mean(axis=1) for name, genes in GENE_SETS.items()})
    return table.assign(cd274_log2_tpm=expression["CD274"])


def fit_label_rules(train_table: pd.DataFrame) -> dict:
    """Return the medians and the range of the score that the labels are cut with, and hashes of the patients.

    Args:
        train_table: Columns `FITTED_COLUMNS`, a row for each training patient.

    Raises:
        ValueError: A column is missing or has gaps; a patient stands in two rows; all have one score.
    """
    table = _select(train_table, FITTED_COLUMNS)
    score = table[SCORE_PARTS].mean(axis=1)
    if score.max() == score.min():
        raise ValueError(f"{len(table)} training patients with one and the same score, expected a range; add patients")
    return {
        "cd274_median": float(table["cd274_log2_tpm"].median()),
        "cd8_median": float(table["cd8_signature"].median()),
        "til_median": float(table["til_signature"].median()),
        "score_range": [float(score.min()), float(score.max())],
        "patients": sorted(map(_hash_patient, table.index)),
    }


def apply_label_rules(rules: dict, table: pd.DataFrame, held_out: Iterable[str]) -> pd.DataFrame:
    """Return the eight labels, indexed as `table`.

    A held-out patient beyond the range of the training scores gets 0 or 1.

    Args:
        rules: From `fit_label_rules`.
        table: Columns `FITTED_COLUMNS`, `msi_status` and `tme_subtype`, of any patients.
        held_out: The validation and test patients.

    Raises:
        ValueError: A column is missing, or one of `held_out` was fitted on.
    """
    refuse_leak(rules, held_out)
    numbers = _select(table, FITTED_COLUMNS)
    til, cd8 = numbers["til_signature"], numbers["cd8_signature"]
    low, high = rules["score_range"]
    score = (numbers[SCORE_PARTS].mean(axis=1) - low) / (high - low)
    inflamed = np.where(cd8 >= rules["cd8_median"], "inflamed", "excluded")
    return pd.DataFrame(
        {
            "cd274_expression": np.where(numbers["cd274_log2_tpm"] >= rules["cd274_median"], "high", "low"),
            "msi_status": table["msi_status"].fillna(UNKNOWN),
            "tme_subtype": table["tme_subtype"].fillna(UNKNOWN),
            "til_fraction": sigmoid(til),
            "til_density": [bucket_density(value) for value in til],
            "immune_phenotype": np.where(til >= rules["til_median"], inflamed, "desert"),
            "cd8_infiltration": [bucket_density(value) for value in cd8],
            "immune_score": score.clip(0, 1),
        },
        index=table.index,
    )


def refuse_leak(fitted: dict, held_out: Iterable[str]) -> None:
    """Raise ValueError if statistics were fitted on a held-out patient, or don't name their patients."""
    if not fitted.get("patients"):
        raise ValueError("the fitted statistics name no patients, expected their hashes; fit them again")
    held_out = sorted({str(patient) for patient in held_out})
    seen = set(fitted["patients"])
    leaked = [patient for patient in held_out if _hash_patient(patient) in seen]
    if leaked:
        raise ValueError(
            f"fitted on {len(seen)} patients, {len(leaked)} of the {len(held_out)} held-out ones among them, expected "
            "none; fit on the training patients only"
        )


def sigmoid(z: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-z)): the TIL fraction of a TIL signature, without the range of any cohort."""
    return 1 / (1 + np.exp(-z))


def bucket_density(z: float) -> str:
    """Return `low`, `moderate` or `high` of a signature."""
    return ("low", "moderate", "high")[int(np.digitize(z, DENSITY_EDGES))]


def call_msi(msisensor: float | None, mantis: float | None) -> str | None:
    """Return `MSI-H` if MSIsensor is 3.5 or more or MANTIS 0.4 or more, `MSS` if not, None without either score."""
    known = [(v, t) for v, t in ((msisensor, MSISENSOR_HIGH), (mantis, MANTIS_HIGH)) if v is not None and v == v]
    if not known:
        return None
    return "MSI-H" if any(value >= threshold for value, threshold in known) else "MSS"


def msi_consensus(calls: Iterable[str | None]) -> str:
    """Return the call of most sources (MSI-L is MSS), `unknown` for a tie and where no source has one."""
    calls = ["MSS" if call == "MSI-L" else call for call in calls]
    high, stable = calls.count("MSI-H"), calls.count("MSS")
    if high == stable:
        return UNKNOWN
    return "MSI-H" if high > stable else "MSS"


def _select(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    if missing := sorted(set(columns) - set(table.columns)):
        raise ValueError(f"columns {missing} missing, expected all of {columns}; add them to the table")
    patients = pd.Index([_patient(name) for name in table.index])
    if patients.has_duplicates:
        double = sorted(set(patients[patients.duplicated()]))[:5]
        raise ValueError(f"patients {double} stand in two rows, expected one; merge their samples")
    numbers = table[columns].astype(float)
    if gaps := numbers.columns[~np.isfinite(numbers).all()].tolist():
        raise ValueError(
            f"{gaps} have gaps or infinities, expected a number for each patient; leave such patients out"
        )
    return numbers


def _patient(name: str) -> str:
    name = str(name)
    return name[:12] if name.startswith("TCGA-") else name


def _hash_patient(name: str) -> str:
    return hashlib.sha256(_patient(name).encode()).hexdigest()
