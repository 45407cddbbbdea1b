"""PadChest, PadChest-GR and Indiana in their real formats give the records that a recipe trains and scores on."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from chest_fixture import (
    PADCHEST_COLUMNS,
    SIZE,
    grounded_studies,
    make_config,
    write_kaggle_indiana,
    write_open_i,
    write_padchest,
    write_padchest_gr,
)

from histolab_sft.data.formats.indiana import drop_masks, read_indiana
from histolab_sft.data.formats.padchest import locate_findings, read_list, read_padchest, read_sentences
from histolab_sft.data.formats.padchest_gr import read_padchest_gr
from histolab_sft.data.formats.rows import COLUMNS
from histolab_sft.data.pictures.containers import ImageRefused
from histolab_sft.data.pictures.decoding import open_patch
from histolab_sft.metrics.boxes import Box
from histolab_sft.tasks import boxes, report


@pytest.fixture
def padchest(tmp_path):
    return write_padchest(tmp_path)


@pytest.fixture
def grounded(tmp_path):
    return write_padchest_gr(tmp_path).parent


def rewrite(path, **cells):
    """Put `cells` into the first row of a table."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column, value in cells.items():
        table.loc[0, column] = value
    table.to_csv(path, index=False)


def read_gr(folder, task="boxes"):
    return read_padchest_gr(folder, make_config(folder, "padchest_gr", task=task))


def test_padchest_has_36_columns_and_gives_records_of_what_is_known(padchest):
    assert len(PADCHEST_COLUMNS) == pd.read_csv(padchest).shape[1] == 36
    records = read_padchest(padchest.parent, make_config(padchest, "padchest"))
    assert list(records.columns) == COLUMNS
    assert records["id"].tolist() == [
        f"chest/{name}"
        for name in ("0/205366_k6ga29.png", "0/215379_a1.png", "12/297_b1.png", "54/300_c1.png", "54/300_c2.png")
    ]
    assert set(records["task"]) == {"report"} and set(records["split"]) == {""}
    assert [open_patch(paths[0]).size for paths in records["images"]] == [SIZE] * 5


def test_padchest_pictures_of_one_patient_are_one_group(padchest):
    records = read_padchest(padchest, make_config(padchest, "padchest"))
    assert records["group"].tolist() == ["839860", "313572", "99", "102", "839860"]


def test_padchest_questions_name_the_projection(padchest):
    asks = read_padchest(padchest, make_config(padchest, "padchest"))["ask"].tolist()
    assert [ask["projection"] for ask in asks] == ["PA", "AP_horizontal", "PA", "unknown", "L"]
    assert "(projection: AP_horizontal)" in report.format_prompt(**asks[1])


def test_padchest_answers_are_the_published_template(padchest):
    answers = read_padchest(padchest, make_config(padchest, "padchest"))["answer"].tolist()
    assert answers[1] == (
        "FINDINGS:\n- Cardiomegaly (cardiac)\n- Pleural effusion (left, costophrenic angle, basal)\n\n"
        "LOCATIONS:\ncardiac, left, costophrenic angle, basal\n\n"
        "IMPRESSION:\nMultiple findings: Cardiomegaly, Pleural effusion. Clinical correlation and follow-up "
        "recommended."
    )
    assert report.parse_sections(answers[2]).findings == [
        *("metal", "abnormal foreign body", "superior mediastinal enlargement", "supra aortic elongation"),
        "hypoexpansion basal both sides",
    ]
    assert report.parse_sections(answers[3])[:2] == (["nodule"], ["tracheal", "left"])
    assert answers[0] == answers[4] and report.parse_sections(answers[0])[:2] == (["normal"], [])


def test_padchest_rows_of_which_nothing_is_known_are_counted_by_reason(padchest, caplog):
    rewrite(padchest, Labels="['normal")
    with caplog.at_level(logging.INFO):
        records = read_padchest(padchest, make_config(padchest, "padchest"))
    assert len(records) == 4
    assert "rows left out of 8" in caplog.text
    for reason in ("labels that can't be read (0/205366_k6ga29.png first)", "no finding beside `unchanged` (0/215379"):
        assert f"1 with {reason}" in caplog.text
    for reason in ("no label (12/297_b2.png first)", "the label `exclude` (12/297_b3.png first)"):
        assert f"1 with {reason}" in caplog.text
    assert "physicians labelled 4 of 8 rows" in caplog.text and "1 pictures were MONOCHROME1" in caplog.text


