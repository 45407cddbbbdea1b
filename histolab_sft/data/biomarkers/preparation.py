"""Prepare a manifest of biomarker labels from tables and patches; all statistics are fitted on `train` alone."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histolab_sft.config.dataset import SPLITS
from histolab_sft.data.biomarkers.appearance import choose_patches, measure_patches, measure_slides, write_images
from histolab_sft.data.biomarkers.barcodes import PATIENT_PATTERN
from histolab_sft.data.biomarkers.clinical_tables import read_clinical, read_expression
from histolab_sft.data.biomarkers.label_rules import refuse_leak
from histolab_sft.data.biomarkers.patch_folders import cut_slides, list_patches
from histolab_sft.data.biomarkers.patients import assemble_cohort, label_patients, split_patients
from histolab_sft.data.biomarkers.reinhard import fit_target
from histolab_sft.data.slides.cutting import Cutting
from histolab_sft.files import write_text
from histolab_sft.metrics.biomarkers import FEW, UNKNOWN
from histolab_sft.provenance import compute_sha256
from histolab_sft.tasks.biomarkers import FIELDS

MANIFEST, FITTED, SUMMARY, PATCHES = "manifest.jsonl", "fitted.json", "summary.json", "patches.csv"


@dataclass(frozen=True)
class Preparation:
    """What to prepare, and how.

    Args:
        expression: Table of gene expression, in `expression_unit` (`log2_tpm` or `tpm`).
        clinical: Tables with project or cancer type, TME subtype, microsatellite calls or scores.
        output_dir: Gets the manifest and all that belongs to it.
        slides, patches: Folder of whole slides, which are cut, or of patches; one of the two.
        patient_pattern: Regular expression that finds the patient in the names of samples, slides and rows.
        cutting: Resolution, size and number of the patches, limits of their quality, the seed of all that is drawn.
        patches_mpp: µm per pixel of patches whose metadata don't say it.
        n_images: Most images of a patient.
        stain_target: `train` (fitted on the training patients), `none`, or a JSON file with `mean` and `std`.
        fitted: `fitted.json` of an earlier preparation, to apply in place of all fitting.
        validation_fraction, test_fraction: Of the patients.
        workers: Processes.
    """

    expression: Path
    clinical: Sequence[Path]
    output_dir: Path
    slides: Path | None = None
    patches: Path | None = None
    expression_unit: str = "log2_tpm"
    patient_pattern: str = PATIENT_PATTERN
    cutting: Cutting = Cutting()
    patches_mpp: float | None = None
    n_images: int = 8
    stain_target: str = "train"
    fitted: Path | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    workers: int = 1

    def __post_init__(self):
        if (self.slides is None) == (self.patches is None):
            raise ValueError(f"slides are {self.slides} and patches {self.patches}, expected one of the two; give one")
        if (self.output_dir / MANIFEST).exists():
            raise FileExistsError(f"{self.output_dir} holds a manifest already, expected none; choose another folder")


def prepare_biomarkers(preparation: Preparation) -> dict:
    """Write images, fitted statistics, summary and, at last, the manifest to `output_dir`, and return the summary.

    Raises:
        ValueError: Tables that contradict themselves, statistics fitted on held-out patients, too few patients, as the
            functions called here say.
    """
    given, cutting, pattern = preparation, preparation.cutting, preparation.patient_pattern
    expression, samples = read_expression(given.expression, given.expression_unit, pattern)
    clinical = read_clinical(given.clinical, pattern)
    given.output_dir.mkdir(parents=True, exist_ok=True)

    slides, source = [], given.patches
    if given.slides is not None:
        source = given.output_dir / "patches"
        slides = cut_slides(given.slides, source, cutting, given.workers)
    patches = list_patches(source, cutting.mpp, given.patches_mpp, pattern)
    patches = measure_patches(patches, cutting.limits, given.workers).assign(image="")

    cohort, left_out = assemble_cohort(expression, clinical, patches)
    expression = expression.loc[cohort.index]
    split = split_patients(
        cohort, expression["CD274"], given.validation_fraction, given.test_fraction, seed=cutting.seed
    )
    earlier = None if given.fitted is None else json.loads(given.fitted.read_text(encoding="utf-8"))
    labels, fitted = label_patients(expression, cohort, split, earlier)

    members = patches[patches["patient"].isin(cohort.index)]
    colours = measure_slides(members)
    if earlier is None:
        fit_on = members[(members["reason"] == "") & (members["patient"].map(split) == "train")]["slide"].unique()
        trained = fit_target([colours[slide] for slide in fit_on]) | {"patients": fitted["label_rules"]["patients"]}
    else:
        trained = earlier["stain_target"]
    fitted["stain_target"] = find_stain_target(given.stain_target, trained, split.index[split != "train"])
    chosen = choose_patches(members, given.n_images, cutting.seed)
    images = write_images(chosen, given.output_dir / "images", colours, fitted["stain_target"], given.workers)
    patches.loc[chosen.index, "image"] = [path.relative_to(given.output_dir).as_posix() for path in images]

    summary = {
        "patients": {name: int((split == name).sum()) for name in SPLITS},
        "patients_left_out": left_out,
        "samples_left_out": samples,
        "slides": slides,
        "patches": patches["reason"].replace("", "usable").value_counts().sort_index().to_dict(),
        "labels": {name: describe_labels(labels[split == name]) for name in SPLITS},
        "warnings": find_rare_values(labels, split),
        "inputs": {path.name: compute_sha256(path) for path in [given.expression, *given.clinical]},
        "seed": cutting.seed,
    }
    columns = ["name", "slide", "patient", "reason", "tissue", "ink", "sharpness", "image"]
    patches[columns].round(4).to_csv(given.output_dir / PATCHES, index=False)
    write_text(given.output_dir / FITTED, json.dumps(fitted, indent=2))
    write_text(given.output_dir / SUMMARY, json.dumps(summary, indent=2))
    write_manifest(given.output_dir / MANIFEST, cohort, split, labels, patches.loc[chosen.index])
    return summary


def find_stain_target(choice: str, trained: dict | None, held_out: Iterable[str]) -> dict | None:
    """Return `trained` for `train`, None for `none`, or else what the JSON file `choice` says.

    Raises:
        ValueError: The target was fitted on one of `held_out`, or the file doesn't have three numbers each as `mean`
            and `std`.
    """
    if choice == "none":
        return None
    target = trained if choice == "train" else json.loads(Path(choice).read_text(encoding="utf-8"))
    if target is None:
        return None
    if "patients" in target:
        refuse_leak(target, held_out)
    if [len(target.get(name, [])) for name in ("mean", "std")] != [3, 3] or min(target["std"]) <= 0:
        raise ValueError(
            f"{choice}: {target}, expected `mean` and `std` of L*, a*, b* (0 to 255), three numbers each; correct it"
        )
    return target


def write_manifest(
    path: Path, cohort: pd.DataFrame, split: pd.Series, labels: pd.DataFrame, chosen: pd.DataFrame
) -> None:
    """Write a line for each patient: `patient`, `images`, `split`, `cancer_type` and `record` with the eight fields.

    Args:
        path: Gets the file through a rename; images are named relative to its folder.
        cohort: Column `cancer_type`, indexed by patient.
        split, labels: Same index.
        chosen: Columns `patient` and `image`, in the order of the images.
    """
    images = chosen.groupby("patient", sort=True)["image"].apply(list)
    names = [field["name"] for field in FIELDS]
    lines = []
    for patient in cohort.index:
        record = labels.loc[patient, names].to_dict()
        record = {name: value if isinstance(value, str) else round(float(value), 6) for name, value in record.items()}
        row = {"patient": patient, "images": images[patient], "split": split[patient]}
        row |= {"cancer_type": cohort.at[patient, "cancer_type"], "record": record}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def find_rare_values(labels: pd.DataFrame, split: pd.Series) -> list[str]:
    """Return a warning for each value of a field that fewer than three patients of a split have, or none at all."""
    warnings = []
    for name in SPLITS:
        for field in FIELDS:
            values = labels.loc[split == name, field["name"]]
            known = values[values != UNKNOWN]
            for value in field.get("values", []):
                count = int((known == value).sum())
                if count < FEW:
                    consequence = "it can't be learnt" if name == "train" else "no score can speak of it"
                    found = f"{count} of {len(known)} patients have {field['name']} {value}"
                    warnings.append(f"{name}: {found}; {consequence}")
    return warnings


def describe_labels(labels: pd.DataFrame) -> dict[str, dict]:
    """Return how often each value of each field stands in `labels`, and of numbers the mean and the range."""
    described = {}
    for field in FIELDS:
        values = labels[field["name"]]
        if "values" in field:
            counts = {value: int((values == value).sum()) for value in [*field["values"], UNKNOWN]}
            described[field["name"]] = counts
        else:
            numbers = {"mean": values.mean(), "lowest": values.min(), "highest": values.max()}
            described[field["name"]] = {name: round(float(number), 4) for name, number in numbers.items()}
    return described
