"""Write the page of every message that the code ends with, whenever the documents are built."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.structure.files import File

PAGE = "messages.md"
HEAD = """# Every message

This page is made from the code. A message says what was found and what was expected; the second column is what to
do. `…` stands for what differs from case to case, such as a path. Search above for a few words of your message.
[Troubleshooting](troubleshooting.md) explains the ones that come most often.
"""
# Too little to look up: a message that is made elsewhere and passed on.
SHORTEST = 25


def on_files(files, config):
    """Add the page (a hook of MkDocs)."""
    files.append(File.generated(config, PAGE, content=write_page()))
    return files


def write_page() -> str:
    """Return the page in Markdown: a table of messages and cures for each room of the code."""
    rooms = {}
    for path, message in list_messages():
        if ";" in message and len(message) >= SHORTEST:
            rooms.setdefault(path.parts[1].removesuffix(".py"), []).append(message)
    parts = [HEAD]
    for room, messages in sorted(rooms.items()):
        parts.append(f"## {room}\n\n| message | what to do |\n|---|---|")
        parts += [f"| {_escape(found)} | {_escape(cure)} |" for found, cure in map(split_cure, sorted(set(messages)))]
        parts.append("")
    return "\n".join(parts)


def split_cure(message: str) -> tuple[str, str]:
    """Return what a message says, and what it says to do: the part behind its first semicolon."""
    found, _, cure = message.partition("; ")
    return found, cure


def list_messages() -> Iterator[tuple[Path, str]]:
    """Yield file and text of every message that is raised, or that stands in a table of rules, with … for values."""
    for path in sorted(Path("histolab_sft").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                texts = node.exc.args
            elif isinstance(node, ast.Assign) and [getattr(name, "id", "") for name in node.targets] == ["rules"]:
                texts = [pair.elts[-1] for pair in getattr(node.value, "elts", []) if isinstance(pair, ast.Tuple)]
            else:
                continue
            yield from ((path, text) for text in map(_read_text, texts) if text)


def _read_text(node: ast.expr) -> str:
    """Return a text as it stands in the code, with … where a value is put in; empty for anything else."""
    if isinstance(node, ast.Constant):
        return " ".join(str(node.value).split())
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        return " ".join("".join(parts).split())
    return ""


def _escape(text: str) -> str:
    """Return a text whose signs Markdown takes as they are; between backticks only a table's own sign needs that."""
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = [re.sub(r"([<>*_\[\]{}`])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts).replace("|", "\\|")
