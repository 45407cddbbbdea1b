"""The guide for newcomers, done word for word: its entry, its manifest and its task, from the look ahead to scores."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from chest_fixture import write_16_bit
from conftest import PCAM_CLASSES, write_class_folders
from open_fixture import write_captions
from recipe_commands import CPU, SMALL, run

from histolab_sft import tasks
from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import CLASS_FOLDERS, DatasetConfig
from histolab_sft.data.formats import FORMATS, Format
from histolab_sft.data.formats.rows import build_table
from histolab_sft.data.rows import load_audited_patches

GUIDE = Path("docs/new_data_set.md").read_text(encoding="utf-8")


def read_fence(language):
    """The only block of the guide in a language."""
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return block


@pytest.fixture
def grading(tmp_path, monkeypatch):
    """The guide's task, in the place that it names and in the mapping that it names."""
    path = tmp_path / "grading.py"
    path.write_text(read_fence("python"))
    spec = importlib.util.spec_from_file_location("histolab_sft.tasks.grading", path)
    task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(task)
    [line] = re.findall(r'^    "(\w+)": (\w+),$', GUIDE, re.MULTILINE)
    assert line == ("grading", "grading") and line[0] not in tasks.TASKS
    monkeypatch.setitem(tasks.TASKS, line[0], task)
    monkeypatch.setitem(sys.modules, spec.name, task)
    return task


@pytest.fixture
def config(grading):
    return DatasetConfig(**yaml.safe_load(read_fence("yaml")))


def write_biopsies(folder, counts):
    """Manifests as the guide has them, of 12-bit pictures."""
    example = json.loads(read_fence("json"))
    for split, count in counts.items():
        rows = []
        for i in range(count):
            name = f"pictures/{split}{i}.png"
            write_16_bit(folder / name, seed=len(split) * 100 + i, size=(40, 30), top=4095)
            rows.append(example | {"image": name, "answer": str(i % 6), "patient_id": f"{split}{i}"})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def test_a_task_is_one_file_of_under_150_lines_and_a_data_set_a_block_of_ten():
    assert len(read_fence("python").splitlines()) < 150
    assert len(read_fence("yaml").splitlines()) <= 10


def test_every_format_that_the_guide_names_exists():
    named = {name for cell in re.findall(r"`format: (.*?) \|", GUIDE) for name in re.findall(r"\w+", cell)}
    assert set(FORMATS) - {"biomarkers", CLASS_FOLDERS} <= named


def test_the_task_of_the_guide_scores_as_it_says(grading, config):
    names = config.class_names
    assert grading.format_question({}, config).count("ISUP") == 5
    for grade in names:
        assert grading.read_answer(grading.format_answer({}, grade, config), {}, config) == (grade, False)
    assert grading.read_answer("The answer is: ISUP 4.", {}, config) == ("4", False)
    assert grading.read_answer("ISUP 1 or ISUP 2", {}, config) == (None, False)
    with pytest.raises(ValueError, match="grade '6', expected one of 0, 1"):
        grading.format_answer({}, "6", config)

    gold, weights = list("001122334455"), np.ones((12, 1))
    near, far = ([str(min(int(g) + step, 5)) for g in gold] for step in (1, 3))
    kappas = []
    for answers in (gold, near, far, ["0"] * 12, [None] * 12):
        measure, _ = grading.measure_answers(gold, answers, [{}] * 12, gold, config)
        kappas.append(float(measure(weights)["quadratic_kappa"][0]))
    assert kappas[0] == 1 and kappas[0] > kappas[1] > kappas[2] > kappas[3] == 0 > kappas[4]
    assert measure(weights)["unparsed_rate"] == 1 and measure(weights)["accuracy"] == 0


