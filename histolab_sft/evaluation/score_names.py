"""How scores and systems are called on page and screen."""

# Key in results.json -> name and whether it is shown in percent.
METRICS = {
    "balanced_accuracy": ("Balanced accuracy", True),
    "accuracy": ("Accuracy", True),
    "macro_f1": ("Macro F1", False),
    "auroc": ("AUROC", False),
    "sensitivity": ("Sensitivity", True),
    "specificity": ("Specificity", True),
    "ppv": ("Positive predictive value", True),
    "npv": ("Negative predictive value", True),
    "average_precision": ("Average precision", False),
    "brier": ("Brier score ↓", False),
    "nll": ("Negative log-likelihood ↓", False),
    "ece": ("Calibration error (ECE) ↓", False),
    "ece_calibrated": ("ECE after temperature ↓", False),
    "nll_calibrated": ("Negative log-likelihood after temperature ↓", False),
}
NAMES = {"baseline": "baseline", "finetuned": "fine-tuned"}
# Of records, whose scores are called after their keys.
LOWER = ("mae", "rmse")


def is_lower_better(score: str) -> bool:
    """Whether a score of records is an error."""
    return score.split("_")[-1] in LOWER


def name_score(score: str) -> str:
    """Return the name of a score of records in words, with an arrow where lower is better."""
    return score.replace("_", " ") + (" ↓" if is_lower_better(score) else "")


def is_percent(score: str) -> bool:
    """Whether a score is shown in percent; those of records aren't."""
    return METRICS.get(score, ("", False))[1]


def name_in_sentence(score: str) -> str:
    """Return the name of any score as it stands within a sentence."""
    name = METRICS.get(score, (score.replace("_", " "),))[0]
    return name if name.isupper() else name[0].lower() + name[1:]


def format_score(score: dict | None, percent: bool, signed: bool = False) -> dict:
    """Return `value` and `interval` as text, and both in one as `text`; a dash where there is no value."""
    if score is None or score["value"] is None:
        return {"value": "–", "interval": "", "text": "not defined"}
    scale, form = (100, "+.1f" if signed else ".1f") if percent else (1, "+.3f" if signed else ".3f")
    value = _write_number(scale * score["value"], form)
    low, high = score.get("ci95") or (0, 0)
    # An interval without width says nothing about chance.
    limits = [_write_number(scale * limit, form) for limit in (low, high)] if low < high else []
    unit = "" if not percent else " points" if signed else " %"
    interval = " to ".join(limits)
    return {"value": value + unit, "interval": interval, "text": value + unit + (f" ({interval})" if limits else "")}


def say_difference(difference: dict, percent: bool = True) -> str:
    """Return a difference and its interval as they stand within brackets."""
    return format_score(difference, percent, signed=True)["text"].replace(" (", ", ").rstrip(")")


def _write_number(number: float, form: str) -> str:
    """A number with a true minus; zero has no sign."""
    text = f"{number:{form}}"
    return text.replace("-", "−") if any(digit in text for digit in "123456789") else text.lstrip("+-")
