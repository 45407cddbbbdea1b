"""The keys of a recipe that TRL doesn't have, and the parser that all commands share."""

import itertools
import json
import sys
from dataclasses import dataclass, field, fields

from trl import SFTConfig, TrlParser

from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.checks import check_keys, check_values, key
from histolab_sft.config.class_balance import CLASS_SAMPLING, CLASS_WEIGHTS, read_prior_correction
from histolab_sft.config.contradictions import check_consistency
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.external import read_external
from histolab_sft.config.hardware import (
    NO_PROFILE,
    PROFILES,
    apply_profile,
    check_gpu,
    detect_capability,
    detect_profile,
)
from histolab_sft.config.phase import read_phases
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
        at = args.index("--config")
        recipe, own_flags = read_recipe(path), args[:at] + args[at + 2 :]
        check_secrets(recipe, "the recipe")
        check_keys(recipe, known, "the recipe")
        check_values(recipe, kinds)
    written = {*recipe, *flags}
    profile, values, notes = resolve_profile(args, written)
    check_gpu(values | resolve_recipe(args))
    parser.set_defaults(**values)
    # Not `parse_args_and_config`: it reads the file again, and labels such as `No` and `01` as other than text.
    parser.set_defaults_with_config(**recipe)
    parsed = parser.parse_args_into_dataclasses(own_flags)
    given = {name: value for part in parsed for name, value in vars(part).items() if name in flags}
    check_values(given, kinds)
    parsed[0].hardware, parsed[0].profile_notes, parsed[0].written = profile, notes, written
    check_consistency(*parsed)
    return parsed


def parse_recipe_elsewhere(args: list[str] | None = None) -> tuple[tuple, bool]:
    """Parse a recipe to inspect it, not to run it: one that is meant for a GPU also on a machine without one.

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
    """Return the name of the recipe's profile (`auto` resolved), the values that it adds, and notes about them."""
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
    """Return the path after `--config`; None where all keys of the recipe are on the command line."""
    if "--config" not in args:
        if not any(flag.startswith("--datasets") for flag in args):
            raise ValueError("no recipe, expected --config RECIPE.yaml; recipes/ holds some to copy")
        return None
    following = args[args.index("--config") + 1 :]
    if not following or following[0].startswith("--"):
        raise ValueError("nothing stands after --config, expected the path of a recipe; recipes/ holds some to copy")
    return following[0]


def _refuse_command_line(message: str) -> None:
    """Replace `ArgumentParser.error`, which would print every key of three dataclasses before its message."""
    raise ValueError(f"{message} on the command line; correct it, `--help` lists every key")


