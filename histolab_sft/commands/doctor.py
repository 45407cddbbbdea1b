"""`histolab_sft doctor`: look at this machine, and say what to do before a run can start."""

import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from huggingface_hub import HfApi, constants, get_token, try_to_load_from_cache
from packaging.requirements import Requirement

from histolab_sft.config.hardware import (
    BFLOAT16_CAPABILITY,
    GIB,
    choose_profile,
    detect_available,
    detect_capability,
    explain_missing_gpu,
)
from histolab_sft.files import measure_free_space
from histolab_sft.hub_access import HubAccessError, explain_hub_errors

DISK_GIB = 25  # 8 GiB of weights, and room for checkpoints, features of pictures and a merged model
MEMORY_GIB = 12  # the weights pass through main memory once, beside Python and its libraries
LEAST_MEMORY_GIB = 6  # what the demo needs


class Finding(NamedTuple):
    """One line of the doctor: what was looked at, what was found, and what to do about it.

    `state` is `right`, `unknown` (it couldn't be looked at), `advice` (a run starts all the same) or `stop`.
    """

    subject: str
    found: str
    state: str = "right"
    cure: str = ""


def examine(model: str, on_gpu: bool, folder: Path, constraints: Path) -> list[Finding]:
    """Look at this machine for runs of a base model; nothing is loaded, and the Hub is asked one question.

    Args:
        model (`str`): Id on the Hub, a folder, or `embedded`.
        on_gpu (`bool`): Whether runs are meant for a GPU.
        folder: Where results go.
        constraints: File with the exact tested versions; it needn't be there.
    """
    free = detect_available() if torch.cuda.is_available() else 0
    needed = [Requirement(text) for text in importlib.metadata.requires("histolab_sft") or []]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    installed = {one.name: find_version(one.name) for one in needed}
    tested = {}
    if constraints.is_file():
        pins = (line.split("==") for line in constraints.read_text(encoding="utf-8").splitlines() if "==" in line)
        tested = {name.lower(): version for name, version in pins}
    return [
        *judge_gpu(ask_driver(), torch.version.cuda, detect_capability(), free, on_gpu),
        judge_bitsandbytes(installed.get("bitsandbytes"), on_gpu, load_bitsandbytes()),
        judge_versions(needed, installed, tested),
        judge_disk("disk for results", folder, measure_free_space(folder)),
        judge_disk("disk for models", Path(constants.HF_HUB_CACHE), measure_free_space(Path(constants.HF_HUB_CACHE))),
        judge_memory(psutil.virtual_memory().available),
        *judge_hub(model, is_here(model), get_token() is not None, constants.HF_HUB_OFFLINE, ask_hub(model)),
    ]


def judge_gpu(
    driver: str | None, cuda: str | None, capability: tuple[int, int] | None, free: int, on_gpu: bool
) -> list[Finding]:
    """Judge the driver (its version), the CUDA that PyTorch was built for, and the GPU that PyTorch can use."""
    needed = "stop" if on_gpu else "advice"
    findings = [
        Finding("NVIDIA driver", driver)
        if driver
        else Finding("NVIDIA driver", "none", needed, "install one, or train on a machine that has one"),
        Finding("torch", f"{torch.__version__}, built for {f'CUDA {cuda}' if cuda else 'processors alone'}"),
    ]
    if capability is None:
        return [
            *findings,
            Finding("GPU", "none that PyTorch can use", needed, explain_missing_gpu(bool(driver), cuda)),
        ]
    try:
        profile = choose_profile(capability, free)
    except ValueError as error:
        found, _, cure = str(error).partition("; ")
        return [*findings, Finding("GPU", found, needed, cure)]
    found = f"compute capability {'.'.join(map(str, capability))}, {free / GIB:.1f} GiB free: profile {profile}"
    if capability < BFLOAT16_CAPABILITY:
        return [*findings, Finding("GPU", f"{found}, no bfloat16", "advice", "write hardware: auto in the recipe")]
    return [*findings, Finding("GPU", found)]


def judge_bitsandbytes(version: str | None, on_gpu: bool, problem: str) -> Finding:
    """Judge the library of 4-bit layers by its version, and by what it said when it was loaded (empty: nothing)."""
    if version is None:
        return Finding("bitsandbytes", "not installed", "stop", "run make install")
    if problem:
        cure = "install the build for your CUDA, or set load_in_4bit: false"
        return Finding("bitsandbytes", f"{version}: {problem}", "stop" if on_gpu else "advice", cure)
    return Finding("bitsandbytes", version)


