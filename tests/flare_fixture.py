"""A small copy of FLARE's MLLM 2D data: its folders, file names, spellings and encodings, with empty pictures."""

import json

from PIL import Image

SIZE = (320, 200)
PERIAPICAL = [
    *("Dental Caries", "Periradicular Lesions", "Pulp Diseases", "Chronic Injury of Tooth Hard Tissues"),
    *("Disturbances of Eruption of Teeth", "Periodontal Diseases"),
    "Endodontic Treatment, Restorative Treatment, and Complications",
]
TOOTH = (
    "What does tooth 4 show? Select all that apply from the following, separate multiple selections with a semicolon: "
    f"{'; '.join(PERIAPICAL)}."
)
MARROW = (
    "Question: What fits this marrow? Options: A: Normal bone marrow B: Myelofibrosis C: Myelodysplastic syndrome "
    "D: Multiple myeloma E: Iron-deficiency anemia F: Idiopathic thrombocytopenic purpura G: Hemolytic anemia "
    "H: Chronic myelogenous leukemia I: Aplastic anemia J: Acute myeloid leukemia K: Acute lymphoblastic leukemia"
)
LOSS = "Classify the loss in the maxillary jaw. A: No loss, B: Single tooth loss, C: Consecutive multiple loss"
KENNEDY = (
    "What is the Kennedy class? A: Class I (bilateral free-end), B: Class II (unilateral free-end), "
    "C: Edentulous, D: Normal (all teeth present)"
)
PLANE = "Is this a standard plane? A. Non-standard plane B. Standard plane"
HEAD = "Find the exact bounding box [x_min, y_min, x_max, y_max] for fetal head."
KARYOTYPE = (
    "Identify all chromosomes. Return a JSON with identifiers as keys and [x_min, y_min, x_max, y_max] as values."
)
CHEST = "imagesTr/IU-XRay_CXR3030_IM-1405-0.png"
CELLS = "How many cells are in this image?"
BONE = "What percentage of alveolar bone is lost at this tooth?"
FINDINGS = "Which findings are present?"
TREATMENT = "Does this require treatment? A. No Treatment, B. Treatment Required"


def record(task_type, images, question, answer=None, split="train", modality="X-ray"):
    """One record with the fields of the published files; without an answer the field is left out."""
    values = {"TaskType": task_type, "Modality": modality, "ImageName": images, "Question": question}
    return values | ({} if answer is None else {"Answer": answer}) | {"Split": split}


def without(values, *keys):
    return {key: value for key, value in values.items() if key not in keys}


