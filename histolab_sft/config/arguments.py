"""Every knob of a recipe that TRL doesn't have already, and the one parser that all recipe scripts share."""

import itertools
import json
import sys
from dataclasses import dataclass, field, fields

from trl import SFTConfig, TrlParser

from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.checks import check_consistency, check_keys, check_values
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.hardware import (
    NO_PROFILE,
    PROFILES,
    apply_profile,
    check_gpu,
    detect_capability,
    detect_profile,
)
from histolab_sft.config.phase import TrainingParts, check_parts, read_phases
from histolab_sft.config.recipe_file import read_recipe, read_yaml
from histolab_sft.secrets import check_secrets
from histolab_sft.workers import count_loader_workers

DTYPES = ["bfloat16", "float16", "float32"]


def parse_recipe(args: list[str] | None = None) -> tuple["HistoArguments", SFTConfig, ModelConfig]:
    """Parse `--config recipe.yaml` and the flags that override its keys.

    Args:
        args (`list[str]`, *optional*): Command line without the program's name, `sys.argv[1:]` if omitted.

    Returns:
        `tuple`: The recipe's `HistoArguments`, `SFTConfig` and `ModelConfig`.

    Raises:
        FileNotFoundError: There is no such recipe.
        ValueError: An unknown key (named with the nearest that exists), a token or password, a value of the wrong type
            or out of range, keys that contradict each other, an unknown profile, or a recipe for a GPU on a machine
            without one.
    """
    kinds = (HistoArguments, SFTConfig, ModelConfig)
    parser = TrlParser(kinds)
    parser.error = _refuse_command_line
    parser.set_defaults(dataloader_num_workers=count_loader_workers())
    args = list(sys.argv[1:] if args is None else args)
    known = {action.dest for action in parser._actions} - {"help"}
    flags = [flag[2:].split("=")[0] for flag in args if flag.startswith("--") and flag != "--config"]
    check_secrets(
        {flag.split("=")[0]: [flag, value] for flag, value in itertools.pairwise([*args, ""])}, "the command line"
    )
    check_keys(flags, known, "the command line")
    recipe, own_flags = {}, args
    if path := _find_recipe(args):
        place = args.index("--config")
        recipe, own_flags = read_recipe(path), args[:place] + args[place + 2 :]
        check_secrets(recipe, "the recipe")
        check_keys(recipe, known, "the recipe")
        check_values(recipe, kinds)
    written = {*recipe, *flags}
    profile, values, notes = resolve_profile(args, written)
    check_gpu(values | resolve_recipe(args))
    parser.set_defaults(**values)
    # In place of `parse_args_and_config`, which would read the file again, and its words as numbers and truth values.
    parser.set_defaults_with_config(**recipe)
    parsed = parser.parse_args_into_dataclasses(own_flags)
    given = {name: value for part in parsed for name, value in vars(part).items() if name in flags}
    check_values(given, kinds)
    parsed[0].hardware, parsed[0].profile_notes, parsed[0].written = profile, notes, written
    check_consistency(*parsed)
    check_parts(*parsed)
    return parsed


def parse_recipe_elsewhere(args: list[str] | None = None) -> tuple[tuple, bool]:
    """Parse a recipe that is only looked at: one that is meant for a GPU also on a machine without one.

    Returns:
        `tuple`: What `parse_recipe` gives, and whether the recipe is meant for a GPU.
    """
    args = sys.argv[1:] if args is None else args
    recipe = resolve_recipe(args)
    _, values, _ = resolve_profile(args, set(recipe))
    on_gpu = not (values | recipe).get("use_cpu", False)
    # Without a GPU, SFTConfig refuses a recipe that is meant for one.
    elsewhere = on_gpu and detect_capability() is None
    return parse_recipe([*args, "--use_cpu", "true"] if elsewhere else args), on_gpu


def resolve_profile(args: list[str], written: set[str]) -> tuple[str, dict, list[str]]:
    """Return the profile that `hardware` names, `auto` resolved; the values that it adds; what it would change."""
    name = resolve_recipe(args).get("hardware", NO_PROFILE)
    if name == NO_PROFILE:
        return name, {}, []
    name = detect_profile() if name == "auto" else name
    return name, *apply_profile(name, written)


def resolve_recipe(args: list[str]) -> dict:
    """Return the recipe's own keys with the values that the command line gives them, as the run reads them."""
    recipe = read_recipe(path) if (path := _find_recipe(args)) else {}
    pairs = [(flag[2:], value) for flag, value in itertools.pairwise([*args, "--"]) if flag.startswith("--")]
    # `--key=value`, `--key value`, and a flag alone, which is true.
    pairs = [flag.split("=", 1) if "=" in flag else (flag, value) for flag, value in pairs]
    overrides = {key: True if value.startswith("--") else read_yaml(value) for key, value in pairs}
    return recipe | {key: value for key, value in overrides.items() if key != "config"}


