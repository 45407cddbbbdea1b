"""MIMIC-CXR-JPG, CheXpert and ChestX-ray14 in their published layouts give the records that a recipe trains on."""

import gzip
import logging
from pathlib import Path

import pandas as pd
import pytest
from chest_fixture import make_config
from labelled_chest_fixture import write_chestxray14, write_chexpert, write_mimic_cxr, write_noise
from PIL import Image

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.data_sets import list_rows
from histolab_sft.data.formats.chest_labels import OBSERVATIONS
from histolab_sft.data.formats.chestxray14 import LABELS
from histolab_sft.data.formats.mimic_cxr import read_sections
from histolab_sft.data.formats.rows import COLUMNS
from histolab_sft.data.rows import list_patches
from histolab_sft.tasks import boxes, multilabel, report

WRITERS = {"mimic_cxr": write_mimic_cxr, "chexpert": write_chexpert, "chestxray14": write_chestxray14}
BOTH = ["findings", "impression"]


def read_questions(source, format, **keys):
    """The rows of a data set, as a recipe brings them."""
    return list_rows((given := parse(source, format, **keys)).datasets[0], given)


def parse(source, format, **keys):
    return HistoArguments(datasets=[{"name": "chest", "source": str(source), "format": format} | keys])


@pytest.fixture
def write(tmp_path):
    """Write a data set once; return a function that reads it with other keys, as a recipe does."""

    def write(format):
        WRITERS[format](tmp_path)

        def read(**keys):
            return read_questions(tmp_path, format, **keys)

        return read

    return write


def answers_of(table, name):
    """What the row whose id ends with `name` is asked and answered."""
    [row] = [row for row in table.itertuples() if row.id.endswith(name)]
    return row.ask["vocabulary"], row.answer


