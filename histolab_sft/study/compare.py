"""Compare finished runs on the same test patches: paired differences to the first, corrected for their number."""

import csv
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import softmax

from histolab_sft.evaluation.groups import name_units
from histolab_sft.evaluation.predictions import FINETUNED
from histolab_sft.evaluation.report_tables import format_p
from histolab_sft.evaluation.score_names import METRICS, format_score
from histolab_sft.evaluation.uncertainty import Estimate, bootstrap, difference, interval
from histolab_sft.files import write_text
from histolab_sft.metrics.weighted import classification_measure
from histolab_sft.study.answers import find_positive
from histolab_sft.study.plan import ROWS, StudyError
from histolab_sft.study.report import FOLDER
from histolab_sft.study.scores import ENSEMBLE

logger = logging.getLogger(__name__)

SCORES = ("balanced_accuracy", "accuracy", "macro_f1", "auroc", "average_precision", "brier", "nll")
LEVEL = 0.05
DRAWS = 100_000  # of the largest statistic; the quantile then stands to within 1 %
COLUMNS = (
    *("data set", "run", "patches", "score", "low", "high"),
    *("difference", "difference low", "difference high", "p corrected"),
)


@dataclass
class RunAnswers:
    """What a run says about one data set: a row a test patch, by `id`, its probability of each class,
    the place of the class that counts as positive, the recipe."""

    table: pd.DataFrame
    classes: list[str]
    probabilities: np.ndarray
    positive: int
    recipe: dict


def compare_runs(folders: list[str], score: str = SCORES[0]) -> list[dict]:
    """Return one row a data set and run, in the order given.

    Both systems of a difference are scored on the same bootstrap draws of whole patients or slides. Intervals of the
    differences hold all at once, and their p is corrected for all of them: the limits are those of the largest of
    their statistics under Student's multivariate t with the correlations of the draws (Hothorn, Bretz and Westfall
    2008, Biometrical Journal 50:346, single step). Data sets are independent of each other.

    Args:
        folders: Runs that were scored, or studies, which their ensemble stands for. The first is what the others are
            compared with.
        score: One of `SCORES`.

    Returns:
        Rows with `dataset`, `run`, `n`, `n_groups`, `score` and, but for the first run, `difference` (both as from
        `interval`) and `p`.

    Raises:
        StudyError: Fewer than two runs, one that wasn't scored, or runs that were scored on different patches.
    """
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise StudyError(f"found the runs {', '.join(folders)}, expected at least two different folders of runs")
    runs = {folder: read_run(Path(folder)) for folder in folders}
    first, *others = folders
    for other in others:
        check_same_rows(first, runs[first], other, runs[other])
    rows, gains = [], {}
    for name, given in runs[first].items():
        labels, groups = given.table["label"].to_numpy(str), name_units(given.table)
        measures = {}
        for folder in folders:
            own = runs[folder][name]
            answers = np.array(own.classes)[own.probabilities.argmax(axis=1)]
            measures[folder] = classification_measure(labels, answers, own.classes, own.probabilities, own.positive)
        estimates = bootstrap(measures, len(labels), groups)
        units = None if groups is None else len(set(groups))
        for folder in folders:
            estimate = estimates[folder][score]
            rows.append({"dataset": name, "run": folder, "n": len(labels), "n_groups": units})
            rows[-1]["score"] = interval(estimate)
            if folder != first:
                gains[name, folder] = difference(estimate, estimates[first][score])
    intervals = correct_intervals(gains)
    return [row | intervals.get((row["dataset"], row["run"]), {}) for row in rows]


def correct_intervals(gains: dict[tuple[str, str], Estimate]) -> dict[tuple[str, str], dict]:
    """Return for each difference its `difference` with a simultaneous interval and its corrected `p`.

    Args:
        gains: (Data set, run) -> paired difference; those of one data set are of the same draws.
    """
    known = [place for place, gain in gains.items() if _measure_size(gain) is not None]
    chances = _draw_smallest({place: gains[place] for place in known})
    level = float(np.quantile(chances, LEVEL)) if known else LEVEL
    found = {}
    for place, gain in gains.items():
        entry = {"difference": interval(gain, level=level), "p": None}
        if place in known:
            own = 2 * stats.t.sf(_measure_size(gain), gain.degrees)
            entry["p"] = float((chances <= own).mean())
        found[place] = entry
    return found


def read_run(folder: Path) -> dict[str, RunAnswers]:
    """Return data set -> answers of a scored run, or of the ensemble of a study, about data sets with options.

    Raises:
        StudyError: The folder holds neither, or answers that are all written.
    """
    study = folder / FOLDER
    place = study if study.is_dir() else folder / "evaluation"
    paths = place / "results.json", place / "predictions.parquet"
    if not all(path.is_file() for path in paths):
        raise StudyError(
            f"{folder} holds no {paths[0].name} with predictions, expected a run that was scored; score it"
        )
    results, table = json.loads(paths[0].read_text(encoding="utf-8")), pd.read_parquet(paths[1])
    table = table[table["system"] == (ENSEMBLE if place == study else FINETUNED)]
    found = {}
    for name, entry in results["datasets"].items():
        if "task" in entry:
            logger.warning("%s: %s has written answers and is left out; compare the reports", folder, name)
            continue
        own = table[table["dataset"] == name].sort_values("id", kind="stable", ignore_index=True)
        if place == study:
            probabilities = np.stack(own["probabilities"])
        else:
            probabilities = softmax(np.stack(own["log_likelihoods"]), axis=1)
        positive, rows = find_positive(results, name), own[["id", "group", "label"]]
        found[name] = RunAnswers(rows, entry["classes"], probabilities, positive, results["recipe"])
    if not found:
        raise StudyError(f"{folder} has written answers alone, expected data sets with classes; compare their reports")
    return found


