"""Write the page of every key of a recipe from the dataclasses that read it, whenever the documents are built."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import trl
import yaml
from mkdocs.structure.files import File

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.external import ASKED, ExternalConfig
from histolab_sft.config.hardware import PROFILES
from histolab_sft.config.phase import PhaseConfig

PAGE = "reference.md"
HEAD = """# Every key of a recipe

This page is made from the code: help texts, types and defaults are those of the classes that read a recipe. Each
example is a line of a recipe in this repository or of a page here. An unknown key is an error that names the nearest
one. Keys that contradict each other are refused together, with what to do.

Every key can stand on the command line too, as in `--learning_rate 1e-4`.
"""
TRL = "{count} keys of TRL and transformers that recipes, profiles or these pages use. All others work as TRL says, "
SECTIONS = (
    ("The project's own keys", HistoArguments, "Keys that TRL doesn't have."),
    ("The base model", ModelConfig, TRL + "unless a message says otherwise."),
    ("Training", trl.SFTConfig, TRL + "unless a message says otherwise."),
    ("A data set", DatasetConfig, "Keys of an entry of `datasets`."),
    (
        "An external cohort",
        ExternalConfig,
        "Keys of an entry of `external`, beside those of a data set without "
        f"{', '.join(f'`{name}`' for name in ASKED[:-1])} and `{ASKED[-1]}`, which are those of the run.",
    ),
    ("A phase", PhaseConfig, "Keys of an entry of `phases`."),
)
# Where the road changes what TRL's help says.
NOTES = {
    "dataloader_num_workers": "Here, if left out, counted from the processors that this process may use.",
    "hub_private_repo": "Here a repository is private unless this is `false`.",
}


def on_files(files, config):
    """Add the page (a hook of MkDocs)."""
    files.append(File.generated(config, PAGE, content=write_page()))
    return files


def write_page() -> str:
    """Return the page in Markdown, each key as a heading with its name as anchor."""
    parts = [HEAD]
    for title, kind, lead in SECTIONS:
        keys = list_keys(kind)
        parts.append(f"## {title}\n\n{lead.format(count=len(keys))}\n")
        parts += [_format_key(entry, kind) for entry in keys]
    return "\n".join(parts)


def list_keys(kind: type) -> list[dataclasses.Field]:
    """Return the keys of a class that a recipe may have: all of this project's, and those of TRL that are used."""
    own = kind.__module__.startswith("histolab_sft")
    inherited = {entry.name for entry in dataclasses.fields(trl.ModelConfig)} if kind is ModelConfig else set()
    if kind is ExternalConfig:
        return [entry for entry in dataclasses.fields(kind) if entry.init and entry.name in kind.__annotations__]
    used = find_used()
    return [
        entry
        for entry in dataclasses.fields(kind)
        if entry.init and (entry.name in used or (own and entry.name not in inherited))
    ]


def explain(entry: dataclasses.Field, kind: type) -> str:
    """Return what a key does: its help text, or its lines in the docstring of its class."""
    text = entry.metadata.get("help") or _read_docstring(kind).get(entry.name, "")
    return " ".join(f"{text} {NOTES.get(entry.name, '')}".split())


def find_example(name: str, kind: type) -> str:
    """Return `key: value` as a recipe or a page has it; for a key with few values, one that isn't the default."""
    level = {DatasetConfig: "datasets", ExternalConfig: "external", PhaseConfig: "phases"}.get(kind, "")
    entry = kind.__dataclass_fields__[name]
    examples = collect_examples()
    found = [value for value in examples[level].get(name, []) if value != entry.default]
    found = found or [value for value in examples["inline"].get(name, []) if value != entry.default]
    if not found and "choices" in entry.metadata:
        found = [choice for choice in entry.metadata["choices"] if choice not in (entry.default, None)]
    if not found and "bool" in str(entry.type):
        found = [not entry.default]
    if not found:
        return ""
    return f"{name}: {_show(min(found, key=lambda value: len(str(value))))}"


@functools.cache
def collect_examples() -> dict[str, dict[str, list]]:
    """Return the values of each key: "" for those of a recipe, of its lists, and between backticks."""
    values = {"": {}, "datasets": {}, "external": {}, "phases": {}, "inline": {}}

    def take(level, mapping):
        for key, value in mapping.items():
            values[level].setdefault(key, []).append(value)

    for block in _read_blocks():
        if "source" in block:
            take("datasets", block)
            continue
        take("", block)
        for level in ("datasets", "external", "phases"):
            for entry in block.get(level) or []:
                take(level, entry)
    for profile in PROFILES.values():
        take("", {key: value for key, (value, _) in profile.items()})
    for key, value in re.findall(r"`(?:--)?([a-z][a-z0-9_]*):? ([^`\n]+)`", _read_pages()):
        if key in find_keys():
            take("inline", {key: yaml.safe_load(value)})
    return values


@functools.cache
def find_keys() -> set[str]:
    """Return the name of every key of every class."""
    return {entry.name for _, kind, _ in SECTIONS for entry in dataclasses.fields(kind)}


@functools.cache
def find_used() -> set[str]:
    """Return the names that recipes, profiles of cards, or pages in backticks use."""
    named = re.findall(r"`(?:--)?([a-z][a-z0-9_]*)(?:[: ][^`\n]*)?`", _read_pages())
    return {*named, *collect_examples()[""]}


def _read_pages() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path("docs").glob("*.md")))


def _read_blocks() -> Iterator[dict]:
    """Yield the mappings in recipes and in the YAML blocks of the pages."""
    for path in sorted(Path("recipes").glob("*.yaml")):
        yield yaml.safe_load(path.read_text(encoding="utf-8"))
    for block in re.findall(r"```yaml\n(.*?)```", _read_pages(), re.DOTALL):
        yield yaml.safe_load(block)


def _format_key(entry: dataclasses.Field, kind: type) -> str:
    default = entry.default
    if default is dataclasses.MISSING:
        default = None if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        needed = entry.default_factory is dataclasses.MISSING
    else:
        needed = False
    facts = [f"type `{_name_type(entry)}`", "must be given" if needed else f"default `{_show(default)}`"]
    if choices := entry.metadata.get("choices"):
        facts.append("one of " + ", ".join(f"`{choice}`" for choice in choices if choice is not None))
    level = {DatasetConfig: "datasets-", ExternalConfig: "external-", PhaseConfig: "phases-"}.get(kind, "")
    example = find_example(entry.name, kind)
    return "\n".join(
        [
            f"### `{entry.name}` {{ #{level}{entry.name} }}\n",
            f"{explain(entry, kind)}\n",
            f"{'; '.join(facts)}.\n",
            f"```yaml\n{example}\n```\n" if example else "",
        ]
    )


def _show(value) -> str:
    value = getattr(value, "value", value)
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip() if value != "" else "empty"


def _name_type(entry: dataclasses.Field) -> str:
    kind = entry.type.__name__ if isinstance(entry.type, type) and not hasattr(entry.type, "__args__") else entry.type
    return re.sub(r"[\w.]+\.(\w+)", r"\1", str(kind))


@functools.cache
def _read_docstring(kind: type) -> dict[str, str]:
    """Return the text of each argument of a class's docstring."""
    _, _, arguments = inspect.getdoc(kind).partition("Args:\n")
    texts = {}
    for names, text in re.findall(r"^ {4}(\S.*?\)): (.*(?:\n {5,}.*)*)", arguments, re.MULTILINE):
        for name in re.findall(r"(\w+)(?= \(|,)", names):
            texts[name] = text
    return texts
