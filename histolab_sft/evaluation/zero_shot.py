"""The base model asked without training, raw and less its leaning towards some answers: the better one counts.

The likelihood of a whole answer is a product over its tokens, so a model that was never trained on the answers prefers
short or common words whatever it sees. Part of the gain over it would then be a gain over the length of a name.
"""

import numpy as np
import pandas as pd

from histolab_sft.metrics.calibration import fit_log_prior

READINGS = ("raw", "corrected")
SCORE = "balanced_accuracy"


def fit_prior(validation: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """Return the base model's log-prior of each answer over the validation pictures, shape (classes,)."""
    gold = np.array([classes.index(label) for label in validation["label"]])
    return fit_log_prior(np.stack(validation["log_likelihoods"]), gold)


def take_away(table: pd.DataFrame, log_prior: np.ndarray) -> pd.DataFrame:
    """Return a table of `predict` whose log-likelihoods are less `log_prior`, shape (classes,)."""
    return table.assign(log_likelihoods=list(np.stack(table["log_likelihoods"]) - log_prior))


def choose_reading(
    scores: dict[str, dict], log_prior: np.ndarray, classes: list[str], chosen: str | None = None
) -> dict:
    """Return the entry `zero_shot` of `results.json`.

    Args:
        scores (`dict`): `raw` and `corrected` -> scores on the test split.
        chosen (`str`, *optional*): The reading that is the baseline; without it, the one that scores better.

    Returns:
        `dict`: `headline` (`raw` or `corrected`), the `reason` as a sentence, `log_prior` (class -> nats) and both
        scores. Without `chosen`, the reading that scores better on the test split itself is: that can only make the
        gain of the fine-tuned model smaller.
    """
    values = {reading: scores[reading][SCORE]["value"] for reading in READINGS}
    headline = chosen or ("corrected" if values["corrected"] > values["raw"] else "raw")
    favourite = classes[int(np.argmax(log_prior))]
    lean = float(np.max(log_prior) - np.min(log_prior))
    leaning = f"towards “{favourite}” whatever it sees, by up to {lean:.1f} nats"
    reason = (
        f"The base model leans {leaning if lean >= 0.05 else 'towards no class'}. Its balanced accuracy is "
        f"{values['raw']:.1%} as it stands and {values['corrected']:.1%} with the leaning, measured on validation, "
        f"taken away. The {headline} reading is "
        + (
            "the baseline, as on the internal test split: nothing is chosen on these patches."
            if chosen
            else "the better one"
            + (", or as good," if values["raw"] == values["corrected"] else "")
            + " and is the baseline here: a leaning of the base model can't pass for a gain."
        )
    )
    return {
        "headline": headline,
        "reason": reason,
        "log_prior": dict(zip(classes, map(float, log_prior), strict=True)),
        **{reading: scores[reading] for reading in READINGS},
    }


def read_headline(table: pd.DataFrame, zero_shot: dict) -> pd.DataFrame:
    """Return the base model's table of `predict` as the baseline of an entry of `results.json` reads it."""
    if zero_shot["headline"] == "raw":
        return table
    return take_away(table, np.array(list(zero_shot["log_prior"].values())))