def check_same_rows(first: str, known: dict[str, RunAnswers], other: str, found: dict[str, RunAnswers]) -> None:
    """Raise a StudyError that names what differs, unless two runs were scored on the same patches and classes."""
    differences = []
    if known.keys() != found.keys():
        differences.append(f"data sets {', '.join(known)} and {', '.join(found)}")
    for name in known.keys() & found.keys():
        one, two = known[name], found[name]
        apart = set(one.table["id"]) ^ set(two.table["id"])
        if apart:
            differences.append(f"{name}: {len(apart)} patches are in one test alone, of {len(one.table)} in the first")
        elif one.classes != two.classes:
            differences.append(f"{name}: classes {one.classes} and {two.classes}")
        else:
            for column, called in (("label", "label"), ("group", "patient or slide")):
                unlike = one.table[column].fillna("") != two.table[column].fillna("")
                if unlike.any():
                    differences.append(f"{name}: {unlike.sum()} patches have another {called}")
    if not differences:
        return
    recipes = [next(iter(run.values())).recipe for run in (known, found)]
    keys = [key for key in sorted(ROWS - {"datasets"}) if recipes[0].get(key) != recipes[1].get(key)]
    told = "; ".join(f"{key} is {recipes[0].get(key)} and {recipes[1].get(key)}" for key in keys)
    raise StudyError(
        f"{first} and {other} were scored on different rows ({'; '.join(differences)}"
        + (f"; their recipes differ: {told}" if told else "")
        + "), expected the same test patches; score both on the same split"
    )


def format_rows(rows: list[dict], score: str) -> str:
    """Return the table as Markdown, with a line that says what was corrected."""
    called, percent = METRICS[score]
    heads = ("Data set", "Run", "Patches", called, "Difference to the first", "p, corrected")
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for row in rows:
        cells = [row["dataset"], row["run"], f"{row['n']:,}", format_score(row["score"], percent)["text"]]
        if "difference" in row:
            cells += [format_score(row["difference"], percent, signed=True)["text"]]
            cells += ["–" if row["p"] is None else format_p(row["p"])]
        else:
            cells += ["", ""]
        lines.append(" | ".join(cells))
    count = sum("difference" in row for row in rows)
    table = "\n".join(f"| {line} |" for line in lines)
    return (
        f"{table}\n\nIntervals are of 95 %, those of the {count} differences together: all hold at once in 95 of 100 "
        "such comparisons. p is corrected for all of them."
        if count > 1
        else f"{table}\n\nIntervals are of 95 %. The one difference needs no correction."
    )


def write_rows(rows: list[dict], score: str, path: str) -> None:
    """Write the table as `PATH.md` and `PATH.csv`; in the latter numbers have all their digits."""
    write_text(Path(f"{path}.md"), format_rows(rows, score) + "\n")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        gain = row.get("difference")
        cells = [row["dataset"], row["run"], row["n"], row["score"]["value"], *(row["score"]["ci95"] or ("", ""))]
        cells += ["", "", "", ""] if gain is None else [gain["value"], *(gain["ci95"] or ("", "")), row["p"]]
        writer.writerow(cells)
    write_text(Path(f"{path}.csv"), buffer.getvalue())


def _measure_size(gain: Estimate) -> float | None:
    """Return how many standard errors a difference lies from zero, as its interval counts them; None without one."""
    spread = np.nanstd(gain.draws)
    if np.isnan(gain.value) or gain.degrees < 1 or spread == 0 or gain.scale == "none":
        return None
    signed = gain.scale == "signed" and abs(gain.value) < 1
    middle = abs(np.arctanh(gain.value)) * (1 - gain.value**2) if signed else abs(gain.value)
    return float(middle / (spread * ((gain.degrees + 1) / gain.degrees) ** 0.5))


def _draw_smallest(gains: dict[tuple[str, str], Estimate]) -> np.ndarray:
    """Return draws of the smallest p of all differences where none differs in truth, float64 of shape (draws,)."""
    generator = np.random.default_rng(0)
    smallest = np.ones(DRAWS)
    for dataset in dict.fromkeys(name for name, _ in gains):
        own = [gain for (name, _), gain in gains.items() if name == dataset]
        drawn = np.array([gain.draws for gain in own])
        correlation = np.atleast_2d(np.corrcoef(drawn[:, ~np.isnan(drawn).any(axis=0)]))
        normal = generator.multivariate_normal(np.zeros(len(own)), correlation, DRAWS, method="eigh")
        degrees = own[0].degrees
        sizes = np.abs(normal).max(axis=1) / np.sqrt(generator.chisquare(degrees, DRAWS) / degrees)
        smallest = np.minimum(smallest, 2 * stats.t.sf(sizes, degrees))
    return smallest
