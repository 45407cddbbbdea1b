"""`output_dir/study/`: the predictions of all trainings, `results.json`, and a page that a reviewer can open."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from histolab_sft.evaluation import figures, results
from histolab_sft.evaluation.html_report import make_environment
from histolab_sft.evaluation.report_tables import flatten
from histolab_sft.evaluation.score_names import METRICS, format_score, name_score, say_difference
from histolab_sft.files import replacing, write_text
from histolab_sft.provenance import collect_versions, describe_hardware, find_commit
from histolab_sft.study.answers import StudyAnswers, collect_answers, read_results
from histolab_sft.study.plan import Training
from histolab_sft.study.scores import BASELINE, DIFFERENCES, ENSEMBLE, SINGLE, SYSTEMS, score_study

logger = logging.getLogger(__name__)

FOLDER = "study"
HEADLINE = "balanced_accuracy"
NAMES = {BASELINE: "base model", SINGLE: "single model", ENSEMBLE: "ensemble of seeds"}
KINDS = {BASELINE: "baseline", SINGLE: "finetuned", ENSEMBLE: "linear_probe"}
DIFFERENCE_NAMES = {
    (SINGLE, BASELINE): "single model − base model",
    (ENSEMBLE, BASELINE): "ensemble − base model",
    (ENSEMBLE, SINGLE): "ensemble − single model",
}


def report_study(trainings: list[Training], output_dir: str | Path) -> str:
    """Put the trainings of a study together, write `output_dir/study/`, and return its table for the screen.

    Raises:
        StudyError: Their test patches don't belong together.
    """
    folder = Path(output_dir, FOLDER)
    answers = collect_answers(trainings)
    origins = {training.name: read_results(training)["provenance"] for training in trainings}
    found = {
        "recipe": read_results(trainings[0])["recipe"],
        "provenance": {
            "data_fingerprints": {name: origin["data_fingerprint"] for name, origin in origins.items()},
            "weights": {name: origin["adapter_sha256"] or origin["model_sha256"] for name, origin in origins.items()},
            "versions": collect_versions(),
            "git_commit": find_commit(),
            "hardware": describe_hardware(),
        },
        "written": list_written(trainings),
    } | score_study(answers)
    for key in ("fold", "seed", "resume_from_checkpoint"):
        found["recipe"].pop(key, None)
    found["recipe"]["output_dir"] = str(output_dir)
    found["verdict"] = {name: judge_study(name, entry) for name, entry in found["datasets"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_answers(answers, folder)
    results.write_results(found, folder)
    write_page(found, folder)
    return format_study(found)


def list_written(trainings: list[Training]) -> dict[str, dict]:
    """Return data set -> its headline score in each training, of the data sets whose answers are written.

    Each test stands by itself: written answers have no probabilities that an ensemble could average.
    """
    written: dict[str, dict] = {}
    for training in trainings:
        for name, entry in read_results(training)["datasets"].items():
            if "task" in entry:
                own = written.setdefault(name, {"headline": entry["headline"], "trainings": {}})
                scores = {system: entry[system].get(entry["headline"]) for system in ("baseline", "finetuned")}
                own["trainings"][training.name] = {s: score and score["value"] for s, score in scores.items()}
    for own in written.values():
        for system in ("baseline", "finetuned"):
            values = [scores[system] for scores in own["trainings"].values() if scores[system] is not None]
            own[system] = {
                "value": float(np.mean(values)) if values else None,
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            }
    return written


def judge_study(name: str, entry: dict) -> dict:
    """Return `level` (`holds`, `unclear`, `fails`) and `text` about one data set, from the single model's gain."""
    gain = entry["differences"][f"{SINGLE} - {BASELINE}"][HEADLINE]
    own, ensemble = (entry["systems"][system][HEADLINE] for system in (SINGLE, ENSEMBLE))
    if gain["value"] is None or gain["ci95"] is None:
        return {"level": "unclear", "text": f"{name}: no verdict, the gain has no interval."}
    low, high = gain["ci95"]
    level = "holds" if low > 0 else "fails" if high < 0 else "unclear"
    heads = {"holds": "better than the base model", "unclear": "no gain shown over the base model"}
    size = say_difference(gain)
    several = len(entry["seeds"]) > 1
    more = f" The ensemble of {len(entry['seeds'])} seeds reaches {format_score(ensemble, True)['text']}." * several
    return {
        "level": level,
        "text": f"{name}: a single model reaches {format_score(own, True)['text']} balanced accuracy, "
        f"{heads.get(level, 'below the base model')} ({size}).{more}",
    }


