"""A run as training and scoring leave it on disk, for the tests of publishing: small, of two data sets."""

import hashlib
import json
from functools import cache

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from histolab_sft.arguments import parse_recipe
from histolab_sft.dataset_config import DatasetConfig
from histolab_sft.evaluation.results import SYSTEMS, score_dataset, score_overall
from histolab_sft.evaluation.verdict import judge_run

TESTED = 211  # patches of each test split
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
    path.write_text(yaml.safe_dump(recipe | keys, sort_keys=False))
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
    """Write `results.json` of the adapter that lies in `output_dir`; return its content."""
    sha256 = hashlib.sha256((output_dir / "adapter_model.safetensors").read_bytes()).hexdigest()
    results = {"provenance": {"adapter_sha256": sha256, "seed": 42, **provenance}, **json.loads(score_datasets())}
    (output_dir / "evaluation" / "results.json").write_text(json.dumps(results))
    return results


@cache
def score_datasets():
    """Score answers drawn at random as `evaluate.py` does, and give the results as JSON."""
    generator = np.random.default_rng(0)
    results, estimates = {"datasets": {}}, {}
    for dataset in DATASETS:
        config = DatasetConfig(**dataset)
        classes = list(config.class_names.values())
        colours = [generator.dirichlet(np.ones(len(classes)), size=TESTED) for _ in range(2)]
        mean, histogram = (
            {"predictions": np.array(classes)[colour.argmax(axis=1)], "probabilities": colour} for colour in colours
        )
        results["datasets"][config.name], estimates[config.name] = score_dataset(
            config,
            test={system: draw_answers(config, TESTED, generator) for system in SYSTEMS},
            validation={system: draw_answers(config, 90, generator) for system in SYSTEMS},
            floors={
                "majority": {"predictions": np.full(TESTED, classes[0]), "probabilities": None},
                "mean_rgb": mean,
                "colour_histogram": histogram,
                "file": None,
            },
            protocol="official" if config.group_by else "seed",
        )
    results |= {"overall": score_overall(estimates), "verdict": judge_run(results["datasets"])}
    return json.dumps(results)


def draw_answers(config, n, generator):
    """Give a table of `predict` for `n` patches, right more often than by chance."""
    classes = np.array(list(config.class_names.values()))
    labels = np.arange(n) % len(classes)
    scores = generator.normal(size=(n, len(classes)))
    scores[np.arange(n), labels] += 1
    return pd.DataFrame(
        {
            "id": [f"{config.name}/{row}" for row in range(n)],
            "group": [f"S{row // 7}" if config.group_by else None for row in range(n)],
            "label": classes[labels],
            "log_likelihoods": list(scores),
            "answer": "The answer is in another castle.",
            "generated": np.where(generator.random(n) < 0.1, "unparsed", classes[scores.argmax(axis=1)]),
            "truncated": generator.random(n) < 0.1,
        }
    )
