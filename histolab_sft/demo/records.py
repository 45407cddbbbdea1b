"""Data sets whose rows bring their own questions: put one to a system, and read its answer as scoring does.

Like `systems`, this module works without the training stack.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image
from transformers import PreTrainedTokenizerBase

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.config.picture import choose_rendering
from histolab_sft.data.pictures.steps import show_scales
from histolab_sft.demo.systems import DataSet, Systems, use_system
from histolab_sft.models.generate import generate_answers
from histolab_sft.tasks import TASKS

MAX_PICTURES = 16
MAX_LETTERS = 4000  # of a question, and of its possible answers
# Where a question lists what may be answered.
CHOICES = ("options", "vocabulary")


class QuestionRefused(ValueError):
    """This can't be asked; the message says why to the one who asks."""


@dataclass(frozen=True)
class RecordSet:
    """What a data set with a format asks.

    Args:
        name: As in the recipe.
        task: A key of `TASKS`.
        asks: The questions of its rows in the task's own form, each once, without the size of a picture.
        max_new_tokens: Longest answer.
        keys: Keys of the recipe's entry that word the question or read the answer.
    """

    name: str
    task: str
    asks: list[dict]
    max_new_tokens: int
    keys: dict = field(default_factory=dict)

    @property
    def placed(self) -> bool:
        """Whether answers are places in one picture."""
        return TASKS[self.task].draw_answers is not None

    @property
    def config(self) -> DatasetConfig:
        return DatasetConfig(name=self.name, source=".", **self.keys)

    @property
    def rendering(self) -> str:
        return choose_rendering(self.config)


@dataclass(frozen=True)
class RecordAnswer:
    """What a system wrote, whether it was cut off, and the answer in the task's own form, None for unparsed."""

    text: str
    truncated: bool
    value: object | None


def build_data_set(entry: dict) -> DataSet | RecordSet:
    """Return the data set that an entry of the settings describes; one with a format has a `task`."""
    return RecordSet(**entry) if "task" in entry else DataSet(**entry)


def fill_ask(record_set: RecordSet, ask: dict, question: str, options: str, images: Sequence[Image.Image]) -> dict:
    """Return `ask` about these pictures, with the visitor's words where the question is free.

    Args:
        question: In place of the data set's own words; left out where the task has but one wording.
        options: The possible answers, one a line, where the task has any.

    Raises:
        QuestionRefused: Pictures, a question or possible answers are missing, or there are too many.
    """
    if not images:
        raise QuestionRefused("No picture yet: upload one, or several of one case.")
    most = 1 if record_set.placed else MAX_PICTURES
    if len(images) > most:
        raise QuestionRefused(f"{len(images)} pictures, expected at most {most} for {record_set.task}; take some out.")
    if max(len(question), len(options)) > MAX_LETTERS:
        raise QuestionRefused(f"The text is longer than {MAX_LETTERS} letters; shorten it.")
    filled = ask | ({"size": list(images[0].size)} if record_set.placed else {})
    if "question" in ask:
        if not question.strip():
            raise QuestionRefused("No question yet: write one.")
        filled["question"] = question.strip()
    if key := find_choices(ask):
        filled[key] = list(dict.fromkeys(line.strip() for line in options.splitlines() if line.strip()))
        if len(filled[key]) < 2:
            raise QuestionRefused(f"{len(filled[key])} possible answers, expected two or more; write one a line.")
    return filled


def find_choices(ask: dict) -> str | None:
    """Return the key under which a question lists its possible answers, None where it doesn't."""
    return next((key for key in CHOICES if key in ask), None)


def word_question(record_set: RecordSet, ask: dict, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the whole question as training words it.

    Raises:
        QuestionRefused: It holds a control word of the model, such as the beginning of a turn or of a picture.
    """
    question = TASKS[record_set.task].format_question(ask, record_set.config)
    controls = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = (controls - {tokenizer.unk_token_id}) & set(tokenizer(question, add_special_tokens=False)["input_ids"])
    if found:
        raise QuestionRefused("The question holds a control word of the model, expected plain words; take it out.")
    return question


def put_question(
    systems: Systems, system: str, images: Sequence[Image.Image], record_set: RecordSet, ask: dict, question: str
) -> RecordAnswer:
    """Return what `system` answers to `question`, which is `ask` in words, about one picture or several."""
    shown = [scale for image in images for scale in show_scales(image, record_set.config.multi_scale)]
    with use_system(systems, system) as model:
        [(text, truncated)] = generate_answers(
            model, systems.processor, [shown], [question], record_set.max_new_tokens
        )
    value, _ = TASKS[record_set.task].read_answer(text, ask, record_set.config)
    return RecordAnswer(text, truncated, value)
