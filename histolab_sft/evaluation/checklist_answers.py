"""What a run itself says to the items of the reporting checklists, each in a few sentences from `results.json`."""

from collections.abc import Callable, Iterable

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.dataset import SPLITS
from histolab_sft.evaluation.external_tables import say_change
from histolab_sft.evaluation.report_tables import write_value
from histolab_sft.evaluation.score_names import NAMES, format_score, is_percent, name_in_sentence

SPLIT_KEYS = ("split_seed", "validation_fraction", "test_fraction")
TRAINING = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "augmentation", "class_weights", "class_sampling",
)  # fmt: skip


def tell_sources(results: dict) -> str:
    return _each(results, lambda config, entry, data: f"{write_value(config['source'])}, {data['found']:,} rows")


def tell_exclusions(results: dict) -> str:
    def tell(config, entry, data):
        return (
            ", ".join(f"{rows:,} rows left out by {key}" for key, rows in data["left_out"].items()) or "none left out"
        )

    return _each(results, tell)


def tell_preprocessing(results: dict) -> str:
    def tell(config, entry, data):
        keys = ("image_steps", "intensity_window", "multi_scale")
        return ", ".join(f"{key} {config[key]}" for key in keys if config.get(key))

    return _join(
        [
            "Pictures are scaled by Pillow to the side of the vision tower, and normalised as its processor does",
            _name_keys(results, "image_side", "image_tokens", "augmentation"),
            _each(results, tell),
        ]
    )


def tell_subsets(results: dict) -> str:
    held = _each(results, lambda config, entry, data: data["held_back"] and f"{data['held_back']:,} rows held back")
    return _join([_name_keys(results, "max_samples", "max_test_samples"), held]) or "All rows of the data are used."


def tell_missing(results: dict) -> str:
    def tell(config, entry, data):
        rows = sum(row["without_group"] for row in data["splits"].values())
        return rows and f"{rows:,} rows without a known patient or slide, each taken for one of its own"

    unlabelled = {
        "stop": "Rows without a label would have stopped the run",
        "drop": "Rows without a label are dropped",
    }
    return _join([unlabelled[_value(results, "unlabelled")], _each(results, tell)])


def tell_labels(results: dict) -> str:
    def tell(config, entry, data):
        where = config.get("label_by") or config.get("format") or "class folders or a column of a table"
        classes = config.get("class_names") or {}
        return f"labels from {where}" + (f", classes {', '.join(map(str, classes.values()))}" if classes else "")

    return _each(results, tell)


def tell_partition(results: dict) -> str:
    dealt = "dealt by " + ", ".join(f"{key} {_value(results, key)}" for key in SPLIT_KEYS)

    def tell(config, entry, data):
        counts = ", ".join(f"{split} {data['splits'][split]['used']:,} rows" for split in SPLITS)
        return f"{dealt if entry['split_protocol'] == 'seed' else 'the splits of the data'}; {counts}"

    return _each(results, tell)


def tell_disjoint(results: dict) -> str:
    def tell(config, entry, data):
        by = f" (group_by: {config['group_by']})" if config.get("group_by") else ""
        return f"patients or slides{by}" if entry["n_groups"] else "pictures, as no patient or slide is known"

    found = [finding["message"] for finding in results["data"]["findings"]]
    searched = "Copies, near copies and patients across splits were searched"
    return _join([_each(results, tell), f"{searched}: {'; '.join(found)}" if found else f"{searched}, none was found"])


def tell_sample_size(results: dict) -> str:
    return _each(results, lambda config, entry, data: entry.get("detectable") and entry["detectable"]["text"])


