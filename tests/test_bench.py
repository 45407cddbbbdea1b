"""The benchmarks run to the end at toy size; what they find then is no result, only that they can be run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.bench_gpu import run_arm
from benchmarks.gpu_profiles import run_process
from benchmarks.gpu_tables import format_results
from histolab_sft.training.out_of_memory import OutOfMemoryError

ROOT = Path(__file__).parents[1]


def run_tiny(module, folder, *flags):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--tiny", "--output", str(folder), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.model
@pytest.mark.thorough
def test_the_benchmark_compares_every_arm_side_by_side(tmp_path):
    said = run_tiny("bench", tmp_path)
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert set(results["training"]["arms"]) >= {"TRL", "uncached", "cached"}
    assert min(results["ratios"].values()) > 0
    assert len(results["resolution"]) == 3 and "28 pixels and 1 image token a picture" in said
    assert results["rows"]["folders"]["200"]["bytes_written"] == results["rows"]["hdf5"]["200"]["bytes_written"] == 0
    assert (tmp_path / "cpu.md").read_text() in said


# Enough to meet every kind of arm once.
ARMS = "(TRL's default|cached), bfloat16,( eager,)? batch 1|encoding|one step.*eager|likelihood|processes"
# What was measured on a card.
MEASURED = pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks/results").glob("gpu-*.json")), ids=lambda path: path.stem
)


@pytest.mark.thorough
@pytest.mark.model
def test_the_benchmark_for_gpus_trains_encodes_scores_and_plans(tmp_path):
    said = run_tiny("bench_gpu", tmp_path, "--only", ARMS)
    arms = json.loads((tmp_path / "gpu-no-gpu.json").read_text())["arms"]
    assert not any({"error", "skipped"} & set(arm) for arm in arms.values())
    rates = [arm[rate] for arm in arms.values() for rate in ("samples_per_s", "patches_per_s") if rate in arm]
    assert len(arms) == 9 and len(rates) == 7 and min(rates) > 0
    assert min(arms["profile cpu"][moment]["planned_gib"] for moment in ("training", "scoring")) > 0
    assert (tmp_path / "gpu-no-gpu.md").read_text() in said


class FewSeconds:
    """Stands for a session with ten seconds left."""

    released = False

    def seconds_left(self):
        return 10

    def release(self):
        self.released = True


def fail(error):
    raise error


@pytest.mark.parametrize(
    "least, measure, expected",
    [
        (20, dict, {"skipped": "10 s left, about 20 needed"}),
        (5, lambda: fail(OutOfMemoryError("step 3")), {"fits": False, "error": "step 3"}),
        (5, lambda: fail(torch.OutOfMemoryError("2 GiB wanted")), {"fits": False, "error": "2 GiB wanted"}),
        (5, lambda: fail(KeyError("rows")), {"error": "KeyError: 'rows'"}),
        (5, lambda: {"step_s": 1.0}, {"step_s": 1.0}),
    ],
)
def test_an_arm_that_finds_nothing_says_why_and_costs_no_other(least, measure, expected):
    session = FewSeconds()
    [(name, found)] = run_arm("arm", least, measure, session).items()
    found.pop("took_s", None)
    assert (name, found) == ("arm", expected) and session.released == ("error" in expected)


def test_processes_that_ran_side_by_side_are_results_of_their_own():
    found = run_arm("profiles", 5, lambda: {"several": {"a": {"ran": []}, "b": {"error": "b"}}}, FewSeconds())
    assert {name: set(part) for name, part in found.items()} == {"a": {"ran", "took_s"}, "b": {"error", "took_s"}}


@pytest.mark.slow
def test_a_process_without_an_end_is_ended_and_one_that_fails_is_quoted():
    endless = run_process([sys.executable, "-c", "import time; time.sleep(60)"], {}, 1)
    assert endless == {"error": "not at its end after 1 s"}
    failing = run_process([sys.executable, "-c", "raise ValueError('no rows')"], {}, 30)
    assert failing["error"] == "ValueError: no rows"


@MEASURED
def test_the_tables_of_a_card_are_those_of_its_results(path):
    results = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == format_results(results)
    assert results["machine"]["device"] and results["machine"]["commit"] and results["machine"]["date"]


@MEASURED
def test_no_measured_peak_is_above_its_plan(path):
    for name, arm in json.loads(path.read_text())["arms"].items():
        for moment in ("training", "scoring"):
            peaks = arm.get(moment, {})
            if "peak_allocated_gib" in peaks:
                assert peaks["peak_allocated_gib"] <= peaks["planned_gib"], (name, moment, peaks)
