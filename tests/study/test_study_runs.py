"""Studies that run: planned, killed and gone on with, each picture encoded once, nothing fitted on a test fold."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors import safe_open
from steady_runs import ROOT, hash_adapter, start_recipe, write_inputs, write_recipe

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.config.recipe_file import read_recipe
from histolab_sft.data.rows import load_patches
from histolab_sft.provenance import write_json
from histolab_sft.settings import hash_weight_files
from histolab_sft.study import runs
from histolab_sft.study.plan import StudyError, plan_study

PATIENCE = 300
KEYS = {"folds": 2, "seeds": 2}


def plan(folder, **keys):
    args = ["--config", str(write_recipe(folder, folder / "out", **KEYS | keys))]
    histo_args, training_args, _ = parse_recipe(args)
    return plan_study(args, histo_args, training_args.seed, training_args.output_dir)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({}, ["fold1_seed42", "fold1_seed43", "fold2_seed42", "fold2_seed43"]),
        ({"seeds": None}, ["fold1_seed42", "fold2_seed42"]),
        ({"folds": None, "seeds": [7, 9], "seed": 3}, ["seed7", "seed9"]),
        ({"folds": None, "seeds": 3, "seed": 5}, ["seed5", "seed6", "seed7"]),
    ],
)
def test_each_fold_and_seed_is_a_run_with_a_recipe_of_its_own(tmp_path, keys, names):
    trainings = plan(tmp_path, **keys)
    assert [training.name for training in trainings] == names
    for training in trainings:
        histo_args, training_args, _ = parse_recipe(["--config", str(training.recipe)])
        assert (histo_args.fold, training_args.seed) == (training.fold, training.seed)
        assert training_args.output_dir == str(training.folder)
        assert training_args.resume_from_checkpoint == "auto"


@pytest.mark.parametrize("keys", [{"folds": None, "seeds": None}, {"folds": None, "seeds": 1}, {"fold": 1}])
def test_what_is_no_study_is_refused(tmp_path, keys):
    with pytest.raises(StudyError, match="expected a study"):
        plan(tmp_path, **keys)


def test_a_begun_training_keeps_its_recipe_and_a_study_may_grow(tmp_path):
    first = plan(tmp_path)[0]
    write_json(first.folder / "run.json", {})
    assert len(plan(tmp_path, seeds=3)) == 6
    assert len(plan(tmp_path, max_new_tokens=3)) == 4 and read_recipe(str(first.recipe))["max_new_tokens"] == 3
    for key, value in {"learning_rate": 0.5, "folds": 3, "split_seed": 1, "validation_fraction": 0.3}.items():
        with pytest.raises(StudyError, match=f"fold1_seed42 holds a training of another recipe: .*{key} was"):
            plan(tmp_path, **{key: value})


def test_a_training_lacks_what_is_not_whole(tmp_path):
    training = plan(tmp_path)[0]
    assert runs.find_missing(training) == "train"
    (training.folder / "adapter_model.safetensors").write_bytes(b"weights")
    assert runs.find_missing(training) == "train"
    weights = hash_weight_files(training.folder)
    write_json(training.folder / "run.json", {"weights": weights})
    assert runs.find_missing(training) == "evaluate"
    provenance = {"adapter_sha256": weights["adapter_model.safetensors"]}
    (training.folder / "evaluation").mkdir()
    results = {"provenance": provenance, "recipe": read_recipe(str(training.recipe))}
    write_json(training.folder / "evaluation" / "results.json", results)
    assert runs.find_missing(training) == "evaluate"
    for name in ("report.html", "predictions.parquet"):
        (training.folder / "evaluation" / name).touch()
    assert runs.find_missing(training) is None
    write_json(training.folder / "evaluation" / "results.json", results | {"provenance": {"adapter_sha256": "other"}})
    assert runs.find_missing(training) == "evaluate"


def fake_scripts(folder, monkeypatch, body):
    """Let the steps of a study be small scripts; `body` has the recipe's keys in `recipe` and the name of its step."""
    for name in runs.STEPS.values():
        head = f"import sys, os, time, yaml\nstep = {name!r}\nrecipe = yaml.safe_load(open(sys.argv[2]))\n"
        (folder / name).write_text(head + body)
    monkeypatch.setattr(runs, "SCRIPTS", folder)
    # What is missing is told by marks that the scripts leave.
    monkeypatch.setattr(
        runs,
        "find_missing",
        lambda training: next((s for s, f in runs.STEPS.items() if not (training.folder / f).exists()), None),
    )


