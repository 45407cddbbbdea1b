"""Compare weights and settings at scoring with those that training recorded in `run.json`."""

import json
from pathlib import Path

from histolab_sft.provenance import compute_sha256

# Keys of a recipe by which the same weights give other answers.
KEYS = (
    *("model_name_or_path", "model_revision", "use_peft", "dtype", "bf16", "fp16", "attn_implementation"),
    *("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_compute_dtype"),
    *("vision_tower_dtype", "prompt_style", "image_side", "image_tokens"),
)


def collect_settings(histo_args, training_args, model_args) -> dict:
    """Return the values that a run uses of `KEYS`, the defaults and those of a profile among them."""
    values = vars(training_args) | vars(model_args) | vars(histo_args)
    return {key: values[key] for key in KEYS}


def hash_weight_files(folder: str | Path) -> dict[str, str]:
    """Return `{name: SHA-256}` of the weights in a folder, empty where there are none."""
    return {path.name: compute_sha256(path) for path in sorted(Path(folder).glob("*.safetensors"))}


def find_changes(output_dir: str | Path, settings: dict) -> list[str]:
    """Return a sentence for each thing that is other than `run.json` says of the training, none if all is the same.

    Args:
        settings (`dict`): From `collect_settings`, of the run that scores.
    """
    path = Path(output_dir, "run.json")
    if not path.is_file():
        return [f"The run's folder has no {path.name}: nothing tells what was trained and how."]
    run = json.loads(path.read_text(encoding="utf-8"))
    if "settings" not in run or "weights" not in run:
        return [f"{path.name} doesn't tell of finished weights and their precision: it may be of another run."]
    changes = [
        f"{key} was {run['settings'].get(key)} in training and is {value} in scoring."
        for key, value in settings.items()
        if run["settings"].get(key) != value
    ]
    found = hash_weight_files(output_dir)
    changes += [
        f"{name} isn't the file that training wrote."
        for name in sorted({*found, *run["weights"]})
        if found.get(name) != run["weights"].get(name)
    ]
    return changes
