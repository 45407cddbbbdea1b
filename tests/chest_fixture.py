"""Small copies of the published chest X-ray sets, in their real formats: PadChest, PadChest-GR, Indiana."""

import json

import numpy as np
import pandas as pd
from PIL import Image

from histolab_sft.dataset_config import DatasetConfig

SIZE = (300, 200)
PADCHEST_NAME = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
PADCHEST_COLUMNS = [
    *("Unnamed: 0", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth"),
    *("PatientSex_DICOM", "ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Modality_DICOM"),
    *("Manufacturer_DICOM", "PhotometricInterpretation_DICOM", "PixelRepresentation_DICOM", "PixelAspectRatio_DICOM"),
    *("SpatialResolution_DICOM", "BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM", "Rows_DICOM"),
    *("Columns_DICOM", "XRayTubeCurrent_DICOM", "Exposure_DICOM", "ExposureInuAs_DICOM", "ExposureTime"),
    *("RelativeXRayExposure_DICOM", "ReportID", "Report", "MethodLabel", "Labels", "Localizations"),
    *("LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS"),
]
# ImageDir, ImageID, PatientID, Projection, MethodLabel, Labels, LabelsLocalizationsBySentence
PADCHEST_ROWS = [
    ("0", "205366_k6ga29.png", "839860", "PA", "Physician", "['normal']", "[['normal'], ['normal']]"),
    (
        *(
            "0",
            "215379_a1.png",
            "313572",
            "AP_horizontal",
            "Physician",
            "['pleural effusion', 'cardiomegaly ', ' loc basal']",
        ),
        "[['cardiomegaly', 'loc cardiac'], ['pleural effusion', 'loc left', 'loc costophrenic angle', 'loc  basal']]",
    ),
    (
        *("0", "215379_a2.png", "313572", "L", "RNN_model", "['unchanged', 'normal']"),
        "[['unchanged'], ['normal', 'loc cardiac'], ['normal']]",
    ),
    (
        *("12", "297_b1.png", "99", "PA", "Physician"),
        "['metal', 'abnormal foreign body', 'superior mediastinal enlargement', 'supra aortic elongation', "
        "'hypoexpansion basal both sides', 'unchanged']",
        "[['metal', 'abnormal foreign body', 'loc shoulder'], ['superior mediastinal enlargement', 'supra aortic "
        "elongation', 'loc tracheal', 'loc left'], ['hypoexpansion basal both sides', 'loc basal bilateral']]",
    ),
    ("12", "297_b2.png", "100", "PA", "RNN_model", "", ""),
    ("12", "297_b3.png", "101", "COSTAL", "Physician", "['exclude']", "[['exclude']]"),
    (
        *("54", "300_c1.png", "102", "", "RNN_model", "['nodule']"),
        "['nodule', 'loc  tracheal, loc  left', ['normal', 'loc cardiac']]",
    ),
    ("54", "300_c2.png", "839860", "L", "RNN_model", "[nan, 'normal ']", "[[nan], ['normal ', 'loc cardiac']]"),
]
GR_BOXES = [[0.1, 0.25, 0.5, 0.75], [0.6, 0.5, 1.02, 0.9]]


def make_config(source, format, **keys):
    return DatasetConfig(**{"name": "chest", "source": str(source), "format": format} | keys)


def write_16_bit(path, seed=0, size=SIZE, top=65535):
    """Write grey noise of 0 to `top` as a 16-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, top + 1, size[::-1], dtype=np.uint16)
    Image.fromarray(pixels).save(path)
    return path


def write_padchest(folder):
    """Write the table with its 36 columns and the 16-bit pictures of `PADCHEST_ROWS`; return the table's path."""
    rows = []
    for i, (place, image, patient, projection, method, labels, sentences) in enumerate(PADCHEST_ROWS):
        write_16_bit(folder / place / image, seed=i)
        row = dict.fromkeys(PADCHEST_COLUMNS, "")
        row |= {"Unnamed: 0": i, "ImageID": image, "ImageDir": place, "PatientID": patient, "PatientBirth": "1930.0"}
        row |= {"Projection": projection, "MethodLabel": method, "Labels": labels, "BitsStored_DICOM": "12.0"}
        row |= {"PhotometricInterpretation_DICOM": "MONOCHROME1" if i == 7 else "MONOCHROME2"}
        row |= {"LabelsLocalizationsBySentence": sentences, "Report": "sin hallazg patolog edad pacient . "}
        # Printed by numpy, without commas, over two lines.
        row |= {"labelCUIS": "['C0032227' 'C0018800'\n 'C0205307']", "Localizations": "['loc  tracheal, loc  left']"}
        rows.append(row)
    path = folder / PADCHEST_NAME
    pd.DataFrame(rows).rename(columns={"Unnamed: 0": ""}).to_csv(path, index=False)
    return path


def grounded_studies():
    """Three studies: two boxes and null ones, boxes absent, an abnormal one that nobody could localise."""
    normal = {"sentence_en": "No effusion.", "sentence_es": "No derrame.", "abnormal": False, "progression": None}
    nodule = {"sentence_en": "Nodules.", "abnormal": True, "boxes": GR_BOXES, "extra_boxes": [[0, 0, 0.9, 0.9]]}
    nodule |= {"labels": ["nodule", "granuloma "], "locations": ["loc right upper lobe"]}
    large = {"sentence_en": "Large heart.", "abnormal": True, "boxes": None, "labels": ["cardiomegaly"]}
    vague = {"sentence_en": "Chronic changes.", "abnormal": True, "boxes": [], "labels": ["chronic changes"]}
    return [
        {"StudyID": "s3", "ImageID": "c.png", "findings": [vague | {"locations": []}]},
        {"StudyID": "s1", "ImageID": "a.png", "findings": [nodule, large | {"locations": None}, normal]},
        {"StudyID": "s2", "ImageID": "b.png", "findings": [normal, normal | {"boxes": None}]},
    ]


def write_padchest_gr(folder, studies=None):
    """Write the JSON file, the master table (a row a label) and 16-bit pictures; return the JSON file's path."""
    path = folder / "grounded_reports_20240819.json"
    path.write_text(json.dumps(grounded_studies() if studies is None else studies))
    for i, name in enumerate("abc"):
        write_16_bit(folder / "Padchest_GR_files" / "PadChest_GR" / f"{name}.png", seed=i)
    rows = [("s1", "a.png", "p1", "train", "nodule"), ("s1", "a.png", "p1", "train", "cardiomegaly")]
    rows += [("s2", "b.png", "p2", "validation", "Normal"), ("s3", "c.png", "p3", "test", "chronic changes")]
    columns = ["StudyID", "ImageID", "PatientID", "split", "label"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "master_table.csv", index=False)
    return path


OPEN_I = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><meta type="rr"/><uId id="CXR{uid}"/><MeSH><major>normal</major><automatic>heart</automatic></MeSH>
<MedlineCitation Owner="Indiana" Status="supplied by publisher"><Article PubModel="Electronic"><Abstract>
<AbstractText Label="COMPARISON">XXXX.</AbstractText><AbstractText Label="INDICATION">Pain, XXXX.</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation>{pictures}</eCitation>"""


def write_open_i(folder):
    """Write four XML reports and their pictures in the archives' layout: whole, impression only, no text, no view."""
    reports = {
        "7": ("The heart is XXXX enlarged, x-XXXX XXXX. Lungs &lt; 1 cm.", "Mild edema.", ["2263-1001", "2263-2001"]),
        "12": ("", "Normal chest x-XXXX. XXXX.", ["2400-1001"]),
        "20": ("XXXX.", "", ["2500-1001"]),
        "21": ("Clear lungs.", "Normal.", []),
    }
    (folder / "ecgen-radiology").mkdir(parents=True)
    for uid, (findings, impression, views) in reports.items():
        names = [f"CXR{uid}_IM-{view}" for view in views]
        for i, name in enumerate(names):
            write_16_bit(folder / "NLMCXR_png" / f"{name}.png", seed=i, size=(30, 20))
        pictures = "".join(
            f'<parentImage id="{name}"><figureId>F{i}</figureId><caption>PA and lateral</caption></parentImage>'
            for i, name in enumerate(names, 1)
        )
        text = OPEN_I.format(uid=uid, findings=findings, impression=impression, pictures=pictures)
        (folder / "ecgen-radiology" / f"{uid}.xml").write_text(text)
    return folder


def write_kaggle_indiana(folder):
    """Write both CSV files and the pictures: two views, lateral listed first; findings empty; neither section."""
    pictures = folder / "images" / "images_normalized"
    views = [("1", "1_IM-0001-3001.dcm.png", "Lateral"), ("1", "1_IM-0001-4001.dcm.png", "Frontal")]
    views += [("2", "2_IM-0652-1001.dcm.png", "Frontal"), ("3", "3_IM-1384-1001.dcm.png", "Frontal")]
    for i, (_, name, _) in enumerate(views):
        write_16_bit(pictures / name, seed=i, size=(30, 20))
    reports = [
        ("1", "normal", "normal", "Xray Chest PA and Lateral", "Positive TB", "", "Clear, no XXXX.", "Normal chest."),
        ("2", "Cardiomegaly/mild", "Cardiomegaly", "Chest", "", "", "", "Cardiomegaly; no edema."),
        ("3", "normal", "normal", "Chest", "", "", "", ""),
    ]
    columns = ["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"]
    pd.DataFrame(reports, columns=columns).to_csv(folder / "indiana_reports.csv", index=False)
    columns = ["uid", "filename", "projection"]
    pd.DataFrame(views, columns=columns).to_csv(folder / "indiana_projections.csv", index=False)
    return folder
