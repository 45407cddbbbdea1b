"""The part of this package that answering needs, and the versions of what it needs in turn."""

import ast
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PACKAGE = "histolab_sft"


def find_imports(entry: str) -> tuple[list[str], list[str]]:
    """Return the modules of this package that `entry` needs, and the installed distributions that they import."""
    modules, packages, pending = [], set(), [entry]
    while pending:
        name = pending.pop()
        if name in modules or (spec := find_spec(name)) is None:
            continue  # a name inside a module, such as a function
        modules.append(name)
        for imported in _read_imports(Path(spec.origin)):
            if imported.split(".")[0] == PACKAGE:
                parts = imported.split(".")
                pending += [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
            else:
                packages.add(imported.split(".")[0])
    installed = packages_distributions()
    found = {installed[package][0] for package in packages - sys.stdlib_module_names if package in installed}
    return sorted(modules), sorted(found)


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


def copy_package(modules: Iterable[str], others: Iterable[str], folder: Path) -> None:
    """Copy modules of this package, and other files of it by their relative path, to `folder/histolab_sft`."""
    root = Path(find_spec(PACKAGE).origin).parent
    files = [Path(find_spec(module).origin).relative_to(root) for module in modules]
    for file in [*files, *map(Path, others)]:
        (folder / PACKAGE / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, folder / PACKAGE / file)


def _read_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names
