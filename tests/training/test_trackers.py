"""How a run went can be seen: in its own folder without any tracker, and in the trackers that a recipe names."""

import importlib.util
import os
import signal
import sqlite3
import time

import numpy as np
import pytest
from PIL import Image
from steady_runs import start_recipe, write_inputs, write_recipe

from histolab_sft.training.curves import COLOURS, draw_curves

TRAIN = [{"step": step, "loss": 2 / step, "answer_loss": 1 / step} for step in range(1, 9)]
VALIDATION = [{"step": step, "eval_loss": 2.5 / step, "eval_answer_loss": 1.5 / step} for step in (4, 8)]
TRACKERS = [name for name in ("tensorboard", "trackio", "wandb") if importlib.util.find_spec(name)]


def count_pixels(path, split):
    """Give how many pixels of a picture have exactly the colour of a curve."""
    colour = [int(COLOURS[split][place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.asarray(Image.open(path).convert("RGB")) == colour).all(axis=2).sum())


def test_losses_on_train_and_validation_are_drawn(tmp_path):
    draw_curves(TRAIN + VALIDATION, tmp_path / "loss.png")
    assert count_pixels(tmp_path / "loss.png", "train") > 500
    assert count_pixels(tmp_path / "loss.png", "validation") > 300
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_a_curve_is_there_only_where_something_was_logged(tmp_path):
    draw_curves(TRAIN, tmp_path / "loss.png")
    assert count_pixels(tmp_path / "loss.png", "train") > 500
    assert count_pixels(tmp_path / "loss.png", "validation") == 0
    draw_curves([{"step": 8, "train_runtime": 3.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_single_value_and_one_that_is_not_finite_can_be_drawn(tmp_path):
    draw_curves([TRAIN[0], {"step": 2, "loss": float("nan")}], tmp_path / "loss.png")
    assert count_pixels(tmp_path / "loss.png", "train") > 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trackers")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def tracked(folder):
    """Output folder of a run that early stopping ended, which every tracker that is installed was told of."""
    output_dir, log = folder / "run", folder / "run.log"
    stopping = {"early_stopping": "threshold", "early_stopping_threshold": 100.0, "early_stopping_patience": 3}
    recipe = write_recipe(folder, output_dir, report_to=TRACKERS, eval_strategy="steps", eval_steps=2, **stopping)
    environment = {"TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
    process = start_recipe(recipe, log, environment=environment)
    process.join(180)
    assert process.exitcode == 0, log.read_text()[-4000:]
    return output_dir


@pytest.mark.model
def test_a_run_that_stopped_early_leaves_its_curves(tracked):
    assert count_pixels(tracked / "loss.png", "train") > 100
    assert count_pixels(tracked / "loss.png", "validation") > 10


@pytest.mark.thorough
@pytest.mark.model
def test_an_interrupted_run_leaves_its_curves(folder):
    output_dir, log = folder / "interrupted", folder / "interrupted.log"
    recipe = write_recipe(folder, output_dir, max_steps=2000, save_steps=1)
    process = start_recipe(recipe, log)
    while not (output_dir / "checkpoint-2").exists() and process.is_alive():
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    process.join(120)
    assert process.exitcode == 143, log.read_text()[-4000:]
    assert count_pixels(output_dir / "loss.png", "train") > 5


@pytest.mark.model
def test_tensorboard_is_told_of_losses_on_train_and_validation(tracked):
    pytest.importorskip("tensorboard", reason='tensorboard is not installed: pip install -e ".[trackers]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(tracked.glob("runs/*"))))
    events.Reload()
    assert {"train/loss", "train/answer_loss", "eval/loss", "eval/balanced_accuracy"} <= set(events.Tags()["scalars"])
    assert [entry.step for entry in events.Scalars("train/loss")] == [1, 2, 3]


@pytest.mark.model
def test_trackio_is_told_of_losses_and_stays_on_this_machine(tracked):
    pytest.importorskip("trackio", reason='trackio is not installed: pip install -e ".[trackers]"')
    (database,) = (tracked.parent / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics").fetchall()
    text = " ".join(str(metrics) for _, metrics in rows)
    assert "train/loss" in text and "eval/loss" in text
    assert "space" not in (tracked.parent / "run.log").read_text().lower().replace("namespace", "")


@pytest.mark.model
def test_wandb_offline_writes_its_run_here(tracked):
    pytest.importorskip("wandb", reason='wandb is not installed: pip install -e ".[trackers]"')
    (run,) = (tracked.parent / "wandb").glob("offline-run-*")
    assert b"train/loss" in next(run.glob("*.wandb")).read_bytes()