def rewrite(path, line, old, new):
    """Replace `old` by `new` in one line of a text file, compressed or not."""
    packed = path.suffix == ".gz"
    lines = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode().split("\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    text = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(text) if packed else text)


@pytest.mark.parametrize(
    ("format", "keys"),
    [
        ("mimic_cxr", {"sections": BOTH}),
        ("mimic_cxr", {"task": "multilabel", "uncertain": "ones"}),
        ("chexpert", {"uncertain": "zeros"}),
        ("chestxray14", {}),
    ],
)
def test_rows_have_the_columns_pictures_and_patients_of_every_format(write, format, keys):
    read = write(format)
    table = read(**keys)
    assert set(COLUMNS) - {"inverted"} <= set(table.columns)
    assert table["group"].notna().all() and table["group"].nunique() == len(table)
    assert all(Path(image["path"]).is_file() for images in table["images"] for image in images)


# Irvin et al. 2019: U-Ignore masks the label, U-Zeros and U-Ones map it to absent and present.
@pytest.mark.parametrize(
    ("uncertain", "asked", "answer"),
    [
        ("ignore", [name for name in OBSERVATIONS if name not in ("Edema", "Pleural Effusion")], ["Cardiomegaly"]),
        ("zeros", list(OBSERVATIONS), ["Cardiomegaly"]),
        ("ones", list(OBSERVATIONS), ["Cardiomegaly", "Edema", "Pleural Effusion"]),
    ],
)
@pytest.mark.parametrize(
    ("format", "name", "keys"),
    [("chexpert", "patient00002/study1", {}), ("mimic_cxr", "s50414268", {"task": "multilabel"})],
)
def test_an_uncertain_label_follows_the_policy(write, caplog, format, name, keys, uncertain, asked, answer):
    read = write(format)
    with caplog.at_level(logging.INFO):
        table = read(uncertain=uncertain, **keys)
    assert answers_of(table, name) == (asked, answer)
    says = {"ignore": "aren't asked for", "zeros": "count as absent", "ones": "count as present"}[uncertain]
    assert f"labels are uncertain and {says}" in caplog.text
    config = make_config("x", format)
    prompt = multilabel.format_question(table["ask"].iloc[0], config)
    assert prompt.endswith("Options: " + "; ".join(table["ask"].iloc[0]["vocabulary"]))


def test_uncertain_labels_are_counted(write, caplog):
    read = write("chexpert")
    with caplog.at_level(logging.INFO):
        read(uncertain="ones")
    # Four studies of train, two labels each, of eleven studies
    assert f"8 of {11 * 14} labels are uncertain" in caplog.text


@pytest.mark.parametrize(("format", "keys"), [("chexpert", {}), ("mimic_cxr", {"task": "multilabel"})])
def test_there_is_no_default_for_uncertain_labels(write, format, keys):
    read = write(format)
    with pytest.raises(ValueError, match="uncertain is None, expected one of ignore, zeros, ones; add it"):
        read(**keys)
    with pytest.raises(ValueError, match="uncertain is 'U-Ones', expected one of ignore, zeros, ones; correct it"):
        read(uncertain="U-Ones", **keys)


def test_a_study_of_which_every_label_asked_for_is_uncertain_is_left_out(write, caplog):
    read = write("chexpert")
    table = read(uncertain="ignore", class_names={"Edema": "edema", "Pleural Effusion": "effusion"})
    assert len(table) == 11 - 4
    assert "4 with no label that is certain (train/patient00002/study1 first)" in caplog.text


@pytest.mark.parametrize(("format", "keys"), [("chexpert", {"uncertain": "ones"}), ("chestxray14", {})])
def test_class_names_choose_the_labels_and_their_words(write, format, keys):
    read = write(format)
    table = read(class_names={"Edema": "oedema", "Cardiomegaly": "large heart"}, **keys)
    assert all(ask["vocabulary"] == ["oedema", "large heart"] for ask in table["ask"])
    assert {tuple(answer) for answer in table["answer"]} >= {(), ("large heart",)}
    with pytest.raises(ValueError, match=r"class_names has \['Cancer'\], expected some of"):
        read(class_names={"Cancer": "cancer"}, **keys)


@pytest.mark.parametrize(("format", "keys"), [("chexpert", {"uncertain": "ones"}), ("mimic_cxr", {"sections": BOTH})])
def test_views_choose_the_pictures_of_a_study_frontal_ones_first(write, tmp_path, caplog, format, keys):
    read = write(format)
    both, frontal = read(**keys), read(views="frontal", **keys)
    assert [len(paths) for paths in both["images"]] == [2] * len(both)
    assert [paths[0] for paths in both["images"]] == [paths[0] for paths in frontal["images"]]
    assert {len(paths) for paths in frontal["images"]} == {1}
    if format == "chexpert":
        assert all(paths[0]["path"].endswith("view2_frontal.jpg") for paths in both["images"])
        rewrite(tmp_path / "train.csv", 3, "view2_frontal", "view2_lateral")
        (tmp_path / "train/patient00001/study1/view2_frontal.jpg").rename(
            tmp_path / "train/patient00001/study1/view2_lateral.jpg"
        )
    else:
        rewrite(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", 3, ",PA,", ",LL,")
    assert len(read(views="frontal", **keys)) == len(both) - 1
    assert "1 with no frontal picture" in caplog.text
    with pytest.raises(ValueError, match="views is 'lateral', expected one of all, frontal"):
        read(views="lateral", **keys)


def test_mimic_reports_are_asked_for_by_section(write, caplog):
    read = write("mimic_cxr")
    findings, impression, both = read(sections=BOTH[:1]), read(sections=BOTH[1:]), read(sections=BOTH)
    name = "s50414267"
    [text] = [row.answer for row in findings.itertuples() if row.id.endswith(name)]
    assert text == "The lungs are clear of consolidation, effusion 0. No change since."
    assert [row.answer for row in impression.itertuples() if row.id.endswith(name)] == ["No acute process 0."]
    [whole] = [row.answer for row in both.itertuples() if row.id.endswith(name)]
    assert whole == f"FINDINGS:\n{text}\n\nIMPRESSION:\nNo acute process 0."
    assert (len(findings), len(impression), len(both)) == (13, 14, 13)
    assert "1 with no findings in the report (50414274 first)" in caplog.text
    asked = [report.format_prompt(**table["ask"].iloc[0]) for table in (findings, impression, both)]
    assert (
        "FINDINGS section" in asked[0] and "IMPRESSION section" in asked[1] and "findings and impression" in asked[2]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "sections is None, expected a list of findings and impression, or of one of them; add it"),
        ({"sections": "findings"}, "sections is 'findings', expected a list"),
        ({"sections": []}, r"sections is \[\], expected a list"),
        ({"sections": ["findings", "history"]}, "expected a list .* correct it"),
        ({"sections": ["findings", "findings"]}, "expected a list"),
        ({"sections": [["findings"]]}, "expected a list"),
        ({"sections": BOTH, "uncertain": "ones"}, "uncertain with task: report, which has no use for it"),
        ({"task": "multilabel", "sections": BOTH, "uncertain": "ones"}, "sections with task: multilabel"),
        ({"task": "boxes"}, "task is 'boxes', expected one of report, multilabel"),
    ],
)
def test_keys_of_mimic_that_say_nothing_are_refused(write, keys, message):
    with pytest.raises(ValueError, match=message):
        write("mimic_cxr")(**keys)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" FINDINGS:  Clear.\n\n IMPRESSION:  Normal.", {"findings": "Clear.", "impression": "Normal."}),
        (" FINDINGS AND IMPRESSION:  Clear.", {"impression": "Clear."}),
        (" CONCLUSION: \n\n Normal at 3:10 PM.\n", {"impression": "Normal at 3:10 PM."}),
        (" FINDINGS: \n\n FINDINGS:  Clear.", {"findings": "Clear."}),
        (" IMPRESSION:  Old.\n\n IMPRESSION:  New.", {"impression": "New."}),
        (" CHEST, TWO VIEWS:  Clear.\n\n COMPARISON:  ___.", {"findings": "Clear."}),
        (" PA AND LATERAL VIEWS OF THE CHEST:  Clear.", {"findings": "Clear."}),
        (" COMPARISON:  Chest.\n HISTORY:  Cough.\n TECHNIQUE:  Chest, PA.", {}),
        (
            " FINDINGS:  Tube at T4:  4 cm above. Dr. ___ was told.",
            {"findings": "Tube at T4: 4 cm above. Dr. was told."},
        ),
        (" FINDINGS:  ___.\n", {}),
        (" FINDINGS:  ___F, seen at ___PM on the ___.  Post-___ change.", {"findings": "seen at on the. change."}),
        ("no heading at all", {}),
    ],
)
def test_sections_of_a_mimic_report_by_their_headings(text, found):
    assert read_sections(text) == found


