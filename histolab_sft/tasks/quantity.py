"""Give a number (a count, a measurement): the question, the target, the parser of answers."""

import math
import re
from collections.abc import Mapping, Sequence
from statistics import median

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.metrics.measures import quantity_measure
from histolab_sft.metrics.weighted import Measure
from histolab_sft.tasks.answer_forms import describe_text
from histolab_sft.tasks.parsing.final_text import read_final

# The FLARE 2026 baseline's wording (stage 2), asked in training and in scoring alike.
INSTRUCTIONS = {
    "counting": "You are given a medical image. Return only the integer count requested.",
    "regression": "You are given a medical image. Return only the requested numeric measurement.",
}
NAME = "quantity"
HEADLINE = "mae"
MAX_NEW_TOKENS = 32
ANSWER_IS = "a number"
SCORED_AS = "Mean absolute error; where there is no number in an answer, the median of train stands in."
count_cut = draw_answers = list_fields = None
describe_answer = describe_text
# No question of these tasks has an answer beyond it; a base model that babbles digits reached 1e253.
LIMIT = 1e9
_NAME_WITH_DIGITS = re.compile(r"(?<![\w.-])[^\W\d_][\w-]*[0-9][\w-]*")
_NUMBER = re.compile(
    r"(?<![\w.,])"
    r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?"
    r"(?![0-9]|[.,/][0-9])"
)


def format_prompt(kind: str, question: str, instruction: str | None = None) -> str:
    """Return the question that training and scoring both ask.

    Args:
        kind (`str`): `counting` or `regression`.
        question (`str`): What to count or measure, the data set's own words.
        instruction (`str`, *optional*): Replaces the wording about the answer's form; empty asks the bare question.
    """
    instruction = INSTRUCTIONS[kind] if instruction is None else instruction
    return f"{instruction}\n\n{question}".strip()


def format_target(kind: str, value: float, decimals: int = 1) -> str:
    """Return the whole answer that the model learns to give; a measurement is rounded to `decimals`.

    Raises:
        ValueError: The value isn't finite, is beyond `LIMIT`, or is a count that is no whole number from 0 up.
    """
    if not _is_legal(kind, value):
        raise ValueError(f"{kind} answer {value!r}, expected {_expected(kind)}; correct or leave out the row")
    return str(int(value)) if kind == "counting" else f"{value:.{decimals}f}"


def parse(text: str, kind: str) -> float | None:
    """Return the only number in the model's `text`, None for unparsed.

    `1,234` is a thousand and more; `33,3` could be two numbers or one and is unparsed, as are two different numbers, a
    range, a fraction and a number that `format_target` would refuse. Digits of a name (`CD8`, `T2`) are no number.
    """
    text = _NAME_WITH_DIGITS.sub(" ", read_final(text).replace("\N{MINUS SIGN}", "-"))
    words = _NUMBER.findall(text)
    if re.search("[0-9]", _NUMBER.sub(" ", text)):
        return None
    values = {float(word.replace(",", "")) for word in words}
    if len(values) != 1:
        return None
    value = values.pop()
    return value if _is_legal(kind, value) else None


def format_question(ask: Mapping, config: DatasetConfig) -> str:
    """Return the prompt of a record."""
    return format_prompt(ask["kind"], ask["question"], config.instruction)


def format_answer(ask: Mapping, answer: float, config: DatasetConfig) -> str:
    """Return the target of a record."""
    return format_target(ask["kind"], answer)


def read_answer(text: str, ask: Mapping, config: DatasetConfig) -> tuple[float | None, bool]:
    """Return the number in the model's `text`, None for unparsed, and False: nothing here is ever mended."""
    return parse(text, ask["kind"]), False


def guess_answers(train: Sequence[tuple[Mapping, float]], asks: Sequence[Mapping], config: DatasetConfig) -> list:
    """Return the constant answer of the floor: the median of train, of each kind by itself where it has any."""
    seen = {ask["kind"]: [] for ask in asks}
    for ask, answer in train:
        seen.setdefault(ask["kind"], []).append(answer)
    everything = [answer for _, answer in train]
    return [float(median(seen[ask["kind"]] or everything)) for ask in asks]


def measure_answers(
    gold: Sequence, predicted: Sequence, asks: Sequence[Mapping], guesses: Sequence, config: DatasetConfig
) -> tuple[Measure, dict]:
    """Return the measure for the bootstrap, in which the floor's guess stands for an answer without a number."""
    return quantity_measure(gold, predicted, guesses), {"imputed_with": sorted(set(guesses))}


def _is_legal(kind: str, value: float) -> bool:
    if not math.isfinite(value) or abs(value) > LIMIT:
        return False
    return kind != "counting" or (value >= 0 and value == int(value))


def _expected(kind: str) -> str:
    return f"a whole number from 0 to {LIMIT:.0f}" if kind == "counting" else f"a finite number within {LIMIT:.0e}"
