import json

import numpy as np
import pandas as pd
import pytest
from biomarker_fixture import GENES, PATIENTS, WORKED_EXAMPLE, write_tables

from histolab_sft.data.biomarkers.clinical_tables import read_clinical, read_expression
from histolab_sft.data.biomarkers.label_rules import GENE_SETS
from histolab_sft.data.biomarkers.patients import assemble_cohort, label_patients, split_patients
from histolab_sft.data.biomarkers.preparation import describe_labels, find_rare_values
from histolab_sft.tasks.biomarkers import FIELDS, format_target, parse

EXAMPLE = "TCGA-22-5489"
PUBLISHED = {"cd8_signature": 0.411186, "ifng_signature": 0.623919, "til_signature": 0.728988}


@pytest.fixture
def cohort(tmp_path):
    path, clinical = write_tables(tmp_path)
    expression, clinical = read_expression(path)[0], read_clinical(clinical)
    return expression, clinical


def usable(patients):
    return pd.DataFrame({"patient": patients, "reason": ""})


def published_cohort():
    """Expression with the published signatures of the example, and medians and range as published, at gene level.

    In each of nine training patients all genes have one z-score; together they have mean 0, variance 1, median 0, and
    a range in which the example's score is the published one.
    """
    mean = np.mean(list(PUBLISHED.values()))
    low = -1.9
    high = (mean - low) / 0.625678 + low
    rest, squares = -(low + high) / 3, (9 - low**2 - high**2) / 3
    middle = np.roots([2, -2 * rest, rest**2 - squares]).real
    z = np.array([low, *[middle.min()] * 3, 0, *[middle.max()] * 3, high])
    assert np.isclose(z.mean(), 0) and np.isclose(z.var(), 1) and np.median(z) == 0
    expression = pd.DataFrame(dict.fromkeys(GENES, 5 + z), index=[f"TCGA-05-000{i}" for i in range(9)])
    expression["CD274"] = 3.154 + z
    # The smallest z-scores of single genes whose means are the published signatures.
    sets = np.array([[(gene in GENE_SETS[name]) / len(GENE_SETS[name]) for gene in GENES] for name in PUBLISHED])
    expression.loc[EXAMPLE] = 5 + np.linalg.lstsq(sets, np.array([*PUBLISHED.values()]))[0]
    expression.loc[EXAMPLE, "CD274"] = 4.123972
    return expression


def test_the_worked_example_comes_out_of_gene_expression():
    expression = published_cohort()
    facts = pd.DataFrame({"msi_status": "MSS", "tme_subtype": "IE/F"}, index=expression.index)
    split = pd.Series("train", index=expression.index)
    split[EXAMPLE] = "test"
    labels, fitted = label_patients(expression, facts, split)
    assert fitted["label_rules"]["cd274_median"] == pytest.approx(3.154)
    assert parse(format_target(labels.loc[EXAMPLE].to_dict())).values == WORKED_EXAMPLE


def test_labels_of_the_others_do_not_change_what_training_patients_get(cohort):
    expression, clinical = cohort
    split = split_patients(clinical, expression["CD274"])
    labels, fitted = label_patients(expression, clinical, split)
    other = expression.copy()
    other[split != "train"] *= 3
    other_labels, other_fitted = label_patients(other, clinical, split)
    assert other_fitted == fitted
    train = split == "train"
    pd.testing.assert_frame_equal(other_labels[train], labels[train])
    assert not other_labels[~train].equals(labels[~train])


def test_statistics_fitted_with_the_test_patients_included_are_refused(cohort):
    expression, clinical = cohort
    everyone = pd.Series("train", index=expression.index)
    _, leaky = label_patients(expression, clinical, everyone)
    split = split_patients(clinical, expression["CD274"])
    n_held_out = int((split != "train").sum())
    with pytest.raises(ValueError, match=f"fitted on 24 patients, {n_held_out} of the {n_held_out} held-out ones"):
        label_patients(expression, clinical, split, json.loads(json.dumps(leaky)))
    _, clean = label_patients(expression, clinical, split)
    for part in ("signatures", "label_rules"):
        with pytest.raises(ValueError, match="held-out ones among them"):
            label_patients(expression, clinical, split, clean | {part: leaky[part]})


