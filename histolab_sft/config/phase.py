"""The parts of a model that a recipe trains, and the phases in which it trains them."""

import re
from dataclasses import dataclass

import yaml

from histolab_sft.config.checks import check_keys, check_values

LANGUAGE, PROJECTOR, VISION = PARTS = ("language", "projector", "vision")


def list_trained_parts(histo_args) -> list[str]:
    """Return every part that a recipe trains, at any time."""
    if histo_args.phases:
        chosen = {part for phase in histo_args.phases for part in phase.train}
    else:
        tower = histo_args.train_vision or histo_args.lora_scope != "language"
        chosen = {LANGUAGE, *([PROJECTOR] * histo_args.train_projector), *([VISION] * tower)}
    return [part for part in PARTS if part in chosen]


@dataclass
class PhaseConfig:
    """One entry of the recipe's `phases` list. For what it leaves out, the recipe's own keys hold.

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
        where = f"phase {self.name!r}"
        if not re.fullmatch(r"[\w-]+", str(self.name)):
            raise ValueError(f"{where}: expected a name of letters, digits, - and _; it becomes a folder's")
        if not isinstance(self.train, list) or not self.train:
            raise ValueError(
                f"{where}: train is {self.train!r}, expected a list of {', '.join(PARTS)}; name at least one"
            )
        check_keys(self.train, PARTS, f"train of {where}")
        try:
            check_values(vars(self), [PhaseConfig])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if self.num_train_epochs is not None and self.max_steps is not None:
            raise ValueError(f"{where}: num_train_epochs and max_steps contradict each other; remove one")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"{where}: max_steps is {self.max_steps}, expected at least 1; correct or remove it")
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