def test_bug_8_a_sentence_neither_adds_findings_to_the_labels_nor_makes_a_picture_normal():
    assert locate_findings("['nodule', 'nodule']", "[['normal'], ['mass', 'loc left']]") == [("nodule", [])]
    assert locate_findings("['normal']", "[['normal', 'loc cardiac'], ['unchanged']]") == [("normal", [])]
    joined = "[['effusion', 'loc left'], ['effusion', 'loc right', 'loc left']]"
    assert locate_findings("['effusion']", joined) == [("effusion", ["left", "right"])]


@pytest.mark.parametrize(
    ("cell", "sentences"),
    [
        ("[['normal'], ['normal']]", [["normal"], ["normal"]]),
        ("['nodule', 'loc left']", [["nodule", "loc left"]]),
        ("['nodule', ['normal']]", [["nodule"], ["normal"]]),
        ("[[nan], [nan, ' normal']]", [["nan"], ["nan", " normal"]]),
        ("[['a', 'loc  x, loc  y'], []]", [["a", "loc  x", "loc  y"], []]),
        ("nan", []),
        (" ", []),
    ],
)
def test_padchest_sentences_are_read_as_they_are_written(cell, sentences):
    assert read_sentences(cell) == sentences


@pytest.mark.parametrize(
    "cell", ["['C0032227' 'C001'", "[['a'", "{'a': 1}", "nodule", "[f()]", "__import__('os')", "(" * 3000, "'a'"]
)
def test_padchest_cells_that_hold_no_list_are_refused(cell):
    with pytest.raises(ValueError):
        read_list(cell)


def test_a_padchest_picture_listed_twice_is_taken_once(padchest, caplog):
    table = pd.read_csv(padchest, dtype=str, keep_default_na=False)
    pd.concat([table, table.iloc[:1]]).to_csv(padchest, index=False)
    records = read_padchest(padchest, make_config(padchest, "padchest"))
    assert records["id"].is_unique and len(records) == 5
    assert "1 with their picture listed before (0/205366_k6ga29.png first)" in caplog.text


def test_a_padchest_row_without_a_patient_is_left_out(padchest, caplog):
    rewrite(padchest, PatientID="")
    assert len(read_padchest(padchest, make_config(padchest, "padchest"))) == 4
    assert "1 with no PatientID" in caplog.text


def test_a_split_column_of_ones_own_is_kept(padchest):
    table = pd.read_csv(padchest, dtype=str, keep_default_na=False)
    table.assign(fold="test").to_csv(padchest, index=False)
    records = read_padchest(padchest, make_config(padchest, "padchest", split_column="fold"))
    assert set(records["split"]) == {"test"}


def test_missing_padchest_pictures_are_counted_and_one_is_named(padchest):
    for name in ("205366_k6ga29.png", "215379_a1.png", "215379_a2.png"):
        (padchest.parent / "0" / name).unlink()
    with pytest.raises(FileNotFoundError, match="2 pictures that aren't there, such as .*205366_k6ga29.png"):
        read_padchest(padchest, make_config(padchest, "padchest"))


def test_a_padchest_table_with_other_columns_or_without_a_usable_row_is_refused(padchest):
    table = pd.read_csv(padchest, dtype=str, keep_default_na=False)
    table.iloc[[4, 5]].to_csv(padchest, index=False)
    with pytest.raises(ValueError, match="no row to learn from.*1 with no label"):
        read_padchest(padchest, make_config(padchest, "padchest"))
    table.drop(columns="Labels").to_csv(padchest, index=False)
    with pytest.raises(ValueError, match=r"expected \['Labels'\] too"):
        read_padchest(padchest, make_config(padchest, "padchest"))
    padchest.unlink()
    with pytest.raises(FileNotFoundError, match=r"no PADCHEST\*.csv\*"):
        read_padchest(padchest.parent, make_config(padchest, "padchest"))


def test_grounded_boxes_are_pixels_of_the_original_picture(grounded, caplog):
    records = read_gr(grounded)
    assert list(records.columns) == COLUMNS
    assert records["id"].tolist() == ["chest/a.png", "chest/b.png"]
    assert records["split"].tolist() == ["train", "validation"] and records["group"].tolist() == ["p1", "p2"]
    assert records["ask"][0] == {"question": boxes.LOCATE_QUESTION, "size": [300, 200], "label_aware": True}
    label = "nodule, granuloma"
    assert np.allclose([box[:4] for box in records["answer"][0]], [[30, 50, 150, 150], [180, 100, 300, 180]])
    assert [box[4] for box in records["answer"][0]] == [label, label]
    assert open_patch(records["images"][0][0]).size == SIZE
    assert "1 with abnormal findings of which none has a box (c.png first)" in caplog.text


