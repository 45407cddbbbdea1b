"""How the rungs without a language model are called, compared and shown."""

from histolab_sft.evaluation.score_names import format_score, say_difference

# Keys of `floors` in `results.json`: alone of the base model's own encoder, else followed by a colon and a name.
LINEAR, NEIGHBOURS, CNN = "linear_probe", "neighbours", "cnn"
FITTED = {
    "regularisation_c": "C = {:g}",
    "n_neighbours": "k = {}",
    "epoch": "epoch {} of",
    "epochs": "{},",
    "samples_seen": "{:,} samples seen",
}
LONGEST = 24  # letters of an encoder's name that are shown
NAMED = 3  # rungs that a sentence names


def name_rung(key: str) -> tuple[str, str]:
    """Return the words and the kind (a key of `figures.COLOURS`) of a rung."""
    method, _, name = key.partition(":")
    name = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 + 1 :]}"
    if method == CNN:
        return f"CNN {name}", CNN
    if method == LINEAR:
        return (f"{name}, linear" if name else "linear probe"), LINEAR
    return (f"{name}, neighbours" if name else "nearest neighbours"), LINEAR


def list_own_rungs(entry: dict) -> list[str]:
    """Return the keys of the rungs that the recipe asked for, in the ladder's order, none where it didn't."""
    return [key for key in entry["above_floors"] if key == NEIGHBOURS or ":" in key]


def describe_rungs(entry: dict) -> list[dict]:
    """Return one row a rung from the base model's own encoder up: what it is, its score, the fine-tuned minus it."""
    own = list_own_rungs(entry)
    return [
        {
            "name": name_rung(key)[0],
            "fitted": " ".join(
                words.format(entry["floors"][key][fact])
                for fact, words in FITTED.items()
                if entry["floors"][key].get(fact) is not None
            ),
            "score": format_score(entry["floors"][key]["balanced_accuracy"], True),
            "gain": format_score(entry["above_floors"][key]["balanced_accuracy"], True, signed=True),
        }
        for key in ([LINEAR, *own] if own else [])
    ]


def say_rungs(entry: dict) -> str:
    """Return which rungs without a language model come as far as the fine-tuned model, as a sentence; '' without any.

    One comes as far unless the 95 % interval of the fine-tuned model's paired gain over it lies wholly above zero, and
    further where it lies wholly below.
    """
    own = list_own_rungs(entry)
    if not own:
        return ""
    gains = {key: entry["above_floors"][key]["balanced_accuracy"] for key in [LINEAR, *own]}
    further = {key: gain for key, gain in gains.items() if gain["ci95"] is not None and gain["ci95"][1] < 0}
    beaten = {key: gain for key, gain in gains.items() if gain["ci95"] is not None and gain["ci95"][0] > 0}
    as_far = {key: gain for key, gain in gains.items() if key not in further and key not in beaten}
    if len(beaten) == len(gains):
        nearest = min(gains, key=lambda key: gains[key]["value"])
        return f"No rung without a language model comes as far; nearest is {_say({nearest: gains[nearest]})}."
    clauses = [f"further than the fine-tuned model: {_say(further)}"] if further else []
    clauses += [f"as far: {_say(as_far)}"] if as_far else []
    return f"Without a language model come {'; '.join(clauses)}. (Its gain over each in brackets.)"


def _say(gains: dict[str, dict]) -> str:
    """Name those that come furthest, and count the others: the table has them all."""
    ranked = sorted(gains.items(), key=lambda item: item[1]["value"])
    named = [f"{name_rung(key)[0]} ({say_difference(gain)})" for key, gain in ranked[:NAMED]]
    return ", ".join(named) + (f" and {len(ranked) - NAMED} more" if len(ranked) > NAMED else "")
