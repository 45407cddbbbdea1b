"""`run.json` tells what a run was made from and how it ended, whatever ended it."""

import hashlib
import json
import re
from datetime import datetime

import pytest
from datasets import Dataset

from histolab_sft.provenance import (
    compute_sha256,
    describe_result,
    fingerprint_data,
    record_run,
    write_json,
)
from histolab_sft.publishing.card import estimate_carbon

TOKEN = "hf_" + "Abc123" * 6
RECIPE = {"learning_rate": 0.01, "datasets": [{"name": "pcam"}]}


def read(path):
    return json.loads(path.read_text())


def test_a_run_that_finishes_says_what_it_was_made_from(tmp_path):
    path = tmp_path / "out" / "run.json"
    with record_run(path, RECIPE, seed=7) as run:
        # What a kill -9 would leave.
        assert read(path)["exit_reason"] == "running" and read(path)["end"] is None
        run["data_fingerprint"] = "f00d"
        run["steps"] = 12
    record = read(path)
    assert record["recipe"] == RECIPE and record["seed"] == 7 and record["steps"] == 12
    assert record["exit_reason"] == "finished" and record["data_fingerprint"] == "f00d"
    assert {"torch", "transformers", "trl", "peft", "python", "histolab_sft"} <= set(record["versions"])
    assert record["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["git_commit"])
    assert datetime.fromisoformat(record["start"]) <= datetime.fromisoformat(record["end"])
    assert {"device", "count", "cores", "memory_gib"} <= set(record["hardware"])


def test_the_carbon_of_a_run_can_be_estimated_from_its_record(tmp_path):
    with record_run(tmp_path / "run.json", RECIPE, seed=7):
        pass
    record = read(tmp_path / "run.json")
    assert "isn't known" in estimate_carbon(record)  # a processor
    assert "kg CO2" in estimate_carbon(record | {"hardware": record["hardware"] | {"device": "NVIDIA L4"}})


def test_the_reason_of_an_end_is_the_error_without_its_secrets(tmp_path):
    with pytest.raises(OSError, match="refused"), record_run(tmp_path / "run.json", RECIPE, seed=7):
        raise OSError(f"https://user:{TOKEN}@hub refused {TOKEN}")
    assert read(tmp_path / "run.json")["exit_reason"] == "OSError: https://<secret>@hub refused <secret>"
    with pytest.raises(KeyboardInterrupt), record_run(tmp_path / "other.json", RECIPE, seed=7):
        raise KeyboardInterrupt
    assert read(tmp_path / "other.json")["exit_reason"] == "stopped by SIGINT"


def test_a_run_that_says_why_it_ends_is_believed(tmp_path):
    with record_run(tmp_path / "run.json", RECIPE, seed=7) as run:
        run["exit_reason"] = "SIGTERM after step 3"
    assert read(tmp_path / "run.json")["exit_reason"] == "SIGTERM after step 3"


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_the_attempts_before_it(tmp_path):
    path = tmp_path / "run.json"
    with record_run(path, RECIPE, seed=7, go_on=True) as run:
        run["exit_reason"] = "SIGTERM after step 3"
    # A second attempt was killed: its record was never closed.
    killed = read(path) | {
        "exit_reason": "running",
        "end": None,
        "earlier": read(path)["earlier"] + [{"end": "first"}],
    }
    path.write_text(json.dumps(killed))
    with record_run(path, RECIPE, seed=7, go_on=True) as run:
        run.begin()
    assert [attempt.get("exit_reason") for attempt in read(path)["earlier"]] == [None, "running"]
    with record_run(path, RECIPE, seed=7) as run:
        run.begin()
    assert read(path)["earlier"] == []


def test_an_attempt_that_never_trains_leaves_the_record_of_the_run_that_did(tmp_path):
    path = tmp_path / "run.json"
    with record_run(path, RECIPE, seed=7) as run:
        run.begin()
        run["steps"] = 8
    before = read(path)
    with pytest.raises(ValueError, match="refused"), record_run(path, RECIPE | {"lora_r": 99}, seed=8, go_on=True):
        assert read(path) == before
        raise ValueError("refused")
    record = read(path)
    assert record.pop("idle")[0]["exit_reason"] == "ValueError: refused"
    assert record == before


def test_a_process_that_does_not_write_leaves_no_record(tmp_path):
    with record_run(tmp_path / "out" / "run.json", RECIPE, seed=7, write=False):
        pass
    assert list(tmp_path.iterdir()) == []


def make_rows(**changes):
    rows = [
        {"dataset": "crc", "id": f"TUM/{i}", "label": "Tumor", "pixel_sha256": f"{i:064x}", "prompt": "What?"}
        for i in range(3)
    ]
    rows[1] |= changes
    return Dataset.from_list(rows)


def test_the_fingerprint_is_of_what_is_learnt():
    fingerprint = fingerprint_data({"train": make_rows()})
    assert re.fullmatch("[0-9a-f]{64}", fingerprint)
    # The place of a file and the column order have no part in it.
    moved = (
        make_rows()
        .add_column("path", ["/elsewhere"] * 3)
        .select_columns(["path", "prompt", "label", "id", "dataset", "pixel_sha256"])
    )
    assert fingerprint_data({"train": moved}) == fingerprint
    changes = [
        {"label": "Stroma"},
        {"id": "TUM/9"},
        {"pixel_sha256": "f" * 64},
        {"prompt": "Which?"},
        {"dataset": "x"},
    ]
    others = {fingerprint_data({"train": make_rows(**change)}) for change in changes}
    others |= {
        fingerprint_data({"train": make_rows().select([0, 2, 1])}),
        fingerprint_data({"train": make_rows().select([0, 1])}),
        fingerprint_data({"test": make_rows()}),
    }
    assert len(others) == 8 and fingerprint not in others


def test_the_fingerprint_opens_no_picture():
    def refuse(batch):
        raise AssertionError("a row was transformed")

    assert fingerprint_data({"train": make_rows().with_transform(refuse)}) == fingerprint_data({"train": make_rows()})


def test_a_score_tells_its_origin(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    config = {"base_model_name_or_path": "google/medgemma-4b-it", "revision": "abc"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    origin = describe_result(tmp_path, {"test": make_rows()}, seed=7)
    assert origin["adapter_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert (origin["base_model"], origin["revision"], origin["seed"]) == ("google/medgemma-4b-it", "abc", 7)
    assert {"data_fingerprint", "versions", "git_commit", "hardware"} <= set(origin)


def test_a_hash_is_of_the_bytes_of_the_file(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert compute_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_json_is_written_whole_or_not_at_all_and_without_secrets(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"note": f"token {TOKEN}", "steps": 3})
    assert read(path) == {"note": "token <secret>", "steps": 3}
    with pytest.raises(TypeError):
        write_json(path, {("not", "a key"): 1})
    assert read(path)["steps"] == 3
