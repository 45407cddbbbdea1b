"""One page that a reviewer can open from disk: every score with its interval, floors beside it, and the mistakes."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from histolab_sft.data.rows import select_datasets
from histolab_sft.evaluation import figures
from histolab_sft.evaluation.checklist import COLUMNS, fill_checklist, write_checklist
from histolab_sft.evaluation.error_atlas import list_examples, list_mistakes
from histolab_sft.evaluation.external_tables import describe_cohort
from histolab_sft.evaluation.prior_correction import describe_imbalance
from histolab_sft.evaluation.report_points import describe_points
from histolab_sft.evaluation.report_sites import describe_sites
from histolab_sft.evaluation.report_tables import (
    RATES,
    describe_classes,
    describe_front,
    describe_groups,
    describe_means,
    describe_scores,
    describe_written,
    flatten,
    format_p,
    list_confidences,
    list_fields,
    list_labels,
    list_rungs,
    list_scores,
    list_unread,
    list_warnings,
)
from histolab_sft.evaluation.results import SYSTEMS
from histolab_sft.evaluation.rung_tables import describe_rungs
from histolab_sft.evaluation.score_names import NAMES, format_score
from histolab_sft.evaluation.zero_shot import read_headline
from histolab_sft.files import write_text
from histolab_sft.metrics.calibration import apply_temperature, compute_reliability_bins
from histolab_sft.tasks import TASKS
from histolab_sft.tasks.answer_forms import BOX_COLOURS, MARK_STYLE

logger = logging.getLogger(__name__)

FEW = 5  # classes that a question is shown with; the table of classes names more


def write_report(
    results: dict,
    predictions: dict[tuple[str, str], pd.DataFrame],
    patches: DatasetDict,
    folder: Path,
    cohorts: Mapping[str, Dataset] | None = None,
) -> None:
    """Write `report.html`, which needs no other file and no network, and for a paper its figures and its checklist.

    `figures/` holds the figures of this report alone afterwards, each as PNG and as PDF. The checklist is that of
    `write_checklist`.

    Args:
        results (`dict`): What stands in `results.json`.
        predictions (`dict`): (Data set, system) -> table of the test split from `predict`.
        patches (`DatasetDict`): The splits that were scored; only pictures that are shown get opened.
        folder (`Path`): `evaluation/` of the run.
        cohorts (*optional*): Rows of each external cohort of the results. Its figures go to `external/figures/`.

    Raises:
        ValueError: The rows aren't those of the tables.
    """
    several = len(results["datasets"]) > 1
    rows = {name: select_datasets(patches["test"], name) for name in results["datasets"]}
    described = _describe_all(results["datasets"], predictions, rows, folder / "figures", alone=not several)
    external = _describe_all(
        results.get("external", {}), predictions, cohorts or {}, folder / "external" / "figures", alone=not several
    )
    checklist = fill_checklist(results)
    write_checklist(checklist, folder)
    overall = results["overall"]
    written = any("task" in entry for entry in results["datasets"].values())
    page = (
        make_environment()
        .get_template("report.html.jinja")
        .render(
            box_colours=BOX_COLOURS,
            datasets=described,
            external=external,
            chosen=[dataset for dataset in described if "ladder" in dataset],
            written=[dataset for dataset in described if "examples" in dataset],
            **describe_front(results),
            overall=describe_scores(overall) if several and not written else [],
            means=describe_means(overall) if several and written else [],
            reason=overall.get("reason") if several else None,
            recipe=flatten(results["recipe"]),
            provenance=flatten(results["provenance"]),
            checklist=checklist,
            checklist_columns=COLUMNS,
        )
    )
    write_text(folder / "report.html", page)
    logger.info("report written to %s", folder / "report.html")


def make_environment(*folders: Path) -> Environment:
    """Return what reads the templates in `folders` and beside this file; a name that they lack is an error."""
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["mark_style"] = MARK_STYLE
    return environment


def _describe_all(
    entries: Mapping[str, dict],
    predictions: Mapping[tuple[str, str], pd.DataFrame],
    rows: Mapping[str, Dataset],
    folder: Path,
    alone: bool,
) -> list[dict]:
    """Return what the template shows of each entry; `folder` holds their figures alone afterwards."""
    for path in (*folder.glob("*.png"), *folder.glob("*.pdf")):
        path.unlink()
    described = []
    for name, entry in entries.items():
        tables = {system: predictions[name, system] for system in SYSTEMS}
        if "task" in entry:
            own = describe_written_answers(entry, tables, rows[name])
        else:
            folder.mkdir(parents=True, exist_ok=True)
            own = describe_choices(name, entry, tables, rows[name], folder, alone)
        cohort = describe_cohort(entry) if "cohort" in entry else None
        described.append(_describe_dataset(name, entry) | own | {"cohort": cohort})
    return described


def _describe_dataset(name: str, entry: dict) -> dict:
    """Return what the template shows of every data set."""
    return {
        "name": name,
        "anchor": f"data-{_slug(name)}",
        "n": entry["n"],
        "groups": entry["n_groups"],
        "protocol": entry["split_protocol"],
        "warnings": list_warnings(entry),
        "unread": list_unread(entry),
        "detectable": (entry.get("detectable") or {}).get("text"),
        "task": entry.get("task"),
        "constrained": entry.get("constrained_decoding", False),
    }


def describe_written_answers(entry: dict, tables: dict[str, pd.DataFrame], rows: Dataset) -> dict:
    """Return what the template shows beside that of a data set whose answers are written."""
    scores = list_scores(entry)
    return {
        "explained": TASKS[entry["task"]].SCORED_AS,
        "headline": scores[0] if scores else None,
        "scores": scores,
        "rates": {system: {rate: format_score(entry[system][rate], True) for rate in RATES} for system in SYSTEMS},
        "labels": list_labels(entry),
        "fields": list_fields(entry),
        "confidences": list_confidences(entry),
        "examples": list_examples(tables, rows),
    }


def describe_choices(
    name: str, entry: dict, tables: dict[str, pd.DataFrame], patches: Dataset, folder: Path, alone: bool
) -> dict:
    """Return what the template shows beside that of a data set with options; write its figures to `folder`.

    Args:
        alone (`bool`): Whether it is the only data set of the report.
    """
    slug = _slug(name)

    def add(kind: str, alt: str, draw: Callable, *args) -> dict:
        svg, png, pdf = figures.render(draw, *args)
        (folder / f"{kind}_{slug}.png").write_bytes(png)
        (folder / f"{kind}_{slug}.pdf").write_bytes(pdf)
        return {"source": figures.embed(svg), "alt": f"{name}: {alt}"}

    tables = tables | {"baseline": read_headline(tables["baseline"], entry["zero_shot"])}
    # First of all, since it finds out whether patches and answers belong together.
    atlas = list_mistakes(tables["finetuned"], patches, entry["classes"])
    ladder = list_rungs(entry)
    steps = ", ".join(f"{rung['name']} {format_score(rung['score'], True)['text']}" for rung in ladder)
    confusion, reliability = [], []
    for system in SYSTEMS:
        called = NAMES[system]
        recalls = ", ".join(
            f"{label} {row['recall']:.0%}" for label, row in entry[system]["per_class"].items() if row["support"]
        )
        confusion.append(
            add(
                f"confusion_{system}",
                f"confusion matrix of the {called} model. Found of each class: {recalls}.",
                figures.draw_confusion,
                entry[system]["confusion_matrix"],
                system,
            )
        )
        reliability.append(_add_reliability(add, entry, tables[system], system))
    curves = {system: entry[system]["abstention"] for system in SYSTEMS}
    return {
        "headline": describe_scores(entry)[0],
        "p": format_p(entry["difference"].get("group_p", entry["difference"]["mcnemar_p"])),
        "least_p": _say_least_p(entry["difference"].get("n_unlike_groups")),
        "colour_floor": format_score((entry["floors"].get("colour_histogram") or {}).get("balanced_accuracy"), True),
        "scores": describe_scores(entry),
        "written": describe_written(entry),
        "ladder": add(
            "ladder", f"balanced accuracy of {steps}.", figures.draw_ladder, ladder, 1 / len(entry["classes"]), alone
        ),
        "rungs": describe_rungs(entry),
        "confusion": confusion,
        "many": figures.is_wide(entry["classes"]),
        "reliability": reliability,
        "coverage": add(
            "coverage",
            "accuracy of the answers kept when the least confident are withheld; all kept: "
            + ", ".join(f"{NAMES[s]} {curve['accuracy'][-1]:.1%}" for s, curve in curves.items()),
            figures.draw_coverage,
            curves,
        ),
        "points": describe_points(entry, add),
        "sites": describe_sites(entry, add),
        "zero_shot": entry["zero_shot"]["reason"],
        "calibrated": ", ".join(
            f"up to {entry[system]['calibrated_ece']['most']:.3f} ({NAMES[system]})" for system in SYSTEMS
        ),
        "per_class": describe_classes(entry),
        "imbalance": describe_imbalance(entry),
        "group_scores": describe_groups(entry),
        "sensitivity": _describe_sensitivity(entry, add) if "sensitivity" in entry else None,
        "atlas": atlas,
        "n_wrong": round((1 - entry["finetuned"]["accuracy"]["value"]) * entry["n"]),
    }


def _slug(name: str) -> str:
    return quote(name, safe="").replace("%", "_")


def _say_least_p(n_groups: int | None) -> str:
    """Say that few groups keep a p-value large, however well they agree."""
    if n_groups is None or 0.5 ** (n_groups - 1) <= 0.05 or n_groups == 0:
        return ""
    return f"; they differ in {n_groups} groups, and p can't be below {0.5 ** (n_groups - 1):.3g}"


def _describe_sensitivity(scored: dict, add: Callable) -> dict:
    entry, classes = scored["sensitivity"], scored["classes"]
    systems = list(SYSTEMS)
    wordings, orders = entry["paraphrases"], entry["orders"]

    def spread(part: dict) -> str:
        return ", ".join(f"{NAMES[s]} {100 * part['spread'][s]:.1f} points" for s in systems)

    names = ["recipe's own", *(f"wording {number}" for number in range(1, len(wordings["variants"])))]
    lists = ["recipe's own", "reversed", *(f"shuffled {number}" for number in range(1, len(orders["variants"]) - 1))]
    pictures = [
        add(
            "wordings",
            f"balanced accuracy under other wordings; spread: {spread(wordings)}.",
            *(figures.draw_variants, "Wording of the question", names, wordings["variants"], systems),
        ),
        add(
            "orders",
            f"balanced accuracy under other orders of the classes; spread: {spread(orders)}.",
            *(figures.draw_variants, "Order of the classes", lists, orders["variants"], systems),
        ),
        add(
            "positions",
            "how much more often each place in the list is chosen than it is right.",
            *(figures.draw_positions, entry["positions"]),
        ),
    ]
    for change, curve in entry["robustness"].items():
        strengths = ", ".join(map(str, curve["strengths"]))
        scores = "; ".join(
            f"{NAMES[s]} {', '.join(format_score(score, True)['value'] for score in curve[s])}" for s in systems
        )
        alt = f"balanced accuracy under changes of {change} ({strengths}): {scores}."
        pictures.append(add(change, alt, figures.draw_change, change, curve, systems))
    questions = [variant["question"] for variant in wordings["variants"]]
    if len(classes) > FEW:
        questions = [text.replace(", ".join(classes), f"{classes[0]}, …, {classes[-1]}") for text in questions]
    return {
        "n": entry["n"],
        "figures": pictures,
        "questions": list(zip(names, questions, strict=True)),
        "spread": {"wording": spread(wordings), "order": spread(orders)},
    }


def _add_reliability(add: Callable, entry: dict, table: pd.DataFrame, system: str) -> dict:
    gold = np.array([entry["classes"].index(label) for label in table["label"]])
    temperature = entry[system]["temperature"]["temperature"]
    after = compute_reliability_bins(apply_temperature(np.stack(table["log_likelihoods"]), temperature), gold)
    ece = entry[system]["ece"]["value"], entry[system]["ece_calibrated"]["value"]
    return add(
        f"reliability_{system}",
        f"reliability of the {NAMES[system]} model; calibration error {ece[0]:.3f}, after a temperature of "
        f"{temperature:.2f} {ece[1]:.3f}.",
        *(figures.draw_reliability, entry[system]["reliability"], after, ece, system),
    )
