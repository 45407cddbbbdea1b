"""
Write `output_dir/space`, a folder that runs as a Gradio Space: the demo of one adapter, without the training stack:

    python recipes/write_space.py --config RECIPE.yaml [--any_key value]
"""

import logging

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.errors import plain_errors


def main(histo_args, training_args, model_args):
    # A mistake in the recipe is told before these are loaded, which takes seconds.
    from histolab_sft.demo.space import build_space
    from histolab_sft.publishing.hub import format_listing

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = build_space(histo_args, training_args, model_args)
    print(f"{format_listing(folder)}\nThe Space is in {folder}; its README says which secret it needs.")


if __name__ == "__main__":
    with plain_errors():
        main(*parse_recipe())
