import json

import numpy as np
import pandas as pd
import pytest
from biomarker_fixture import WORKED_EXAMPLE

from histolab_sft.data.biomarkers import label_rules
from histolab_sft.tasks.biomarkers import format_target, parse

SIGNATURES = {"cd8_signature": 0.411186, "ifng_signature": 0.623919, "til_signature": 0.728988}
EXAMPLE = pd.DataFrame(
    {name: [value] for name, value in SIGNATURES.items()}
    | {"cd274_log2_tpm": [4.123972], "msi_status": ["MSS"], "tme_subtype": ["IE/F"]},
    index=["TCGA-22-5489"],
)


def cohort():
    """Three training patients whose medians are 0 (CD274: 3.154) and whose scores run from -1.9 to a known highest.

    The published score of the example, 0.625678, is (0.588031 + 1.9) / (highest + 1.9).
    """
    highest = (np.mean(list(SIGNATURES.values())) + 1.9) / 0.625678 - 1.9
    rows = {name: [-1.9, 0.0, highest] for name in SIGNATURES} | {"cd274_log2_tpm": [1.0, 3.154, 6.0]}
    return pd.DataFrame(rows, index=["TCGA-05-0001", "TCGA-05-0002", "TCGA-05-0003"])


def expression(patients, seed=3):
    rng = np.random.default_rng(seed)
    genes = sorted({gene for genes in label_rules.GENE_SETS.values() for gene in genes})
    return pd.DataFrame(rng.gamma(2, 2, (len(patients), len(genes))), index=patients, columns=genes)


def test_the_worked_example_comes_out():
    rules = json.loads(json.dumps(label_rules.fit_label_rules(cohort())))
    labels = label_rules.apply_label_rules(rules, EXAMPLE, held_out=["TCGA-22-5489"]).loc["TCGA-22-5489"].to_dict()
    assert parse(format_target(labels)).values == WORKED_EXAMPLE


def test_phenotypes_follow_til_then_cd8():
    table = pd.concat([EXAMPLE] * 4).set_axis(list("abcd"))
    table["til_signature"], table["cd8_signature"] = [0.1, 0.1, -0.1, -0.1], [0.1, -0.1, 0.1, -0.1]
    labels = label_rules.apply_label_rules(label_rules.fit_label_rules(cohort()), table, held_out=[])
    assert labels["immune_phenotype"].tolist() == ["inflamed", "excluded", "desert", "desert"]


def test_densities_are_cut_at_a_half():
    assert [label_rules.bucket_density(z) for z in (-0.51, -0.5, 0.49, 0.5)] == ["low", "moderate", "moderate", "high"]


def test_a_held_out_patient_beyond_the_training_range_stays_within_0_and_1():
    table = pd.concat([EXAMPLE, EXAMPLE]).set_axis(["x", "y"])
    table[list(SIGNATURES)] = [[9.0] * 3, [-9.0] * 3]
    labels = label_rules.apply_label_rules(label_rules.fit_label_rules(cohort()), table, held_out=["x", "y"])
    assert labels["immune_score"].tolist() == [1, 0]


def test_unknown_msi_and_subtype_are_named_so():
    table = EXAMPLE.assign(msi_status=None, tme_subtype=np.nan)
    labels = label_rules.apply_label_rules(label_rules.fit_label_rules(cohort()), table, held_out=[])
    assert labels[["msi_status", "tme_subtype"]].iloc[0].tolist() == ["unknown", "unknown"]


def test_bug_12_statistics_fitted_on_test_patients_are_refused():
    rules = label_rules.fit_label_rules(pd.concat([cohort(), EXAMPLE[label_rules.FITTED_COLUMNS]]))
    with pytest.raises(ValueError, match="fitted on 4 patients, 1 of the 2 held-out ones among them"):
        label_rules.apply_label_rules(rules, EXAMPLE, held_out=["TCGA-22-5489", "TCGA-99-0001"])
    with pytest.raises(ValueError, match="1 of the 1 held-out"):  # another sample of the same patient
        label_rules.apply_label_rules(rules, EXAMPLE, held_out=["TCGA-22-5489-01A-11R"])
    with pytest.raises(ValueError, match="name no patients"):
        label_rules.apply_label_rules(rules | {"patients": []}, EXAMPLE, held_out=[])


def test_bug_12_gene_statistics_fitted_on_test_patients_are_refused():
    table = expression(["a", "b", "c"])
    with pytest.raises(ValueError, match="1 of the 1 held-out"):
        label_rules.compute_signatures(label_rules.fit_signatures(table), table, held_out=["c"])


def test_the_fitted_file_names_no_patient():
    assert "TCGA" not in json.dumps(label_rules.fit_label_rules(cohort()))


def test_signatures_are_mean_z_scores_by_the_training_patients():
    train, test = expression(["a", "b", "c"]), expression(["t"], seed=4)
    fitted = json.loads(json.dumps(label_rules.fit_signatures(train)))
    both = label_rules.compute_signatures(fitted, pd.concat([train, test]), held_out=["t"])
    genes = label_rules.GENE_SETS["cd8_signature"]
    z = (test[genes] - train[genes].mean()) / train[genes].std(ddof=0)
    assert both.loc["t", "cd8_signature"] == pytest.approx(z.loc["t"].mean())
    assert np.allclose(both.loc[["a", "b", "c"]].drop(columns="cd274_log2_tpm").mean(), 0)
    assert both.loc["t", "cd274_log2_tpm"] == test.loc["t", "CD274"]


def test_gene_aliases_are_understood_and_missing_genes_named():
    train = expression(["a", "b", "c"])
    assert label_rules.fit_signatures(train.rename(columns={"CD274": "PD-L1"})) == label_rules.fit_signatures(train)
    with pytest.raises(ValueError, match="\\['TOX'\\] missing"):
        label_rules.fit_signatures(train.drop(columns="TOX"))
    with pytest.raises(ValueError, match="\\['TOX'\\] constant over 3"):
        label_rules.fit_signatures(train.assign(TOX=1.0))


def test_gaps_and_doubled_patients_are_refused():
    with pytest.raises(ValueError, match="\\['til_signature'\\] have gaps"):
        label_rules.fit_label_rules(cohort().assign(til_signature=[0, None, 1]))
    with pytest.raises(ValueError, match="\\['TCGA-05-0001'\\] stand in two rows"):
        label_rules.fit_label_rules(cohort().set_axis(["TCGA-05-0001-01A", "TCGA-05-0001-02B", "b"]))


@pytest.mark.parametrize(
    ("scores", "call"),
    [((3.5, None), "MSI-H"), ((0.1, 0.4), "MSI-H"), ((3.4, 0.39), "MSS"), ((float("nan"), None), None)],
)
def test_msi_is_called_from_either_score(scores, call):
    assert label_rules.call_msi(*scores) == call


@pytest.mark.parametrize(
    ("calls", "status"),
    [
        (["MSI-H", "MSI-H", "MSS"], "MSI-H"),
        (["MSI-L", None, None], "MSS"),
        (["MSI-H", "MSS"], "unknown"),
        ([None, None], "unknown"),
    ],
)
def test_msi_is_what_most_sources_say(calls, status):
    assert label_rules.msi_consensus(calls) == status
