"""Scores of `results.json` as Markdown tables; every number is the one in the file, rounded to three decimals."""

SYSTEMS = ("baseline", "finetuned")


def format_scores(entry: dict) -> str:
    """Return a table with one line a metric: baseline, finetuned, and their difference where it is there."""
    systems = [*SYSTEMS, *(["difference"] if "difference" in entry else [])]
    metrics = [name for name, score in entry["finetuned"].items() if is_score(score)]
    rows = [[name, *(format_score(entry[system].get(name)) for system in systems)] for name in metrics]
    return format_table(["metric", *systems], rows)


def format_score(score: dict | None) -> str:
    """Return a score as `0.812 [0.790, 0.833]`: no brackets without an interval, a dash without a value."""
    if score is None or score["value"] is None:
        return "–"
    interval = score.get("ci95")
    return f"{score['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def is_score(score) -> bool:
    """Whether an entry of `results.json` is a score: `{"value"}`, with or without `ci95`."""
    return isinstance(score, dict) and "value" in score


def format_floors(floors: dict, finetuned: dict, metrics: list[str]) -> str:
    """Return a table with one line a floor, and the fine-tuned model as the last."""
    lines = [*floors.items(), ("**finetuned**", finetuned)]
    rows = [[name, *(_format_value(scores.get(metric)) for metric in metrics)] for name, scores in lines]
    return format_table(["", *metrics], rows)


def format_classes(per_class: dict) -> str:
    """Return a table with one line a class, empty if there is no class."""
    columns = [column for column in next(iter(per_class.values()), {}) if not column.endswith("_ci95")]
    rows = [[name, *(_format_class(scores, column) for column in columns)] for name, scores in per_class.items()]
    return format_table(["class", *columns], rows) if rows else ""


def _format_class(scores: dict, column: str) -> str:
    if f"{column}_ci95" in scores:
        return format_score({"value": scores[column], "ci95": scores[f"{column}_ci95"]})
    return _format_value(scores[column])


def _format_value(value) -> str:
    if is_score(value) or value is None:
        return format_score(value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def format_table(header: list[str], rows: list[list]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
