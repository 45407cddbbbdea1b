"""The reporting checklists that reviewers ask for, filled as far as a run knows the answers.

CLAIM 2024 (Tejani et al. 2024, Radiology: Artificial Intelligence 6:e240300) is for AI in medical imaging, TRIPOD+AI
(Collins et al. 2024, BMJ 385:e078378) for prediction models. Their items are told here in short words of our own, in
the order of a paper; numbers are those of the published lists.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histolab_sft.evaluation import checklist_answers as answers
from histolab_sft.files import write_text

COLUMNS = ("Part", "Item", "CLAIM 2024", "TRIPOD+AI", "What this run says", "Left to the author")
TEX_WIDTHS = "p{1.6cm}p{2.6cm}llp{6.5cm}p{4.2cm}"


@dataclass(frozen=True)
class Item:
    """One item of the checklists.

    Args:
        part (`str`): Of a paper.
        topic (`str`): What is asked for.
        claim, tripod (`str`): Numbers of the item, empty where a list doesn't have it.
        author (`str`): What only the author can say; empty where the run says all.
        tell (*optional*): From `results.json` to what the run says, None where this run has nothing.
    """

    part: str
    topic: str
    claim: str
    tripod: str
    author: str = ""
    tell: Callable[[dict], str | None] | None = None


def fill_checklist(results: dict) -> list[dict[str, str]]:
    """Return the checklist as rows with the keys of `COLUMNS`.

    Args:
        results (`dict`): What stands in `results.json`.
    """
    rows = []
    for item in ITEMS:
        told = (item.tell(results) if item.tell else None) or ""
        author = item.author or ("" if told else "Not part of this run: say so, or add it.")
        rows.append(dict(zip(COLUMNS, (item.part, item.topic, item.claim, item.tripod, told, author), strict=True)))
    return rows


def write_checklist(rows: list[dict[str, str]], folder: Path) -> None:
    """Write the checklist for a paper: `checklist.md`, `checklist.tex` (a longtable) and `checklist.csv`."""
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row[column].replace('|', '/') for column in COLUMNS)} |" for row in rows]
    text = table.to_csv(index=False, quoting=csv.QUOTE_ALL)
    tex = table.to_latex(index=False, escape=True, longtable=True, column_format=TEX_WIDTHS)
    for suffix, content in (("md", "\n".join(lines) + "\n"), ("tex", tex), ("csv", text)):
        write_text(folder / f"checklist.{suffix}", content)


METHODS, DATA, RESULTS, OTHER = "Methods", "Methods: data", "Results", "Other"
ITEMS = [
    Item("Title, abstract", "AI named in the title", "1", "1", "Name the model, the task and the population."),
    Item("Title, abstract", "Structured summary", "2", "2", "Write it."),
    Item("Introduction", "Background, intended use and users, known inequalities", "3", "3a, 3b, 3c", "Write it."),
    Item("Introduction", "Aims and hypotheses", "4", "4", "Write it."),
    Item(METHODS, "Prospective or retrospective, goal of the study", "5, 6", "", "State both."),
    Item(DATA, "Sources", "7", "5a", "Who collected them, under which licence, and how representative they are.",
         answers.tell_sources),
    Item(DATA, "Dates and setting", "", "5b, 6a", "When and in which centres the patients were seen."),
    Item(DATA, "Inclusion and exclusion", "8", "6b, 6c", "Criteria of eligibility, and treatments.",
         answers.tell_exclusions),
    Item(DATA, "Preprocessing", "9", "7, 9b", "What was done before the files that were read: tiling, stains.",
         answers.tell_preprocessing),
    Item(DATA, "Subsets", "10", "", "", answers.tell_subsets),
    Item(DATA, "De-identification", "11", "", "How the data were de-identified."),
    Item(DATA, "Missing data", "12", "11", "What is missing, and why.", answers.tell_missing),
    Item(DATA, "Acquisition of the pictures", "13", "9a, 9c", "Stain, scanner, magnification, and who measured."),
    Item(DATA, "Reference standard", "14, 15, 16, 17, 18", "8a, 8b, 8c",
         "Who gave the labels by which method, why, blinded to what, and how far readers agree.", answers.tell_labels),
    Item(DATA, "Assignment to splits", "19", "12a, 16", "", answers.tell_partition),
    Item(DATA, "Level at which splits are disjoint", "20", "12a", "", answers.tell_disjoint),
    Item(METHODS, "Sample size", "21", "10", "How the size was decided.", answers.tell_sample_size),
    Item(METHODS, "Model, its inputs and outputs", "22", "9a, 12c, 15", "", answers.tell_model),
    Item(METHODS, "Software", "23", "12c", "", answers.tell_software),
    Item(METHODS, "Initial weights", "24", "12c", "", answers.tell_start),
    Item(METHODS, "Training", "25", "12b, 12c", "", answers.tell_training),
    Item(METHODS, "Choice of the final model", "26", "12c", "", answers.tell_selection),
    Item(METHODS, "Ensembles", "27", "12c", "None is made here: say so, or name the study of several trainings."),
    Item(METHODS, "Rare classes", "", "13", "", answers.tell_imbalance),
    Item(METHODS, "Scores", "28", "12e", "", answers.tell_metrics),
    Item(METHODS, "Significance and uncertainty", "29", "12e", "", answers.tell_uncertainty),
    Item(METHODS, "Robustness", "30", "12d", "", answers.tell_robustness),
    Item(METHODS, "Explanations of single answers", "31", "", "None are made: say so, or add them."),
    Item(METHODS, "Test on internal data", "32", "12a", "", answers.tell_internal),
    Item(METHODS, "Test on external data", "33", "12a", "", answers.tell_external),
    Item(METHODS, "Fairness: sites and subgroups", "", "14", "", answers.tell_subgroups),
    Item(METHODS, "Ethics, registration", "34", "17, 18d", "Approval, consent, number of the registration."),
    Item(RESULTS, "Flow of patients and pictures", "35", "20a, 21", "", answers.tell_flow),
    Item(RESULTS, "Characteristics of the patients", "36", "20b, 20c", "Age, sex, stage, centre of each split.",
         answers.tell_classes),
    Item(RESULTS, "Performance with its uncertainty", "37, 38", "23a, 23b", "", answers.tell_scores),
    Item(RESULTS, "Failures", "39", "", "What the mistakes have in common; the report shows them."),
    Item("Discussion", "Limitations", "40", "26", "Bias, and what the results can't be carried over to.",
         answers.tell_limits),
    Item("Discussion", "Interpretation, use in practice", "41", "25, 27a, 27b, 27c", "Write it."),
    Item(OTHER, "Protocol", "42", "18c", "Where the full protocol is."),
    Item(OTHER, "Availability of model, code and data", "43", "18e, 18f, 22", "Where they can be had, on which terms.",
         answers.tell_availability),
    Item(OTHER, "Updates of a model", "", "12f, 24", "Whether an earlier model was updated."),
    Item(OTHER, "Funding, conflicts, patients involved", "44", "18a, 18b, 19", "State all three."),
]  # fmt: skip