@pytest.mark.model
def test_the_guide_leads_from_an_entry_to_scores(grading, tmp_path, monkeypatch, capsys):
    entry, out = yaml.safe_load(read_fence("yaml")), tmp_path / "out"
    write_biopsies(tmp_path / entry["source"], {"train": 12, "val": 6, "test": 6})
    flags = ["--config", "recipes/captioning.yaml", "--model_name_or_path", "embedded", "--data_dir", tmp_path]
    flags += ["--output_dir", out, "--datasets", json.dumps([entry]), *CPU, *SMALL, "--max_steps", 1]

    assert run("preflight", flags, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "Ready to train." in said and "16-bit grey, window 0-4095" in said and "ISUP 5. Answer with" in said
    assert "40 x 40" in said

    assert run("sft", flags, monkeypatch) == 0
    assert run("evaluate", flags, monkeypatch) == 0
    assert "quadratic kappa" in capsys.readouterr().out
    scored = json.loads((out / "evaluation/results.json").read_text())["datasets"]["biopsies"]
    assert (scored["task"], scored["headline"], scored["n"]) == ("grading", "quadratic_kappa", 6)
    assert scored["floors"]["constant"]["quadratic_kappa"]["value"] == 0
    assert (out / "evaluation/report.html").exists()


@pytest.mark.parametrize(
    ("keys", "rows", "message"),
    [
        ({"task": None}, [{"image": "a.png", "answer": "1"}], "no task, expected one of"),
        ({}, [{"image": "a.png", "answer": "9"}], "row 1: ValueError grade '9'"),
        ({}, [{"answer": "1", "image": None}], "row 1: KeyError 'image'"),
        ({}, [{"image": "a.png"}], r"expected \['answer'\] too"),
        ({"task": "quantity"}, [{"image": "a.png", "answer": 3}], "row 1: KeyError 'kind', expected what quantity"),
    ],
)
def test_a_manifest_that_its_task_cannot_read_is_refused_by_row(grading, config, tmp_path, keys, rows, message):
    write_16_bit(tmp_path / "a.png")
    (tmp_path / "train.json").write_text(json.dumps(rows))
    given = DatasetConfig(**yaml.safe_load(read_fence("yaml")) | {"source": str(tmp_path)} | keys)
    with pytest.raises(ValueError, match=message):
        FORMATS["questions"].read(tmp_path, given)


def test_other_columns_go_to_the_task_and_pictures_may_be_several(grading, config, tmp_path):
    for name in ("a.png", "b.png"):
        write_16_bit(tmp_path / name)
    rows = [{"image": ["a.png", "b.png"], "answer": 7, "kind": "counting", "question": "How many?", "slide_id": "s1"}]
    rows += [{"image": "a.png", "kind": "counting", "question": "And here?", "split": "test"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    table = FORMATS["questions"].read(
        tmp_path, DatasetConfig("cells", str(tmp_path), format="questions", task="quantity")
    )
    assert table["ask"][0] == {"kind": "counting", "question": "How many?"} and table["group"][0] == "s1"
    assert [len(paths) for paths in table["images"]] == [2, 1] and table["split"].tolist() == ["train", "test"]
    assert table["answer"].tolist() == [7, None]


@pytest.mark.model
def test_classes_and_questions_in_one_recipe_have_one_report_one_results_and_one_card(tmp_path, monkeypatch, capsys):
    entry = {"name": "ward", "source": "ward", "class_names": PCAM_CLASSES}
    write_class_folders(tmp_path / "ward", PCAM_CLASSES, per_class=12)
    captions = {"name": "captions", "source": "dataset", "format": "captions"}
    write_captions(tmp_path, [captions])
    out = tmp_path / "out"
    flags = ["--config", "recipes/captioning.yaml", "--model_name_or_path", "embedded", "--data_dir", tmp_path]
    flags += ["--output_dir", out, "--datasets", json.dumps([entry, captions]), *CPU, *SMALL, "--max_steps", 1]
    for command in ("preflight", "sft", "evaluate"):
        assert run(command, flags, monkeypatch) in (0, None)
    said = capsys.readouterr().out
    assert "balanced accuracy" in said and "constant answer" in said

    results = json.loads((out / "evaluation/results.json").read_text())
    assert results["datasets"]["ward"]["floors"]["majority"] and "zero_shot" in results["datasets"]["ward"]
    assert results["datasets"]["captions"]["task"] == "report" and results["overall"]["by_task"].keys() == {
        "classification",
        "report",
    }
    page = (out / "evaluation/report.html").read_text()
    assert "Most confident mistakes" in page and "Constant answer" in page and "test questions" in page
    assert set(pd.read_parquet(out / "evaluation/predictions.parquet")["dataset"]) == {"ward", "captions"}
    assert run("push_adapter", [*flags, "--dry_run", "true"], monkeypatch) in (0, None)
    card = next(out.rglob("README.md")).read_text()
    assert "ward" in card and "captions" in card and "Task: report" in card


@pytest.mark.slow
def test_a_file_format_of_ones_own_is_a_reader_and_one_line(tmp_path, monkeypatch):
    def read_counts(source, config):
        rows = [line.split("\t") for line in (source / "counts.txt").read_text().splitlines()]
        return build_table(
            [
                {"images": [str(source / name)], "split": split, "group": None, "id": f"{config.name}/{name}"}
                | {
                    "task": "quantity",
                    "ask": {"kind": "counting", "question": "How many nuclei?"},
                    "answer": float(count),
                }
                for name, split, count in rows
            ],
            config,
        )

    lines = []
    for number, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2):
        write_16_bit(tmp_path / f"{number}.png", seed=number, size=(40, 30), top=4095)
        lines.append(f"{number}.png\t{split}\t{number}")
    (tmp_path / "counts.txt").write_text("\n".join(lines))
    monkeypatch.setitem(FORMATS, "counts", Format(read_counts))
    entry = {"name": "nuclei", "source": str(tmp_path), "format": "counts"}
    splits = load_audited_patches(HistoArguments(datasets=[entry], leaks="allow"), tmp_path / "out")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 4, "validation": 2, "test": 2}
    row = splits["test"][1]
    assert row["images"][0].size == (40, 30) and "How many nuclei?" in row["prompt"][0]["content"]
    assert json.loads(row["answer"]) == 7 and "7" in row["completion"][0]["content"]
