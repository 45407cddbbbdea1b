"""The doctor's judgement, on simulated findings as plain data, and one look at the machine that runs the tests."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from histolab_sft.commands import cli
from histolab_sft.commands.doctor import (
    format_findings,
    judge_bitsandbytes,
    judge_disk,
    judge_gpu,
    judge_hub,
    judge_memory,
    judge_versions,
)
from histolab_sft.config.hardware import GIB

MODEL = "google/medgemma-4b-it"
NEEDED = [Requirement("torch>=2.13"), Requirement("trl>=1.16")]
TESTED = {"torch": "2.13.0", "trl": "1.16.0"}


@pytest.mark.parametrize(
    ("driver", "cuda", "capability", "free", "on_gpu", "state", "said"),
    [
        ("580.1", "13.0", (8, 0), 78 * GIB, True, "right", "gpu_80gb"),
        ("580.1", "13.0", (8, 9), 23 * GIB, True, "right", "gpu_24gb"),
        ("580.1", "13.0", (7, 5), 14.6 * GIB, True, "advice", "hardware: auto"),
        ("580.1", "13.0", (8, 0), 1 * GIB, True, "stop", "end what else runs"),
        ("580.1", None, None, 0, True, "stop", "install a CUDA build of torch"),
        ("470.1", "13.0", None, 0, True, "stop", "update the driver"),
        (None, "13.0", None, 0, True, "stop", "machine with a GPU"),
        (None, None, None, 0, False, "advice", "machine with a GPU"),
    ],
)
def test_a_gpu_is_right_if_pytorch_can_use_it_and_enough_is_free(driver, cuda, capability, free, on_gpu, state, said):
    [*_, gpu] = judge_gpu(driver, cuda, capability, free, on_gpu)
    assert gpu.state == state and said in f"{gpu.found} {gpu.cure}"


@pytest.mark.parametrize(
    ("here", "token", "offline", "refusal", "state", "said"),
    [
        (True, False, True, None, "right", "on this disk"),
        (False, True, False, "", "right", "may be read"),
        (False, True, True, None, "stop", "wasn't asked"),
        (False, False, False, None, "unknown", "couldn't look"),
        (False, True, False, f"{MODEL} is gated: open its page, accept its terms", "stop", "accept its terms"),
    ],
)
def test_the_base_model_is_right_if_it_is_here_or_may_be_read(here, token, offline, refusal, state, said):
    login, model = judge_hub(MODEL, here, token, offline, refusal)
    assert model.state == state and said in f"{model.found} {model.cure}"
    assert login.state == ("right" if token else "advice")


@pytest.mark.parametrize(
    ("installed", "tested", "state", "said"),
    [
        ({"torch": "2.13.0+cu130", "trl": "1.16.0"}, TESTED, "right", "as tested"),
        ({"torch": "2.14.0", "trl": "1.16.0"}, TESTED, "advice", "torch 2.14.0"),
        ({"torch": "2.12.0", "trl": "1.16.0"}, TESTED, "stop", "torch 2.12.0 (needs >=2.13)"),
        ({"torch": "2.13.0", "trl": None}, TESTED, "stop", "trl missing"),
        ({"torch": "2.13.0", "trl": "1.16.0"}, {}, "unknown", "isn't here"),
    ],
)
def test_versions_are_judged_by_lower_bounds_and_compared_with_the_tested_ones(installed, tested, state, said):
    finding = judge_versions(NEEDED, installed, tested)
    assert finding.state == state and said in finding.found


@pytest.mark.parametrize(
    ("finding", "state"),
    [
        (judge_memory(64 * GIB), "right"),
        (judge_memory(8 * GIB), "advice"),
        (judge_memory(2 * GIB), "stop"),
        (judge_disk("disk", Path("/x"), 100 * GIB), "right"),
        (judge_disk("disk", Path("/x"), 5 * GIB), "advice"),
        (judge_disk("disk", Path("/x"), 0), "stop"),
        (judge_bitsandbytes("0.50", True, ""), "right"),
        (judge_bitsandbytes("0.50", True, "no library for CUDA 13.3"), "stop"),
        (judge_bitsandbytes("0.50", False, "no library for CUDA 13.3"), "advice"),
        (judge_bitsandbytes(None, True, ""), "stop"),
    ],
)
def test_whatever_is_not_right_comes_with_what_to_do(finding, state):
    assert finding.state == state and bool(finding.cure) == (state != "right")
    text = format_findings([finding])
    assert finding.cure in text and ("can't start yet: " in text) == (state == "stop")


def test_the_doctor_looks_at_this_machine_and_ends_with_1_if_a_run_could_not_start(capsys):
    code = cli.main(["doctor"])
    said = capsys.readouterr().out
    assert code == int("STOP" in said) == int("can't start yet" in said)
    for subject in ("NVIDIA driver", "torch", "GPU", "bitsandbytes", "versions", "disk", "memory", "Hub login", MODEL):
        assert subject in said
