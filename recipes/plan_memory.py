"""
Show the memory plan of a recipe for this machine and for every hardware profile; no weights are read:

    python recipes/plan_memory.py --config recipes/histolab_5k.yaml
"""

import logging
import sys

from histolab_sft.config.arguments import parse_recipe_elsewhere
from histolab_sft.data.rows import load_patches
from histolab_sft.errors import plain_errors
from histolab_sft.hub_access import HubAccessError
from histolab_sft.memory.fit import measure_lengths
from histolab_sft.memory.plan import plan_for_recipe
from histolab_sft.models.load import load_base_processor

logger = logging.getLogger(__name__)


def main(args):
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parsed, on_gpu = parse_recipe_elsewhere(args)
    histo_args, _, model_args = parsed
    lengths = None
    try:
        processor = load_base_processor(model_args)
        lengths = measure_lengths(load_patches(histo_args)["train"], processor)
    except (OSError, ValueError, HubAccessError) as error:
        # Data and gated tokenizer may be on the machine that will train.
        logger.info("The rows can't be counted here: %s", str(error).splitlines()[0])
    logger.info("%s", plan_for_recipe(*parsed, on_gpu=on_gpu, lengths=lengths))


if __name__ == "__main__":
    with plain_errors():
        main(sys.argv[1:])
