"""Small copies of MIMIC-CXR-JPG, CheXpert and ChestX-ray14 in their published layouts, with noise for pictures."""

import gzip

import numpy as np
import pandas as pd
from PIL import Image

from histolab_sft.data.records.chest_labels import OBSERVATIONS

SIZE = (40, 30)
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // eval for effusion

 COMPARISON:  Chest radiograph from ___.

 FINDINGS:

 The lungs are clear of consolidation,
 effusion {number}. No change since ___.

 IMPRESSION:

 No acute process {number}.
"""
IMPRESSION_ONLY = " WET READ: ___ 3:10 PM\n  Clear.\n\n IMPRESSION:  As compared to ___, no change.\n"
MIMIC_VIEWS = ("LATERAL", "PA")  # in the order of the pictures' names: the lateral one comes first there
CHEXPERT_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *OBSERVATIONS)
CHESTXRAY14_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
# Present, uncertain, absent and not mentioned, two of each kind of file: CheXpert's labels have a decimal.
CHEXPERT_LABELS = {"Cardiomegaly": "1.0", "Edema": "-1.0", "Pneumonia": "0.0", "Pleural Effusion": "-1.0"}


def write_noise(path):
    """Write a grey picture that equals no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(str(path).encode(), "big")
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, SIZE[::-1], dtype=np.uint8)).save(path)


def write_mimic_cxr(folder, train=8, validate=3, test=3):
    """Write tables, reports and two pictures a study of one patient each; the last of train has no findings."""
    splits = ["train"] * train + ["validate"] * validate + ["test"] * test
    tables = {"split": [], "metadata": [], "chexpert": []}
    for i, split in enumerate(splits):
        subject, study = f"{10000032 + i}", f"{50414267 + i}"
        home = folder / "files" / "p10" / f"p{subject}" / f"s{study}"
        for view, position in enumerate(MIMIC_VIEWS):
            name = f"{view}2aa4c96-68f79d53-6f0f4f0b-{i:08d}"
            write_noise(home / f"{name}.jpg")
            tables["split"].append({"dicom_id": name, "study_id": study, "subject_id": subject, "split": split})
            row = {"dicom_id": name, "subject_id": subject, "study_id": study, "ViewPosition": position, "Rows": 30}
            tables["metadata"].append(row)
        labels = dict.fromkeys(sorted(OBSERVATIONS), "") | (CHEXPERT_LABELS if i % 2 else {"No Finding": "1.0"})
        tables["chexpert"].append({"subject_id": subject, "study_id": study} | labels)
        report = folder / "mimic-cxr-reports" / "files" / "p10" / f"p{subject}" / f"s{study}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(IMPRESSION_ONLY if i == train - 1 else REPORT.format(number=i))
    for kind, rows in tables.items():
        with gzip.open(folder / f"mimic-cxr-2.0.0-{kind}.csv.gz", "wt", encoding="utf-8") as file:
            pd.DataFrame(rows).to_csv(file, index=False)
    return folder


def write_chexpert(folder, train=8, valid=3):
    """Write both tables and two pictures a study, one patient each; labels of `valid` are certain, as published."""
    for split, count in (("train", train), ("valid", valid)):
        rows = []
        for i in range(count):
            labels = dict.fromkeys(OBSERVATIONS, "") | (CHEXPERT_LABELS if i % 2 else {"No Finding": "1.0"})
            if split == "valid":
                labels = {name: "1.0" if cell == "1.0" else "0.0" for name, cell in labels.items()}
            patient = f"patient{i + 1 + 64540 * (split == 'valid'):05d}"
            for view, kind in ((1, "lateral"), (2, "frontal")):
                place = f"{split}/{patient}/study1/view{view}_{kind}.jpg"
                write_noise(folder / place)
                rows.append({"Path": f"CheXpert-v1.0-small/{place}", "Sex": "Female", "Age": "68"} | labels)
        pd.DataFrame(rows, columns=CHEXPERT_COLUMNS).to_csv(folder / f"{split}.csv", index=False)
    return folder


def write_chestxray14(folder, train=8, test=3):
    """Write the table, whose lines end with a comma as published, both lists, and pictures in two of the folders."""
    lines, lists = [CHESTXRAY14_HEADER], {"train_val_list.txt": [], "test_list.txt": []}
    findings = ("No Finding", "Cardiomegaly|Pleural_Thickening")
    for i in range(train + test):
        name = f"{i + 1:08d}_000.png"
        write_noise(folder / f"images_{1 + i % 2:03d}" / "images" / name)
        lines.append(f"{name},{findings[i % 2]},0,{i + 1},58,M,PA,2682,2749,0.143,0.143,")
        lists["train_val_list.txt" if i < train else "test_list.txt"].append(name)
    (folder / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    for name, pictures in lists.items():
        (folder / name).write_text("\n".join(pictures))
    return folder
