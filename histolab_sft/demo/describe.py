"""From a recipe to what the page can ask: its data sets, and when their answers count."""

import json
import logging
from pathlib import Path

import pandas as pd

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.data_sets import list_rows
from histolab_sft.demo.data_set import DataSet
from histolab_sft.evaluation.report_tables import describe_scores, list_scores, list_warnings
from histolab_sft.evaluation.score_names import format_score
from histolab_sft.models.load import EMBEDDED
from histolab_sft.publishing.push_gate import SYSTEMS, PublishError, check_evaluation
from histolab_sft.tasks import choose_limit

logger = logging.getLogger(__name__)

MAX_WORDINGS = 30  # of a data set
KEYS = ("format", "question", "instruction", "codec", "fields", "intensity_window", "image_steps", "multi_scale")
# What an `ask` says of the one picture that it is about.
OF_A_PICTURE = ("size", "placement")
# An answer counts from the confidence on at which so many answers on the validation split are right, unless the data
# set has a `target_accuracy` of its own.
TARGET_ACCURACY = 0.9
NOT_SCORED = "No answer is withheld: there is no current evaluation of this adapter with a validation split."


def describe_data_sets(histo_args: HistoArguments, output_dir: Path) -> tuple[list[DataSet], list[str]]:
    """Return what can be asked of each data set, and a remark if none that could withhold an answer does.

    Of data sets without options the rows are read for their questions, but no picture.

    Raises:
        FileNotFoundError, ValueError: As `list_rows`.
    """
    choosing = any(config.options for config in histo_args.datasets)
    try:
        names = [config.name for config in histo_args.datasets]
        results = check_evaluation(output_dir, names)["datasets"]
    except PublishError as error:
        logger.warning("no score is shown, and no answer will be withheld: %s", error)
        results = {}
    described = [_describe(config, histo_args, results.get(config.name, {})) for config in histo_args.datasets]
    withheld = any(entry.thresholds for entry in described)
    return described, [NOT_SCORED] if choosing and not withheld else []


def _describe(config: DatasetConfig, histo_args: HistoArguments, scored: dict) -> DataSet:
    keys = {key: getattr(config, key) for key in KEYS if getattr(config, key) is not None}
    thresholds, temperatures, log_priors, target = {}, {}, {}, config.target_accuracy or TARGET_ACCURACY
    if config.options:
        # Not the labels in the data, which a Space has no use for.
        keys["class_names"] = {option: option for option in config.options}
        task, asks = config.task, [{"options": config.options, "style": histo_args.prompt_style}]
    else:
        rows = list_rows(config, histo_args)
        task, asks = rows["task"].iloc[0], list_wordings(rows)
    # A confidence among other classes says nothing about one among these.
    if config.options and scored.get("classes") == config.options:
        curves = {system: scored[system].get("abstention_validation") for system in SYSTEMS}
        thresholds = {system: choose_threshold(curve, target) for system, curve in curves.items() if curve}
        for system in SYSTEMS:
            # Where the report has withheld answers for this target, the page withholds by the same rule.
            fitted = scored[system].get("operating_points", {}).get("fitted", {})
            if fitted.get("abstention", {}).get("target") == target:
                thresholds[system] = fitted["abstention"].get("threshold")
                temperatures[system] = fitted["temperature"]
        log_priors = read_log_priors(scored)
    limit = choose_limit(task, config.max_new_tokens, histo_args.max_new_tokens)
    told = describe_score(scored) if scored else {}
    return DataSet(config.name, task, asks, limit, keys, thresholds, target, temperatures, log_priors, told)


def describe_score(entry: dict) -> dict:
    """Return the score to look at first of an entry of `results.json`, in the words of the report.

    Returns:
        `name` of the score; `n` test rows; `baseline`, `finetuned` and `floor`, each with its interval; `floor_name`;
        and `warnings`. Without a score, `warnings` alone.
    """
    told = {"n": entry["n"], "warnings": list_warnings(entry)}
    if "task" in entry:
        scores = list_scores(entry)
        return told | (_say_score(scores[0], scores[0]["floor"], "constant answer") if scores else {})
    colour = entry["floors"].get("colour_histogram") or {}
    return told | _say_score(
        describe_scores(entry)[0], format_score(colour.get("balanced_accuracy"), True), "colour alone"
    )


def _say_score(score: dict, floor: dict, floor_name: str) -> dict:
    systems = {system: score[system]["text"] for system in SYSTEMS}
    return {"name": score["name"], **systems, "floor": floor["text"], "floor_name": floor_name}


def list_wordings(rows: pd.DataFrame) -> list[dict]:
    """Return the distinct `ask` of rows from `list_rows`, the most frequent first, without the picture's size.

    A free question that is asked about one case alone may tell something about it, and fits no other picture: it is
    left out. Where nothing else is left, one with an empty question stands there, to be filled in.
    """
    cases = {}
    for row in rows.itertuples():
        ask = {key: value for key, value in row.ask.items() if key not in OF_A_PICTURE}
        cases.setdefault(json.dumps(ask, ensure_ascii=False), set()).add(row.group or row.images[0]["path"])
    asks = [json.loads(text) for text in sorted(cases, key=lambda text: -len(cases[text]))]
    shared = [ask for ask in asks if "question" not in ask or len(cases[json.dumps(ask, ensure_ascii=False)]) > 1]
    return shared[:MAX_WORDINGS] or [asks[0] | {"question": ""}]


def read_log_priors(entry: dict) -> dict[str, list[float]]:
    """Return what each system of an entry of `results.json` was read without, where that is the corrected reading."""
    zero_shot, imbalance = entry["zero_shot"], entry.get("imbalance")
    taken = {"baseline": list(zero_shot["log_prior"].values())} if zero_shot["headline"] == "corrected" else {}
    if imbalance is not None and imbalance["headline"] == "corrected":
        taken["finetuned"] = [-nats for nats in imbalance["log_correction"].values()]
    return taken


def choose_threshold(curve: dict, target: float) -> float | None:
    """Return the lowest confidence at which the answers kept are right as often as `target`, None if there is none.

    Args:
        curve (`dict`): `threshold` and `accuracy`, as `metrics.calibration.compute_abstention_curve` returns them.
    """
    pairs = zip(curve["threshold"], curve["accuracy"], strict=True)
    return min((threshold for threshold, accuracy in pairs if accuracy >= target), default=None)


def describe_base_model(name: str) -> str:
    """Return how a page calls the base model, without a path of this machine."""
    return "Embedded tiny model" if name == EMBEDDED else Path(name).name if Path(name).exists() else name
