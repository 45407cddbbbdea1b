"""
Show the base model and the adapter of a recipe side by side, in a browser on this machine:

    python recipes/app.py --config recipes/demo.yaml [--examples FOLDER] [--port 7860] [--any_key value]

FOLDER holds `<data set>/<class>/picture`. Without it, examples are rows of the test split where the data are on this
machine, else painted ones. Of data sets with a format the rows are read, for their questions.
"""

import argparse
import logging
from pathlib import Path

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.errors import plain_errors


def main(args: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options, recipe_args = parse_options(args)
    recipe = parse_recipe(recipe_args)
    # A mistake in the recipe is told before Gradio and the models' code are loaded, which takes seconds.
    from histolab_sft.demo.load import load_demo
    from histolab_sft.demo.page import build_page
    from histolab_sft.demo.server import own_folder, serve

    demo = load_demo(*recipe, options.examples)
    with own_folder():
        serve(build_page(demo), port=options.port)


def parse_options(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the app's own options, and the rest of the command line, which is the recipe's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--examples", type=Path, help="folder with <data set>/<class>/picture")
    parser.add_argument("--port", type=int, help="by default the first free one from 7860 on")
    return parser.parse_known_args(args)


if __name__ == "__main__":
    with plain_errors():
        main()
