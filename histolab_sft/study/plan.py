"""Which trainings a study has, each an ordinary run in a folder and with a recipe of its own."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from histolab_sft.config.arguments import HistoArguments, resolve_recipe
from histolab_sft.config.recipe_file import read_recipe
from histolab_sft.config.trainings import list_seeds
from histolab_sft.data import frozen_split
from histolab_sft.files import write_text
from histolab_sft.training.run_keys import NO_EFFECT

RECIPE, RECORD = "recipe.yaml", "run.json"
# Keys that decide which rows there are, and so can't change where some trainings are done.
ROWS = {*frozen_split.KEYS, "datasets", "data_dir"}


class StudyError(ValueError):
    """The trainings of a study don't belong together, or one of them has ended with an error."""


@dataclass(frozen=True)
class Training:
    """One training of a study: its fold (None without folds), its seed and its folder."""

    fold: int | None
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe(self) -> Path:
        return self.folder / RECIPE


def plan_study(args: list[str], histo_args: HistoArguments, seed: int, output_dir: str | Path) -> list[Training]:
    """Return the trainings of a study, one fold after the other, and write the recipe of each.

    Args:
        args (`list[str]`): Command line of the study, whose overrides hold for all trainings.
        seed, output_dir: Of the study's recipe.

    Raises:
        StudyError: There is a single training, or one was begun with another recipe.
    """
    seeds = list_seeds(histo_args.seeds, seed)
    folds = [None] if histo_args.folds is None else list(range(1, histo_args.folds + 1))
    if histo_args.fold is not None or len(folds) * len(seeds) < 2:
        raise StudyError(
            f"found folds: {histo_args.folds}, fold: {histo_args.fold} and seeds: {histo_args.seeds}, expected a "
            "study of several trainings; set folds: 5, seeds: 3 or both, and no fold"
        )
    shared = resolve_recipe(args)
    trainings = []
    for fold in folds:
        for number in seeds:
            name = "_".join([*([f"fold{fold}"] if fold else []), f"seed{number}"])
            training = Training(fold, number, Path(output_dir, name))
            own = {"seed": number, "output_dir": str(training.folder), "resume_from_checkpoint": "auto"}
            write_recipe(training, shared | own | ({"fold": fold} if fold else {}))
            trainings.append(training)
    return trainings


def write_recipe(training: Training, recipe: dict) -> None:
    """Write the recipe of a training, unless it was begun with one that computes something else.

    Raises:
        StudyError: It was.
    """
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110)
    if training.recipe.is_file():
        before = read_recipe(str(training.recipe))
        changed = [key for key in sorted(before.keys() | recipe.keys()) if before.get(key) != recipe.get(key)]
        fixed = [key for key in changed if key in ROWS or key not in NO_EFFECT]
        if fixed and training.folder.joinpath(RECORD).is_file():
            told = "; ".join(f"{key} was {before.get(key)} and is {recipe.get(key)}" for key in fixed)
            raise StudyError(
                f"{training.folder} holds a training of another recipe: {told}; undo the change, or choose another "
                "output_dir"
            )
        if not changed:
            return
    training.folder.mkdir(parents=True, exist_ok=True)
    write_text(training.recipe, text)
