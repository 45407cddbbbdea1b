import logging

import numpy as np
import pandas as pd
import pytest
from biomarker_fixture import GENES, PATIENTS, SPELT_IE_F, WITHOUT_SUBTYPE, write_tables

from histolab_sft.data.biomarkers.barcodes import name_patient
from histolab_sft.data.biomarkers.clinical_tables import read_clinical, read_expression


def write_expression(path, names, value=2.0, genes=GENES):
    pd.DataFrame(value, index=names, columns=genes).T.to_csv(path, sep="\t")
    return path


def test_expression_is_read_by_patient_without_normal_tissue(tmp_path):
    path, _ = write_tables(tmp_path)
    expression, left_out = read_expression(path)
    assert expression.index.tolist() == sorted(PATIENTS) and expression.columns.tolist() == GENES
    assert left_out == [f"{PATIENTS[0]}-11A-11R"]
    assert expression.loc[PATIENTS[0], "CD274"] != 9


def test_expression_reads_the_same_either_way_round_and_from_tpm(tmp_path):
    path, _ = write_tables(tmp_path)
    expression, _ = read_expression(path)
    turned = pd.read_csv(path, sep="\t", index_col=0).T
    turned.to_csv(tmp_path / "turned.csv")
    pd.testing.assert_frame_equal(read_expression(tmp_path / "turned.csv")[0], expression)
    turned.to_parquet(tmp_path / "turned.parquet")
    pd.testing.assert_frame_equal(read_expression(tmp_path / "turned.parquet")[0], expression, check_names=False)
    (2**turned - 1).to_csv(tmp_path / "tpm.csv")
    pd.testing.assert_frame_equal(read_expression(tmp_path / "tpm.csv", "tpm")[0], expression)


def test_the_first_tumour_sample_of_a_patient_counts(tmp_path):
    path = tmp_path / "e.tsv"
    table = pd.DataFrame(
        {f"TCGA-05-1000-{kind}": np.full(len(GENES), i) for i, kind in enumerate(("02A", "01B", "01A"))}
    )
    table.set_axis(GENES).to_csv(path, sep="\t")
    expression, left_out = read_expression(path)
    assert expression.loc["TCGA-05-1000"].unique().tolist() == [2]
    assert left_out == ["TCGA-05-1000-01B", "TCGA-05-1000-02A"]


def test_two_rows_of_a_patient_that_nothing_ranks_are_refused(tmp_path):
    path = write_expression(tmp_path / "e.tsv", ["P1_a", "P1_b", "P2_a"])
    with pytest.raises(ValueError, match="'P1_a' isn't the only row of its patient"):
        read_expression(path, pattern=r"(P\d)_")


def test_a_gene_that_is_missing_or_doubled_is_named(tmp_path):
    path = write_expression(tmp_path / "e.tsv", PATIENTS, genes=[gene for gene in GENES if gene != "TOX"] + ["PD-L1"])
    with pytest.raises(ValueError, match="genes \\['TOX'\\] missing and \\['CD274'\\] doubled"):
        read_expression(path)


def test_tpm_taken_for_logarithms_are_refused(tmp_path):
    path = write_expression(tmp_path / "e.tsv", PATIENTS, value=120.0)
    with pytest.raises(ValueError, match="values from 120 to 120, expected log2"):
        read_expression(path)
    with pytest.raises(ValueError, match="values from -1 to -1"):
        read_expression(write_expression(tmp_path / "z.tsv", PATIENTS, value=-1.0), "tpm")


def test_columns_that_are_no_samples_are_logged(tmp_path, caplog):
    path, _ = write_tables(tmp_path)
    table = pd.read_csv(path, sep="\t", index_col=0)
    table.insert(0, "Entrez_Gene_Id", 7)
    table.to_csv(tmp_path / "entrez.tsv", sep="\t")
    with caplog.at_level(logging.WARNING):
        expression, _ = read_expression(tmp_path / "entrez.tsv")
    assert "1 columns hold no patient" in caplog.text and len(expression) == len(PATIENTS)
    with pytest.raises(ValueError, match="names a patient, expected to find 'X-"):
        read_expression(path, pattern=r"X-\d")


def test_clinical_tables_are_merged_by_patient(tmp_path):
    _, paths = write_tables(tmp_path)
    clinical = read_clinical(paths)
    assert clinical.index.tolist() == sorted(PATIENTS)
    assert clinical.loc[WITHOUT_SUBTYPE, "tme_subtype"] == "unknown"
    assert clinical.loc[SPELT_IE_F, "tme_subtype"] == "IE/F"
    assert clinical["msi_status"].eq("MSS").all()  # MSI-L too
    assert clinical.loc["TCGA-22-1000", "cancer_type"] == "lung squamous cell carcinoma"


def test_msi_is_what_most_tables_say_and_unknown_for_a_tie(tmp_path):
    (tmp_path / "a.csv").write_text("patient_id,MSI\nTCGA-05-0001,MSI-H\nTCGA-05-0002,MSI-H\nTCGA-05-0003,\n")
    (tmp_path / "b.csv").write_text("patient_id,msisensor,mantis\nTCGA-05-0001,9,\nTCGA-05-0002,0.1,0.1\n")
    (tmp_path / "c.csv").write_text("patient_id,msi_status\nTCGA-05-0001,MSS\n")
    clinical = read_clinical([tmp_path / name for name in ("a.csv", "b.csv", "c.csv")])
    assert clinical["msi_status"].tolist() == ["MSI-H", "unknown", "unknown"]
    assert clinical["cancer_type"].isna().all()


def test_the_project_names_the_cancer_where_tables_word_it_differently(tmp_path):
    (tmp_path / "a.csv").write_text("submitter_id,project_id\nTCGA-05-0001,TCGA-LUAD\n")
    (tmp_path / "b.csv").write_text("PATIENT_ID,CANCER_TYPE\nTCGA-05-0001,Non-Small Cell Lung Cancer\n")
    (tmp_path / "c.csv").write_text("PATIENT_ID,cancer_type\nTCGA-05-0001,lung something\n")
    assert read_clinical([tmp_path / "a.csv", tmp_path / "b.csv"])["cancer_type"].item() == "lung adenocarcinoma"
    with pytest.raises(ValueError, match="cancer_type is lung something and non-small cell lung cancer"):
        read_clinical([tmp_path / "b.csv", tmp_path / "c.csv"])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("patient_id,MFP\nTCGA-05-0001,IEF\n", "subtype 'IEF', expected one of"),
        ("patient_id,MSI\nTCGA-05-0001,high\n", "microsatellite status 'high', expected"),
        ("patient_id,project\nTCGA-05-0001,TCGA-BRCA\n", "projects \\['TCGA-BRCA'\\], expected"),
        ("sample,MFP\nTCGA-05-0001,IE\n", "expected one with the patient's id"),
        ("patient_id,MFP\nnobody,IE\n", "1 of 1 names hold no patient, 'nobody' first"),
        ("patient_id,MFP\nTCGA-05-0001,IE\nTCGA-05-0001,D\n", "tme_subtype is D and IE, expected one"),
    ],
)
def test_what_a_clinical_table_says_wrong_is_named(tmp_path, text, error):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=error):
        read_clinical([tmp_path / "a.csv"])


def test_the_patient_is_the_first_group_of_the_pattern_or_all_of_it():
    assert name_patient("TCGA-22-5489-01Z-00-DX1.6F2A") == "TCGA-22-5489"
    assert name_patient("case_17_slide_2", r"case_(\d+)") == "17"
    assert name_patient("nobody") is None
