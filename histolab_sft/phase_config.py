"""The parts of a model that can be trained, and one entry of a recipe's `phases` list."""

import re
from dataclasses import dataclass

from histolab_sft.recipe_checks import check_keys, check_values

LANGUAGE, PROJECTOR, VISION = PARTS = ("language", "projector", "vision")


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


def read_phases(entries: list | None, datasets: list[str]) -> list[PhaseConfig]:
    """Return the phases of a recipe whose data sets have these names.

    Raises:
        ValueError: An unknown key or data set, two phases of one name, or a value that isn't allowed.
    """
    if not isinstance(entries or [], list):
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
