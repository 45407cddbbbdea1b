"""The keys that say what of a model is trained, from where, and in which phases."""

import re
from dataclasses import dataclass, field

import yaml

from histolab_sft.config.checks import check_keys, check_values

LANGUAGE, PROJECTOR, VISION = PARTS = ("language", "projector", "vision")


def check_parts(histo_args, training_args, model_args) -> None:
    """Raise a `ValueError` that names every contradiction between keys about what is trained."""
    phases = histo_args.phases
    parts = list_trained_parts(histo_args)
    folder = histo_args.vision_cache not in ("auto", "off")
    rules = [
        (
            model_args.lora_modules_to_save,
            "lora_modules_to_save names modules by one model's names; set train_projector or train_vision",
        ),
        (
            phases and (histo_args.train_projector or histo_args.train_vision),
            "train_projector and train_vision beside phases, which say themselves what they train; remove them",
        ),
        (
            phases and training_args.resume_from_checkpoint not in (None, "auto"),
            "resume_from_checkpoint is a path, and a run in phases has a checkpoint in each; set it to auto",
        ),
        (
            histo_args.projector_learning_rate is not None and PROJECTOR not in parts,
            "projector_learning_rate without a trained projector; set train_projector: true",
        ),
        (
            histo_args.vision_learning_rate is not None and VISION not in parts,
            "vision_learning_rate without a trained vision tower; set train_vision: true",
        ),
        (
            histo_args.train_vision and histo_args.lora_scope != "language",
            "train_vision trains the whole tower and lora_scope puts LoRA into it; choose one",
        ),
        (
            folder and VISION in parts,
            f"vision_cache {histo_args.vision_cache}: a tower that is trained gives other features in each step; set "
            "vision_cache: off",
        ),
        (
            histo_args.sensitivity_sides and VISION in parts,
            "sensitivity_sides with a trained vision tower, whose positions were learnt for one side; remove it",
        ),
        (
            histo_args.adapter_name_or_path and not model_args.use_peft,
            "adapter_name_or_path without an adapter to train; set use_peft: true, or merge it and train the result",
        ),
    ]
    complaints = [message for broken, message in rules if broken]
    if complaints:
        raise ValueError("; ".join(complaints))


def list_trained_parts(histo_args) -> list[str]:
    """Return every part that a recipe trains, at any time."""
    if histo_args.phases:
        chosen = {part for phase in histo_args.phases for part in phase.train}
    else:
        tower = histo_args.train_vision or histo_args.lora_scope != "language"
        chosen = {LANGUAGE, *([PROJECTOR] * histo_args.train_projector), *([VISION] * tower)}
    return [part for part in PARTS if part in chosen]


@dataclass
class TrainingParts:
    """The keys of `HistoArguments` about what is trained."""

    adapter_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Adapter to continue from, a folder or an id on the Hub; it is trained on, not nested."},
    )
    train_projector: bool = field(
        default=False, metadata={"help": "Train the projector whole as well; the adapter then holds a copy of it."}
    )
    train_vision: bool = field(default=False, metadata={"help": "The same for the vision tower."})
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the projector, in place of learning_rate."}
    )
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the vision tower or the LoRA in it, in place of learning_rate."}
    )
    phases: str | None = field(
        default=None, metadata={"help": "Phases of the run: a YAML list, or JSON on the command line."}
    )


@dataclass
class PhaseConfig:
    """One entry of the recipe's `phases` list. What it leaves out, the recipe's own keys say.

    Args:
        name (`str`): Its outputs go to `output_dir/phase-NAME`.
        train (`list[str]`): Parts that are trained: `language`, `projector`, `vision`. The others stay as they are.
        datasets (`list[str]`, *optional*): Names of data sets of the recipe; all if omitted.
        num_train_epochs (`float`, *optional*), max_steps (`int`, *optional*): How long, one or the other.
        learning_rate (`float`, *optional*): Of the language layers, and of the parts that have no rate of their own.
    """

    name: str
    train: list[str]
    datasets: list[str] | None = None
    num_train_epochs: float | None = None
    max_steps: int | None = None
    learning_rate: float | None = None

    def __post_init__(self):
        place = f"phase {self.name!r}"
        if not re.fullmatch(r"[\w-]+", str(self.name)):
            raise ValueError(f"{place}: expected a name of letters, digits, - and _; it becomes a folder's")
        if not isinstance(self.train, list) or not self.train:
            raise ValueError(
                f"{place}: train is {self.train!r}, expected a list of {', '.join(PARTS)}; name at least one"
            )
        check_keys(self.train, PARTS, f"train of {place}")
        try:
            check_values(vars(self), [PhaseConfig])
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if self.num_train_epochs is not None and self.max_steps is not None:
            raise ValueError(f"{place}: num_train_epochs and max_steps contradict each other; remove one")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"{place}: max_steps is {self.max_steps}, expected at least 1; correct or remove it")
        self.learning_rate = None if self.learning_rate is None else float(self.learning_rate)


def read_phases(entries: list | str | None, datasets: list[str]) -> list[PhaseConfig]:
    """Return the phases of a recipe whose data sets have these names, from a list or its JSON.

    Raises:
        ValueError: An unknown key or data set, two phases of one name, or a value that isn't allowed.
    """
    # JSON is YAML too.
    entries = yaml.safe_load(entries) if isinstance(entries, str) else entries
    if not isinstance(entries or [], list) or not all(isinstance(entry, dict) for entry in entries or []):
        raise ValueError(f"phases is {entries!r}, expected a list of phases; give each a name and what it trains")
    phases = []
    for entry in entries or []:
        name = entry.get("name", "?")
        check_keys(entry, PhaseConfig.__dataclass_fields__, f"phase {name!r}")
        missing = {"name", "train"} - set(entry)
        if missing:
            raise ValueError(f"phase {name!r} lacks {sorted(missing)}; add it to the recipe")
        phases.append(PhaseConfig(**entry))
        check_keys(phases[-1].datasets or [], datasets, f"datasets of phase {name!r}")
    names = [phase.name for phase in phases]
    if len(set(names)) != len(names):
        raise ValueError(f"two phases share a name in {names}; each has a folder of its own, so rename one")
    return phases
