"""What the page needs before it opens: the model, its adapter if there is one, the data sets and the examples."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.picture import choose_rendering
from histolab_sft.demo.examples import read_examples
from histolab_sft.demo.page import Demo
from histolab_sft.demo.records import build_data_set
from histolab_sft.demo.space import describe_base_model, describe_data_sets, paint_examples
from histolab_sft.demo.systems import Systems
from histolab_sft.models.load import load_adapter, load_base_model, load_base_processor
from histolab_sft.models.precision import read_precision
from histolab_sft.tasks import classification

logger = logging.getLogger(__name__)

NO_ADAPTER = "This recipe has no adapter yet, so the base model answers alone. Train it first (make train)."


def load_demo(
    histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig, examples: Path | None = None
) -> Demo:
    """Load the model, its adapter if there is one, and everything that the page says about them."""
    # Read before the weights, so that a wrong folder costs no time.
    pictures, painted = _load_examples(histo_args, examples)
    entries, remarks = describe_data_sets(histo_args, Path(training_args.output_dir))
    model = load_base_model(model_args, read_precision(histo_args, training_args))
    processor = load_base_processor(model_args)
    try:
        model = load_adapter(model, training_args.output_dir, model_args.model_revision)
    except FileNotFoundError as error:
        logger.warning("%s; the base model answers alone", error)
        remarks = [NO_ADAPTER]
    return Demo(
        systems=Systems(model, processor, histo_args.max_new_tokens or classification.MAX_NEW_TOKENS),
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
