"""What the documents name exists."""

import re
from pathlib import Path

README = Path("README.md").read_text(encoding="utf-8")
MAKEFILE = Path("Makefile").read_text(encoding="utf-8")


def test_every_make_target_in_the_readme_exists():
    named = set(re.findall(r"make ([a-z][a-z-]+)", README))
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    assert named and named <= targets, named - targets


def test_every_target_is_explained_and_phony():
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    explained = set(re.findall(r"^([a-z][a-z-]*):.*## ", MAKEFILE, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())
    assert targets == explained == phony


def test_every_path_in_the_readme_exists():
    named = set(re.findall(r"\b((?:recipes|accelerate_configs|histolab_sft|tests|docs|benchmarks)/[\w/.]*\w)", README))
    missing = [path for path in named if not Path(path).exists()]
    assert named and not missing


def test_modules_and_scripts_keep_their_budget():
    lengths = {path: len(path.read_text().splitlines()) for path in Path("histolab_sft").rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 400} == {}
    lengths = {path: len(path.read_text().splitlines()) for path in Path("recipes").glob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 100} == {}


def test_imports_point_down():
    floors = {
        "metrics": 1,
        "tasks": 2,
        "data": 3,
        "models": 4,
        "training": 5,
        "evaluation": 5,
        "publishing": 5,
        "demo": 6,
    }
    wrong = []
    for path in Path("histolab_sft").rglob("*/*.py"):
        room = path.parts[1]
        for target in re.findall(r"^\s*from histolab_sft\.(\w+)[. ]", path.read_text(), re.MULTILINE):
            if target in floors and target != room and floors[target] >= floors[room]:
                wrong.append(f"{path} imports {target}")
    assert wrong == []


def test_the_keys_of_the_base_model_come_from_one_place():
    # TRL's own class lacks the resolution of pictures.
    folders = ("histolab_sft", "recipes", "benchmarks", "tests")
    sources = [path for folder in folders for path in Path(folder).rglob("*.py")]
    own = re.compile(r"^\s*from trl import .*\bModelConfig\b", re.MULTILINE)
    assert [path for path in sources if own.search(path.read_text(encoding="utf-8"))] == []
