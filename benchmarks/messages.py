"""How long a mistake takes to become a message, beside the import of the parser that reads recipes:

    python -m benchmarks.messages [--runs 3]

prints a table and writes it to benchmarks/results/messages.md. Each command is a process of its own; the best of the
runs counts, in turn with the others, since a busy machine only ever adds time.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import yaml
from PIL import Image

PARSER = "from trl import ModelConfig, SFTConfig, TrlParser; TrlParser((SFTConfig, ModelConfig))"
RESULT = Path("benchmarks/results/messages.md")
SCRIPTS = ("sft", "evaluate", "preflight", "push_adapter")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = write_mistakes(Path(folder))
        best = dict.fromkeys(commands, float("inf"))
        for _ in range(options.runs):
            for name, command in commands.items():
                best[name] = min(best[name], measure(command, name))
    floor = best["the parser alone"]
    lines = [f"| {name} | {seconds:.2f} | {seconds - floor:+.2f} |" for name, seconds in best.items()]
    command = f"`python -m benchmarks.messages`, {datetime.now(UTC):%Y-%m-%d}"
    header = f"Seconds from command to message, best of {options.runs}; {command}."
    table = [header, "", "| command | s | beside the parser |", "|---|---|---|", *lines]
    RESULT.write_text("\n".join(table) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


def write_mistakes(folder: Path) -> dict[str, list[str]]:
    """Return commands by what is wrong with them: a key of the recipe, and a picture that its table names."""
    Image.new("RGB", (32, 32)).save(folder / "there.png")
    table = folder / "table.csv"
    table.write_text("path,label\nthere.png,A\ngone.png,B\n")
    data_set = {"name": "toy", "source": str(table), "class_names": {"A": "Apple", "B": "Pear"}}
    good = {"model_name_or_path": "embedded", "use_cpu": True, "bf16": False, "output_dir": str(folder / "out")}
    recipes = {"key": good | {"learnig_rate": 1e-4}, "table": good}
    for name, recipe in recipes.items():
        folder.joinpath(f"{name}.yaml").write_text(yaml.safe_dump(recipe | {"datasets": [data_set]}))
    commands = {"the parser alone": [sys.executable, "-c", PARSER]}
    for script in SCRIPTS:
        commands[f"{script}.py, a wrong key"] = script_command(script, folder / "key.yaml")
    for script in ("sft", "preflight"):
        commands[f"{script}.py, a table that names a picture that isn't there"] = script_command(
            script, folder / "table.yaml"
        )
    return commands


def script_command(script: str, recipe: Path) -> list[str]:
    return [sys.executable, f"recipes/{script}.py", "--config", str(recipe)]


def measure(command: list[str], name: str) -> float:
    """Return the seconds that a command takes; raise RuntimeError where it doesn't end as it should."""
    start = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    expected = 0 if name == "the parser alone" else 2
    if ended.returncode != expected:
        raise RuntimeError(f"{name} ended with {ended.returncode}, expected {expected}:\n{ended.stderr}")
    return seconds


if __name__ == "__main__":
    main()