def write_answers(answers: Mapping[str, StudyAnswers], folder: Path) -> None:
    """Write `predictions.parquet`: each test patch once for each seed, the ensemble and the base model."""
    tables = []
    for name, given in answers.items():
        systems = {f"{SINGLE}_seed{seed}": probabilities for seed, probabilities in given.finetuned.items()}
        systems |= {ENSEMBLE: np.mean(list(given.finetuned.values()), axis=0)}
        systems |= {f"{BASELINE}_{reading}": probabilities for reading, probabilities in given.baseline.items()}
        for system, probabilities in systems.items():
            answer = np.array(given.classes)[probabilities.argmax(axis=1)]
            columns = {"dataset": name, "system": system, "answer": answer, "probabilities": list(probabilities)}
            tables.append(given.table.assign(**columns))
    if tables:
        with replacing(folder / "predictions.parquet") as temporary:
            pd.concat(tables, ignore_index=True).to_parquet(temporary, index=False)


def write_page(found: dict, folder: Path) -> None:
    """Write `report.html`, which needs no other file and no network."""
    page = (
        make_environment(Path(__file__).parent)
        .get_template("study.html.jinja")
        .render(
            colours=figures.COLOURS,
            datasets=[_describe_dataset(name, entry) for name, entry in found["datasets"].items()],
            overall=found["overall"] and _list_rows(found["overall"], [HEADLINE]),
            verdict=found["verdict"],
            level=_worst(found["verdict"]),
            written={name: _describe_written(own) for name, own in found["written"].items()},
            names=NAMES,
            kinds=KINDS,
            recipe=flatten(found["recipe"]),
            provenance=flatten(found["provenance"]),
        )
    )
    write_text(folder / "report.html", page)
    logger.info("report written to %s", folder / "report.html")


