"""Read a gene expression table, and merge what clinical tables say about each patient."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histolab_sft.data.biomarkers.barcodes import PATIENT_PATTERN, name_patient, name_patients, pick_tumour_samples
from histolab_sft.data.biomarkers.label_rules import GENE_ALIASES, GENES, call_msi, msi_consensus
from histolab_sft.metrics.biomarkers import UNKNOWN
from histolab_sft.tasks.biomarkers import FIELDS, read_value

logger = logging.getLogger(__name__)

UNITS = ("log2_tpm", "tpm")
# TPM add up to a million, so that log2(TPM + 1) stays below this.
HIGHEST_LOG2_TPM = float(np.log2(1e6 + 1))
CANCER_TYPES = {"TCGA-LUAD": "lung adenocarcinoma", "TCGA-LUSC": "lung squamous cell carcinoma"}
# Columns' names at GDC, cBioPortal and in Bagaev et al., without case or punctuation; an unnamed one is the index.
COLUMNS = {
    "patient": ("patient", "patientid", "submitterid", "casesubmitterid", "bcrpatientbarcode", "unnamed0"),
    "cancer_type": ("cancertypedetailed", "cancertype"),
    "project": ("project", "projectid"),
    "tme_subtype": ("tmesubtype", "mfp"),
    "msi": ("msi", "msistatus"),
    "msisensor": ("msisensor", "msisensorscore"),
    "mantis": ("mantis", "msiscoremantis", "msimantisscore"),
}
MSI_CALLS = {"msi-h": "MSI-H", "msi-l": "MSI-L", "mss": "MSS", "unknown": None, "indeterminate": None, "": None}
_TME = next(field for field in FIELDS if field["name"] == "tme_subtype")


def read_expression(
    path: Path, unit: str = "log2_tpm", pattern: str = PATIENT_PATTERN
) -> tuple[pd.DataFrame, list[str]]:
    """Return log2(TPM + 1) of the signature genes, indexed by patient in sorted order, and the samples left out.

    Args:
        path: Table with genes in rows and samples in columns, or the other way round; the first column names the rows.
        unit: `log2_tpm`, or `tpm` to have the logarithm taken here.
        pattern: Regular expression that finds the patient in a sample's name.

    Raises:
        ValueError: A gene is missing or stands there twice, or values outside of what the unit allows.
    """
    table = read_table(path)
    table = table.set_index(table.columns[0])
    if {GENE_ALIASES.get(str(column), str(column)) for column in table.columns} & set(GENES):
        table = table.T
    table = table.set_axis([GENE_ALIASES.get(str(gene), str(gene)) for gene in table.index])
    table = table[table.index.isin(GENES)]
    if table.index.has_duplicates or len(table) < len(GENES):
        doubled, missing = sorted(table.index[table.index.duplicated()]), sorted(set(GENES) - set(table.index))
        raise ValueError(
            f"{path}: genes {missing} missing and {doubled} doubled, expected each of the {len(GENES)} signature "
            "genes once, by its HGNC symbol; translate identifiers or merge rows"
        )
    samples = [column for column in table.columns if name_patient(str(column), pattern) is not None]
    if not samples:
        raise ValueError(
            f"{path}: none of {[*table.columns[:3]]} ... names a patient, expected to find {pattern!r} in them; give "
            "the pattern of your patients"
        )
    if others := [column for column in table.columns if column not in samples]:
        logger.warning("%s: %d columns hold no patient and aren't samples: %s", path, len(others), others[:5])
    expression, left_out = pick_tumour_samples(table[samples].T[GENES].astype(float), pattern, str(path))
    low, high = expression.min().min(), expression.max().max()
    if low < 0 or (unit == "log2_tpm" and high > HIGHEST_LOG2_TPM):
        raise ValueError(
            f"{path}: values from {low:g} to {high:g}, expected log2(TPM + 1), 0 to {HIGHEST_LOG2_TPM:.1f}; give the "
            "unit tpm for values without the logarithm"
        )
    values = np.ascontiguousarray(expression)  # or rounding in sums would depend on whether the file was transposed
    expression = pd.DataFrame(values, index=expression.index, columns=expression.columns)
    return (expression if unit == "log2_tpm" else np.log2(expression + 1)), left_out


def read_clinical(paths: Sequence[Path], pattern: str = PATIENT_PATTERN) -> pd.DataFrame:
    """Return `cancer_type`, `tme_subtype` and `msi_status` of every patient named, sorted by patient.

    `cancer_type` is that of the project where a table names one, as other words for it differ from table to table.
    Every table is a source of its own for the microsatellite status, and gives a call of its column of calls and one
    of its MSIsensor and MANTIS scores; `msi_status` is what most of them say. `tme_subtype` is `unknown` and
    `cancer_type` None where no table has one.

    Raises:
        ValueError: A table without patients, a value that isn't known, or two tables or rows that disagree.
    """
    facts = pd.concat([_read_clinical_table(path, pattern) for path in paths], ignore_index=True)
    rows = {}
    for patient, table in facts.groupby("patient", sort=True):
        rows[patient] = {
            "cancer_type": _agreed(patient, table, "project") or _agreed(patient, table, "cancer_type"),
            "tme_subtype": _agreed(patient, table, "tme_subtype") or UNKNOWN,
            "msi_status": msi_consensus([call for calls in table["msi_calls"] for call in calls]),
        }
    return pd.DataFrame.from_dict(rows, orient="index", dtype=object)


def read_table(path: Path) -> pd.DataFrame:
    """Read a `.csv`, `.tsv`, `.txt` (tabs) or `.parquet` table; leading lines with `#` (cBioPortal) are skipped.

    Raises:
        ValueError: The file has another name.
    """
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        return table if isinstance(table.index, pd.RangeIndex) else table.reset_index()
    separators = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
    if path.suffix not in separators:
        raise ValueError(f"{path}: expected {', '.join(separators)} or .parquet; unpack or convert it")
    with open(path, encoding="utf-8") as file:
        comments = next((number for number, line in enumerate(file) if not line.startswith("#")), 0)
    return pd.read_csv(path, sep=separators[path.suffix], skiprows=comments, low_memory=False)


def _read_clinical_table(path: Path, pattern: str) -> pd.DataFrame:
    table = read_table(path)
    plain = ["".join(filter(str.isalnum, str(column).casefold())) for column in table.columns]
    columns = {
        name: next((table.columns[plain.index(word)] for word in words if word in plain), None)
        for name, words in COLUMNS.items()
    }
    if columns["patient"] is None:
        raise ValueError(f"{path}: columns {[*table.columns[:9]]}, expected one with the patient's id; rename it so")
    empty = pd.Series([None] * len(table), dtype=object)
    given = {name: empty if column is None else table[column] for name, column in columns.items()}
    if strange := sorted(set(given["project"].dropna()) - set(CANCER_TYPES)):
        raise ValueError(
            f"{path}: projects {strange}, expected {sorted(CANCER_TYPES)}; give a column cancer_type alone"
        )
    facts = pd.DataFrame({"patient": name_patients(given["patient"], pattern, str(path))})
    facts["project"] = [CANCER_TYPES.get(project) for project in given["project"]]
    facts["cancer_type"] = [None if pd.isna(word) else str(word).strip().lower() for word in given["cancer_type"]]
    facts["tme_subtype"] = [_read_tme(value, path) for value in given["tme_subtype"]]
    scores = [pd.to_numeric(given[name]) for name in ("msisensor", "mantis")]
    calls = [_read_msi(value, path) for value in given["msi"]]
    facts["msi_calls"] = list(zip(calls, map(call_msi, *scores), strict=True))
    # Several samples of a patient that agree count once for the table.
    return facts.drop_duplicates(ignore_index=True)


def _read_tme(value: object, path: Path) -> str | None:
    if pd.isna(value):
        return None
    subtype = read_value(str(value), _TME)
    if subtype is None:
        raise ValueError(f"{path}: subtype {value!r}, expected one of {_TME['values']} or {UNKNOWN!r}; correct it")
    return None if subtype == UNKNOWN else subtype


def _read_msi(value: object, path: Path) -> str | None:
    plain = "" if pd.isna(value) else str(value).strip().casefold()
    if plain not in MSI_CALLS:
        raise ValueError(f"{path}: microsatellite status {value!r}, expected MSI-H, MSI-L, MSS or nothing; correct it")
    return MSI_CALLS[plain]


def _agreed(patient: str, table: pd.DataFrame, column: str) -> str | None:
    values = sorted(set(table[column].dropna()))
    if len(values) > 1:
        raise ValueError(f"patient {patient}: {column} is {' and '.join(values)}, expected one; correct the tables")
    return values[0] if values else None
