"""`histolab_sft COMMAND`: the recipe scripts of the checkout under short names, and what needs no recipe."""

import argparse
import ast
import runpy
import sys
from pathlib import Path

import shtab

from histolab_sft.errors import plain_errors

CHECKOUT = Path(__file__).resolve().parents[2]
# Command -> recipe script and what it does.
SCRIPTS = {
    "check": ("preflight", "look at a recipe, its data, prompts and memory"),
    "train": ("sft", "fine-tune, in one process"),
    "evaluate": ("evaluate", "score the base model and the adapter, write the report"),
    "study": ("study", "train and score each fold and seed of a recipe"),
    "map": ("map", "draw what the adapter sees where in a slide"),
    "compare": ("compare", "compare finished runs on the same test patches"),
    "push": ("push_adapter", "publish the adapter with its card (first: --dry_run true)"),
    "export": ("export", "write the model for llama.cpp, Ollama or vLLM"),
    "app": ("app", "ask both models in a browser, on this machine only"),
}
RUNS = ("compare",)  # commands that take folders of runs in place of a recipe
EPILOG = """\
  histolab_sft train recipes/my_tissue.yaml --learning_rate 1e-4
Any key of a recipe can be changed behind it, as --key value. Several GPUs:
  accelerate launch --config_file FILE recipes/sft.py --config RECIPE
Tab completion: eval "$(histolab_sft --print-completion bash)"
"""


def main(args: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = sys.argv[1:] if args is None else args
    if args and args[0] in SCRIPTS:
        with plain_errors():
            return run_script(args[0], args[1:])
    options = build_parser().parse_args(args)
    with plain_errors():
        return options.run(options)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the commands without a script; the others are in it for help and completion."""
    parser = argparse.ArgumentParser(
        prog="histolab_sft",
        usage="histolab_sft COMMAND [--help] ...",
        description="Fine-tune MedGemma on histopathology patches, and score it honestly.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    # Without a line of its own in the help, which is to fit a screen.
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    shtab.add_argument_to(parser, "--print-completion", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND [RECIPE]", required=True, dest="command")
    new = commands.add_parser("new", help="write a recipe from a look at your data", description=_new.__doc__)
    new.add_argument("name", metavar="NAME", help="of the recipe, such as my_tissue: recipes/NAME.yaml")
    new.add_argument(
        "--from", dest="source", required=True, metavar="DATA", help="folder or table"
    ).complete = shtab.FILE
    new.set_defaults(run=_new)
    doctor = commands.add_parser("doctor", help="look at this machine, say what to do", description=_doctor.__doc__)
    doctor.add_argument(
        "--config", metavar="RECIPE", help="whose base model and device are meant"
    ).complete = shtab.FILE
    doctor.set_defaults(run=_doctor)
    schema = commands.add_parser("schema", help="print every key of a recipe as JSON schema, for editors")
    schema.set_defaults(run=_schema)
    for name, (_, text) in SCRIPTS.items():
        script = commands.add_parser(name, help=text)
        script.add_argument("recipe", metavar="RECIPE").complete = shtab.FILE
    return parser


def run_script(command: str, args: list[str]) -> int:
    """Run the recipe script of a command in this process; `RECIPE` first stands for `--config RECIPE`.

    Raises:
        FileNotFoundError: The package was installed without the scripts.
    """
    script = CHECKOUT / "recipes" / f"{SCRIPTS[command][0]}.py"
    if not script.is_file():
        raise FileNotFoundError(
            f"{script} isn't there, expected the recipe script that `histolab_sft {command}` runs; get the whole "
            "repository, and install it by `make install` or `pip install -e .` in its folder"
        )
    if not args or args[0] in ("-h", "--help"):
        text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
        taken = "RUN RUN ..." if command in RUNS else "RECIPE [--key value ...]"
        print(f"usage: histolab_sft {command} {taken}\n\n{text}")
        return 0 if args else 2
    if command not in RUNS and not args[0].startswith("-"):
        args = ["--config", *args]
    sys.argv = [str(script), *args]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0


def _new(options: argparse.Namespace) -> int:
    """Write recipes/NAME.yaml from the classes, splits and groups in the data, with what to answer as comments."""
    from histolab_sft.commands.new_recipe import write_recipe

    path, questions = write_recipe(options.name, options.source)
    print("\n".join(f"- {question}" for question in questions))
    print(f"\n{path} is written. Read its comments, then: histolab_sft check {path}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    """Look at driver, GPU, libraries, disk, memory and the base model; exit code 1 where a run couldn't start."""
    from histolab_sft.commands.doctor import examine, format_findings
    from histolab_sft.config.recipe_file import read_recipe

    recipe = read_recipe(options.config) if options.config else {}
    model = recipe.get("model_name_or_path", "google/medgemma-4b-it")
    findings = examine(model, not recipe.get("use_cpu", False), Path(), CHECKOUT / "constraints.txt")
    print(format_findings(findings))
    return int(any(finding.state == "stop" for finding in findings))


def _schema(options: argparse.Namespace) -> int:
    import json

    from histolab_sft.commands.schema import build_schema

    print(json.dumps(build_schema(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
