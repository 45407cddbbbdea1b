"""A study's runs are put together: each patch once for each seed, and only runs that belong together."""

import json

import numpy as np
import pandas as pd
import pytest

from histolab_sft.data.frozen_split import FrozenSplit, write_split
from histolab_sft.data.split_changes import COLUMNS
from histolab_sft.study.answers import collect_answers
from histolab_sft.study.compare import compare_runs, format_rows, write_rows
from histolab_sft.study.plan import StudyError, Training
from histolab_sft.study.report import list_written, report_study
from histolab_sft.study.scores import BY_FOLD, score_answers

CLASSES = ["Normal", "Tumor"]


def write_run(folder, ids, n_rows, skill, seed, name="pcam", recipe=None, groups=6):
    """Write what a scored run leaves: answers about the patches `ids`, right the more often the more skill."""
    generator, truth = np.random.default_rng(seed), np.array(ids) % 2
    tables = []
    for system, own in (("baseline", 0.3), ("finetuned", skill)):
        scores = np.random.default_rng(7 if system == "baseline" else seed).normal(size=(len(ids), 2))
        scores[np.arange(len(ids)), truth] += 3 * own
        columns = {
            "id": [f"{number:04d}" for number in ids],
            "dataset": name,
            "group": [f"g{number % groups}" for number in ids],
            "label": [CLASSES[label] for label in truth],
            "system": system,
            "log_likelihoods": list(scores),
        }
        tables.append(pd.DataFrame(columns))
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    pd.concat(tables, ignore_index=True).to_parquet(folder / "evaluation" / "predictions.parquet")
    entry = {"classes": CLASSES, "split_protocol": "seed", "zero_shot": {"log_prior": {"Normal": 0.0, "Tumor": 0.5}}}
    results = {
        "recipe": {"seed": seed, "output_dir": str(folder), **(recipe or {})},
        "datasets": {name: entry},
        "provenance": {"data_fingerprint": str(ids[0]), "adapter_sha256": str(generator.integers(9))},
    }
    (folder / "evaluation" / "results.json").write_text(json.dumps(results))
    rows = pd.DataFrame({column: ["x"] * n_rows for column in COLUMNS}).assign(dataset=name, split="train")
    write_split(FrozenSplit(rows.assign(pictures=[[]] * n_rows, thumbnails=[[]] * n_rows), "", {}), folder)


def write_study(folder, folds=3, seeds=(42, 43), n=120):
    trainings = []
    for fold in range(1, folds + 1):
        for seed in seeds:
            training = Training(fold, seed, folder / f"fold{fold}_seed{seed}")
            write_run(training.folder, [i for i in range(n) if i % folds == fold - 1], n, 0.6, seed * fold)
            trainings.append(training)
    return trainings


def test_each_patch_is_answered_once_for_each_seed(tmp_path):
    [answers] = collect_answers(write_study(tmp_path)).values()
    assert len(answers.table) == 120 and answers.table["id"].is_unique
    assert set(answers.finetuned) == {42, 43} and answers.finetuned[42].shape == (120, 2)
    assert np.allclose(answers.finetuned[42].sum(axis=1), 1)
    odds = np.log(answers.baseline["raw"] / answers.baseline["corrected"])
    assert np.allclose(odds[:, 1] - odds[:, 0], 0.5)


@pytest.mark.parametrize("change", ["lost", "twice"])
def test_folds_that_are_no_partition_of_the_data_are_refused(tmp_path, change):
    trainings = write_study(tmp_path)
    ids = range(0, 117, 3) if change == "lost" else [*range(0, 117, 3), 1]
    for training in trainings[:2]:
        write_run(training.folder, list(ids), 120, 0.6, training.seed)
    with pytest.raises(StudyError, match="expected each patch in the test of one fold"):
        collect_answers(trainings)


def test_seeds_of_one_fold_with_other_patches_are_refused(tmp_path):
    trainings = write_study(tmp_path)
    write_run(trainings[1].folder, list(range(0, 117, 3)), 120, 0.6, 43)
    with pytest.raises(StudyError, match="fold1_seed42 and .*fold1_seed43 were scored on different patches"):
        collect_answers(trainings)


