"""
Publish an adapter with its evaluation and a card made from it, privately unless `hub_private_repo: false`:

    python recipes/push_adapter.py --config recipes/histolab_5k.yaml --dry_run true
    python recipes/push_adapter.py --config recipes/histolab_5k.yaml

The token is the one that `hf auth login` saved, or HF_TOKEN; a recipe never holds one.
"""

import logging

from transformers import HfArgumentParser

from histolab_sft.config.arguments import parse_recipe_elsewhere
from histolab_sft.errors import plain_errors
from histolab_sft.publishing.hub import PublishArguments, build_publish_folder, format_listing, push_folder
from histolab_sft.publishing.push_gate import PublishError


def main(publish_args, histo_args, training_args, model_args):
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    if training_args.hub_token is not None:
        raise PublishError("hub_token is set, expected no token in a recipe; remove it, and run `hf auth login`")
    folder = build_publish_folder(histo_args, training_args, model_args)
    private = training_args.hub_private_repo is not False
    visibility = "private" if private else "PUBLIC"
    print(f"{folder} -> {training_args.hub_model_id or 'no hub_model_id'} ({visibility})")
    print(format_listing(folder))
    if publish_args.dry_run:
        print("dry run: nothing was sent")
    else:
        print(push_folder(folder, training_args.hub_model_id, private))


if __name__ == "__main__":
    publish_args, recipe = HfArgumentParser(PublishArguments).parse_args_into_dataclasses(
        return_remaining_strings=True
    )
    with plain_errors("not published"):
        parsed, _ = parse_recipe_elsewhere(recipe)
        main(publish_args, *parsed)