@pytest.mark.parametrize(
    ("format", "keys", "counts"),
    [
        ("mimic_cxr", {"sections": BOTH[1:]}, {"train": 8, "validation": 3, "test": 3}),
        ("chexpert", {"uncertain": "ones", "splits": {"train": "train", "test": "valid"}}, {"train": 8, "test": 3}),
        ("chestxray14", {}, {"train": 8, "test": 3}),
    ],
)
def test_the_official_split_is_kept(write, format, keys, counts):
    table = write(format)(**keys)
    assert table["split"].value_counts().to_dict() == counts
    assert set(table["protocol"]) == {"official"}


@pytest.mark.slow
def test_validation_is_dealt_out_of_the_official_train_by_patient(tmp_path):
    write_chestxray14(tmp_path, train=10)
    # A second picture of each patient of train.
    table, listed = tmp_path / "Data_Entry_2017.csv", tmp_path / "train_val_list.txt"
    names = listed.read_text().split("\n")
    for name in names:
        write_noise(tmp_path / "images_012" / "images" / name.replace("_000", "_001"))
    listed.write_text("\n".join([*names, *(name.replace("_000", "_001") for name in names)]))
    lines = table.read_text().split("\n")
    table.write_text("\n".join([*lines[:-1], *(line.replace("_000", "_001") for line in lines[1:11]), ""]))
    rows = list_patches(parse(tmp_path, "chestxray14"))
    assert (rows.groupby("group")["split"].nunique() == 1).all() and len(rows) == 23
    assert set(rows["split"]) == {"train", "validation", "test"}
    assert set(rows.loc[rows["split"] == "test", "group"]) == {f"{i:08d}" for i in (11, 12, 13)}


def test_chestxray14_answers_no_finding_by_none(write):
    table = write("chestxray14")()
    vocabulary, answer = answers_of(table, "00000002_000.png")
    assert len(vocabulary) == len(LABELS) == 14 and answer == ["Cardiomegaly", "Pleural Thickening"]
    assert answers_of(table, "00000001_000.png")[1] == []
    assert multilabel.format_target([]) == "None"


def test_chestxray14_pictures_of_neither_list_are_left_out_and_counted(write, tmp_path, caplog):
    read = write("chestxray14")
    path = tmp_path / "test_list.txt"
    path.write_text(path.read_text().split("\n", 1)[1])
    assert len(read()) == 10
    assert "1 with their picture in neither list (00000009_000.png first)" in caplog.text


