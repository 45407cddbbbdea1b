"""What the page can ask of a data set: its questions in the task's own form, and the visitor's words in them.

This module and all that it imports work without the training stack, so that they also run in a Space.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.picture import choose_rendering
from histolab_sft.tasks import TASKS

MAX_PICTURES = 16
MAX_LETTERS = 4000  # of a question, and of its possible answers
# Where a question lists what may be answered.
CHOICES = ("options", "vocabulary")


class QuestionRefused(ValueError):
    """This can't be asked; the message says why to the one who asks."""


@dataclass(frozen=True)
class DataSet:
    """What is asked about a case, and when an answer counts.

    Args:
        name: As in the recipe.
        task: A key of `TASKS`.
        asks: The questions of its rows in the task's own form, each once, without the size of a picture.
        max_new_tokens: Longest written answer.
        keys: Keys of the recipe's entry that word the question, read the answer or render the pictures.
        thresholds: System -> the confidence below which its choice of an option is withheld; None where no confidence
            reached the target on the validation split; a system that was never scored isn't listed, and withholds
            nothing.
        target: The accuracy on the validation split that the thresholds stand for.
        scored: This model's score on the test split, in words: `name`, `n`, `baseline`, `finetuned`, `floor`,
            `warnings`; empty where it isn't known.
        temperatures: System -> what its log-likelihoods are divided by for the confidence that the threshold is of,
            where that is the report's for `target_accuracy`; 1 for one that isn't listed.
        log_priors: System -> what is taken from its log-likelihoods of the options before they are compared; the base
            model's leaning towards some words, where it was scored without it.
    """

    name: str
    task: str
    asks: list[dict]
    max_new_tokens: int
    keys: dict = field(default_factory=dict)
    thresholds: dict[str, float | None] = field(default_factory=dict)
    target: float = 0.0
    temperatures: dict[str, float] = field(default_factory=dict)
    log_priors: dict[str, list[float]] = field(default_factory=dict)
    scored: dict = field(default_factory=dict)

    @property
    def config(self) -> DatasetConfig:
        return DatasetConfig(name=self.name, source=".", **self.keys)

    @property
    def options(self) -> list[str] | None:
        """The answers that every question chooses from, None where questions bring their own."""
        return self.config.options

    @property
    def rendering(self) -> str:
        """What is done to a stored picture before it is shown."""
        return choose_rendering(self.config)

    def measure_confidence(self, system: str, probabilities: Sequence[float]) -> float:
        """Return the confidence in the likeliest option that the threshold is compared with."""
        tempered = np.asarray(probabilities) ** (1 / self.temperatures.get(system, 1.0))
        return float(tempered.max() / tempered.sum())

    @property
    def placed(self) -> bool:
        """Whether answers are places in one picture."""
        return TASKS[self.task].draw_answers is not None

    @property
    def most_pictures(self) -> int:
        """How many pictures a case may have."""
        return 1 if self.placed or self.options else MAX_PICTURES


def fill_ask(data_set: DataSet, ask: dict, question: str, choices: str, images: Sequence[Image.Image]) -> dict:
    """Return `ask` about these pictures, with the visitor's words where the question is free.

    Args:
        question: In place of the data set's own words; left out where the question is fixed.
        choices: The possible answers, one a line, where a free question has any.

    Raises:
        QuestionRefused: Pictures, a question or possible answers are missing, or there are too many.
    """
    if not images:
        raise QuestionRefused("No picture yet: drop one on the field for pictures, or choose an example.")
    if len(images) > data_set.most_pictures:
        raise QuestionRefused(
            f"{len(images)} pictures, expected at most {data_set.most_pictures} for {data_set.task}; take some out."
        )
    if max(len(question), len(choices)) > MAX_LETTERS:
        raise QuestionRefused(f"The text is longer than {MAX_LETTERS} letters; shorten it.")
    # A row of the data says itself how large its picture is stored.
    filled = ({"size": list(images[0].size)} if data_set.placed else {}) | ask
    if "question" in ask:
        if not question.strip():
            raise QuestionRefused("No question yet: write one.")
        filled["question"] = question.strip()
    if key := find_choices(ask):
        filled[key] = list(dict.fromkeys(line.strip() for line in choices.splitlines() if line.strip()))
        if len(filled[key]) < 2:
            raise QuestionRefused(f"{len(filled[key])} possible answers, expected two or more; write one a line.")
    return filled


def find_choices(ask: dict) -> str | None:
    """Return the key under which a free question lists its possible answers, None where it doesn't."""
    return next((key for key in CHOICES if key in ask and "question" in ask), None)


def word_question(data_set: DataSet, ask: dict) -> str:
    """Return the whole question as training words it."""
    return TASKS[data_set.task].format_question(ask, data_set.config)


def check_words(question: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `QuestionRefused` for a control word of the model, such as the beginning of a turn or of a picture."""
    controls = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = (controls - {tokenizer.unk_token_id}) & set(tokenizer(question, add_special_tokens=False)["input_ids"])
    if found:
        raise QuestionRefused("The question holds a control word of the model, expected plain words; take it out.")
