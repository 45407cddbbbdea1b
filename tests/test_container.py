"""What the image is built from: pinned, for a user of its own, without secrets; its steps are the Makefile's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from histolab_sft.publishing.push_gate import SHARED_ACCOUNTS

TEXT = Path("Dockerfile").read_text(encoding="utf-8")
# Each instruction with its arguments, lines that go on joined.
INSTRUCTIONS = re.findall(
    r"^([A-Z]+) (.*)$", re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)), re.MULTILINE
)


def find(name):
    return [arguments for instruction, arguments in INSTRUCTIONS if instruction == name]


def compile_pattern(pattern):
    """Give the expression of a line of `.dockerignore`: from the root, a folder with all below it."""
    parts = re.split(r"(\*\*/|\*|\?)", pattern)
    words = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts) + "(?:/.*)?")


def is_left_out(path):
    lines = Path(".dockerignore").read_text(encoding="utf-8").splitlines()
    return any(compile_pattern(line).fullmatch(path) for line in lines if line and not line.startswith("#"))


def test_hadolint_finds_nothing():
    run = subprocess.run([Path(sys.executable).parent / "hadolint", "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == "", run.stdout


def test_both_bases_have_their_whole_version():
    bases = [find("ARG")[0].removeprefix("BASE="), re.search(r"BASE=(debian\S+) ", TEXT)[1]]
    assert find("FROM") == ["${BASE}"]
    assert all(re.fullmatch(r"[\w/]+:\d+\.\d+[\w.-]*", base) for base in bases), bases
    container = json.loads(Path(".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    page = Path("docs/container.md").read_text(encoding="utf-8")
    assert container["build"]["args"]["BASE"] == bases[1] and f"BASE={bases[1]}" in page


def test_it_runs_as_a_user_of_its_own():
    names = [name for name, _ in INSTRUCTIONS]
    assert find("USER") == ["${UID}"] and "UID=1000" in find("ARG")
    # What follows as root is nothing: packages of this project are installed by the user.
    assert names.index("USER") < names.index("COPY")
    assert all("--chown=app" in arguments for arguments in find("COPY"))
    container = json.loads(Path(".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert container["remoteUser"] == "app"
    # A name that stands in every card would be taken for a leak of the user's.
    assert "app" in SHARED_ACCOUNTS


def test_packages_come_in_the_tested_versions():
    assert "make install" in find("RUN") and "pip" not in " ".join(find("RUN"))
    lines = [line for line in Path("Makefile").read_text(encoding="utf-8").splitlines() if "/pip install" in line]
    assert lines and all("-c constraints.txt" in line for line in lines)


def test_nothing_is_fetched_by_address_and_no_layer_asks_for_a_secret():
    assert find("ADD") == []
    assert not re.search(r"https?://|\b(?:curl|wget)\b", TEXT)
    settings = " ".join(find("ARG") + find("ENV"))
    assert not re.search(r"TOKEN|SECRET|PASSWORD|API_KEY|CREDENTIAL", settings, re.IGNORECASE)


def test_caches_are_volumes_and_belong_to_the_user():
    volumes = json.loads(find("VOLUME")[0])
    settings = dict(pair.split("=") for pair in find("ENV")[0].split())
    assert settings["XDG_CACHE_HOME"] == "/cache" and settings["HF_HOME"].startswith("/cache/")
    made = next(line for line in find("RUN") if "install --directory --owner app" in line)
    assert all(volume in made.split() for volume in [*volumes, settings["HF_HOME"]])


@pytest.mark.parametrize(
    "path",
    [
        *(".env", ".env.local", "recipes/.env", "my_token.txt", "docs/hf_token_2.txt", "home/.netrc", "a/b/key.pem"),
        *(".git/config", ".venv/bin/python", "outputs/demo/adapter_model.safetensors", "data/patches/P01.png"),
        *("histolab_sft/__pycache__/errors.pyc", "histolab_sft.egg-info/PKG-INFO", "wandb/run/log"),
    ],
)
def test_what_is_of_one_machine_stays_out_of_the_build(path):
    assert is_left_out(path)


def test_every_file_of_the_repository_goes_in():
    files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(files) > 100
    assert [path for path in files if is_left_out(path)] == []