def draw_spread(entry: dict) -> Figure:
    """Draw each system's score with its interval, that of the patients alone, and the score of each training."""
    figure, axes = figures.start_figure(2.1)
    places = {BASELINE: 0, SINGLE: 1, ENSEMBLE: 2}
    for system, place in places.items():
        score, colour = entry["systems"][system][HEADLINE], figures.COLOURS[KINDS[system]]
        figures.mark_score(axes, score, place, KINDS[system], horizontal=True)
        if score.get("sample_ci95"):
            axes.plot(
                score["sample_ci95"], [place, place], color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt"
            )
    dots = {
        BASELINE: [scores[HEADLINE] for scores in entry["baseline_by_fold"]],
        SINGLE: [scores[HEADLINE] for own in entry["by_training"].values() for scores in own],
    }
    for system, values in dots.items():
        known = [value for value in values if value is not None]
        shifts = places[system] - 0.28 + np.zeros(len(known))
        axes.plot(known, shifts, "|", color=figures.COLOURS[KINDS[system]], markersize=8, alpha=0.8)
    axes.axvline(1 / len(entry["classes"]), color="#9CA3AF", linestyle=(0, (4, 3)), linewidth=1, zorder=0)
    axes.set_yticks(list(places.values()), ["base model", "single model", "ensemble"])
    axes.set(xlim=(0, 1.02), ylim=(-0.6, 2.5), xlabel="balanced accuracy, % (dashed: chance)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    figures.set_percent(axes.xaxis)
    return figure


def draw_confusion(entry: dict) -> Figure:
    """Draw what the ensemble takes for what."""
    figure = figures.draw_confusion(entry["confusion_matrix"], "finetuned")
    figure.axes[0].set_title("ensemble of seeds" if len(entry["seeds"]) > 1 else "the one seed")
    return figure


def format_study(found: dict) -> str:
    """Return the balanced accuracy of each data set and system, and the differences, for the screen."""
    lines = []
    entries = found["datasets"] | ({"overall": found["overall"]} if found["overall"] else {})
    for name, entry in entries.items():
        for row in _list_rows(entry, [HEADLINE]):
            lines.append(f"{name:<16}{row['system']:<34}{row['score']['text']}")
    for name, own in found["written"].items():
        head = name_score(own["headline"])
        means = "; ".join(f"{s} {format_score(own[s], False)['value']}" for s in ("baseline", "finetuned"))
        lines.append(f"{name:<16}{head}, mean over {len(own['trainings'])} trainings: {means}")
    lines += [f"{name}: {warning}" for name, entry in found["datasets"].items() for warning in entry["warnings"]]
    return "\n".join(lines)


def _describe_dataset(name: str, entry: dict) -> dict:
    svg, *_ = figures.render(draw_spread, entry)
    confusion, *_ = figures.render(draw_confusion, entry)
    scores = [score for score in METRICS if score in entry["systems"][SINGLE]]
    told = ", ".join(
        f"{NAMES[system]} {format_score(entry['systems'][system][HEADLINE], True)['text']}" for system in SYSTEMS
    )
    return {
        "name": name,
        "n": entry["n"],
        "n_groups": entry["n_groups"],
        "n_folds": entry["folds"],
        "seeds": entry["seeds"],
        "classes": entry["classes"],
        "warnings": entry["warnings"],
        "rows": _list_rows(entry, [HEADLINE]),
        "scores": [_list_rows(entry, [score]) for score in scores],
        "trainings": _list_trainings(entry),
        "figure": {"source": figures.embed(svg), "alt": f"{name}: balanced accuracy; {told}"},
        "confusion": {"source": figures.embed(confusion), "alt": f"{name}: confusion matrix of the ensemble of seeds"},
    }


def _list_rows(entry: dict, scores: list[str]) -> list[dict]:
    """Return one row a system and a difference: its score, and the standard errors of what its interval is made of."""
    rows = []
    for score in scores:
        called, percent = METRICS[score]
        systems = {NAMES[system]: (entry["systems"][system][score], False, KINDS[system]) for system in SYSTEMS}
        systems |= {
            DIFFERENCE_NAMES[pair]: (entry["differences"][f"{pair[0]} - {pair[1]}"][score], True, None)
            for pair in DIFFERENCES
        }
        for system, (found, signed, kind) in systems.items():
            alone = found | {"ci95": found.get("sample_ci95")}
            errors = [found.get("sample_sd"), None if kind == KINDS[BASELINE] else found.get("training_sd")]
            rows.append(
                {
                    "metric": called,
                    "system": system,
                    "kind": kind,
                    "score": format_score(found, percent, signed),
                    "sample": format_score(alone, percent, signed)["interval"] or "–",
                    "errors": ["–" if error is None else _write_error(error, percent) for error in errors],
                }
            )
    return rows


def _list_trainings(entry: dict) -> list[dict]:
    """Return one row a fold: the base model's score, and that of each seed."""
    return [
        {
            "fold": fold + 1,
            "baseline": _write_percent(base[HEADLINE]),
            "seeds": [_write_percent(own[fold][HEADLINE]) for own in entry["by_training"].values()],
        }
        for fold, base in enumerate(entry["baseline_by_fold"])
    ]


def _describe_written(own: dict) -> dict:
    rows = [
        (name, *(format_score({"value": scores[system]}, False)["value"] for system in ("baseline", "finetuned")))
        for name, scores in own["trainings"].items()
    ]
    for title, key in (("mean", "value"), ("standard deviation", "sd")):
        cells = (own[system][key] for system in ("baseline", "finetuned"))
        rows.append((title, *(format_score({"value": cell}, False)["value"] for cell in cells)))
    return {"headline": name_score(own["headline"]), "rows": rows}


def _worst(verdicts: dict) -> str:
    levels = [verdict["level"] for verdict in verdicts.values()]
    return next((level for level in ("fails", "unclear", "holds") if level in levels), "unclear")


def _write_error(error: float, percent: bool) -> str:
    return f"{100 * error:.1f}" if percent else f"{error:.3f}"


def _write_percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
