"""
Ask the fine-tuned model about every square of a whole slide or a large picture, and draw what it sees where:

    python recipes/map.py --config recipes/histolab_5k.yaml --dataset crc --pictures a.svs --patch_size 224 --mpp 0.5
    python recipes/map.py --config recipes/demo.yaml --dataset crc --pictures large.png --patch_size 64

Beside the figure, squares.geojson is for QuPath and squares.csv for a table. A slide needs `mpp`, the µm per pixel of
the training's patches. `--min_tissue 0.5` leaves out glass. The same command goes on with a map that was stopped.
"""

import logging

from transformers import HfArgumentParser

from histolab_sft.errors import plain_errors
from histolab_sft.signals import ending_on_signals


def main(map_args, histo_args, training_args, model_args):
    # A mistake in the recipe is told before these are loaded, which takes seconds.
    from histolab_sft.mapping.run import map_pictures

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for line in map_pictures(map_args, histo_args, training_args, model_args):
        print(line)


if __name__ == "__main__":
    with ending_on_signals(), plain_errors("no map written"):
        # Not before the signals have their handlers: loading it takes seconds.
        from histolab_sft.config.arguments import parse_recipe
        from histolab_sft.mapping.arguments import MapArguments

        map_args, recipe = HfArgumentParser(MapArguments).parse_args_into_dataclasses(return_remaining_strings=True)
        main(map_args, *parse_recipe(recipe))
