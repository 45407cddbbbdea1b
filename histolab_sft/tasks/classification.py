"""Name the class of a patch: the question, the target, the parser of answers. No English about it stands elsewhere."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.metrics.classification import UNPARSED, compute_classification
from histolab_sft.metrics.weighted import Measure, classification_measure
from histolab_sft.tasks.answer_forms import describe_text
from histolab_sft.tasks.parsing.answers import parse_answer

NAME = "classification"
HEADLINE = "balanced_accuracy"
MAX_NEW_TOKENS = 64
ANSWER_IS = "one of several classes"
SCORED_AS = "A written answer that names no option counts as wrong."
# What other tasks have beside: `histolab_sft/tasks/__init__.py` lists all of it.
count_cut = draw_answers = list_fields = None
describe_answer = describe_text

# HistoLab's wording, of the questions and of TARGET, so that its published table can be reproduced like for like.
GENERIC_QUESTION = (
    "Classify this histopathology image. The possible tissue types are: {options}. "
    "What type of tissue is shown? Answer with only the tissue type name."
)
QUESTIONS = {
    "crc": (
        "This is an H&E stained colorectal tissue patch at 20x magnification. "
        "Classify the tissue type. Options: [{options}]. Answer with only the tissue type."
    ),
    "pcam": (
        "This is an H&E stained lymph node tissue section. Does this patch contain metastatic tumor tissue? "
        "Options: [{options}]. Answer with only Normal or Tumor."
    ),
    "bach": (
        "This is an H&E stained breast tissue biopsy at high magnification. "
        "Classify the tissue as one of: [{options}]. Answer with only the classification."
    ),
}
TARGET = "The answer is: {name}"
# Of rows that bring their own question.
RECORD_INSTRUCTION = "Answer the question about this medical image with only the words of the right option."

# The same question in other words, to measure how much depends on the wording; nothing is trained on them.
PARAPHRASES = (
    "What tissue does this histopathology patch show? Choose one of: {options}. Reply with its name only.",
    "Look at this picture of stained tissue under the microscope. Which of these fits it best: {options}? "
    "Give only the name.",
    "Options: {options}. Name the one that describes this histopathology image. Answer with the name alone.",
)


def format_prompt(name: str, options: list[str], style: str = "generic", question: str | None = None) -> str:
    """Return the question that training and scoring both ask.

    Args:
        name (`str`): Data set; with `style="dataset_specific"` it selects the question.
        options (`list[str]`): Class names in the order in which they are listed.
        style (`str`): `generic` or `dataset_specific`; a data set without its own question gets the generic one.
        question (`str`, *optional*): The recipe's own wording, in which `{options}` stands for the class names.
    """
    if question is None:
        question = QUESTIONS.get(name, GENERIC_QUESTION) if style == "dataset_specific" else GENERIC_QUESTION
    return question.replace("{options}", ", ".join(options))


def format_paraphrases(options: list[str]) -> list[str]:
    """Return other wordings of the question, with the class names in the order given."""
    return [question.replace("{options}", ", ".join(options)) for question in PARAPHRASES]


def format_target(option: str) -> str:
    """Return the whole answer that the model learns to give for the class name `option`."""
    return TARGET.format(name=option)


def parse(text: str, options: list[str]) -> str:
    """Return the class name in the model's `text`, or `"unparsed"`."""
    return parse_answer(text, options)


def format_question(ask: Mapping, config: DatasetConfig) -> str:
    """Return the prompt of a row; the options are listed where its own question doesn't name them all.

    A row without a question of its own is asked the data set's, in the `style` of `format_prompt`.

    Args:
        ask (`Mapping`): `options`, and either `question` or `style`.
    """
    if "question" not in ask:
        return format_prompt(config.name, ask["options"], ask["style"], config.question)
    named = all(option.casefold() in ask["question"].casefold() for option in ask["options"])
    options = "" if named else f"\nOptions: {'; '.join(ask['options'])}"
    instruction = RECORD_INSTRUCTION if config.instruction is None else config.instruction
    return f"{instruction}\n\n{ask['question']}{options}".strip()


def format_answer(ask: Mapping, answer: str, config: DatasetConfig) -> str:
    """Return the target of a row: an option's words, not its letter."""
    return format_target(answer)


def read_answer(text: str, ask: Mapping, config: DatasetConfig) -> tuple[str | None, bool]:
    """Return the option in the model's `text`, None for unparsed, and False: no text is
    mended before it is read, as broken JSON is in other tasks."""
    option = parse(text, ask["options"])
    return (None if option == UNPARSED else option), False


def guess_answers(train: Sequence[tuple[Mapping, str]], asks: Sequence[Mapping], config: DatasetConfig) -> list[str]:
    """Return what is answered without any picture: of each question's options the most frequent answer in train."""
    counts = Counter(answer for _, answer in train)
    return [max(ask["options"], key=lambda option: counts[option]) for ask in asks]


def measure_answers(
    gold: Sequence, predicted: Sequence, asks: Sequence[Mapping], guesses: Sequence, config: DatasetConfig
) -> tuple[Measure, dict]:
    """Return the measure for the bootstrap, and what `compute_classification` says of the same answers."""
    classes = sorted({option for ask in asks for option in ask["options"]} | set(gold))
    labels = np.array(gold, dtype=object)
    answers = np.array([UNPARSED if answer is None else answer for answer in predicted], dtype=object)
    return classification_measure(labels, answers, classes), compute_classification(labels, answers, classes)
