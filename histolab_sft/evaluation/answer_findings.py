"""What is wrong with the answers themselves, whatever they score: one for all, unread, cut off, repeated, copied."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from histolab_sft.evaluation.score_names import format_score, is_lower_better, is_percent, name_in_sentence
from histolab_sft.tasks.report import NAME as REPORT

MOST = 0.5  # part of the answers from which a reader must be warned
NEARLY_ALL = 0.95  # part from which a run is broken
SHOWN = 5  # commonest answers that are listed
LENGTH = 120  # characters of an answer that are shown
FEW_TO_CALIBRATE = 50  # validation answers; below, a temperature moves by a third from draw to draw
CALLED = {"baseline": "base model", "finetuned": "fine-tuned model"}


def describe_written(
    texts: Sequence[str],
    unread: Sequence[bool],
    truths: Sequence[str] | None = None,
    seen: Sequence[str] = (),
) -> dict:
    """Return what stands out among the answers that one system wrote; blanks and case don't tell answers apart.

    Args:
        texts: What was written, one a question.
        unread (bools): Which of them couldn't be read.
        truths (*optional*): The true answers in the same form, where the task's answer is a text or a list of labels.
        seen (*optional*): Those of train.

    Returns:
        `dict`: `n`; `n_distinct`; `commonest` and `unread`, up to five answers each as `{"text", "n"}`; with truths
        also `n_distinct_truths` and `commonest_truth` (count), `n_from_train` and `n_truths_from_train`: answers, and
        true ones, that stand in train word for word.
    """
    plain = [_normalise(text) for text in texts]
    found = {
        "n": len(plain),
        "n_distinct": len(set(plain)),
        "commonest": _list_commonest(texts),
        "unread": _list_commonest([text for text, lost in zip(texts, unread, strict=True) if lost]),
    }
    if truths is not None:
        gold, known = [_normalise(text) for text in truths], {_normalise(text) for text in seen}
        found |= {
            "n_distinct_truths": len(set(gold)),
            "commonest_truth": max(Counter(gold).values()),
            "n_from_train": sum(text in known for text in plain),
            "n_truths_from_train": sum(text in known for text in gold),
        }
    return found


def find_one_answer(entry: dict, system: str) -> str | None:
    """Return a clause where a system gives one answer for (nearly) everything though the truth differs, else None."""
    matrix = entry[system].get("confusion_matrix")
    if matrix and "classes" in entry:
        named = np.sum(matrix["rows"], axis=0)
        true = np.sum(matrix["rows"], axis=1)
        if np.count_nonzero(true) > 1 and np.count_nonzero(named) == 1:
            return f"names the class “{matrix['labels'][int(named.argmax())]}” for every patch"
        return None
    written = entry[system].get("written", {})
    if "commonest_truth" not in written:
        return None
    top = written["commonest"][0]
    if top["n"] >= NEARLY_ALL * written["n"] and written["commonest_truth"] < NEARLY_ALL * written["n"]:
        return f"gives one answer to {top['n']} of {written['n']} questions, “{top['text']}”"
    return None


def find_copies(entry: dict, system: str) -> str | None:
    """Return a clause where most answers stand in train word for word, and most true ones don't, else None."""
    written = entry[system].get("written", {})
    if written.get("n_from_train", 0) <= MOST * written.get("n", 0):
        return None
    if written["n_truths_from_train"] > MOST * written["n"]:
        return None
    return (
        f"copies train: {written['n_from_train']} of its {written['n']} answers stand there word for word, "
        f"of the true ones {written['n_truths_from_train']}"
    )


def find_unread(entry: dict, system: str) -> str | None:
    """Return a clause where most answers can't be read, with the commonest of them, else None."""
    rate = entry[system].get("unparsed_rate")
    if not rate or rate["value"] <= MOST:
        return None
    examples = ", ".join(f"“{part['text']}” ({part['n']})" for part in entry[system]["written"]["unread"][:3])
    return f"writes answers of which {rate['value']:.1%} can't be read, most often {examples}"


def find_cut_off(entry: dict, system: str) -> str | None:
    """Return a clause where most answers were cut off by the limit of tokens, else None."""
    rate = (entry[system].get("generation") or entry[system]).get("truncated_rate")
    if not rate or rate["value"] <= MOST:
        return None
    return f"is cut off in {rate['value']:.1%} of its answers by the limit of tokens (max_new_tokens)"


def list_findings(entry: dict) -> list[str]:
    """Return one sentence for each thing that is wrong with the answers of an entry of `results.json`."""
    warnings = []
    for system in CALLED:
        for find in (find_one_answer, find_unread, find_cut_off, find_copies):
            if clause := find(entry, system):
                warnings.append(f"the {CALLED[system]} {clause}")
        written, agreement = entry[system].get("written", {}), entry[system].get("agreement")
        if agreement and agreement["value"] <= 1 / len(entry["classes"]):
            warnings.append(
                f"what the {CALLED[system]} writes agrees with what it finds likeliest on {agreement['value']:.1%} of "
                "the patches, no more than chance: look at its answers before believing either"
            )
        top = written.get("commonest", [{"n": 0}])[0]
        if "commonest_truth" in written and not find_one_answer(entry, system):
            if top["n"] > MOST * written["n"] > written["commonest_truth"]:
                repeats = f"{top['n']} of its {written['n']} answers are “{top['text']}”"
                warnings.append(f"the {CALLED[system]} repeats itself: {repeats}")
    written = entry["finetuned"].get("written", {})
    repeated = written.get("n", 0) - written.get("n_distinct_truths", written.get("n", 0))
    if repeated and entry.get("task") == REPORT:
        warnings.append(
            f"{written['n_distinct_truths']} of the {written['n']} true answers are distinct: repeating one scores as "
            "often as it comes"
        )
    return warnings


def warn_constant(gain: dict, score: str) -> list[str]:
    """Return a sentence where the fine-tuned model can't be told from a constant answer.

    Args:
        gain (`dict`): Fine-tuned minus constant in `score`, on the same draws, as `{"value", "ci95"}`.
    """
    if gain["value"] is None:
        return []
    if gain["ci95"] is not None and (gain["ci95"][1] < 0 if is_lower_better(score) else gain["ci95"][0] > 0):
        return []
    size = format_score(gain, is_percent(score), signed=True)["text"]
    return [
        f"a constant answer comes as far as the fine-tuned model: in {name_in_sentence(score)} they differ by "
        f"{size}{'' if gain['ci95'] else ' (no interval)'}"
    ]


def warn_few_to_calibrate(n_validation: int, unit: str = "patches") -> list[str]:
    """Return a sentence where a temperature was fitted on too few validation answers."""
    if n_validation >= FEW_TO_CALIBRATE:
        return []
    return [
        f"validation has {n_validation} {unit}, fewer than {FEW_TO_CALIBRATE}: too few to calibrate on; the "
        "temperature and what follows from it are rough"
    ]


def _list_commonest(texts: Sequence[str]) -> list[dict]:
    first = {}
    for text in texts:
        first.setdefault(_normalise(text), " ".join(text.split())[:LENGTH])
    counts = Counter(map(_normalise, texts))
    return [{"text": first[text], "n": count} for text, count in counts.most_common(SHOWN)]


def _normalise(text: str) -> str:
    return " ".join(text.split()).casefold()
