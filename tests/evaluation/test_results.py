"""Results say who answered what, how sure the scores are, and what is wrong with the comparison."""

import json

import numpy as np
import pytest
from scored_results import CONFIG, make_table, score

from histolab_sft.evaluation.results import score_dataset, score_overall, write_results
from histolab_sft.evaluation.screen import format_results


def test_an_entry_has_the_layout_of_results_json():
    entry, _ = score()
    assert (entry["n"], entry["group_unit"], entry["n_groups"], entry["split_protocol"]) == (
        80,
        "group",
        40,
        "official",
    )
    for system in ("baseline", "finetuned"):
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "brier"):
            low, high = entry[system][name]["ci95"]
            assert low <= entry[system][name]["value"] <= high
        assert entry[system]["ece"]["ci95"] is None and 0 < entry[system]["calibrated_ece"]["most"] < 1
        for name in ("sensitivity", "specificity", "ppv", "npv"):
            low, high = entry[system][name]["ci95"]
            assert low < entry[system][name]["value"] < high
        recalls = [row["recall"] for row in entry[system]["per_class"].values()]
        assert [entry[system][name]["value"] for name in ("specificity", "sensitivity")] == recalls
        for row in entry[system]["per_class"].values():
            assert row["recall_ci95"][0] < row["recall"] < row["recall_ci95"][1]
        assert entry[system]["unparsed_rate"]["value"] == 1 / 80
        assert entry[system]["agreement"]["value"] == 79 / 80
        assert entry[system]["confusion_matrix"]["labels"] == ["Normal", "Tumor", "unparsed"]
    gain = entry["finetuned"]["balanced_accuracy"]["value"] - entry["baseline"]["balanced_accuracy"]["value"]
    assert entry["difference"]["balanced_accuracy"]["value"] == pytest.approx(gain)
    assert entry["difference"]["ece"]["ci95"] is None
    assert entry["difference"]["balanced_accuracy"]["ci95"][0] > 0 and entry["difference"]["mcnemar_p"] < 0.01


def test_an_unparsed_answer_counts_as_wrong_and_is_not_dropped():
    entry, _ = score()
    rows = entry["finetuned"]["generation"]["confusion_matrix"]["rows"]
    assert sum(map(sum, rows)) == 80 and rows[0][2] == 1


@pytest.mark.slow
def test_the_temperature_comes_from_validation_alone():
    first, _ = score()
    test = {"baseline": make_table(right=0.1), "finetuned": make_table(right=0.2)}
    validation = {system: make_table(right=0.7, seed=2, generated=False) for system in test}
    second, _ = score_dataset(CONFIG, test, validation, floors={}, protocol="official")
    assert first["finetuned"]["temperature"] == second["finetuned"]["temperature"]


@pytest.mark.slow
def test_a_random_split_without_groups_says_that_it_leaks():
    entry, _ = score(protocol="seed", groups=False)
    assert any("leak" in warning for warning in entry["warnings"])
    assert any("too narrow" in warning for warning in entry["warnings"])
    assert not any("leak" in warning for warning in score()[0]["warnings"])


def test_systems_scored_on_different_patches_are_refused():
    test = {"baseline": make_table(80), "finetuned": make_table(79)}
    with pytest.raises(ValueError, match="different patches"):
        score_dataset(CONFIG, test, test, floors={}, protocol="official")


@pytest.mark.slow
def test_overall_is_the_mean_over_data_sets(tmp_path):
    entries, estimates = zip(*[score(0.9), score(0.7)], strict=True)
    results = {"datasets": dict(zip("ab", entries, strict=True))}
    results["overall"] = score_overall(dict(zip("ab", estimates, strict=True)), results["datasets"])
    expected = np.mean([entry["finetuned"]["macro_f1"]["value"] for entry in entries])
    assert results["overall"]["finetuned"]["macro_f1"]["value"] == pytest.approx(expected)
    write_results(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    table = format_results(results)
    assert f"{results['overall']['finetuned']['balanced_accuracy']['value']:.3f}" in table


def test_results_with_a_number_that_is_not_finite_are_not_written(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError):
        write_results({"datasets": {"a": float("nan")}}, tmp_path)
    assert (tmp_path / "results.json").read_text() == "{}"