def tell_model(results: dict) -> str:
    origin, recipe = results["provenance"], results["recipe"]
    layers = recipe.get("lora_target_modules") or []
    layers = layers if isinstance(layers, list) else [layers]
    lora = f"LoRA of rank {_value(results, 'lora_r')} in {', '.join(layers)} ({_value(results, 'lora_scope')})"
    bits = _name_keys(results, "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "dtype")
    return _join(
        [
            f"Vision-language model {write_value(origin['base_model'])} at {origin['revision']}",
            lora if recipe.get("use_peft") else "All weights of the trained parts are learnt",
            bits and f"Weights: {bits}",
            "Of options the answer is the class whose whole text is likeliest, with a probability for each; written "
            "answers are read by a parser",
        ]
    )


def tell_software(results: dict) -> str:
    origin = results["provenance"]
    commit = f"Git commit {origin['git_commit']}" if origin["git_commit"] else ""
    return _join([", ".join([f"{name} {version}" for name, version in origin["versions"].items()]), commit])


def tell_start(results: dict) -> str:
    origin, recipe = results["provenance"], results["recipe"]
    begun = recipe.get("adapter_name_or_path")
    adapter = f", the adapter {write_value(begun)}" if begun else ", a new adapter, which changes nothing at the start"
    own = adapter if recipe.get("use_peft") else ""
    return _join([f"Base model {write_value(origin['base_model'])}{own}; seed {origin['seed']}"])


def tell_training(results: dict) -> str:
    hardware, named = results["provenance"]["hardware"], _name_keys(results, *TRAINING)
    return _join(
        [
            "Loss on the tokens of the answer alone",
            named and f"The recipe sets {named}",
            "All other keys have the defaults of TRL and this project",
            f"Scored on {hardware['count']} x {hardware['device']}",
        ]
    )


def tell_selection(results: dict) -> str:
    rule = _value(results, "early_stopping")
    if rule == "none":
        return "The weights of the last step: none was chosen by validation."
    metric = _value(results, "early_stopping_metric")
    return f"The weights of the last step; training may end early by the rule {rule} on {metric}."


def tell_imbalance(results: dict) -> str:
    return _join([_name_keys(results, "class_weights", "class_sampling", "prior_correction", "max_samples")]) or (
        "Nothing was done about rare classes."
    )


def tell_metrics(results: dict) -> str:
    return _each(results, lambda config, entry, data: f"main score {name_in_sentence(_headline(entry))}")


def tell_uncertainty(results: dict) -> str:
    def tell(config, entry, data):
        return "whole patients or slides are drawn" if entry["group_unit"] == "group" else "single rows are drawn"

    return _join(["95 % intervals of 1,000 bootstrap draws, paired for differences", _each(results, tell)])


def tell_robustness(results: dict) -> str:
    def tell(config, entry, data):
        return (
            entry.get("sensitivity") and "asked again in other words, orders of the classes, and as changed pictures"
        )

    return _each(results, tell)


def tell_internal(results: dict) -> str:
    return _each(results, lambda config, entry, data: f"{entry['n']:,} rows of the test split")


def tell_external(results: dict) -> str:
    cohorts = results.get("external", {})
    return _join(f"{name}: {entry['n']:,} rows, {say_change(entry)}" for name, entry in cohorts.items())


def tell_subgroups(results: dict) -> str:
    def tell(config, entry, data):
        keys = [key for key in ("site_by", "subgroup_by") if config.get(key)]
        return keys and f"scores by {' and '.join(f'{key}: {config[key]}' for key in keys)}"

    return _each(results, tell)


def tell_flow(results: dict) -> str:
    def tell(config, entry, data):
        parts = [f"found {data['found']:,}", f"left out {sum(data['left_out'].values()):,}"]
        parts.append(f"held back {data['held_back']:,}")
        for split, row in data["splits"].items():
            groups = f" of {row['groups']:,} patients or slides" if row["groups"] else ""
            parts.append(f"{split} {row['used']:,}{groups}")
        return ", ".join(parts)

    return _each(results, tell)


def tell_classes(results: dict) -> str:
    def tell(config, entry, data):
        classes = data["splits"]["test"]["classes"]
        return classes and "test rows " + ", ".join(f"{label} {rows:,}" for label, rows in classes.items())

    return _each(results, tell)


def tell_scores(results: dict) -> str:
    def tell(config, entry, data):
        score = _headline(entry)
        percent = is_percent(score)
        scored = [
            f"{called} {format_score(entry[system].get(score), percent)['text']}" for system, called in NAMES.items()
        ]
        gain = format_score(entry["difference"].get(score), percent, signed=True)["text"]
        return f"{name_in_sentence(score)}: {', '.join(scored)}, difference {gain}"

    return _each(results, tell)


def tell_limits(results: dict) -> str:
    found = [finding["message"] for finding in results["data"]["findings"]]
    return _join([_each(results, lambda config, entry, data: "; ".join(entry["warnings"])), *found])


def tell_availability(results: dict) -> str:
    origin = results["provenance"]
    # A whole model has several files.
    hashes = origin["adapter_sha256"] or ", ".join(f"{name} {own}" for name, own in origin["model_sha256"].items())
    return _join(
        [
            f"SHA-256 of the weights {hashes}",
            f"Fingerprint of the data {origin['data_fingerprint']}",
            "Recipe, split and predictions of the run are kept with the adapter and the report",
        ]
    )


def _join(parts: Iterable[str | None]) -> str:
    """Sentences from the parts that aren't empty."""
    return " ".join(f"{part.rstrip('.')}." for part in parts if part)


def _each(results: dict, tell: Callable[[dict, dict, dict], str | None]) -> str:
    """What is told of each data set by its entries in the recipe, the scores and the audit; its name before it."""
    told = []
    for config in results["recipe"]["datasets"]:
        name = config["name"]
        if text := tell(config, results["datasets"][name], results["data"]["datasets"][name]):
            told.append(f"{name}: {text}")
    return _join(told)


def _name_keys(results: dict, *keys: str) -> str:
    """Those of the keys that the recipe has, with their values."""
    recipe = results["recipe"]
    return ", ".join(
        f"{key} {write_value(recipe[key])}" for key in keys if recipe.get(key) not in (None, False, "none")
    )


def _value(results: dict, key: str):
    """The recipe's value of a key, or its default."""
    known = HistoArguments.__dataclass_fields__ | ModelConfig.__dataclass_fields__
    return results["recipe"].get(key, known[key].default)


def _headline(entry: dict) -> str:
    return entry.get("headline", "balanced_accuracy")
