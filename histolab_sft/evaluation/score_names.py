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
