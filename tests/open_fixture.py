"""Small copies of the data that the recipes on records read, in their real formats, with noise for pictures."""

import json

import numpy as np
import pandas as pd
from chest_fixture import PADCHEST_COLUMNS, PADCHEST_NAME, write_16_bit
from flare_fixture import record
from labelled_chest_fixture import write_chestxray14, write_chexpert, write_mimic_cxr
from PIL import Image

SIZE = (40, 30)
CLASSES = "What is it? Options: A: Benign B: Malignant"
LABELS = "Which apply? Select from: Dental Caries; Pulp Diseases."
BOX = "Find the exact bounding box [x_min, y_min, x_max, y_max] of the lesion."
# Task of a FLARE data set -> its spelling there, a question and answers.
FLARE_TASKS = {
    "classification": ("Classification", CLASSES, ["A", "B"]),
    "multilabel": ("Multi-label Classification", LABELS, ["Dental Caries", "Dental Caries; Pulp Diseases"]),
    "quantity": ("Counting", "How many cells are in this image?", [13, 5]),
    "boxes": ("Detection", BOX, [[[4, 3, 20, 20]], []]),
    "report": ("report_generation", "Describe the heart.", ["Heart is normal.", "The heart is large."]),
}
TRAIN, VALIDATION, TEST = 8, 3, 3  # rows of each split
RECORD = {
    **{"cd274_expression": "high", "msi_status": "MSS", "tme_subtype": "IE/F", "til_fraction": 0.57},
    **{"til_density": "high", "immune_phenotype": "inflamed", "cd8_infiltration": "moderate", "immune_score": 0.626},
}


def write_data(recipe, folder, datasets):
    """Write below `folder` what `recipes/RECIPE.yaml` reads; `datasets` are the entries of that recipe."""
    WRITERS[recipe](folder, datasets)


def write_noise(path):
    """Write a picture that equals no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(str(path).encode(), "big")
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)).save(path)


def write_captions(folder, datasets):
    """`{split}.json` beside the pictures' folder, with a patient each, captions in two languages."""
    home = folder / datasets[0]["source"]
    home.mkdir(parents=True)
    texts = ["CT scan with a small lesion.", "Radiografía de tórax sin hallazgos."]
    for split, count in (("train", TRAIN), ("val", VALIDATION), ("test", TEST)):
        rows = []
        for i in range(count):
            name = f"data/images/{split}{i}.png"
            write_noise(home.parent / name)
            rows.append({"image": name, "caption": texts[i % 2], "patient_id": f"{split}{i}"})
        (home / f"{split}.json").write_text(json.dumps(rows))


def write_flare(folder, datasets):
    """Question files of every data set that the recipe lists, in train and in the split that is its test."""
    for entry in datasets:
        spelling, question, answers = FLARE_TASKS[entry["task"]]
        for split, first, count, words in (("training", 0, TRAIN, "Tr"), (entry["splits"]["test"], 900, 2, "Val")):
            home = folder / "data" / entry["source"] / split / "Any" / entry["subset"]
            names = [f"images{words}/{entry['name']}_{i:05d}.png" for i in range(first, first + count)]
            rows = [record(spelling, name, question, answers[i % 2]) for i, name in enumerate(names)]
            if entry["subset"] == "neojaundice":
                for row, name in zip(rows[::2], names[::2], strict=True):
                    row["ImageName"] = [name, name.replace(".png", "-2.png")]
            for name in {name for row in rows for name in np.atleast_1d(row["ImageName"]).tolist()}:
                write_noise(home / name)
            (home / f"{entry['name']}_questions.json").write_text(json.dumps(rows))


def write_chest(folder, datasets):
    """PadChest's table, PadChest-GR's JSON file and Indiana's tables, 14 patients each, 16-bit pictures."""
    sources = {entry["name"]: folder / entry["source"] for entry in datasets}
    rows, studies, master, reports, views = [], [], [], [], []
    for i in range(14):
        name = f"{i}.png"
        for place in ("padchest/0", "padchest_gr/PadChest_GR", "indiana/images"):
            write_16_bit(folder / "data" / place / name, seed=1000 * len(place) + i, size=SIZE)
        labels = ["['normal']", "['cardiomegaly', 'loc cardiac']"][i % 2]
        row = dict.fromkeys(PADCHEST_COLUMNS, "") | {"ImageID": name, "ImageDir": "0", "PatientID": f"p{i}"}
        row |= {"Projection": "PA", "MethodLabel": "Physician", "Labels": labels}
        rows.append(row | {"LabelsLocalizationsBySentence": f"[{labels}]"})
        finding = {"sentence_en": "Nodule.", "abnormal": bool(i % 2), "labels": ["nodule"], "locations": []}
        finding |= {"boxes": [[0.1, 0.25, 0.5, 0.75]] if i % 2 else []}
        studies.append({"StudyID": f"s{i}", "ImageID": name, "findings": [finding]})
        split = "train" if i < 8 else "validation" if i < 11 else "test"
        master.append({"StudyID": f"s{i}", "ImageID": name, "PatientID": f"p{i}", "split": split, "label": "nodule"})
        reports.append({"uid": i, "findings": "Clear lungs.", "impression": f"Normal chest {i % 2}."})
        views.append({"uid": i, "filename": name, "projection": "Frontal"})
    pd.DataFrame(rows).to_csv(sources["padchest"] / PADCHEST_NAME, index=False)
    (sources["padchest_gr"] / "grounded_reports_20240819.json").write_text(json.dumps(studies))
    pd.DataFrame(master).to_csv(sources["padchest_gr"] / "master_table.csv", index=False)
    pd.DataFrame(reports).to_csv(sources["indiana"] / "indiana_reports.csv", index=False)
    pd.DataFrame(views).to_csv(sources["indiana"] / "indiana_projections.csv", index=False)


def write_labelled_chest(folder, datasets):
    """MIMIC-CXR-JPG with reports, CheXpert and ChestX-ray14, in their published layouts."""
    writers = {"mimic_cxr": write_mimic_cxr, "chexpert": write_chexpert, "chestxray14": write_chestxray14}
    for entry in datasets:
        writers[entry["format"]](folder / entry["source"])


def write_biomarkers(folder, datasets):
    """The manifest of the preparation: a patient a line, two pictures each, one patient with an unknown subtype."""
    home, lines = folder / datasets[0]["source"], []
    for split, count in (("train", TRAIN), ("validation", VALIDATION), ("test", 4)):
        for i in range(count):
            patient = f"{split}-{i}"
            images = [f"images/{patient}-{k}.png" for k in range(2)]
            for image in images:
                write_noise(home / image)
            values = RECORD | {"cd274_expression": ["high", "low"][i % 2], "til_fraction": round(0.1 * i, 1)}
            values |= {"tme_subtype": "unknown"} if i == 1 else {}
            line = {"patient": patient, "images": images, "split": split, "cancer_type": "LUAD", "record": values}
            lines.append(json.dumps(line))
    (home / "manifest.jsonl").write_text("\n".join(lines) + "\n")


WRITERS = {
    "captioning": write_captions,
    "flare": write_flare,
    "explainmyxray": write_chest,
    "chest_xrays": write_labelled_chest,
    "immunopath": write_biomarkers,
}