def test_a_grounded_study_without_a_positive_finding_has_an_empty_list(grounded):
    assert read_gr(grounded)["answer"][1] == []


def test_grounded_answers_survive_the_text(grounded):
    record = read_gr(grounded).iloc[0]
    size, answer = tuple(record["ask"]["size"]), [Box(*box) for box in record["answer"]]
    read = boxes.parse(boxes.format_target(answer, size), size).boxes
    assert np.allclose([box[:4] for box in read], [box[:4] for box in answer], atol=0.5)
    assert [box.label for box in read] == [box.label for box in answer]


def test_grounded_studies_also_give_reports(grounded):
    records = read_gr(grounded, "report")
    assert len(records) == 3 and set(records["task"]) == {"report"}
    assert records["ask"][0] == {"style": "sectioned", "projection": "unknown"}
    read = [report.parse_sections(answer) for answer in records["answer"]]
    assert read[0][:2] == (["nodule", "granuloma", "cardiomegaly"], ["right upper lobe"])
    assert [list(part.findings) for part in read[1:]] == [["normal"], ["chronic changes"]]


def test_grounded_reports_take_the_projection_from_padchests_table(grounded):
    path = write_padchest(grounded)
    rewrite(path, ImageID="a.png", Projection="AP")
    assert [ask["projection"] for ask in read_gr(grounded, "report")["ask"]] == ["AP", "unknown", "unknown"]


def test_boxes_without_area_are_dropped_and_counted(grounded, caplog):
    studies = grounded_studies()
    studies[1]["findings"][0]["boxes"] = [[0.5, 0.1, 0.2, 0.3], [0.5, 0.5, 0.5, 0.9], [1.1, 0, 1.3, 1]]
    write_padchest_gr(grounded, studies)
    with caplog.at_level(logging.INFO):
        records = read_gr(grounded)
    assert np.allclose(records["answer"][0][0][:4], [60, 20, 150, 60]) and len(records["answer"][0]) == 1
    assert "2 of 3 boxes dropped" in caplog.text


@pytest.mark.parametrize(
    "box", [[30, 50, 150, 150], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3, float("nan")], ["0", 0, 1, 1], 3]
)
def test_boxes_that_are_no_four_fractions_are_refused(grounded, box):
    studies = grounded_studies()
    studies[1]["findings"][0]["boxes"] = [box]
    write_padchest_gr(grounded, studies)
    with pytest.raises(ValueError, match="a.png: box .*expected \\[x1, y1, x2, y2\\] in fractions"):
        read_gr(grounded)


@pytest.mark.parametrize("text", ["[{", '[{"ImageID": "a.png"}]', "[3]", '[{"ImageID": "a.png", "findings": [{}]}]'])
def test_a_broken_json_file_is_named(grounded, text):
    (grounded / "grounded_reports_20240819.json").write_text(text)
    with pytest.raises(ValueError, match="grounded_reports_20240819.json gives .*download it again"):
        read_gr(grounded)


def test_grounded_studies_that_no_table_knows_are_left_out(grounded, caplog):
    studies = grounded_studies()
    (grounded / "grounded_reports_20240819.json").write_text(json.dumps([*studies, studies[0] | {"ImageID": "z.png"}]))
    assert len(read_gr(grounded)) == 2
    assert "1 with no row in master_table.csv (z.png first)" in caplog.text


def test_grounded_pictures_must_be_there_and_be_pictures(grounded):
    picture = grounded / "Padchest_GR_files" / "PadChest_GR" / "a.png"
    picture.write_bytes(picture.read_bytes()[:20])
    with pytest.raises(ImageRefused, match="a.png"):
        read_gr(grounded)
    picture.unlink()
    with pytest.raises(FileNotFoundError, match="1 pictures that aren't there, such as .*a.png"):
        read_gr(grounded)


def test_grounded_reports_are_not_read_for_other_tasks_or_without_the_patients(grounded):
    with pytest.raises(ValueError, match="expected 'boxes' or 'report'"):
        read_gr(grounded, "classification")
    (grounded / "master_table.csv").unlink()
    with pytest.raises(FileNotFoundError, match="master_table"):
        read_gr(grounded)