def judge_versions(needed: list[Requirement], installed: dict[str, str | None], tested: dict[str, str]) -> Finding:
    """Judge the installed versions by the lower bounds of setup.py, and compare them with the tested ones."""
    wrong = [
        f"{one.name} {installed[one.name] or 'missing'} (needs {one.specifier})"
        for one in needed
        if installed[one.name] is None or not one.specifier.contains(installed[one.name], prereleases=True)
    ]
    if wrong:
        return Finding(
            "versions", ", ".join(wrong), "stop", "run make install, or pip install -c constraints.txt -e ."
        )
    # A build for one CUDA, such as 2.13.0+cu130, is the version that it starts with.
    found = {name: (version or "").split("+")[0] for name, version in installed.items()}
    other = [f"{name} {version}" for name, version in found.items() if tested.get(name.lower(), version) != version]
    if other:
        cure = "for the tested versions: pip install -c constraints.txt -e ."
        return Finding("versions", f"other than tested: {', '.join(other)}", "advice", cure)
    if not tested:
        return Finding("versions", "new enough; constraints.txt isn't here to compare with", "unknown")
    return Finding("versions", f"{len(needed)} packages as tested")


def judge_disk(subject: str, folder: Path, free: int) -> Finding:
    """Judge the bytes that are free where a folder is or would be."""
    found = f"{free / GIB:.0f} GiB free in {folder}"
    if free < GIB:
        return Finding(subject, found, "stop", "make room, or choose a folder on another disk")
    if free < DISK_GIB * GIB:
        return Finding(subject, found, "advice", f"{DISK_GIB} GiB are enough for MedGemma-4B and a run")
    return Finding(subject, found)


def judge_memory(available: int) -> Finding:
    """Judge the bytes of main memory that nobody uses."""
    found = f"{available / GIB:.0f} GiB available"
    if available < LEAST_MEMORY_GIB * GIB:
        return Finding("memory", found, "stop", f"end what else runs: even the demo needs {LEAST_MEMORY_GIB} GiB")
    if available < MEMORY_GIB * GIB:
        return Finding("memory", found, "advice", f"MedGemma-4B needs about {MEMORY_GIB} GiB while it is loaded")
    return Finding("memory", found)


def judge_hub(model: str, here: bool, token: bool, offline: bool, refusal: str | None) -> list[Finding]:
    """Judge whether the base model can be had.

    Args:
        here (`bool`): Whether it lies on this disk.
        token (`bool`): Whether there is a login.
        offline (`bool`): Whether HF_HUB_OFFLINE is set.
        refusal (`str`, *optional*): What the Hub or the network answered, empty if the model may be read; None if it
            wasn't asked.
    """
    login = (
        Finding("Hub login", "a token") if token else Finding("Hub login", "no token", "advice", "run hf auth login")
    )
    if here:
        return [login, Finding("base model", f"{model} is on this disk")]
    if offline:
        found = f"{model} isn't on this disk; HF_HUB_OFFLINE is set, so the Hub wasn't asked for it"
        return [
            login,
            Finding("base model", found, "stop", f"unset HF_HUB_OFFLINE, or run hf download {model} elsewhere"),
        ]
    if refusal is None:
        return [login, Finding("base model", f"couldn't look for {model}", "unknown")]
    if refusal:
        found, _, cure = refusal.partition(": ")
        return [login, Finding("base model", found, "stop", cure)]
    return [login, Finding("base model", f"{model} may be read on the Hub")]


def format_findings(findings: list[Finding]) -> str:
    """Return one line a finding with its state, and what to do below it."""
    words = {"right": "ok", "unknown": "?", "advice": "note", "stop": "STOP"}
    lines = []
    for one in findings:
        lines.append(f"{words[one.state]:<5} {one.subject:<17} {one.found}")
        lines += [f"{'':<5} {'':<17} -> {one.cure}"] if one.cure else []
    stops = [one.subject for one in findings if one.state == "stop"]
    lines.append(f"\nA run can't start yet: {', '.join(stops)}." if stops else "\nA run can start.")
    return "\n".join(lines)


def find_version(name: str) -> str | None:
    """Return the version of an installed package, None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def ask_driver() -> str | None:
    """Return the version of the NVIDIA driver, None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return told.stdout.split("\n")[0].strip() or None if told.returncode == 0 else None


def load_bitsandbytes() -> str:
    """Return what stops bitsandbytes from being loaded, empty if nothing does."""
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).split("\n")[0]
    return ""


def is_here(model: str) -> bool:
    """Whether a base model is on this disk: built in, a folder, or begun in the Hub's cache."""
    return model == "embedded" or os.path.isdir(model) or isinstance(try_to_load_from_cache(model, "config.json"), str)


def ask_hub(model: str) -> str | None:
    """Return what keeps this login from a model on the Hub, empty if nothing does; None without asking."""
    if is_here(model) or constants.HF_HUB_OFFLINE:
        return None
    try:
        with explain_hub_errors(model):
            HfApi().auth_check(model)
    except HubAccessError as error:
        return str(error)
    return ""
