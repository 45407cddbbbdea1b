"""Write a recipe for data that nobody has described yet, with the questions that only their owner can answer."""

import os
import re
import textwrap
from pathlib import Path

import yaml

from histolab_sft.commands.group_patterns import find_group_pattern
from histolab_sft.commands.survey import Survey, count_splits, survey_source
from histolab_sft.data.formats.listing import list_some
from histolab_sft.errors import say_count

WIDTH = 117
RECIPE = """\
# Written from a look at {source}. Not measured yet.
# Needs access to the gated base model (hf auth login); `hardware: auto` takes the values for the card that it finds.
# Licence of the data: please name it here.
#
# Questions to answer before a score is worth anything:
{questions}

# Model
model_name_or_path: google/medgemma-4b-it
hardware: auto

# LoRA
use_peft: true
lora_target_modules: [q_proj, k_proj, v_proj, o_proj]

# Data
datasets:
  - name: {name}
{entry}

# Training
output_dir: outputs/{name}
max_length: null                       # a cut could take image tokens, or the whole answer
learning_rate: 2.0e-4
warmup_steps: 0.03
logging_steps: 5
save_steps: 200
"""


def write_recipe(name: str, source: str) -> tuple[Path, list[str]]:
    """Write `recipes/NAME.yaml` for the patches in a folder or table.

    Args:
        name (`str`): Of the recipe, its data set and its outputs.
        source (`str`): Any layout that the readers know, see `histolab_sft.data.data_sets`.

    Returns:
        `tuple`: The file, and what the look at the data found and asks, a sentence each.

    Raises:
        FileExistsError: There is such a recipe already.
        FileNotFoundError: There is no such source.
        ValueError: The name can't be that of a file, or no classes are found.
    """
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"the name is {name!r}, expected letters, digits, - and _; it becomes a file's")
    path = Path("recipes", f"{name}.yaml")
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another name, or remove it")
    source = os.path.relpath(source) if Path(source).resolve().is_relative_to(Path.cwd()) else source
    survey = survey_source(source)
    pattern = None
    questions = [*survey.questions, *_ask_about_classes(survey)]
    if survey.patches is not None:
        questions += [] if survey.splits_unclear else _ask_about_splits(survey)
        pattern, asked = _ask_about_groups(survey)
        questions.append(asked)
    entry = yaml.safe_dump(
        {"source": source} | survey.keys, sort_keys=False, allow_unicode=True, width=WIDTH - 6, default_flow_style=None
    )
    if pattern:
        entry += f"# group_by: {yaml.safe_dump(pattern, width=WIDTH).removesuffix('...' + chr(10))}"
    path.parent.mkdir(exist_ok=True)
    numbered = "\n".join(
        textwrap.fill(question, WIDTH, initial_indent=f"# {number}. ", subsequent_indent="#    ")
        for number, question in enumerate(questions, 1)
    )
    text = RECIPE.format(
        source=source, questions=numbered, name=name, entry=textwrap.indent(entry.rstrip("\n"), "    ")
    )
    path.write_text(text, encoding="utf-8")
    return path, questions


def _ask_about_classes(survey: Survey) -> list[str]:
    labels = list(survey.keys["class_names"])
    counts = {} if survey.patches is None else survey.patches["label"].value_counts()
    found = ", ".join(f"{label} ({counts[label]:,})" if label in counts else label for label in labels)
    asked = [
        f"The classes are {found}. Are these all, and the right words? The model says the words behind the colon."
    ]
    if numbers := [label for label in labels if label.isdecimal()]:
        asked.append(f"What do the labels {list_some(numbers)} stand for? Write the words in class_names.")
    unlabelled = 0 if survey.patches is None else int(survey.patches["label"].isna().sum())
    if unlabelled:
        asked.append(
            f"{say_count(unlabelled, 'patch')} without a label: label them, or leave them out by unlabelled: drop."
        )
    return asked


def _ask_about_splits(survey: Survey) -> list[str]:
    counts = count_splits(survey.patches)
    if not counts:
        return [
            "The data name no splits, so 70 % train, 15 % validation and 15 % test are dealt by seed. Is there a "
            "published split? Then name it by splits."
        ]
    found = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    dealt = "" if {"validation", "test"} <= set(counts) else " What is missing is dealt out of train by seed."
    return [f"The data name their splits: {found}.{dealt} Are these the published ones?"]


def _ask_about_groups(survey: Survey) -> tuple[str | None, str]:
    """Return a pattern to offer, None without one, and what to ask."""
    patches = survey.patches
    known = patches["group"].dropna()
    if len(known):
        groups = say_count(known.nunique(), "patient or slide", "patients or slides")
        return None, f"The data have a column with {groups}, for {len(known):,} of {len(patches):,} patches."
    places = patches["id"].str.removeprefix("data/").str.replace(r"#\d+$", "", regex=True)
    found = find_group_pattern(places.tolist(), patches["label"].dropna().tolist())
    if found is None:
        return None, (
            "No patient or slide was found in the names. Patches of one patient in two splits make every score too "
            "good. If names or a table tell the patient, add group_by; if nobody knows, say so with the score."
        )
    examples = ", ".join(f"{group} ({count})" for group, count in found.sizes.most_common(3))
    return found.pattern, (
        f"Is {found.meaning} the patient or slide? The line group_by below takes it, and finds "
        f"{len(found.sizes):,} groups: {examples}. It is switched off: remove its # only if that is so. A patient "
        "then stays in one split; without it, patches of one patient in two splits make every score too good."
    )
