"""The part of this package that answering needs, and the versions of what it needs in turn."""

import ast
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT.name


def find_imports(entry: str) -> tuple[list[str], list[str]]:
    """Return the files of this package that module `entry` needs, and the installed distributions that they import.

    Files are relative to the package's folder. Imports inside functions count.
    """
    files, packages, pending = set(), set(), [entry]
    while pending:
        name = pending.pop()
        path = _locate(name)
        if path is None or path in files:
            continue  # no module: a function of one, say
        files.add(path)
        for imported in _read_imports(ROOT / path):
            top, *parts = imported.split(".")
            if top == PACKAGE:
                pending += [".".join([top, *parts[:depth]]) for depth in range(len(parts) + 1)]
            else:
                packages.add(top)
    installed = packages_distributions()
    found = {installed[package][0] for package in packages - sys.stdlib_module_names if package in installed}
    return sorted(map(str, files)), sorted(found)


def pin_requirements(distributions: Iterable[str]) -> dict[str, str]:
    """Return {distribution: version} of what is installed here, with everything that it requires in turn."""
    pins, pending = {}, list(distributions)
    while pending:
        name = canonicalize_name(pending.pop())
        if name in pins:
            continue
        try:
            pins[name] = Version(version(name)).public  # `+cpu` names a build of this machine
        except PackageNotFoundError:
            continue  # required on another system only
        required = [Requirement(line) for line in requires(name) or []]
        pending += [line.name for line in required if line.marker is None or line.marker.evaluate({"extra": ""})]
    return pins


def copy_package(files: Iterable[str], folder: Path) -> None:
    """Copy files of this package, given relative to it, to a package of the same name in `folder`."""
    for file in files:
        (folder / PACKAGE / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, folder / PACKAGE / file)


def _locate(module: str) -> Path | None:
    place = module.split(".")[1:]
    paths = [Path(*place, "__init__.py"), *([Path(*place[:-1], f"{place[-1]}.py")] if place else [])]
    return next((path for path in paths if (ROOT / path).is_file()), None)


def _read_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names
