"""Serve the page from a Space's folder, as `histolab_sft.demo.space` writes it, without the training stack."""

import json
import logging
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from histolab_sft.demo.data_set import DataSet
from histolab_sft.demo.examples import read_examples
from histolab_sft.demo.page import Demo, build_page
from histolab_sft.demo.server import own_folder, serve
from histolab_sft.demo.systems import Systems
from histolab_sft.models.precision import Precision, set_precision
from histolab_sft.models.resolution import resize_processor, resize_tower
from histolab_sft.models.weight_checks import check_loaded


def serve_space(folder: Path) -> None:
    """Load the models that `folder` describes and serve the page where the Space wants it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    demo = load_space(folder)
    with own_folder():
        serve(build_page(demo), host=None)


def load_space(folder: Path) -> Demo:
    """Return the demo that `folder/settings.json` describes, in the precision in which the adapter was scored."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    bundled, revision = folder / "base_model", settings["revision"]
    name = str(bundled) if bundled.is_dir() else settings["base_model"]
    quantization = settings["quantization"] and BitsAndBytesConfig.from_dict(settings["quantization"])
    model, found = AutoModelForImageTextToText.from_pretrained(
        name,
        revision=revision,
        dtype=settings["dtype"],
        attn_implementation=settings["attn_implementation"],
        quantization_config=quantization,
        device_map={"": "cuda:0" if torch.cuda.is_available() else "cpu"},
        output_loading_info=True,
    )
    check_loaded(name, found["missing_keys"], found["unexpected_keys"])
    resolution = settings["image_side"], settings["image_tokens"]
    resize_tower(model, *resolution)
    set_precision(model, Precision(**settings["precision"]))
    processor = AutoProcessor.from_pretrained(name, revision=revision)
    if resolution != (None, None):
        processor = resize_processor(processor, model.config)
    processor.chat_template = settings["chat_template"]
    data_sets = [DataSet(**entry) for entry in settings["data_sets"]]
    examples = folder / "examples"
    return Demo(
        systems=Systems(PeftModel.from_pretrained(model, folder / "adapter").eval(), processor),
        data_sets=data_sets,
        base_model=settings["title"],
        remarks=settings["remarks"],
        examples=read_examples(examples, data_sets) if examples.is_dir() else [],
    )