def test_open_i_reports_give_one_record_a_study_with_all_its_pictures(tmp_path, caplog):
    write_open_i(tmp_path)
    records = read_indiana(tmp_path, make_config(tmp_path, "indiana"))
    assert records["id"].tolist() == ["chest/CXR12", "chest/CXR7"] and records["group"].tolist() == ["CXR12", "CXR7"]
    assert [[path.rsplit("/")[-1] for path in paths] for paths in records["images"]] == [
        ["CXR12_IM-2400-1001.png"],
        ["CXR7_IM-2263-1001.png", "CXR7_IM-2263-2001.png"],
    ]
    assert records["answer"].tolist() == [
        "IMPRESSION:\nNormal chest.",
        "FINDINGS:\nThe heart is enlarged. Lungs < 1 cm.\n\nIMPRESSION:\nMild edema.",
    ]
    assert records["ask"][0] == {"style": "report"} and report.format_prompt(**records["ask"][0])
    assert "1 with no text (CXR20 first)" in caplog.text and "1 with no picture (CXR21 first)" in caplog.text


def test_kaggles_tables_give_the_frontal_picture_first(tmp_path, caplog):
    write_kaggle_indiana(tmp_path)
    records = read_indiana(tmp_path, make_config(tmp_path, "indiana", task="report"))
    assert records["id"].tolist() == ["chest/1", "chest/2"]
    assert [path.rsplit("/")[-1] for path in records["images"][0]] == [
        "1_IM-0001-4001.dcm.png",
        "1_IM-0001-3001.dcm.png",
    ]
    assert records["answer"].tolist() == [
        "FINDINGS:\nClear, no.\n\nIMPRESSION:\nNormal chest.",
        "IMPRESSION:\nCardiomegaly; no edema.",
    ]
    assert open_patch(records["images"][0][0]).size == (30, 20)
    assert "1 with no text (3 first)" in caplog.text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Extra examination  of axillary XXXX.", "Extra examination of axillary."),
        ("XXXX. No XXXX, XXXX, or effusion.", "No, or effusion."),
        ("Compared to XXXX/XXXX (XXXX), stable.", "Compared to, stable."),
        ("Chest x-XXXX: clear. Exam of the thorax.", "Chest: clear. Exam of the thorax."),
        ("1.5 cm nodule at XXXX", "1.5 cm nodule at"),
        ("Two  blanks... stay.\nSo does a line. ", "Two  blanks... stay.\nSo does a line."),
        ("XXXX XXXX", ""),
    ],
)
def test_only_the_marks_of_deidentification_are_taken_out(text, kept):
    assert drop_masks(text) == kept


def test_indiana_has_no_boxes(tmp_path):
    with pytest.raises(ValueError, match="task 'boxes', expected 'report'"):
        read_indiana(tmp_path, make_config(tmp_path, "indiana", task="boxes"))


def test_a_missing_indiana_picture_is_named(tmp_path):
    write_open_i(tmp_path)
    (tmp_path / "NLMCXR_png" / "CXR7_IM-2263-2001.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 pictures that aren't there, such as .*CXR7_IM-2263-2001.png"):
        read_indiana(tmp_path, make_config(tmp_path, "indiana"))


BOMB = (
    "<!DOCTYPE x ["
    + '<!ENTITY a0 "aaaaaaaaaa">'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 9))
)


@pytest.mark.parametrize("text", ["<eCitation><uId", "", "<eCitation/>", BOMB + "]><eCitation>&a8;</eCitation>"])
def test_a_broken_xml_report_is_named(tmp_path, text):
    write_open_i(tmp_path)
    (tmp_path / "ecgen-radiology" / "8.xml").write_text(text)
    with pytest.raises(ValueError, match=r"8\.xml: .*expected .*report of Open-i"):
        read_indiana(tmp_path, make_config(tmp_path, "indiana"))


def test_an_xml_report_reads_no_other_file(tmp_path):
    write_open_i(tmp_path)
    (tmp_path / "secret.txt").write_text("canary")
    text = f'<!DOCTYPE x [<!ENTITY f SYSTEM "file://{tmp_path}/secret.txt">]>' + OPEN_I_WITH_ENTITY
    (tmp_path / "ecgen-radiology" / "7.xml").write_text(text)
    with pytest.raises(ValueError, match="7.xml"):
        read_indiana(tmp_path, make_config(tmp_path, "indiana"))


OPEN_I_WITH_ENTITY = '<eCitation><uId id="CXR7"/><AbstractText Label="FINDINGS">&f;</AbstractText></eCitation>'


def test_a_folder_without_indiana_or_a_table_without_its_columns_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither indiana_reports.csv nor"):
        read_indiana(tmp_path, make_config(tmp_path, "indiana"))
    write_kaggle_indiana(tmp_path)
    pd.read_csv(tmp_path / "indiana_reports.csv").drop(columns="findings").to_csv(tmp_path / "indiana_reports.csv")
    with pytest.raises(ValueError, match=r"expected \['findings'\] too"):
        read_indiana(tmp_path, make_config(tmp_path, "indiana"))
