"""
Show the base model and the adapter of a recipe side by side, in a browser on this machine:

    python -m histolab_sft.demo.app --config recipes/demo.yaml [--examples FOLDER] [--port 7860] [--any_key value]

FOLDER holds `<data set>/<class>/picture`. Without it, the data sets that can be painted get painted examples. Of data
sets with a format the rows are read, for their questions.
"""

import argparse
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from trl import ModelConfig, SFTConfig

from histolab_sft.arguments import HistoArguments, parse_recipe
from histolab_sft.demo.examples import read_examples
from histolab_sft.demo.page import Demo, build_page
from histolab_sft.demo.records import build_data_set
from histolab_sft.demo.server import own_folder, serve
from histolab_sft.demo.systems import Systems
from histolab_sft.models.load import load_adapter, load_base_model, load_processor, locate_base_model
from histolab_sft.picture_config import choose_rendering
from histolab_sft.publishing.space import describe_base_model, describe_data_sets, paint_examples

logger = logging.getLogger(__name__)

NO_ADAPTER = "This recipe has no adapter yet, so the base model answers alone. Train it first (make train)."


def main(args: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options, recipe_args = parse_options(args)
    demo = load_demo(*parse_recipe(recipe_args), options.examples)
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


def load_demo(
    histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig, examples: Path | None = None
) -> Demo:
    """Load the model, its adapter if there is one, and everything that the page says about them."""
    # Read before the weights, so that a wrong folder costs no time.
    pictures, painted = _load_examples(histo_args, examples)
    entries, remarks = describe_data_sets(histo_args, Path(training_args.output_dir))
    base_model = locate_base_model(model_args.model_name_or_path)
    model = load_base_model(model_args)
    processor = load_processor(base_model, model_args.model_revision)
    try:
        model = load_adapter(model, training_args.output_dir, model_args.model_revision)
    except FileNotFoundError as error:
        logger.warning("%s; the base model answers alone", error)
        remarks = [NO_ADAPTER]
    return Demo(
        systems=Systems(model, processor, histo_args.max_new_tokens),
        data_sets=[build_data_set(entry) for entry in entries],
        base_model=describe_base_model(model_args.model_name_or_path),
        remarks=remarks + painted,
        examples=pictures,
    )


def _load_examples(histo_args: HistoArguments, folder: Path | None) -> tuple[list, list[str]]:
    renderings = {config.name: choose_rendering(config) for config in histo_args.datasets}
    if folder is not None:
        return read_examples(folder, renderings), []
    with TemporaryDirectory() as temporary:
        remarks = paint_examples(histo_args, Path(temporary, "examples"))
        return (read_examples(Path(temporary, "examples"), renderings) if remarks else []), remarks


if __name__ == "__main__":
    main()
