"""
Prepare biomarker records from gene expression, clinical tables and slides or patches:

    python recipes/prepare_biomarkers.py --expression tpm.tsv --expression_unit tpm \\
        --clinical metadata.csv annotation.tsv cbioportal.tsv --slides data/slides --output_dir data/biomarkers

Labels, colours and split are fitted on the training patients alone. The manifest is a data set's `source`.
"""

import argparse
import logging
from pathlib import Path

from histolab_sft.data.biomarkers.barcodes import PATIENT_PATTERN
from histolab_sft.data.biomarkers.clinical_tables import UNITS
from histolab_sft.data.biomarkers.preparation import MANIFEST, Preparation, prepare_biomarkers
from histolab_sft.data.slides.cutting import Cutting
from histolab_sft.data.slides.grid import TARGET_MPP
from histolab_sft.data.slides.quality import PatchFilter
from histolab_sft.errors import plain_errors


def parse_preparation(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--expression", type=Path, required=True, help="table of genes and samples")
    add("--expression_unit", choices=UNITS, default="log2_tpm", help="log2_tpm is log2(TPM + 1)")
    add(
        "--clinical", type=Path, nargs="+", required=True, help="tables of projects, TME subtypes, MSI calls or scores"
    )
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--slides", type=Path, help="folder of whole slides")
    images.add_argument("--patches", type=Path, help="folder of SLIDE_patch_NUMBER pictures")
    add("--output_dir", type=Path, required=True)
    add("--patient_pattern", default=PATIENT_PATTERN, help="regular expression that finds the patient in a name")
    add("--mpp", type=float, default=TARGET_MPP, help="µm per pixel of a patch")
    add("--patches_mpp", type=float, help="µm per pixel of given patches whose metadata don't say it")
    add("--patch_size", type=int, default=512, help="pixels a side, of patches cut from slides")
    add("--max_patches", type=int, default=64, help="cut from one slide")
    add("--n_images", type=int, default=8, help="chosen for a patient")
    add("--min_tissue", type=float, default=0.5, help="fraction of a patch")
    add("--max_ink", type=float, default=0.1, help="fraction of a patch")
    add("--min_sharpness", type=float, default=50.0, help="variance of the Laplacian")
    add("--stain_target", default="train", help="train, none, or a JSON file with mean and std of L*a*b*")
    add("--fitted", type=Path, help="fitted.json of an earlier preparation, in place of fitting")
    add("--validation_fraction", type=float, default=0.1)
    add("--test_fraction", type=float, default=0.1)
    add("--seed", type=int, default=42)
    add("--workers", type=int, default=1, help="processes")
    options = vars(parser.parse_args(arguments))
    limits = PatchFilter(*(options.pop(name) for name in PatchFilter._fields))
    cutting = {name: options.pop(name) for name in ("mpp", "patch_size", "max_patches", "seed")}
    return Preparation(cutting=Cutting(**cutting, limits=limits), **options)


def main(preparation):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    summary = prepare_biomarkers(preparation)
    print("patients:", ", ".join(f"{count} {name}" for name, count in summary["patients"].items()))
    for reason, patients in summary["patients_left_out"].items():
        print(f"left out: {len(patients)} patients, {reason}")
    for slide in summary["slides"]:
        if slide["reason"]:
            print(f"slide refused: {slide['slide']}: {slide['reason']}")
    for reason, count in summary["patches"].items():
        print(f"patches: {count} {reason}")
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    print(f"wrote {preparation.output_dir / MANIFEST}")


if __name__ == "__main__":
    with plain_errors():
        main(parse_preparation())
