"""Name every label that applies: the question, the target, the parser of answers that are lists of labels."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.metrics.measures import multilabel_measure
from histolab_sft.metrics.multilabel import compute_multilabel
from histolab_sft.metrics.weighted import Measure
from histolab_sft.tasks.parsing.final_text import read_final

# The FLARE 2026 baseline's wording (stage 2), less the empty answer that it asks for: a model that says nothing must
# not score as one that says "none".
INSTRUCTION = (
    "You are given a medical image. Identify all applicable findings or labels. "
    'Return labels separated by semicolons. Return "None" if none apply.'
)
# For data sets of X-rays that bring labels and no question; the labels follow as options.
CHEST_QUESTION = "Which of these findings does this chest X-ray study show?"
NAME = "multilabel"
HEADLINE = "example_f1"
MAX_NEW_TOKENS = 128
ANSWER_IS = "every label that applies"
SCORED_AS = "Example F1 is the mean over the questions of how well the two sets of labels agree."
count_cut = draw_answers = list_fields = None
SEPARATOR = "; "
NONE = "None"
_SEPARATORS = re.compile(r"[;,\n]")
_BULLET = re.compile(r"^\s*(?:[-*\N{BULLET}]+|\(?[0-9]{1,2}[.)])\s*")
_BLANKS = str.maketrans(string.punctuation, " " * len(string.punctuation))


def format_prompt(question: str, vocabulary: list[str] | None = None, instruction: str | None = None) -> str:
    """Return the question that training and scoring both ask.

    Args:
        question (`str`): The data set's own words.
        vocabulary (`list[str]`, *optional*): Labels to list, where the question doesn't name them already.
        instruction (`str`, *optional*): Replaces the wording about the answer's form; empty asks the bare question.
    """
    instruction = INSTRUCTION if instruction is None else instruction
    options = f"\nOptions: {SEPARATOR.join(vocabulary)}" if vocabulary else ""
    return f"{instruction}\n\n{question}{options}".strip()


def format_target(labels: list[str]) -> str:
    """Return the whole answer that the model learns to give, joined as the question asks whatever the data set did."""
    return SEPARATOR.join(labels) or NONE


def parse(text: str, vocabulary: list[str]) -> list[str] | None:
    """Return the labels in the model's `text`, each once, or None for unparsed.

    The text is split at `;`, `,` and line ends, where a label that holds such a separator itself stays whole, and each
    piece must be a label (case, punctuation, bullets and blanks don't count). A piece that is none
    ("no effusion", "possible mass") stays in the list in lower case, where it counts as a wrong label. An answer
    of nothing but such pieces is unparsed, as is an empty one; `None` is the empty list.
    """
    pieces = _split(read_final(text), vocabulary)
    if not pieces:
        return None
    by_words = {_normalise(label): label for label in vocabulary}
    if pieces == [_normalise(NONE)] and pieces[0] not in by_words:
        return []
    labels = list(dict.fromkeys(by_words.get(piece, piece) for piece in pieces))
    return labels if any(piece in by_words for piece in pieces) else None


def read_labels(answer: str, vocabulary: list[str]) -> list[str]:
    """Return the labels of a data set's own `answer`, joined with `, ` or `; `.

    Raises:
        ValueError: A part of it is no label of `vocabulary`.
    """
    labels = parse(answer, vocabulary) if answer.strip() else []
    unknown = [answer] if labels is None else [label for label in labels if label not in vocabulary]
    if unknown:
        raise ValueError(
            f"answer {answer!r} holds {unknown}, expected labels among {vocabulary}; add them to class_names or "
            "correct the row"
        )
    return labels


def format_question(ask: Mapping, config: DatasetConfig) -> str:
    """Return the prompt of a record; the labels are listed where its question doesn't name them all."""
    named = all(label.casefold() in ask["question"].casefold() for label in ask["vocabulary"])
    return format_prompt(ask["question"], None if named else ask["vocabulary"], config.instruction)


def format_answer(ask: Mapping, answer: list[str], config: DatasetConfig) -> str:
    """Return the target of a record."""
    return format_target(answer)


def read_answer(text: str, ask: Mapping, config: DatasetConfig) -> tuple[list[str] | None, bool]:
    """Return the labels in the model's `text`, None for unparsed, and False: nothing here is ever mended."""
    return parse(text, ask["vocabulary"]), False


def describe_answer(answer: list[str]) -> dict:
    """Return the form of an answer, see `answer_forms`."""
    return {"kind": "text", "text": SEPARATOR.join(answer) or "none", "parts": answer or ["No label"]}


def guess_answers(train: Sequence[tuple[Mapping, list[str]]], asks: Sequence[Mapping], config: DatasetConfig) -> list:
    """Return the constant answer of the floor: the most frequent set of labels in train."""
    counts = Counter(tuple(sorted(answer)) for _, answer in train)
    return [list(counts.most_common(1)[0][0])] * len(asks)


def measure_answers(
    gold: Sequence, predicted: Sequence, asks: Sequence[Mapping], guesses: Sequence, config: DatasetConfig
) -> tuple[Measure, dict]:
    """Return the measure for the bootstrap, and what `compute_multilabel` says of the same answers."""
    return multilabel_measure(gold, predicted), compute_multilabel(gold, predicted)


def _split(text: str, vocabulary: list[str]) -> list[str]:
    """Return the normalised pieces of `text`, those of a label with separators of its own put together again."""
    pieces = _cut(text)
    for label in sorted(vocabulary, key=len, reverse=True):
        parts = _cut(label)
        start = 0
        while len(parts) > 1 and start <= len(pieces) - len(parts):
            if pieces[start : start + len(parts)] == parts:
                pieces[start : start + len(parts)] = [_normalise(label)]
            start += 1
    return pieces


def _cut(text: str) -> list[str]:
    pieces = [_normalise(_BULLET.sub("", piece)) for piece in _SEPARATORS.split(text)]
    return [piece for piece in pieces if piece]


def _normalise(text: str) -> str:
    return " ".join(text.casefold().translate(_BLANKS).split())
