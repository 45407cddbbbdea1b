"""A run as training and scoring leave it on disk, for the tests of publishing: small, of two data sets."""

import hashlib
import json
import random

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from histolab_sft.arguments import parse_recipe

REPO = "pathlab/medgemma-crc"
DATASETS = [
    {"name": "crc", "source": "data/datasets/crc", "class_names": {"ADI": "Adipose", "TUM": "Tumor", "STR": "Stroma"}},
    {"name": "ward", "source": "own/ward", "class_names": {"N": "Normal", "T": "Tumor"}, "group_by": "(S[0-9]+)"},
]


def write_run(folder, **keys):
    """Write recipe, adapter and evaluation; return the arguments of the recipe and its path."""
    output_dir = folder / "out"
    recipe = {
        "model_name_or_path": "google/medgemma-4b-it",
        "load_in_4bit": True,
        "dtype": "bfloat16",
        "use_peft": True,
        "lora_target_modules": ["q_proj", "v_proj"],
        "datasets": DATASETS,
        "output_dir": str(output_dir),
        "use_cpu": True,
        "bf16": False,
        "hub_model_id": REPO,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | keys))
    (output_dir / "evaluation" / "figures").mkdir(parents=True)
    write_adapter(output_dir)
    write_evaluation(output_dir)
    for name in ("confusion_crc", "reliability"):
        image = Image.new("RGB", (8, 8), "white")
        image.save(output_dir / "evaluation" / "figures" / f"{name}.png")
    return parse_recipe(["--config", str(path)]), path


def write_adapter(output_dir, value=0.5, metadata=None):
    """Write an adapter of one layer, every weight of it `value`."""
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors = {name: torch.full((64, 128), value), name.replace("lora_A", "lora_B"): torch.full((128, 64), value)}
    save_file(tensors, output_dir / "adapter_model.safetensors", metadata={"format": "pt", **(metadata or {})})
    config = {"base_model_name_or_path": "google/medgemma-4b-it", "peft_type": "LORA", "r": 64}
    (output_dir / "adapter_config.json").write_text(json.dumps(config))


def write_evaluation(output_dir, **provenance):
    """Write `results.json` of the adapter that lies in `output_dir`, all its scores different; return its content."""
    draw = random.Random(0)
    sha256 = hashlib.sha256((output_dir / "adapter_model.safetensors").read_bytes()).hexdigest()

    def score():
        value = draw.random()
        return {"value": value, "ci95": [value * draw.random(), value + (1 - value) * draw.random()]}

    def system(classes):
        scores = {name: score() for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "unparsed_rate")}
        rows = {
            name: {"recall": draw.random(), "f1": draw.random(), "support": draw.randrange(99)} for name in classes
        }
        return {**scores, "brier": {"value": draw.random()}, "ece": {"value": None, "ci95": None}, "per_class": rows}

    results = {"provenance": {"adapter_sha256": sha256, "seed": 42, **provenance}, "datasets": {}}
    for dataset in DATASETS:
        classes = list(dataset["class_names"].values())
        results["datasets"][dataset["name"]] = {
            "n": draw.randrange(100, 999),
            "group_unit": "slide",
            "n_groups": 57 if dataset["name"] == "ward" else None,
            "split_protocol": "official",
            "baseline": system(classes),
            "finetuned": system(classes),
            "difference": {"balanced_accuracy": score(), "mcnemar_p": draw.random()},
            "floors": {name: system(classes) for name in ("majority", "mean_rgb")},
        }
    results["overall"] = {name: {"balanced_accuracy": score()} for name in ("baseline", "finetuned", "difference")}
    (output_dir / "evaluation" / "results.json").write_text(json.dumps(results))
    return results
