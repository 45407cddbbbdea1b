"""Pictures are read by as many processes as there are cores to spare."""

import os
from types import SimpleNamespace

import pytest
import torch

from histolab_sft import workers
from histolab_sft.config.arguments import parse_recipe
from histolab_sft.workers import count_loader_workers

RECIPE = "datasets: [{name: a, source: b, class_names: {x: X, y: Y}}]\nuse_cpu: true\n"


@pytest.mark.parametrize(("cores", "processes", "workers"), [(16, 1, 4), (4, 1, 3), (2, 1, 1), (1, 1, 1), (16, 8, 1)])
def test_each_gpu_gets_its_share_of_the_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert count_loader_workers() == workers


def test_a_processor_keeps_all_cores_for_computing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert count_loader_workers() == 0


def test_a_recipe_may_say_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr("histolab_sft.config.arguments.count_loader_workers", lambda: 3)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    assert parse_recipe(["--config", str(path)])[1].dataloader_num_workers == 3
    path.write_text(RECIPE + "dataloader_num_workers: 1\n")
    assert parse_recipe(["--config", str(path)])[1].dataloader_num_workers == 1
    flags = ["--config", str(path), "--dataloader_num_workers", "0"]
    assert parse_recipe(flags)[1].dataloader_num_workers == 0


@pytest.mark.parametrize(("free", "expected"), [(64e3, 0), (64e6, 0), (8e9, 4)])
def test_workers_whose_batches_do_not_fit_into_shared_memory_are_not_started(monkeypatch, caplog, free, expected):
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert workers.limit_workers(4, batch_bytes=20 * 10**6) == expected
    assert workers.limit_workers(0, batch_bytes=20 * 10**6) == 0
    assert ("--shm-size" in caplog.text) == (expected == 0)
