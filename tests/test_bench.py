"""The benchmarks run to the end at toy size; what they find then is no result, only that they can be run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_tiny(module, folder):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--tiny", "--output", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.model
def test_the_benchmark_compares_every_arm_side_by_side(tmp_path):
    said = run_tiny("bench", tmp_path)
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert set(results["training"]["arms"]) >= {"TRL", "uncached", "cached"}
    assert min(results["ratios"].values()) > 0
    assert results["rows"]["folders"]["200"]["bytes_written"] == results["rows"]["hdf5"]["200"]["bytes_written"] == 0
    assert (tmp_path / "cpu.md").read_text() in said


@pytest.mark.model
def test_the_benchmark_for_gpus_trains_all_five_configurations_and_scores(tmp_path):
    run_tiny("bench_gpu", tmp_path)
    [path] = tmp_path.glob("*.json")
    results = json.loads(path.read_text())
    assert [name[:2] for name in results["training"]] == ["C1", "C1", "C2", "C2", "C3", "C3", "C4", "C4", "C5", "C5"]
    assert all(run["fits"] and run["samples_per_s"] > 0 for run in results["training"].values())
    assert min(results["encoding and scoring"].values()) > 0


@pytest.mark.model
def test_the_benchmark_of_profiles_trains_and_scores_by_the_recipes_own_scripts(tmp_path):
    run_tiny("gpu_profiles", tmp_path)
    [path] = tmp_path.glob("*-profiles.json")
    profile = json.loads(path.read_text())["profiles"]["cpu"]
    assert profile["fits"] and min(profile["planned_gib"].values()) > 0
