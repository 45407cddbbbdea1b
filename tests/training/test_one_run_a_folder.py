"""Two runs never share a folder, and a run that is resumed with other keys isn't taken for the same."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from steady_runs import build_trainer, hash_adapter, hash_trained, start_recipe, write_inputs, write_recipe

from histolab_sft.run_lock import HOLDER, FolderInUseError, hold_folder
from histolab_sft.training.checkpoints import CheckpointError

pytestmark = pytest.mark.model

PATIENCE = 240
HOLD = (
    "import sys, time; from histolab_sft.run_lock import hold_folder\nwith hold_folder(sys.argv[1]): time.sleep(600)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    write_inputs(folder)
    return folder


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_lock_of_a_process_that_was_killed_is_free_and_its_note_is_no_lock(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)])
    wait_for((tmp_path / HOLDER).is_file)
    with pytest.raises(FolderInUseError, match=rf"process {process.pid} on .*, since 20.*choose another output_dir"):
        hold_folder(tmp_path).__enter__()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / HOLDER).is_file()
    with hold_folder(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["process"] == os.getpid()
    assert not (tmp_path / HOLDER).exists()


def test_a_lock_does_not_outlive_its_process_in_a_child_of_it(tmp_path):
    code = HOLD.replace("time.sleep(600)", "import os; os.fork() and os.kill(os.getpid(), 9); time.sleep(20)")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    with hold_folder(tmp_path):
        pass


@pytest.mark.thorough
def test_of_two_runs_started_at_once_one_ends_with_a_sentence_and_the_other_undisturbed(folder, tmp_path):
    processes = {}
    for name in ("undisturbed", "first", "second"):
        output_dir = tmp_path / ("undisturbed" if name == "undisturbed" else "shared")
        recipe = write_recipe(folder, output_dir, max_steps=4)
        processes[name] = start_recipe(recipe, tmp_path / f"{name}.log")
    for process in processes.values():
        process.join(PATIENCE)
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in processes}
    codes = {name: process.exitcode for name, process in processes.items()}
    assert codes["undisturbed"] == 0, logs["undisturbed"][-3000:]
    assert sorted([codes["first"], codes["second"]]) == [0, 2], logs
    stopped = "first" if codes["first"] else "second"
    assert "is in use by another run" in logs[stopped] and "Traceback" not in logs[stopped]
    assert hash_adapter(tmp_path / "shared") == hash_adapter(tmp_path / "undisturbed")
    assert json.loads((tmp_path / "shared" / "run.json").read_text())["exit_reason"] == "finished"


def test_a_resume_with_another_learning_rate_is_refused_or_taken_on_purpose_from_its_step_on(folder, tmp_path):
    keys = {"max_steps": 2, "lr_scheduler_type": "constant", "logging_steps": 1}
    build_trainer(folder, tmp_path / "run", **keys).train()
    keys["max_steps"] = 4
    changed = build_trainer(folder, tmp_path / "run", **keys | {"learning_rate": 2e-2})
    with pytest.raises(
        CheckpointError, match=r"learning_rate was 0.01 and is 0.02; max_steps was 2 and is 4.*\[learning"
    ):
        changed.train("auto")

    weights = {}
    for rate in (1e-2, 2e-2):
        resumed = build_trainer(
            *(folder, tmp_path / "run"),
            **keys | {"learning_rate": rate, "save_strategy": "no"},
            resume_changes=["learning_rate", "max_steps"],
        )
        resumed.train("auto")
        assert resumed.state.global_step == 4
        logged = [entry["learning_rate"] for entry in resumed.state.log_history if "learning_rate" in entry]
        assert logged[-2:] == [rate, rate]
        weights[rate] = hash_trained(resumed)
        assert {"step": 2, "key": "max_steps", "from": 2, "to": 4} in resumed.changes
        assert any(change["key"] == "learning_rate" for change in resumed.changes) == (rate == 2e-2)
    assert weights[1e-2] != weights[2e-2]


def test_a_refused_resume_leaves_run_json_as_it_was_and_a_taken_one_notes_the_change(folder, tmp_path):
    output_dir = tmp_path / "run"

    def run(code, **keys):
        process = start_recipe(write_recipe(folder, output_dir, **keys), tmp_path / "log")
        process.join(PATIENCE)
        assert process.exitcode == code, (tmp_path / "log").read_text()[-3000:]
        return json.loads((output_dir / "run.json").read_text())

    first = run(0, max_steps=2)
    refused = run(2, max_steps=2, lora_alpha=64)
    assert "lora_alpha was 32 and is 64" in (tmp_path / "log").read_text()
    assert "lora_alpha" in refused.pop("idle")[0]["exit_reason"]
    assert refused == first
    taken = run(0, max_steps=4, resume_changes=["max_steps"])
    assert taken["changes"] == [{"step": 2, "key": "max_steps", "from": 2, "to": 4}]
    assert taken["recipe"]["max_steps"] == 4 and taken["steps"] == 4


def test_a_signal_before_the_first_step_ends_a_run_with_143_and_is_named_in_its_record(folder, tmp_path):
    process = start_recipe(write_recipe(folder, tmp_path / "run"), tmp_path / "log")
    wait_for((tmp_path / "run" / "run.json").is_file)
    os.kill(process.pid, signal.SIGTERM)
    process.join(PATIENCE)
    assert process.exitcode == 143, (tmp_path / "log").read_text()[-3000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["exit_reason"] == "stopped by SIGTERM" and record["end"]
