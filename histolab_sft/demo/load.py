"""What the page needs before it opens: the model, its adapter if there is one, the data sets and the examples."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.demo.data_set import DataSet
from histolab_sft.demo.describe import describe_base_model, describe_data_sets
from histolab_sft.demo.examples import Example, read_examples
from histolab_sft.demo.page import Demo
from histolab_sft.demo.scored_rows import read_test_rows
from histolab_sft.demo.space import PAINTED, paint_examples
from histolab_sft.demo.systems import Systems
from histolab_sft.embedded.synthetic import is_painted
from histolab_sft.models.load import load_adapter, load_base_model, load_base_processor
from histolab_sft.models.precision import read_precision

logger = logging.getLogger(__name__)

NO_ADAPTER = "This recipe has no adapter yet, so the base model answers alone. Train it first (make train)."


def load_demo(
    histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig, examples: Path | None = None
) -> Demo:
    """Load the model, its adapter if there is one, and everything that the page says about them."""
    # Read before the weights, so that a wrong folder costs no time.
    data_sets, remarks = describe_data_sets(histo_args, Path(training_args.output_dir))
    pictures, painted = _load_examples(histo_args, data_sets, examples, Path(training_args.output_dir))
    model = load_base_model(model_args, read_precision(histo_args, training_args))
    processor = load_base_processor(model_args)
    try:
        model = load_adapter(model, training_args.output_dir, model_args.model_revision)
    except FileNotFoundError as error:
        logger.warning("%s; the base model answers alone", error)
        remarks = [NO_ADAPTER]
    return Demo(
        systems=Systems(model, processor),
        data_sets=data_sets,
        base_model=describe_base_model(model_args.model_name_or_path),
        remarks=remarks + painted,
        examples=pictures,
    )


def _load_examples(
    histo_args: HistoArguments, data_sets: list[DataSet], folder: Path | None, output_dir: Path
) -> tuple[list[Example], list[str]]:
    if folder is not None:
        return read_examples(folder, data_sets), []
    examples, remarks = read_test_rows(histo_args, output_dir)
    if examples:
        sources = [Path(histo_args.data_dir, config.source) for config in histo_args.datasets]
        return examples, remarks + [PAINTED] * any(map(is_painted, sources))
    with TemporaryDirectory() as temporary:
        painted = paint_examples(histo_args, Path(temporary, "examples"))
        return (read_examples(Path(temporary, "examples"), data_sets) if painted else []), remarks + painted