def test_scores_are_those_of_all_patches_and_of_the_mean_probability(tmp_path):
    [answers] = collect_answers(write_study(tmp_path)).values()
    entry, _ = score_answers(answers)
    gold = np.array([CLASSES.index(label) for label in answers.labels])
    accuracies = [(found.argmax(axis=1) == gold).mean() for found in answers.finetuned.values()]
    ensemble = np.mean(list(answers.finetuned.values()), axis=0)
    assert entry["systems"]["single"]["accuracy"]["value"] == pytest.approx(np.mean(accuracies))
    assert entry["systems"]["ensemble"]["accuracy"]["value"] == pytest.approx((ensemble.argmax(axis=1) == gold).mean())
    gain = entry["differences"]["ensemble - single"]["accuracy"]["value"]
    assert gain == pytest.approx((ensemble.argmax(axis=1) == gold).mean() - np.mean(accuracies))
    assert entry["n_groups"] == 6 and (entry["folds"], entry["seeds"]) == (3, [42, 43])


def test_ranking_scores_are_means_over_folds_so_that_a_folds_own_scale_does_not_count(tmp_path):
    [answers] = collect_answers(write_study(tmp_path)).values()
    before, _ = score_answers(answers)
    # One fold's models are all surer of the second class: their order within the fold stays.
    shifted = answers.table["fold"].to_numpy() == 2
    for found in answers.finetuned.values():
        odds = np.log(found[shifted, 1] / found[shifted, 0]) + 5
        found[shifted, 1] = 1 / (1 + np.exp(-odds))
        found[shifted, 0] = 1 - found[shifted, 1]
    after, _ = score_answers(answers)
    for score in BY_FOLD:
        values = [entry["systems"]["single"][score]["value"] for entry in (before, after)]
        assert values[0] == pytest.approx(values[1])


def test_folds_weigh_in_the_spread_as_they_do_in_the_score(tmp_path):
    trainings = []
    for fold, ids in ((1, range(90)), (2, range(90, 120))):
        for seed in (42, 43):
            trainings.append(Training(fold, seed, tmp_path / f"fold{fold}_seed{seed}"))
            write_run(trainings[-1].folder, list(ids), 120, 0.6, seed * fold)
    [answers] = collect_answers(trainings).values()
    _, spreads = score_answers(answers)
    single = spreads["single"]
    np.testing.assert_allclose(single["auroc"].shares, [0.5, 0.5])
    np.testing.assert_allclose(single["accuracy"].shares, [0.75, 0.25])
    for score in ("auroc", "accuracy"):
        assert single[score].whole.value == pytest.approx(single[score].shares @ single[score].folds.mean(axis=1))


def test_average_precision_is_of_the_class_that_the_recipe_calls_positive(tmp_path):
    found = []
    for positive in ("Tumor", "Normal"):
        recipe = {"datasets": [{"name": "pcam", "positive_class": positive}]}
        runs = compared(tmp_path / positive, recipe=recipe)
        found.append([row["score"]["value"] for row in compare_runs(runs, "average_precision")])
    assert np.abs(np.subtract(*found)).max() > 0.001


def test_one_seed_says_that_another_training_is_not_in_the_intervals(tmp_path):
    [answers] = collect_answers(write_study(tmp_path, seeds=(42,))).values()
    entry, _ = score_answers(answers)
    assert any("one seed" in warning for warning in entry["warnings"])
    assert entry["systems"]["single"]["accuracy"]["training_sd"] is None


@pytest.mark.slow
def test_the_report_of_a_study_has_its_verdict_its_trainings_and_no_path_to_another_file(tmp_path):
    trainings = write_study(tmp_path)
    screen = report_study(trainings, tmp_path)
    page = (tmp_path / "study" / "report.html").read_text()
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    table = pd.read_parquet(tmp_path / "study" / "predictions.parquet")
    assert "single model − base model" in screen and results["verdict"]["pcam"]["text"] in page.replace("&#39;", "'")
    assert "Bengio and Grandvalet" in page and 'src="data:' in page and "http" not in page.split("</head>")[0]
    assert list_written(trainings) == {}
    assert set(table["system"]) == {"single_seed42", "single_seed43", "ensemble", "baseline_raw", "baseline_corrected"}
    assert (table.groupby("system").size() == 120).all()