@dataclass
class HistoArguments:
    """Keys of a recipe beside those of `trl.SFTConfig` and `trl.ModelConfig`."""

    adapter_name_or_path: str | None = key(None, "Adapter to continue training, a folder or an id on the Hub.")
    train_projector: bool = key(
        False, "Train all weights of the projector too, without LoRA; the adapter's folder then holds them."
    )
    train_vision: bool = key(False, "Train all weights of the vision tower too, without LoRA.")
    projector_learning_rate: float | None = key(None, "Learning rate of the projector, in place of learning_rate.")
    vision_learning_rate: float | None = key(
        None, "Learning rate of the vision tower, or of the LoRA in it, in place of learning_rate."
    )
    phases: str | None = key(
        None, "Phases of training, one after the other: a YAML list, or JSON on the command line."
    )
    hardware: str = key(
        NO_PROFILE,
        "Profile of a graphics card (`hardware.PROFILES`). Its values are the defaults of keys that the recipe "
        "leaves out; `auto` chooses one by compute capability and free memory.",
        [NO_PROFILE, "auto", *PROFILES],
    )
    bnb_4bit_compute_dtype: str | None = key(None, "Type in which 4-bit layers multiply, if not `dtype`.", DTYPES)
    vision_tower_dtype: str | None = key(None, "Type of the vision tower's weights, if not `dtype`.", DTYPES)
    candidate_batch_size: int = key(96, "How many candidate answers are scored at once.")
    datasets: str = key("", "Data sets of the run: a YAML list, or JSON on the command line.")
    external: str = key(
        "",
        "Cohorts that were never trained on, to score beside the test splits: a YAML list, or JSON on the command "
        "line. Their rows are all scored, and nothing is fitted on them.",
    )
    data_dir: str = key(".", "Folder to which the sources of data sets are relative.")
    max_samples: int | None = key(
        None, "Most patches of each data set, balanced over classes; not of a test split that the data bring."
    )
    max_test_samples: int | None = key(None, "Most patches of each data set's test split, balanced over the classes.")
    split_protocol: str = key(
        "official",
        "`official` keeps the splits of the data; `seed` assigns all patches to splits at random, to compare with "
        "runs that did so. Patients then leak between splits unless `group_by` names them.",
        ["official", "seed"],
    )
    split_seed: int = key(42, "Seed of the splits that are drawn, and of the patches that `max_samples` keeps.")
    validation_fraction: float = key(0.15, "Share for validation, where the data have no validation split.")
    test_fraction: float = key(0.15, "Share for the test, where the data have no test split.")
    folds: int | None = key(
        None,
        "Cross-validation: all rows are dealt into so many folds, by class and with whole patients, and each fold is "
        "the test of a training of its own. An official test split is held out of the folds and isn't scored; "
        "`split_protocol: seed` deals it too. `histolab_sft study` runs them all.",
    )
    fold: int | None = key(
        None,
        "The fold that is the test, from 1 to `folds`; validation is drawn from the others. A study sets it for each "
        "of its trainings.",
    )
    seeds: list[int] | None = key(
        None,
        "Trainings of a study that differ in `seed` alone: their number, counted from `seed`, or a list of seeds. A "
        "single training has the one that `seed` names.",
    )
    refused_images: str = key(
        "stop",
        "What to do about pictures that can't be used: `stop`, or `quarantine` to leave them out.",
        ["stop", "quarantine"],
    )
    unlabelled: str = key(
        "stop",
        "What to do about rows whose label is empty, null or -1: `drop` leaves them out and counts them.",
        ["stop", "drop"],
    )
    leaks: str = key(
        "stop",
        "What to do when the audit of the splits refuses: `drop` takes copies, near copies and patients that are "
        "also in a later split out of the earlier one, and counts them; `allow` trains all the same.",
        ["stop", "drop", "allow"],
    )
    changed_split: str = key(
        "stop",
        "What to score where validation or test hold pictures, near copies, patients or slides of what was trained "
        "on, because data or splits have changed since: `stop` with the counts, the `frozen` split of training as "
        "far as its pictures are still there, or the `new` one without those rows.",
        ["stop", "frozen", "new"],
    )
    find_siblings: bool = key(
        False,
        "Search also for patches cut from one picture and turned by any angle, mirrored or cropped, and treat them "
        "like near copies. Takes minutes for 10,000 patches, and needs `histolab_sft[siblings]`.",
    )
    prompt_style: str = key(
        "generic",
        "Wording of the question: one for all data sets, or the data set's own.",
        ["generic", "dataset_specific"],
    )
    lora_scope: str = key(
        "language",
        "Which parts of the model get LoRA in the layers of `lora_target_modules`.",
        ["language", "language_and_vision"],
    )
    resume_changes: list[str] | None = key(
        None,
        "Keys that may differ from the run that is resumed, such as [learning_rate]; `run.json` notes each change "
        "with its step. Any other difference is refused.",
    )
    oom: str = key(
        "stop",
        "When memory runs out in training: `stop` with advice, or `halve` the micro-batch and double gradient "
        "accumulation, which keeps the rows of a step and the loss the same.",
        ["stop", "halve"],
    )
    early_stopping: str = key(
        "none", "Rule that stops training early, on the smoothed metric.", ["none", "threshold", "plateau"]
    )
    early_stopping_metric: str = key("loss", "Logged value that the rule of early stopping smooths.")
    early_stopping_patience: int = key(50, "Optimiser steps for which the rule must hold.")
    early_stopping_threshold: float = key(0.001, "The rule `threshold` holds below this value (an accuracy: above).")
    early_stopping_min_delta: float = key(0.001, "The rule `plateau` holds while the metric gains less than this.")
    ema_decay: float = key(0.9, "Weight of the earlier steps in the smoothed metric.")
    generate_answers: bool = key(
        True, "Score the answers that the model writes as well as the likelihood of each class."
    )
    max_new_tokens: int | None = key(
        None, "Longest generated answer in tokens; if omitted 64, or with a `format` what the task needs."
    )
    constrained_decoding: bool = key(False, "Restrict generated JSON answers to the form of the task's fields.")
    augmentation: str = key(
        "none",
        "Random change of the train patches in each epoch: one of the eight flips and rotations by 90 degrees "
        "(`symmetries`), HED colour jitter (`stain`), or both (`all`).",
        ["none", "symmetries", "stain", "all"],
    )
    class_weights: str = key(
        "none",
        "Weigh the loss of each train row by its class, within each data set and with a mean of 1 over its rows: one "
        "divided by the class's rows (`inverse_frequency`), or by their effective number, which grows more slowly "
        "(`effective_number`, Cui et al. 2019).",
        CLASS_WEIGHTS,
    )
    class_sampling: str = key(
        "natural",
        "`balanced` draws as many rows of each class of a data set in an epoch, by seed and epoch: rows of rare "
        "classes several times, of frequent ones a part. An epoch stays as long.",
        CLASS_SAMPLING,
    )
    prior_correction: str = key(
        "none",
        "Correct the fine-tuned model's class scores for how frequent it learnt each class to be: `train` to the "
        "shares in the train split, which `class_weights` and `class_sampling` shift; or data set: {label: share} to "
        "those where the model is to be used (Saerens et al. 2002).",
    )
    vision_cache: str = key(
        "auto",
        "Encode each picture once and keep its features on disk: `auto` where the vision tower is frozen, time is "
        "saved and there is room; `off`; or a folder for the features.",
    )
    compiled_layers: str = key(
        "auto",
        "Compile the language model's layers for training and for likelihood: `auto` on a GPU where the time saved "
        "is more than compiling takes; `on`, which compiles the vision tower for `vision_cache` too; `off`.",
        ["auto", "on", "off"],
    )
    encoders: list[str] | None = key(
        None,
        "Other frozen picture encoders in the report's ladder of scores, each a folder or an id on the Hub such as "
        "[facebook/dinov2-base]: a linear fit and nearest neighbours on its features, and the latter on those of the "
        "base model's own.",
    )
    cnn: str | None = key(
        None,
        "A small network in the report's ladder of scores, trained on the same rows for the same number of samples: "
        "`resnet18` from random weights, or a folder or an id such as microsoft/resnet-18.",
    )
    expected_score: float = key(
        0.8,
        "Balanced accuracy that the fine-tuned model is expected to reach. For it, preflight says how wide the "
        "interval will be.",
    )
    expected_gain: float = key(
        0.05,
        "Gain over the base model that a study is to show. For it, preflight and report say how many patients or "
        "slides are needed.",
    )
    sensitivity: str = key(
        "none",
        "Score a part of the test split again with other wordings and orders of the classes (`prompt`), or also with "
        "changed pictures (`all`).",
        ["none", "prompt", "all"],
    )
    sensitivity_sides: list[int] | None = key(
        None,
        "Other picture sides in pixels, such as [448, 672], at which the adapter is scored too: on the patches of "
        "`sensitivity`, with the same number of image tokens. Gemma 3 only.",
    )
    sensitivity_samples: int = key(200, "Most patches of each data set for `sensitivity`, balanced over the classes.")

    # Filled by `parse_recipe`: notes about the profile, and the keys that the recipe or the command line has.
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
        self.external = read_external(self.external, self.datasets)
        self.phases = read_phases(self.phases, names)
        self.seeds = [self.seeds] if type(self.seeds) is int else self.seeds
        self.prior_correction = read_prior_correction(self.prior_correction, self.datasets)
        if self.max_new_tokens is None and all(entry.options for entry in self.datasets):
            self.max_new_tokens = 64
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave no patch to train on; lower them")
