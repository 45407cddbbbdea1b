"""Runs that are killed or told to stop at random moments, in the middle of saves as well: each goes on, and ends up
bit-equal to the run that nobody disturbed.

KILLS=12 in the environment makes it shorter than its 100 kills.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from demo_run import app_command, running, send_upload, write_run
from steady_runs import SendSignals, build_trainer, compare, hash_adapter, start_recipe, write_inputs, write_recipe

from histolab_sft.embedded.tiny_model import build_untrained_tiny_model
from histolab_sft.signals import SIGNALS
from histolab_sft.training.checkpoints import find_whole_checkpoint

pytestmark = [pytest.mark.model, pytest.mark.kill]

KILLS = int(os.environ.get("KILLS", "100"))
# Every run is killed this often before it may end.
KILLS_A_RUN = 5
SAVE_STEPS = 2
FILES = 10  # of a checkpoint
PATIENCE = 120  # seconds until a process counts as hung


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Folder of the inputs, and the hash of the adapter of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("killed")
    write_inputs(folder)
    finish(write_recipe(folder, folder / "undisturbed", save_steps=SAVE_STEPS), folder / "undisturbed.log")
    return folder, hash_adapter(folder / "undisturbed")


def finish(recipe, log):
    process = start_recipe(recipe, log)
    process.join(PATIENCE)
    assert process.exitcode == 0, log.read_text()[-4000:]


def kill_after(seconds, process, log, begun):
    """Kill the process so many seconds after it has found what to go on from."""
    deadline = time.monotonic() + PATIENCE
    while process.is_alive() and len(read_attempts(log)) < begun:
        assert time.monotonic() < deadline, "the run hangs"
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.join(PATIENCE)


def kill_in_save(files, process, output_dir):
    """Kill the process once a new checkpoint has so many files, those that are being written among them.

    It looks without a pause, so that the kill comes within a fraction of a millisecond.
    """
    already = whole_checkpoints(output_dir)
    deadline = time.monotonic() + PATIENCE
    while process.is_alive() and max(count_files(output_dir, already), default=0) < files:
        assert time.monotonic() < deadline, "the run hangs"
    process.kill()
    process.join(PATIENCE)


def count_files(output_dir, already):
    for folder in output_dir.glob("checkpoint-*"):
        if folder.name not in already:
            # os.walk takes it calmly when a folder goes away meanwhile.
            yield sum(len(names) for _, _, names in os.walk(folder))


def whole_checkpoints(output_dir):
    return {path.parent.name for path in Path(output_dir).glob("checkpoint-*/manifest.json")}


def read_attempts(log):
    """For each attempt: the step that it went on from, and its last step in the log."""
    attempts = []
    if not log.is_file():
        return attempts
    for line in log.read_text().splitlines():
        if "training starts afresh" in line:
            attempts.append([0, 0])
        elif found := re.search(r"goes on from .*checkpoint-(\d+)", line):
            attempts.append([int(found[1])] * 2)
        elif line.startswith("{'loss'"):
            attempts[-1][1] += 1
    return attempts


def test_no_kill_costs_more_than_the_steps_since_the_last_save_or_changes_the_adapter(undisturbed):
    folder, expected = undisturbed
    draw = random.Random(0)
    kills = torn = 0
    while kills < KILLS:
        name = f"run-{kills}"
        recipe, log, output_dir = write_recipe(folder, folder / name), folder / f"{name}.log", folder / name
        for _ in range(min(KILLS_A_RUN, KILLS - kills)):
            process = start_recipe(recipe, log)
            if kills % 2:
                # Right after the first file of a save came into being, in the next round the second, and so on.
                kill_in_save(1 + kills // 2 % FILES, process, output_dir)
            else:
                # Every fourth of these while it still loads.
                begun = 0 if kills % 8 == 0 else len(read_attempts(log)) + 1
                kill_after(draw.uniform(0, 1.5), process, log, begun)
            kills += 1
            folders = {path.name for path in Path(output_dir).glob("checkpoint-*")}
            torn += bool(folders - whole_checkpoints(output_dir))
        finish(recipe, log)
        assert hash_adapter(output_dir) == expected
        attempts = read_attempts(log)
        for (_, reached), (went_on, _) in zip(attempts, attempts[1:], strict=False):
            assert reached - went_on <= SAVE_STEPS, attempts
    # The test itself works: saves were hit.
    assert torn >= KILLS // 8, torn


def test_evaluations_that_are_killed_while_they_encode_and_ask_end_with_the_same_scores(undisturbed, tmp_path):
    folder, _ = undisturbed

    def start(name):
        output_dir = tmp_path / name
        if not output_dir.exists():
            shutil.copytree(folder / "undisturbed", output_dir)
        keys = {"vision_cache": str(tmp_path / f"{name}-features"), "max_new_tokens": 8}
        recipe, environment = (
            write_recipe(folder, output_dir, **keys),
            {"XDG_CACHE_HOME": str(tmp_path / f"{name}-cache")},
        )
        return start_recipe(recipe, tmp_path / f"{name}.log", script="recipes/evaluate.py", environment=environment)

    def read(name):
        results = json.loads((tmp_path / name / "evaluation" / "results.json").read_text())
        return results["datasets"], results["overall"]

    begun = time.monotonic()
    process = start("whole")
    process.join(PATIENCE)
    assert process.exitcode == 0, (tmp_path / "whole.log").read_text()[-4000:]
    duration = time.monotonic() - begun

    draw, killed = random.Random(2), 0
    for _ in range(max(3, KILLS // 4)):
        process = start("killed")
        process.join(draw.uniform(0.2, 1) * duration)
        killed += process.is_alive()
        process.kill()
        process.join(PATIENCE)
    process = start("killed")
    process.join(PATIENCE)
    assert process.exitcode == 0, (tmp_path / "killed.log").read_text()[-4000:]
    assert killed and read("killed") == read("whole")


def send_part(port, name, data, share):
    """Begin an upload, send a share of it, and leave the connection open."""
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + data + b"\r\n--b--\r\n"
    connection = socket.create_connection(("127.0.0.1", port))
    lines = ["POST /gradio_api/upload HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
    lines += ["Content-Type: multipart/form-data; boundary=b", "", ""]
    connection.sendall("\r\n".join(lines).encode() + body[: int(share * len(body))])
    return connection


def test_a_demo_that_is_killed_in_uploads_leaves_nothing_for_long_and_touches_nothing_of_others(tmp_path):
    model = build_untrained_tiny_model(tmp_path / "model")
    recipe, kept = write_run(tmp_path, model), tmp_path / "kept"
    temporary = tmp_path / "tmp"
    picture = b"\x89PNG\r\n\x1a\n" + random.Random(3).randbytes(2**21)
    # Of a user, of another program, and a link to where pictures are kept.
    kept.mkdir()
    kept.joinpath("study.png").write_bytes(picture)
    others = ("histolab-demo.txt", "histolab-other/study.png", "histolab-demo-pictures/study.png", "gradio/study.png")
    draw = random.Random(4)
    for round_ in range(max(3, KILLS // 20)):
        with running(app_command(recipe), tmp_path) as (process, port):
            folders = [lock.parent for lock in temporary.glob("histolab-demo-*/.lock")]
            # What the one before has left is gone: this one's own folder is all that is there.
            assert len(folders) == 1 and not any("study" in path.name for path in folders[0].rglob("*.png"))
            if not round_:
                for name in others:
                    temporary.joinpath(name).parent.mkdir(exist_ok=True)
                    temporary.joinpath(name).write_bytes(picture)
                    os.utime(temporary.joinpath(name).parent, (0, 0))
                temporary.joinpath("histolab-demo-link").symlink_to(kept)
            assert send_upload(port, "study.png", picture)[0] == 200
            open_uploads = [send_part(port, f"study{i}.png", picture, draw.random()) for i in range(3)]
            time.sleep(draw.uniform(0, 0.3))
            process.kill()
            process.wait(PATIENCE)
        for connection in open_uploads:
            connection.close()
        assert any(path.stat().st_size >= len(picture) for path in folders[0].rglob("*") if path.is_file())
        # The one that comes next takes what is older than some seconds for abandoned.
        os.utime(folders[0], (0, 0))
    with running(app_command(recipe), tmp_path):
        pass
    assert {path.name for path in temporary.glob("histolab-demo-*")} == {
        "histolab-demo-link",
        "histolab-demo-pictures",
    }
    assert all(temporary.joinpath(name).read_bytes() == picture for name in others)
    assert [path.read_bytes() for path in kept.iterdir()] == [picture]


def test_twenty_signals_at_random_moments_give_twenty_exact_resumes(undisturbed, tmp_path):
    folder, _ = undisturbed
    keys = {"gradient_accumulation_steps": 4, "max_steps": 16, "eval_strategy": "steps", "eval_steps": 2}
    keys |= {"save_steps": 3, "save_total_limit": 2, "per_device_eval_batch_size": 2}
    undisturbed = build_trainer(folder, tmp_path / "undisturbed", **keys)
    undisturbed.train()

    draw, hits = random.Random(1), []
    while len(hits) < 20:
        output_dir = tmp_path / f"resumed-{len(hits)}"
        for _ in range(5):
            resumed = build_trainer(folder, output_dir, **keys)
            # A second signal follows at once, whatever it is.
            disturb = SendSignals(draw.randint(1, 18), draw.choices(SIGNALS, k=2))
            resumed.add_callback(disturb)
            resumed.train("auto")
            assert resumed.interrupted == disturb.signals[0]
            newest = find_whole_checkpoint(output_dir)
            assert newest.name == f"checkpoint-{resumed.state.global_step}"
            hits.append(disturb.hit)
        resumed = build_trainer(folder, output_dir, **keys)
        resumed.train("auto")
        compare(resumed, undisturbed)
    assert {"accumulating", "evaluating", "before the optimiser"} <= set(hits)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_all_processes_of_a_job_ends_it_with_143_and_a_checkpoint(undisturbed, tmp_path, number):
    folder, expected = undisturbed
    log, output_dir = tmp_path / "log", tmp_path / "run"
    recipe = write_recipe(folder, output_dir, dataloader_num_workers=2, save_steps=100)
    process = start_recipe(recipe, log, group=True)
    deadline = time.monotonic() + PATIENCE
    while "{'loss'" not in (log.read_text() if log.is_file() else ""):
        assert process.is_alive() and time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.01)
    os.killpg(process.pid, number)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(PATIENCE)
    assert process.exitcode == 143, log.read_text()[-4000:]
    record = json.loads((output_dir / "run.json").read_text())
    assert re.fullmatch(rf"{number.name} after step \d+", record["exit_reason"])
    assert find_whole_checkpoint(output_dir).name == f"checkpoint-{record['steps']}"
    assert not (output_dir / "adapter_model.safetensors").exists()

    finish(recipe, log)
    assert hash_adapter(output_dir) == expected
    resumed = json.loads((output_dir / "run.json").read_text())
    assert resumed["exit_reason"] == "finished" and resumed["earlier"][0]["exit_reason"] == record["exit_reason"]