TRAINING = {
    "Xray/chestdr/chestdr_questions_train.json": [
        record("Multi-label Classification", "imagesTr/ChestDR_00001.png", FINDINGS, "Pleural Effusion, Pneumonia"),
        record("Multi-label Classification", "imagesTr/ChestDR_00002.png", FINDINGS, "Normal"),
        record("classification", "imagesTr/ChestDR_00001.png", "Is it normal? A: No, B: Yes", "A"),
    ],
    "Xray/periapical/periapical_questions_train.json": [
        record("multi-label classification", "imagesTr/PRML_00001.jpg", TOOTH, PERIAPICAL[-1]),
        record("multi-label classification", "imagesTr/PRML_00002.jpg", TOOTH, f"Dental Caries; {PERIAPICAL[-1]}"),
    ],
    "Xray/dental/dental_questions_train.json": [
        record("Classification", "imagesTr/PXMT_00001.png", LOSS, "B"),
        record("Classification", "imagesTr/PXMT_00001.png", KENNEDY, "D"),
    ],
    "Xray/boneresorption/boneresorption_questions_train.json": [
        record("Regression", "imagesTr/boneresorption_00001.jpg", BONE, "33.3333333333333"),
        record("regression", "imagesTr/boneresorption_00002.jpg", BONE, 22.9),
        record("Regression", "imagesTr/boneresorption_00003.jpg", BONE, "0.0"),
    ],
    "Xray/IU_XRay/IU_XRay_all_train.json": [
        record(
            "report_generation", "imagesTr/IU-XRay_CXR3030_IM-1405-0.png", "Describe the heart.", "Heart is normal."
        ),
        record(
            "Report_Generation", "imagesTr/IU-XRay_CXR3030_IM-1405-0.png", "Describe the lungs.", "Lungs are clear."
        ),
    ],
    "Microscopy/bone_marrow/bone_marrow_questions_train.json": [
        record("classification", "imagesTr/bone_marrow_00001.jpg", MARROW, "K", modality="microscopy"),
    ],
    "Microscopy/neurips22cell/neurips22cell_questions_train.json": [
        record("Counting", "imagesTr/cell_00001.png", CELLS, "13"),
        record("counting", "imagesTr/cell_00002.png", CELLS, 2104),
        without(record("Counting", "imagesTr/cell_00003.png", CELLS, "7"), "TaskType"),
    ],
    "Microscopy/chromosome/chromosome_questions_train.json": [
        record(
            "instance_detection",
            "imagesTr/Chrm_00001.jpg",
            KARYOTYPE,
            {"1": [[10, 20, 40, 60], [100, 20, 130, 60]], "17": [[50, 80, 70, 90]], "X": [[1, 2, 3, 4]]},
        ),
        record("Instance Detection", "imagesTr/Chrm_00002.jpg", KARYOTYPE, json.dumps({"Y": [[5, 6, 7, 8]]})),
    ],
    "Clinical/neojaundice/neojaundice_questions_train.json": {
        "questions": [
            record(
                "Classification",
                [f"imagesTr/NeoJaundice_00672-{view}.jpg" for view in (1, 2, 3)],
                TREATMENT,
                "B",
                modality="Digital Camera",
            )
        ]
    },
    "Mammography/CMMD/CMMD_questions_train.json": [
        record("classification", ["imagesTr/CMMD_D1-0002-1.png", "imagesTr/CMMD_D1-0002-2.png"], "Nature?", "Benign"),
        record("classification", "imagesTr/CMMD_D1-0003-1.png", "Nature?", "Malignant"),
        record("classification", "imagesTr/CMMD_D1-0003-1.png", "What is its nature?", "malignant"),
        record("classification", "imagesTr/CMMD_D1-0003-1.png", "Subtype?", "Luminal b"),
        record("classification", "imagesTr/CMMD_D1-0002-1.png", "Subtype?", "Her2-enriched"),
    ],
    "Ultrasound/BUSI-det/BUSI-det_questions_train.json": [
        record("Detection", "imagesTr/BUSI_00001.png", "Box the lesion.", [[111, 102, 289, 150]]),
        record("detection", "imagesTr/BUSI_00002.png", "Box the lesions.", "[1, 2, 30, 40]; [50, 60, 70, 80]"),
        record("detection", "imagesTr/BUSI_00003.png", "Box the lesion.", "[1, 2, 30, 40]"),
        record("detection", "imagesTr/BUSI_00004.png", "Box the lesion.", []),
    ],
}
PUBLIC = {
    "Xray/chestdr/chestdr_questions_val.json": [
        record("Multi-label Classification", "imagesVal/ChestDR_04222.png", FINDINGS, "Cardiomegaly", "val"),
    ],
    "Mammography/CMMD/CMMD_questions_val.json": [
        record("classification", "imagesVal/CMMD_D1-0900-1.png", "What is its nature?", "Benign", "val"),
    ],
    "Dermatology/bcn20000/bcn20000_questions_val.json": [
        record("Classification", "imagesVal/BCN20000_03396-1.jpg", "What is it? A: Nevus, B: Melanoma", "A", "val"),
    ],
}
HIDDEN = {
    "Ultrasound/iugc/iugc_questions_val": [
        record("Detection", "imagesVal/IUGC_00445-53.png", HEAD, [[100, 37, 307, 90]], "val"),
        record("Classification", "imagesVal/IUGC_00445-53.png", PLANE, "B", "val"),
    ],
    "Xray/dental/dental_questions_val": [
        record("Classification", "imagesVal/PXMT_00326.png", LOSS, "C", "validation"),
    ],
    "Xray/periapical/periapical_questions_val": [
        record("multi-label classification", "imagesVal/PRML_00411.jpg", TOOTH, f"Pulp Diseases; {PERIAPICAL[-1]}"),
    ],
    "Xray/boneresorption/boneresorption_questions_val": [
        record("Regression", "imagesVal/boneresorption_00506.jpg", BONE, "12.5", "val"),
    ],
    "Xray/IU_XRay/IU_XRay_all_val": [
        record("report_generation", "imagesVal/IU-XRay_CXR1_IM-0001-0.png", "Describe it.", "Clear lungs.", "val"),
    ],
    "Microscopy/chromosome/chromosome_questions_val": [
        record("instance_detection", "imagesVal/Chrm_00030.png", KARYOTYPE, {"2": [[5, 6, 50, 60]], "1": []}, "val"),
    ],
    "Microscopy/neurips22cell/neurips22cell_questions_val": [
        record("Counting", "imagesVal/cell_00101.png", CELLS, 41, "val"),
    ],
}
TESTING = {
    "Xray/dental/dental_questions_test.json": [
        record("Classification", "imagesTs/PXMT_00999.png", LOSS, split="test"),
    ],
    "Microscopy/chromosome/chromosome_questions_test.json": [
        without(record("instance_detection", "imagesTs/Chrm_00999.png", KARYOTYPE, split="test"), "Split"),
    ],
}
QUESTIONS = {"training": 28, "validation-public": 3, "validation-hidden": 8, "testing": 2}


def write_flare(root, with_answers=True):
    """Write all four splits below `root` and return it; the hidden one with or without its second files."""
    for split, files in (("training", TRAINING), ("validation-public", PUBLIC), ("testing", TESTING)):
        for name, content in files.items():
            write_questions(root / split / name, content)
    for name, records in HIDDEN.items():
        path = root / "validation-hidden" / f"{name}.json"
        write_questions(path, [values | {"Answer": ""} for values in records])
        if with_answers:
            write_questions(path.with_name(f"{path.stem}_withGT.json"), records)
    return root


def write_questions(path, content, size=SIZE):
    """Write a file of questions and the pictures that it names beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for values in content["questions"] if isinstance(content, dict) else content:
        names = values["ImageName"]
        for name in [names] if isinstance(names, str) else names:
            (path.parent / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", size).save(path.parent / name)
