"""Find the patient in the name of a file, a column or a row, and the sample type in a TCGA barcode."""

import re
from collections.abc import Iterable

import pandas as pd

from histolab_sft.config.patterns import search

PATIENT_PATTERN = r"TCGA-\w{2}-\w{4}"
_SAMPLE_TYPE = re.compile(r"TCGA-\w{2}-\w{4}-(\d{2})")


def name_patient(name: str, pattern: str = PATIENT_PATTERN) -> str | None:
    """Return what `pattern` finds in `name`: its first group, all of it if it has none, None if it finds nothing."""
    match = search(pattern, name)
    return None if match is None else match[1 if match.re.groups else 0]


def name_patients(names: Iterable[str], pattern: str, source: str) -> list[str]:
    """Return the patient of every name.

    Raises:
        ValueError: The pattern isn't found in some of them.
    """
    names = [str(name) for name in names]
    patients = [name_patient(name, pattern) for name in names]
    if strange := [name for name, patient in zip(names, patients, strict=True) if patient is None]:
        raise ValueError(
            f"{source}: {len(strange)} of {len(names)} names hold no patient, {strange[0]!r} first, expected to find "
            f"{pattern!r} in each; correct them or give the pattern of your patients"
        )
    return patients


def is_normal_tissue(name: str) -> bool:
    """Whether a TCGA barcode is of a normal or control sample (sample types 10 to 29), not of a tumour (01 to 09)."""
    match = _SAMPLE_TYPE.match(name)
    return match is not None and int(match[1]) >= 10


def pick_tumour_samples(table: pd.DataFrame, pattern: str, source: str) -> tuple[pd.DataFrame, list[str]]:
    """Return one row for each patient, indexed by patient in sorted order, and the samples left out.

    Of several TCGA samples the first barcode counts, so the primary tumour (01) before its recurrence (02) and vial A
    before vial B; normal tissue never does.

    Args:
        table: Indexed by sample or patient.
        source: What an error calls the table.

    Raises:
        ValueError: A name without a patient, or two rows of one patient that no sample type ranks.
    """
    table = table.set_axis(table.index.astype(str)).sort_index()
    normal = [name for name in table.index if is_normal_tissue(name)]
    table = table.drop(index=normal)
    patients = pd.Index(name_patients(table.index, pattern, source))
    doubled = table.index[patients.duplicated(keep=False)]
    if table.index.has_duplicates or not all(_SAMPLE_TYPE.match(name) for name in doubled):
        raise ValueError(
            f"{source}: {doubled[0]!r} isn't the only row of its patient, expected one; merge or drop them"
        )
    first = ~patients.duplicated()
    left_out = sorted([*normal, *table.index[~first]])
    return table[first].set_axis(patients[first]).sort_index(), left_out
