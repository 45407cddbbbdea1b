"""
Write base model and adapter as one model for llama.cpp, Ollama or vLLM, if it answers there as the adapter does:

    python recipes/export.py --config recipes/histolab_5k.yaml --format gguf --quant q4_k_m
    python recipes/export.py --config recipes/histolab_5k.yaml --format vllm --engine_url http://127.0.0.1:8000

The folder that it names holds the files, the comparison on the validation split and the card. Nothing is sent.
"""

import logging

from transformers import HfArgumentParser

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.data.frozen_split import load_scored_patches
from histolab_sft.errors import plain_errors
from histolab_sft.publishing.export import ExportArguments, export_model
from histolab_sft.publishing.hub import format_listing


def main(export_args, histo_args, training_args, model_args):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # one line a question

    patches = load_scored_patches(histo_args, training_args.output_dir)[0]["validation"]
    folder, lines = export_model(export_args, patches, histo_args, training_args, model_args)
    print("\n".join(lines))
    print(f"{folder}\n{format_listing(folder)}")


if __name__ == "__main__":
    with plain_errors("not exported"):
        export_args, recipe = HfArgumentParser(ExportArguments).parse_args_into_dataclasses(
            return_remaining_strings=True
        )
        main(export_args, *parse_recipe(recipe))