@pytest.mark.slow
def test_trainings_run_side_by_side_one_a_device_and_what_is_done_is_skipped(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    device = "os.environ['CUDA_VISIBLE_DEVICES']"
    body = f"time.sleep(0.3)\nopen(recipe['output_dir'] + '/' + step, 'w').write({device} + ' ' + str(time.time()))\n"
    fake_scripts(tmp_path / "scripts", monkeypatch, body)
    trainings = plan(tmp_path)
    for name in runs.STEPS.values():
        (trainings[0].folder / name).write_text("before")
    runs.run_trainings(trainings, ["3", "5"])
    assert (trainings[0].folder / "sft.py").read_text() == "before"
    used = {(t.folder / name).read_text().split()[0] for t in trainings[1:] for name in runs.STEPS.values()}
    assert used == {"3", "5"}


def test_a_step_that_fails_is_told_with_the_end_of_its_log_and_no_other_is_begun(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    fake_scripts(tmp_path / "scripts", monkeypatch, "print('error: no such weights')\nsys.exit(2)\n")
    trainings = plan(tmp_path)
    with pytest.raises(StudyError, match="train of fold1_seed42 ended with exit code 2(?s:.*)no such weights"):
        runs.run_trainings(trainings, [None])
    assert not (trainings[1].folder / runs.LOG).exists()


def run_script(script, recipe, folder):
    process = start_recipe(recipe, folder / "log.txt", script=f"recipes/{script}.py")
    process.join(PATIENCE)
    assert process.exitcode == 0, (folder / "log.txt").read_text()[-4000:]


def swap_pictures(folder, splits, split):
    """Give a patch of one class the picture of the other, and the other way round, both of one split."""
    paths = [next(path for path in sorted(splits[split]) if f"/{label}/" in path) for label in ("Normal", "Tumor")]
    first, second = (folder / path for path in paths)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


@pytest.mark.model
@pytest.mark.thorough
def test_a_planted_label_in_the_test_fold_changes_nothing_that_was_fitted(tmp_path):
    found = {}
    write_inputs(tmp_path / "inputs")
    for name, split in (("plain", None), ("test", "test"), ("train", "train")):
        home = tmp_path / name
        shutil.copytree(tmp_path / "inputs", home)
        recipe = write_recipe(home, home / "out", max_steps=6, folds=2, fold=1, max_new_tokens=4)
        patches = load_patches(parse_recipe(["--config", str(recipe)])[0])
        splits = {part: set(rows.with_format(None)["id"]) for part, rows in patches.items()}
        if split:
            swap_pictures(home, splits, split)
        run_script("sft", recipe, home)
        found[name] = {"splits": splits, "adapter": hash_adapter(home / "out")}
        if name == "train":
            continue
        run_script("evaluate", recipe, home)
        entry = json.loads((home / "out" / "evaluation" / "results.json").read_text())["datasets"]["pcam"]
        found[name] |= {
            "temperatures": [entry[system]["temperature"] for system in ("baseline", "finetuned")],
            "prior": entry["zero_shot"]["log_prior"],
            "thresholds": [entry[system]["abstention_validation"] for system in ("baseline", "finetuned")],
            "penalties": {floor: own and own["regularisation_c"] for floor, own in entry["floors"].items()},
        }
        found[name, "scored"] = entry["finetuned"]["nll"]["value"]
    assert found["test"] == found["plain"]
    # The label was seen, where it may be: the score knows it, and one in train changes the adapter.
    assert found["test", "scored"] != found["plain", "scored"]
    assert found["train"]["splits"] == found["plain"]["splits"]
    assert found["train"]["adapter"] != found["plain"]["adapter"]


def start_study(folder, name):
    keys = {"max_steps": 6, "save_steps": 1, "max_new_tokens": 4, "vision_cache": "auto", **KEYS}
    recipe = write_recipe(folder, folder / name, **keys)
    environment = {"XDG_CACHE_HOME": str(folder / f"{name}-cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = (folder / f"{name}.log").open("ab")
    command = [sys.executable, "recipes/study.py", "--config", str(recipe)]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
    )


def read_study(folder, name):
    return json.loads((folder / name / "study" / "results.json").read_text())["datasets"]


@pytest.mark.longest
@pytest.mark.model
@pytest.mark.thorough
def test_a_study_encodes_each_picture_once_and_ends_with_the_same_numbers_after_kills(tmp_path):
    write_inputs(tmp_path)
    begun = time.monotonic()
    whole = start_study(tmp_path, "whole")
    assert whole.wait(3 * PATIENCE) == 0, (tmp_path / "whole.log").read_text()[-4000:]
    duration = time.monotonic() - begun

    features = list((tmp_path / "whole-cache").glob("histolab_sft/vision/*/*.safetensors"))
    names = [name for path in features for name in safe_open(path, "pt").keys()]  # noqa: SIM118
    logs = [path.read_text() for path in (tmp_path / "whole").glob("*/log.txt")]
    encoded = sum(int(n) for log in logs for n in re.findall(r"vision cache: (\d+) of \d+ pictures are encoded", log))
    assert len(names) == len(set(names)) == encoded == 24 and len(logs) == 4

    draw, killed = random.Random(1), 0
    while killed < 4:
        process = start_study(tmp_path, "killed")
        try:
            process.wait(draw.uniform(0.15, 0.5) * duration)
            break
        except subprocess.TimeoutExpired:
            killed += 1
            os.killpg(process.pid, (signal.SIGKILL, signal.SIGTERM)[killed % 2])
            process.wait(PATIENCE)
    process = start_study(tmp_path, "killed")
    assert process.wait(3 * PATIENCE) == 0, (tmp_path / "killed.log").read_text()[-4000:]
    assert killed and read_study(tmp_path, "killed") == read_study(tmp_path, "whole")

    # All is done: the third start trains and scores nothing.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").glob("*/log.txt")}
    assert start_study(tmp_path, "whole").wait(PATIENCE) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").glob("*/log.txt")}
    shutil.rmtree(tmp_path / "whole" / "fold2_seed43" / "evaluation")
    assert start_study(tmp_path, "whole").wait(PATIENCE) == 0
    assert read_study(tmp_path, "killed") == read_study(tmp_path, "whole")