def compared(folder, **keys):
    """Write three runs on the same 120 patches and return their folders."""
    for number, skill in enumerate((0.3, 0.35, 0.9)):
        write_run(folder / f"run{number}", list(range(120)), 120, skill, number + 1, groups=40, **keys)
    return [str(folder / f"run{number}") for number in range(3)]


def test_runs_are_compared_with_the_first_and_a_true_gain_is_told_from_chance(tmp_path):
    first, second, third = compare_runs(compared(tmp_path))
    assert "difference" not in first and first["n_groups"] == 40
    assert third["p"] < 0.01 < second["p"] and third["difference"]["ci95"][0] > 0
    assert third["difference"]["value"] == pytest.approx(third["score"]["value"] - first["score"]["value"])


def test_more_comparisons_widen_the_intervals_and_one_needs_no_correction(tmp_path):
    folders = compared(tmp_path)
    alone, together = compare_runs([folders[0], folders[2]])[1], compare_runs(folders)[2]
    assert np.ptp(together["difference"]["ci95"]) > np.ptp(alone["difference"]["ci95"])
    assert together["p"] >= alone["p"]


def test_the_table_is_written_as_markdown_and_csv(tmp_path):
    rows = compare_runs(compared(tmp_path), "auroc")
    write_rows(rows, "auroc", str(tmp_path / "table"))
    table = pd.read_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.md").read_text().startswith("| Data set | Run | Patches | AUROC |")
    assert len(table) == 3 and table["score"].tolist() == [row["score"]["value"] for row in rows]
    assert "all hold at once" in format_rows(rows, "auroc")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ids": list(range(3, 123))}, "6 patches are in one test alone"),
        ({"name": "crc"}, "data sets pcam and crc"),
        ({"groups": 39}, "have another patient or slide"),
        ({"ids": list(range(3, 123)), "recipe": {"split_seed": 7}}, "split_seed is None and 7"),
    ],
)
def test_runs_on_other_rows_are_refused_with_what_differs(tmp_path, change, told):
    folders = compared(tmp_path)
    keys = {"ids": list(range(120)), "groups": 40} | change
    write_run(tmp_path / "run1", n_rows=120, skill=0.5, seed=2, **keys)
    with pytest.raises(StudyError, match=told):
        compare_runs(folders)


def test_written_answers_are_left_out_of_a_comparison_with_a_line(tmp_path, caplog):
    folders = compared(tmp_path)
    path = tmp_path / "run1" / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    results["datasets"]["captions"] = {"task": "report"}
    path.write_text(json.dumps(results))
    assert {row["dataset"] for row in compare_runs(folders)} == {"pcam"}
    assert f"{folders[1]}: captions has written answers and is left out; compare the reports" in caplog.text


@pytest.mark.slow
def test_a_study_is_compared_by_its_ensemble(tmp_path):
    report_study(write_study(tmp_path / "study", n=120), tmp_path / "study")
    write_run(tmp_path / "run", list(range(120)), 120, 0.3, 1)
    _, study = compare_runs([str(tmp_path / "run"), str(tmp_path / "study")])
    results = json.loads((tmp_path / "study" / "study" / "results.json").read_text())
    ensemble = results["datasets"]["pcam"]["systems"]["ensemble"]["balanced_accuracy"]["value"]
    assert study["score"]["value"] == pytest.approx(ensemble)


@pytest.mark.parametrize(("folders", "told"), [(["one"], "at least two"), (["none", "other"], "score it")])
def test_runs_that_cannot_be_compared_are_refused(tmp_path, folders, told):
    with pytest.raises(StudyError, match=told):
        compare_runs([str(tmp_path / folder) for folder in folders])
