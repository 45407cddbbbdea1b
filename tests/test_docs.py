"""What the documents name exists."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.utils import canonicalize_name

from histolab_sft.tasks import TASKS

README = Path("README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *map(str, sorted(Path("docs").glob("*.md")))]
MAKEFILE = Path("Makefile").read_text(encoding="utf-8")


def test_every_make_target_that_a_page_names_exists():
    text = "\n".join(Path(page).read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]+)", text, re.MULTILINE))
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    assert len(named) > 10 and named <= targets, named - targets


def test_the_readme_is_one_page_with_a_small_picture_of_the_report():
    assert len(README.splitlines()) <= 90
    picture = Path(re.search(r"!\[.+\]\((docs/pictures/.+?)\)", README)[1])
    assert picture.stat().st_size < 200_000


def test_every_link_of_the_readme_leads_to_a_file():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 10 and [link for link in links if not Path(link).exists()] == []


def test_every_target_is_explained_and_phony():
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    explained = set(re.findall(r"^([a-z][a-z-]*):.*## ", MAKEFILE, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())
    assert targets == explained == phony


def test_every_path_that_a_page_names_exists():
    folders = "recipes|accelerate_configs|histolab_sft|tests|docs|benchmarks"
    named = {
        path
        for page in PAGES
        for path in re.findall(rf"\b((?:{folders})/[\w/.]*\w)", Path(page).read_text(encoding="utf-8"))
    }
    made = {"recipes/my_tissue.yaml", "recipes/mine.yaml", "histolab_sft/tasks/grading.py", "accelerate_configs/FILE"}
    missing = [path for path in named - made if not Path(path).exists()]
    assert len(named) > 50 and not missing


# An import only ever points to a lower floor, or to the same room.
FLOORS = {
    "": 0,  # modules of no room
    "config": 1,
    "metrics": 1,
    "embedded": 1,
    "tasks": 2,
    "data": 3,
    "models": 4,
    "memory": 5,
    "training": 6,
    "evaluation": 6,
    "publishing": 6,
    "demo": 7,
    "study": 7,
    "mapping": 8,
    "commands": 8,
}
FILES = {".".join(path.with_suffix("").parts): path for path in Path("histolab_sft").rglob("*.py")}


def list_imports(path):
    """Give (line's column, module, names) of each import in a file of Python."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.col_offset, node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((node.col_offset, alias.name, []) for alias in node.names)


def list_named(path):
    """Give each module of the package that a file imports, wherever it does, or names in a string of its code."""
    for _, source, names in list_imports(path):
        yield from (full for full in (source, *(f"{source}.{name}" for name in names)) if full in FILES)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield from (name for name in re.findall(r"histolab_sft(?:\.\w+)+", node.value) if name in FILES)


def name_room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and Path("histolab_sft", parts[1]).is_dir() else ""


def test_modules_and_scripts_keep_their_budget():
    lengths = {path: len(path.read_text().splitlines()) for path in Path("histolab_sft").rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 400} == {}
    lengths = {path: len(path.read_text().splitlines()) for path in Path("recipes").glob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 100} == {}


def test_every_import_points_down():
    rooms = {name_room(module) for module in FILES}
    assert rooms == set(FLOORS)
    wrong = [
        f"{module} names {named}"
        for module, path in FILES.items()
        for named in list_named(path)
        if (room := name_room(module)) != (other := name_room(named)) and FLOORS[other] >= FLOORS[room]
    ]
    assert wrong == []


def test_no_module_needs_what_needs_it():
    needs = {module: set(list_named(path)) - {module} for module, path in FILES.items()}
    assert sum(map(len, needs.values())) > 500
    list(TopologicalSorter(needs).static_order())  # raises a CycleError with the modules


def test_no_task_is_named_outside_its_file():
    # Keys of a recipe stand below the tasks, and FLARE has words of its own that happen to be the same.
    apart = {"config/dataset.py", "data/formats/flare.py", "data/formats/flare_answers.py", "evaluation/submission.py"}
    named = []
    for path in FILES.values():
        if path.parts[1] == "tasks" or path.relative_to("histolab_sft").as_posix() in apart:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = []
            if isinstance(node, ast.Compare):
                found = [node.left, *node.comparators] if "task" in ast.unparse(node) else []
            elif isinstance(node, ast.Dict):
                keys = [key and ast.unparse(key) for key in node.keys]
                found = [value for key, value in zip(keys, node.values, strict=True) if key == "'task'"]
            elif isinstance(node, ast.keyword) and node.arg == "task":
                found = [node.value]
            named += [path for value in found if isinstance(value, ast.Constant) and value.value in TASKS]
    assert TASKS.keys() == {task.NAME for task in TASKS.values()} and named == []


def test_no_name_has_a_word_that_meant_several_things():
    words = {"arms", "deal", "dealing", "intake", "kin", "knob", "look", "looks", "settle", "shelf"}
    allowed = {
        "_looks_like_a_picture",
        "look",
    }  # the second in the tiny model's pretraining, whose file is its version
    found = set()
    for path in FILES.values():
        names = {path.stem}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names |= {
                value for key in ("name", "id", "arg", "attr") if isinstance(value := getattr(node, key, 0), str)
            }
        found |= {name for name in names - allowed if words & set(name.lower().split("_"))}
    assert found == set()


def test_setup_names_every_package_that_is_imported():
    distributions = packages_distributions()
    imported = {
        name.partition(".")[0]
        for folder in ("histolab_sft", "recipes")
        for path in Path(folder).rglob("*.py")
        for _, name, _ in list_imports(path)
    } - {*sys.stdlib_module_names, "histolab_sft"}
    setup = Path("setup.py").read_text(encoding="utf-8")
    named = {canonicalize_name(name) for name in re.findall(r'"([\w-]+)>=', setup)}
    missing = [name for name in imported if not named & set(map(canonicalize_name, distributions[name]))]
    assert imported and missing == []


def test_the_keys_of_the_base_model_come_from_one_place():
    # TRL's own class lacks the resolution of pictures.
    folders = ("histolab_sft", "recipes", "benchmarks", "tests")
    sources = [path for folder in folders for path in Path(folder).rglob("*.py")]
    own = re.compile(r"^\s*from trl import .*\bModelConfig\b", re.MULTILINE)
    assert [path for path in sources if own.search(path.read_text(encoding="utf-8"))] == []
