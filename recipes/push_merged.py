"""
Publish base model and adapter as one model in bfloat16, if it answers as the adapter does, to `hub_model_id`-merged:

    python recipes/push_merged.py --config recipes/histolab_5k.yaml --dry_run true
    python recipes/push_merged.py --config recipes/histolab_5k.yaml

What the two answer on the validation split stands in `merge_parity.json`. The token is the one that `hf auth login`
saved, or HF_TOKEN; a recipe never holds one.
"""

import logging

from transformers import HfArgumentParser

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.data.frozen_split import load_scored_patches
from histolab_sft.errors import plain_errors
from histolab_sft.publishing.hub import PublishArguments, format_listing, push_folder
from histolab_sft.publishing.merge import describe
from histolab_sft.publishing.publish_merged import build_merged_folder, name_repository


def main(publish_args, histo_args, training_args, model_args):
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    patches = load_scored_patches(histo_args, training_args.output_dir)[0]["validation"]
    folder, parity = build_merged_folder(patches, histo_args, training_args, model_args)
    print(f"merged = adapter on {parity['n_patches']} patches: {describe(parity)}")
    repo_id = name_repository(training_args)
    private = training_args.hub_private_repo is not False
    print(f"{folder} -> {repo_id or 'no hub_model_id'} ({'private' if private else 'PUBLIC'})")
    print(format_listing(folder))
    if publish_args.dry_run:
        print("dry run: nothing was sent")
    else:
        print(push_folder(folder, repo_id, private))


if __name__ == "__main__":
    publish_args, recipe = HfArgumentParser(PublishArguments).parse_args_into_dataclasses(
        return_remaining_strings=True
    )
    with plain_errors("not published"):
        main(publish_args, *parse_recipe(recipe))