def _find_recipe(args: list[str]) -> str | None:
    """Return the path behind `--config`; None where a recipe's keys stand on the command line alone."""
    if "--config" not in args:
        if not any(flag.startswith("--datasets") for flag in args):
            raise ValueError("no recipe, expected --config RECIPE.yaml; recipes/ holds some to copy")
        return None
    following = args[args.index("--config") + 1 :]
    if not following or following[0].startswith("--"):
        raise ValueError("nothing stands after --config, expected the path of a recipe; recipes/ holds some to copy")
    return following[0]


def _refuse_command_line(message: str) -> None:
    """Stand in for `ArgumentParser.error`, which would print every key of three dataclasses before its message."""
    raise ValueError(f"{message} on the command line; correct it, `--help` lists every key")


@dataclass
class HistoArguments(TrainingParts):
    """Keys of a recipe beside those of `trl.SFTConfig` and `trl.ModelConfig`."""

    hardware: str = field(
        default=NO_PROFILE,
        metadata={
            "help": "Profile of a card (`hardware.PROFILES`) whose values stand for the keys that the recipe leaves "
            "out; `auto` chooses by compute capability and free memory.",
            "choices": [NO_PROFILE, "auto", *PROFILES],
        },
    )
    bnb_4bit_compute_dtype: str | None = field(
        default=None, metadata={"help": "In which 4-bit layers multiply, if not in `dtype`.", "choices": DTYPES}
    )
    vision_tower_dtype: str | None = field(
        default=None, metadata={"help": "Of the vision tower, if not `dtype`.", "choices": DTYPES}
    )
    candidate_batch_size: int = field(
        default=96, metadata={"help": "Answers whose logits are held at once in scoring."}
    )
    datasets: str = field(
        default="", metadata={"help": "Data sets of the run: a YAML list, or JSON on the command line."}
    )
    data_dir: str = field(default=".", metadata={"help": "Folder that relative sources of data sets start at."})
    max_samples: int | None = field(default=None, metadata={"help": "Class-balanced cap for each data set."})
    max_test_samples: int | None = field(default=None, metadata={"help": "The same for the test split alone."})
    split_protocol: str = field(
        default="official",
        metadata={
            "help": "`official` keeps the splits that the data bring; `seed` deals all patches out at random; "
            "patients that `group_by` doesn't name leak then, and it is for comparison with runs that did so.",
            "choices": ["official", "seed"],
        },
    )
    split_seed: int = field(default=42, metadata={"help": "Seed of the splits and of the cap."})
    validation_fraction: float = field(default=0.15, metadata={"help": "Where the data bring no validation split."})
    test_fraction: float = field(default=0.15, metadata={"help": "Where the data bring no test split."})
    refused_images: str = field(
        default="stop",
        metadata={"help": "What to do about pictures that can't be used.", "choices": ["stop", "quarantine"]},
    )
    unlabelled: str = field(
        default="stop",
        metadata={
            "help": "What to do about rows whose label is empty, null or -1: `drop` leaves them out and counts them.",
            "choices": ["stop", "drop"],
        },
    )
    leaks: str = field(
        default="stop",
        metadata={
            "help": "What to do when the audit of the splits refuses: `drop` takes copies, near copies and patients "
            "that are also in a later split out of the earlier one, and counts them; `allow` trains all the same.",
            "choices": ["stop", "drop", "allow"],
        },
    )
    changed_split: str = field(
        default="stop",
        metadata={
            "help": "What to score where validation or test hold pictures, near copies, patients or slides of what "
            "was trained on, because data or splits have changed since: `stop` with the counts, the `frozen` split of "
            "training as far as its pictures are still there, or the `new` one without those rows.",
            "choices": ["stop", "frozen", "new"],
        },
    )
    find_siblings: bool = field(
        default=False,
        metadata={
            "help": "Look also for patches that were cut from one picture, turned by any angle, mirrored and cropped, "
            "and treat them like near copies; takes minutes for 10,000 patches, and `histolab_sft[siblings]`."
        },
    )
    prompt_style: str = field(
        default="generic",
        metadata={"help": "Question of the task.", "choices": ["generic", "dataset_specific"]},
    )
    lora_scope: str = field(
        default="language",
        metadata={"help": "Where lora_target_modules are looked for.", "choices": ["language", "language_and_vision"]},
    )
    resume_changes: list[str] | None = field(
        default=None,
        metadata={
            "help": "Keys that a resumed run takes with other values than it had, such as [learning_rate]; `run.json` "
            "notes each change with its step. Any other difference is refused."
        },
    )
    oom: str = field(
        default="stop",
        metadata={
            "help": "When memory runs out in training: `stop` with advice, or `halve` the micro-batch and accumulate "
            "twice as many, for the same rows a step and the same loss.",
            "choices": ["stop", "halve"],
        },
    )
    early_stopping: str = field(
        default="none",
        metadata={"help": "Rule on the smoothed metric.", "choices": ["none", "threshold", "plateau"]},
    )
    early_stopping_metric: str = field(default="loss", metadata={"help": "Logged value that the rule watches."})
    early_stopping_patience: int = field(default=50, metadata={"help": "Optimiser steps for which the rule holds."})
    early_stopping_threshold: float = field(default=0.001, metadata={"help": "Level of the rule `threshold`."})
    early_stopping_min_delta: float = field(default=0.001, metadata={"help": "Least gain of the rule `plateau`."})
    ema_decay: float = field(default=0.9, metadata={"help": "Weight of the past in the smoothed metric, per step."})
    generate_answers: bool = field(
        default=True,
        metadata={"help": "Score also what the systems write, beside the likelihood of each class."},
    )
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": "Longest generated answer in tokens; 64 if omitted, and for records as long as their task."},
    )
    constrained_decoding: bool = field(
        default=False, metadata={"help": "Let JSON answers be written in no other form than that of their fields."}
    )
    augmentation: str = field(
        default="none",
        metadata={
            "help": "Change train patches anew each epoch: one of the eight flips and quarter turns (`symmetries`), "
            "HED colour jitter (`stain`), or both (`all`).",
            "choices": ["none", "symmetries", "stain", "all"],
        },
    )
    vision_cache: str = field(
        default="auto",
        metadata={
            "help": "Encode each picture once and keep its features on disk: `auto` where the vision tower is frozen, "
            "it pays and there is room; `off`; or a folder."
        },
    )
    compiled_layers: str = field(
        default="auto",
        metadata={
            "help": "Compile the language model's layers for training and for likelihood: `auto` on a GPU where the "
            "time saved is more than compiling takes; `on`; `off`.",
            "choices": ["auto", "on", "off"],
        },
    )
    sensitivity: str = field(
        default="none",
        metadata={
            "help": "Score a part of the test split again under other wordings and orders of the classes (`prompt`), "
            "and under changes of the pictures as well (`all`).",
            "choices": ["none", "prompt", "all"],
        },
    )
    sensitivity_sides: list[int] | None = field(
        default=None,
        metadata={
            "help": "Other sides in pixels at which the same adapter is scored as well, on the patches that "
            "`sensitivity` asks about and with as many image tokens, such as [448, 672]. Gemma 3 only."
        },
    )
    sensitivity_samples: int = field(
        default=200, metadata={"help": "Class-balanced cap for each data set on the patches that it asks about."}
    )

    # What `parse_recipe` found: what the profile would have changed, and the keys that somebody wrote.
    profile_notes: list[str] = field(default_factory=list, init=False)
    written: set[str] = field(default_factory=set, init=False)

    def __post_init__(self):
        # YAML reads a bare off as false, and a bare on as true.
        self.vision_cache = "off" if self.vision_cache is False else self.vision_cache
        self.compiled_layers = {False: "off", True: "on"}.get(self.compiled_layers, self.compiled_layers)
        entries = json.loads(self.datasets) if isinstance(self.datasets, str) and self.datasets else self.datasets
        if not entries or not isinstance(entries, list):
            raise ValueError(
                f"datasets is {entries!r}, expected a list with at least one data set; add it to the recipe"
            )
        known = {entry.name for entry in fields(DatasetConfig)}
        for entry in entries:
            check_keys(entry, known, f"data set {entry.get('name', entries.index(entry))!r}")
            missing = {"name", "source", *([] if "format" in entry else ["class_names"])} - set(entry)
            if missing:
                raise ValueError(f"data set {entry.get('name', '?')!r} lacks {sorted(missing)}; add it to the recipe")
        self.datasets = [DatasetConfig(**entry) for entry in entries]
        names = [entry.name for entry in self.datasets]
        if len(set(names)) != len(names):
            raise ValueError(f"two data sets share a name in {names}; every table is keyed by it, so rename one")
        self.phases = read_phases(self.phases, names)
        kinds = {entry.format is None for entry in self.datasets}
        if len(kinds) > 1:
            records = [entry.name for entry in self.datasets if entry.format is not None]
            raise ValueError(
                f"{records} have a format and the other data sets none, expected all or none: they are scored in "
                "different ways; give each kind a recipe of its own"
            )
        if self.max_new_tokens is None and True in kinds:
            self.max_new_tokens = 64
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave no patch to train on; lower them")
