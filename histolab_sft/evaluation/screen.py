"""The scores of a run as tables for the screen: data sets with options first, then written answers."""

from histolab_sft.evaluation.external_tables import say_change
from histolab_sft.evaluation.predictions import SYSTEMS
from histolab_sft.evaluation.results import FLOOR
from histolab_sft.evaluation.score_names import name_score


def format_results(results: dict) -> str:
    """Return the score to look at first of each data set, with its interval, of a floor and both systems."""
    datasets, overall = results["datasets"], results["overall"]
    chosen = {name: entry for name, entry in datasets.items() if "task" not in entry}
    written = {name: entry for name, entry in datasets.items() if "task" in entry}
    lines = []
    if chosen:
        lines += _list_chosen(chosen, None if written else overall)
    if written:
        lines += _list_written(written)
        lines += [f"mean of the data sets: {overall['reason']}"] if "reason" in overall else []
    lines += [f"{name}: {entry['colour_floor']}" for name, entry in chosen.items() if entry["colour_floor"]]
    lines += [f"{name}: {warning}" for name, entry in datasets.items() for warning in entry["warnings"]]
    lines += [
        f"{name}: decoding was limited to the JSON of the fields"
        for name, entry in written.items()
        if entry["constrained_decoding"]
    ]
    lines += [
        f"external cohort {name}, scored as {entry['external_of']}, {entry['n']:,} rows: {say_change(entry)}"
        for name, entry in results.get("external", {}).items()
    ]
    lines += [
        f"{name}: {warning}" for name, entry in results.get("external", {}).items() for warning in entry["warnings"]
    ]
    return "\n".join([*lines, *_list_confidences(written)])


def _list_chosen(datasets: dict, mean: dict | None) -> list[str]:
    titles = "".join(f"{title:>22}" for title in ("colour floor", *SYSTEMS))
    lines = [f"{'balanced accuracy':<18}{'patches':>8}{titles}{'unparsed':>10}"]
    for name, entry in [*datasets.items(), *([("overall", mean)] if mean else [])]:
        floor = entry.get("floors", {}).get("colour_histogram")
        cells = [floor and floor["balanced_accuracy"], *(entry[system]["balanced_accuracy"] for system in SYSTEMS)]
        unparsed = entry["finetuned"].get("generation", {}).get("unparsed_rate")
        lines.append(
            f"{name:<18}{entry.get('n', ''):>8}"
            + "".join(f"{_format_chosen(cell):>22}" for cell in cells)
            + (f"{unparsed['value']:>10.3f}" if unparsed else "")
        )
    return lines


def _list_written(datasets: dict) -> list[str]:
    titles = "".join(f"{title:>22}" for title in ("constant answer", *SYSTEMS))
    lines = [f"{'data set':<18}{'score':<26}{'rows':>6}{titles}{'unparsed':>10}{'cut off':>9}"]
    for name, entry in datasets.items():
        score = entry["headline"]
        cells = [entry["floors"][FLOOR].get(score), *(entry[system].get(score) for system in SYSTEMS)]
        rates = [entry["finetuned"][rate]["value"] for rate in ("unparsed_rate", "truncated_rate")]
        lines.append(
            f"{name:<18}{name_score(score):<26}{entry['n']:>6}"
            + "".join(f"{format_cell(cell):>22}" for cell in cells)
            + f"{rates[0]:>10.3f}{rates[1]:>9.3f}"
        )
    return lines


def _list_confidences(datasets: dict) -> list[str]:
    """One line a field: calibration error of its confidences, of both systems, in brackets after the temperature."""
    lines = []
    for name, entry in datasets.items():
        for field, described in entry["finetuned"].get("fields", {}).items():
            if "confidence" in described:
                found = [entry[system]["fields"][field]["confidence"] for system in SYSTEMS]
                cells = "".join(f"{_format_error(confidence):>22}" for confidence in found)
                lines.append(f"{name:<18}{field:<26}{described['confidence'].get('n', '–'):>6}{cells}")
    heads = "".join(f"{system:>22}" for system in SYSTEMS)
    return [f"{'data set':<18}{'ECE (after temperature)':<26}{'rows':>6}{heads}", *lines] if lines else []


def _format_error(confidence: dict) -> str:
    if "ece" not in confidence:
        return "not scored"
    scaled = confidence.get("ece_calibrated")
    return f"{confidence['ece']['value']:.3f}" + (f" ({scaled['value']:.3f})" if scaled else "")


def format_cell(score: dict | None) -> str:
    """Return a value with its interval, a dash where there is none."""
    if not score or score["value"] is None:
        return "–"
    interval = score.get("ci95")
    return f"{score['value']:.3f}" + (f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else "")


def _format_chosen(score: dict | None) -> str:
    if not score:
        return ""
    low, high = score["ci95"] or (float("nan"), float("nan"))
    return f"{score['value']:.3f} ({low:.3f}-{high:.3f})"