# Format, keys, file, line, what stands there and what is put in its place, and the place and words of the error
BROKEN = [
    ("chexpert", {"uncertain": "ones"}, "train.csv", 4, ",1.0,", ",2,", "line 4, column 'Cardiomegaly': '2'"),
    (
        "chexpert",
        {"uncertain": "ones"},
        "train.csv",
        5,
        ",1.0,",
        ",,",
        "line 5, column 'Cardiomegaly': '', expected '1.0'",
    ),
    ("chexpert", {"uncertain": "ones"}, "valid.csv", 2, "view1_lateral", "picture1", "line 2, column 'Path': "),
    ("chexpert", {"uncertain": "ones"}, "valid.csv", 3, "Female,", "", "line 3: .*expected 19"),
    ("chestxray14", {}, "Data_Entry_2017.csv", 3, "|", ",", "line 3, column 'Patient ID'"),
    (
        "chestxray14",
        {},
        "Data_Entry_2017.csv",
        3,
        "Cardiomegaly",
        "Cancer",
        "line 3, column 'Finding Labels': 'Cancer",
    ),
    ("chestxray14", {}, "Data_Entry_2017.csv", 3, "Cardiomegaly", "No Finding", "line 3, column 'Finding Labels'"),
    ("chestxray14", {}, "Data_Entry_2017.csv", 3, ",2,58", ",3,58", "line 3, column 'Patient ID': '3', expected 2"),
    ("chestxray14", {}, "Data_Entry_2017.csv", 3, "00000002_", "x", "line 3, column 'Image Index': "),
    ("chestxray14", {}, "test_list.txt", 1, "00000009", "99999999", "line 1: '99999999_000.png', expected a picture"),
    ("chestxray14", {}, "test_list.txt", 1, "00000009", "00000001", "line 1: .* is in train_val_list.txt too"),
    ("mimic_cxr", {"sections": BOTH}, "split", 2, "10000032", "patient", "line 2, column 'subject_id': 'patient'"),
    (
        "mimic_cxr",
        {"sections": BOTH},
        "split",
        3,
        "train",
        "test",
        "line 3: study 50414267 is of patient 10000032 in test",
    ),
    ("mimic_cxr", {"sections": BOTH}, "metadata", 1, "ViewPosition", "View", r"expected \['ViewPosition'\] too"),
    (
        "mimic_cxr",
        {"task": "multilabel", "uncertain": "ones"},
        "chexpert",
        3,
        "-1.0",
        "maybe",
        "line 3, column 'Edema'",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("format", "keys", "file", "line", "old", "new", "message"), BROKEN)
def test_what_cannot_be_understood_is_named_by_file_line_and_column(
    write, tmp_path, format, keys, file, line, old, new, message
):
    read = write(format)
    path = tmp_path / (f"mimic-cxr-2.0.0-{file}.csv.gz" if format == "mimic_cxr" else file)
    rewrite(path, line, old, new)
    with pytest.raises(ValueError, match=f"(?s){path.name}.*{message}"):
        read(**keys)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "end-of-stream"),
        (lambda data: b"subject_id,study_id", "Not a gzipped file"),
        (lambda data: data[:-8] + b"\0" * 8, "CRC"),
    ],
)
def test_a_damaged_compressed_table_is_named(write, tmp_path, damage, message):
    read = write("mimic_cxr")
    path = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"split.csv.gz: .*{message}.*expected a whole .gz file; download it again"):
        read(sections=BOTH)


def test_a_compressed_table_is_not_unpacked_without_limit(write, tmp_path, monkeypatch):
    read = write("mimic_cxr")
    monkeypatch.setattr("histolab_sft.data.formats.tables.MAX_UNPACKED", 100)
    with pytest.raises(ValueError, match="more than 100 bytes unpacked"):
        read(sections=BOTH)


@pytest.mark.parametrize(
    ("format", "keys", "gone", "message"),
    [
        ("mimic_cxr", {"sections": BOTH}, "files/p10/p10000032/s50414267/*0.jpg", "pictures that aren't there"),
        (
            "mimic_cxr",
            {"sections": BOTH},
            "mimic-cxr-reports/files/p10/p10000032/*.txt",
            "1 of 14 reports aren't there",
        ),
        ("mimic_cxr", {"sections": BOTH}, "*split.csv.gz", r"no mimic-cxr-\*-split"),
        ("chexpert", {"uncertain": "ones"}, "*.csv", "none of train.csv, valid.csv"),
        ("chexpert", {"uncertain": "ones"}, "train/patient00001/study1/view1*", "1 pictures that aren't there"),
        ("chestxray14", {}, "test_list.txt", "no test_list.txt"),
        ("chestxray14", {}, "images_001/images/00000001_000.png", "1 pictures that aren't there"),
    ],
)
def test_a_missing_file_is_named(write, tmp_path, format, keys, gone, message):
    read = write(format)
    files = list(tmp_path.glob(gone))
    assert files
    for path in files:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        read(**keys)


BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def write_boxes(folder, *lines):
    """The published list of boxes, and pictures of its size in place of those that it names."""
    (folder / "BBox_List_2017.csv").write_text("\n".join([BOX_HEADER, *(f"{line},,," for line in lines), ""]))
    for path in folder.rglob("*.png"):
        if any(line.startswith(path.name) for line in lines):
            Image.new("L", (1024, 1024)).save(path)


def test_chestxray14_has_boxes_around_some_findings(write, tmp_path, caplog):
    read = write("chestxray14")
    write_boxes(
        tmp_path,
        "00000002_000.png,Infiltrate,225.5,547,86.25,79",
        "00000002_000.png,Mass,0,0,10,20",
        "00000010_000.png,Nodule,1000,1000,50,50",
    )
    table = read(task="boxes")
    assert table["split"].tolist() == ["train", "test"] and table["group"].tolist() == ["00000002", "00000010"]
    assert table["answer"].tolist() == [
        [[225.5, 547, 311.75, 626, "Infiltration"], [0, 0, 10, 20, "Mass"]],
        [[1000, 1000, 1024, 1024, "Nodule"]],
    ]
    assert table["ask"][0] == {"question": boxes.LOCATE_QUESTION, "size": [1024, 1024], "label_aware": True}
    named = read(task="boxes", class_names={"Mass": "tumour"})
    assert named["answer"].tolist() == [[[0, 0, 10, 20, "tumour"]]]
    assert "1 with boxes around other findings alone (00000010_000.png first)" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("00000002_000.png,Cancer,1,2,3,4", "line 2, column 'Finding Label': 'Cancer'"),
        ("00000002_000.png,Mass,1,2,3,four", r"line 2, column 'Bbox \[x': .*expected x, y, w, h inside"),
        ("00000002_000.png,Mass,1,2,0,4", "expected x, y, w, h inside"),
        ("00000002_000.png,Mass,nan,2,3,4", "expected x, y, w, h inside"),
        ("00000002_000.png,Mass,2000,2,3,4", "expected x, y, w, h inside"),
    ],
)
def test_a_box_that_cannot_be_understood_is_named(write, tmp_path, line, message):
    read = write("chestxray14")
    write_boxes(tmp_path, line)
    with pytest.raises(ValueError, match=f"(?s)BBox_List_2017.csv, .*{message}"):
        read(task="boxes")


def test_boxes_are_not_put_on_pictures_of_another_size(write, tmp_path):
    read = write("chestxray14")
    write_boxes(tmp_path, "00000002_000.png,Mass,0,0,10,20")
    write_noise(tmp_path / "images_002" / "images" / "00000002_000.png")
    with pytest.raises(ValueError, match="00000002_000.png: 40 x 30 pixels, expected 1024 x 1024"):
        read(task="boxes")


@pytest.mark.parametrize(("format", "keys"), [("chexpert", {"uncertain": "ones"}), ("chestxray14", {})])
def test_labelled_pictures_are_not_read_for_other_tasks(write, format, keys):
    with pytest.raises(ValueError, match="task (is )?'report', expected (one of multilabel, boxes|'multilabel')"):
        write(format)(task="report", **keys)


@pytest.mark.parametrize("key", ["uncertain", "sections", "views"])
def test_other_formats_know_none_of_these_keys(write, key):
    with pytest.raises(ValueError, match=f"format: chestxray14 knows no {key}"):
        write("chestxray14")(**{key: ["findings"] if key == "sections" else "ones"})


def test_chexpert_is_found_in_the_folder_above(tmp_path):
    write_chexpert(tmp_path / "CheXpert-v1.0-small")
    assert len(read_questions(tmp_path, "chexpert", uncertain="ones")) == 11


def test_an_unpacked_table_and_reports_beside_the_pictures_are_read_too(write, tmp_path):
    read = write("mimic_cxr")
    before = read(sections=BOTH)
    packed = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    reports = tmp_path / "mimic-cxr-reports" / "files"
    for path in reports.rglob("*.txt"):
        path.rename(tmp_path / "files" / path.relative_to(reports))
    for path in sorted((tmp_path / "mimic-cxr-reports").rglob("*"), reverse=True):
        path.rmdir()
    (tmp_path / "mimic-cxr-reports").rmdir()
    pd.testing.assert_frame_equal(read(sections=BOTH), before)