def test_fitted_statistics_applied_again_give_the_same_labels(cohort):
    expression, clinical = cohort
    split = split_patients(clinical, expression["CD274"])
    labels, fitted = label_patients(expression, clinical, split)
    again, _ = label_patients(expression, clinical, split, json.loads(json.dumps(fitted)))
    pd.testing.assert_frame_equal(again, labels)


def test_splits_are_balanced_by_cancer_type_and_cd274():
    patients = [f"TCGA-05-{number:04d}" for number in range(400)]
    rng = np.random.default_rng(0)
    types = np.where(rng.random(400) < 0.3, "lung adenocarcinoma", "lung squamous cell carcinoma")
    clinical, cd274 = pd.DataFrame({"cancer_type": types}, index=patients), pd.Series(rng.normal(size=400), patients)
    split = split_patients(clinical, cd274)
    assert split.value_counts().to_dict() == {"train": 320, "validation": 40, "test": 40}
    shares = pd.crosstab(split, [types, cd274 >= cd274.median()], normalize="index")
    assert (shares.max() - shares.min()).max() < 0.03
    pd.testing.assert_series_equal(split_patients(clinical, cd274), split)
    assert not split_patients(clinical, cd274, seed=1).equals(split)


def test_a_stratum_too_small_for_three_splits_is_named(cohort):
    expression, clinical = cohort
    clinical.loc[PATIENTS[0], "cancer_type"] = "lung carcinoid"
    with pytest.raises(ValueError, match="1 patients with lung carcinoid, CD274 .*expected at least 3"):
        split_patients(clinical, expression["CD274"])


def test_every_patient_left_out_has_a_reason(cohort):
    expression, clinical = cohort
    first, second, third, fourth, fifth = PATIENTS[:5]
    expression = expression.drop(index=first)
    expression.loc[second, "TOX"] = np.nan
    clinical.loc[third, "cancer_type"] = None
    patches = usable([patient for patient in PATIENTS if patient != fourth])
    patches.loc[patches["patient"] == fifth, "reason"] = "pen mark"
    members, left_out = assemble_cohort(expression, clinical, patches)
    assert left_out == {
        "no gene expression": [first],
        "gaps in the gene expression": [second],
        "no cancer type in the clinical tables": [third],
        "no patches": [fourth],
        "no usable patch": [fifth],
    }
    assert members.index.tolist() == sorted(PATIENTS[5:])
    with pytest.raises(ValueError, match="no patient has all of expression, cancer type and patches"):
        assemble_cohort(expression, clinical, usable(["TCGA-99-0001"]))


def test_values_that_no_or_few_patients_of_a_split_have_are_named(cohort):
    expression, clinical = cohort
    split = split_patients(clinical, expression["CD274"], test_fraction=0.25)
    labels, _ = label_patients(expression, clinical, split)
    labels["msi_status"] = "MSS"
    labels.loc[split.index[split == "train"][:2], "msi_status"] = "MSI-H"
    warnings = find_rare_values(labels, split)
    n_train, n_test = (int((split == name).sum()) for name in ("train", "test"))
    assert f"train: 2 of {n_train} patients have msi_status MSI-H; it can't be learnt" in warnings
    assert f"test: 0 of {n_test} patients have msi_status MSI-H; no score can speak of it" in warnings
    assert not [warning for warning in warnings if "msi_status MSS" in warning]


def test_the_description_counts_every_patient_in_every_field(cohort):
    expression, clinical = cohort
    labels, _ = label_patients(expression, clinical, split_patients(clinical, expression["CD274"]))
    described = describe_labels(labels)
    for field in FIELDS:
        entry = described[field["name"]]
        assert sum(entry.values()) == 24 if "values" in field else 0 <= entry["lowest"] <= entry["highest"] <= 1
    assert described["tme_subtype"]["unknown"] == 1
