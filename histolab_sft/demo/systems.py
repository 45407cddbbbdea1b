"""Two systems in one set of weights: the fine-tuned model, and the base model, which is it with the adapter off.

This module and all that it imports work without the training stack, so that they also run in a Space.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
from peft import PeftModel
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from histolab_sft.data.pictures.steps import show_scales
from histolab_sft.demo.data_set import DataSet, word_question
from histolab_sft.models.generate import generate_answers
from histolab_sft.models.likelihood import label_log_likelihoods, probabilities, slot_log_probabilities
from histolab_sft.tasks import TASKS, reasoning
from histolab_sft.tasks.parsing.field_places import find_places, list_options

BASELINE, FINETUNED = "baseline", "finetuned"
TITLES = {BASELINE: "Base model", FINETUNED: "Fine-tuned"}
REASONING_TOKENS = 256
BATCH = 8

Case = Sequence[Image.Image]  # pictures that one question is about


@dataclass(frozen=True)
class Answer:
    """What a system says to one question.

    Args:
        value: The answer in the task's own form, None where none could be read. Where the data set has options it is
            the likeliest one, whatever the system writes.
        text: What it wrote, None as long as it hasn't.
        truncated: Whether that was cut off.
        probabilities: Of the data set's options, in their order; None where it has none.
        withheld: Whether the likeliest option is too unlikely to count.
        confidences: Field -> how likely the system finds the value that it gives, of all legal ones.
    """

    value: object | None = None
    text: str | None = None
    truncated: bool = False
    probabilities: list[float] | None = None
    withheld: bool = False
    confidences: dict[str, float] = field(default_factory=dict)

    @property
    def confidence(self) -> float | None:
        return None if self.probabilities is None else max(self.probabilities)


@dataclass
class Systems:
    """The loaded model, with or without an adapter, and its processor."""

    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin
    lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def names(self) -> list[str]:
        return [BASELINE, FINETUNED] if isinstance(self.model, PeftModel) else [BASELINE]


def answer_case(systems: Systems, case: Case, data_set: DataSet, ask: dict) -> Iterator[dict[str, Answer | None]]:
    """Yield what each system has said so far: where the data set has options their probabilities first, then words."""
    answers = dict.fromkeys(systems.names)
    if data_set.options:
        answers = {system: answer_patches(systems, system, [case[0]], data_set)[0] for system in systems.names}
    yield dict(answers)
    for system in systems.names:
        [answer] = write_answers(systems, system, [case], data_set, [ask], [answers[system]])
        answers[system] = weigh_fields(systems, system, case, data_set, ask, answer)
        yield dict(answers)


def answer_patches(
    systems: Systems, system: str, images: Sequence[Image.Image], data_set: DataSet, batch_size: int = BATCH
) -> list[Answer]:
    """Return the option that `system` finds likeliest for each of N patches, by the likelihood of whole answers."""
    ask, task = data_set.asks[0], TASKS[data_set.task]
    targets = [task.format_answer(ask, option, data_set.config) for option in data_set.options]
    questions = [word_question(data_set, ask)] * len(images)
    with use_system(systems, system) as model:
        cases = [show_case([image], data_set) for image in images]
        scores, _ = label_log_likelihoods(model, systems.processor, cases, questions, targets, batch_size)
    return [decide(row, data_set, system) for row in probabilities(scores, data_set.log_priors.get(system))]


def decide(row: np.ndarray, data_set: DataSet, system: str) -> Answer:
    """Return the answer that probabilities `(K,)` of the options stand for."""
    best = int(row.argmax())
    threshold = data_set.thresholds.get(system, 0.0)
    withheld = threshold is None or data_set.measure_confidence(system, row) < threshold
    return Answer(data_set.options[best], probabilities=row.tolist(), withheld=bool(withheld))


def write_answers(
    systems: Systems,
    system: str,
    cases: Sequence[Case],
    data_set: DataSet,
    asks: Sequence[dict],
    chosen: Sequence[Answer | None],
    batch_size: int = BATCH,
) -> list[Answer]:
    """Return what `system` writes about each of N cases, read as scoring does.

    Args:
        chosen: What it has chosen before, by the likelihood of options: that stays its answer. None where there are no
            options, and the answer is what it writes.
    """
    questions, shown = [word_question(data_set, ask) for ask in asks], [show_case(case, data_set) for case in cases]
    task, config, answers = TASKS[data_set.task], data_set.config, []
    with use_system(systems, system) as model:
        written = generate_answers(
            model, systems.processor, shown, questions, data_set.max_new_tokens, batch_size=batch_size
        )
        for row, (text, truncated) in enumerate(written):
            if chosen[row] is not None:
                answers.append(replace(chosen[row], text=text, truncated=truncated))
                continue
            answers.append(Answer(task.read_answer(text, asks[row], config)[0], text, truncated))
    return answers


def weigh_fields(systems: Systems, system: str, case: Case, data_set: DataSet, ask: dict, answer: Answer) -> Answer:
    """Return the answer with how likely `system` finds the value of each field in it, where its task has fields."""
    task = TASKS[data_set.task]
    fields = task.list_fields(data_set.config) if task.list_fields else []
    places = find_places(answer.text, answer.value, fields)
    if not places:
        return answer
    with use_system(systems, system) as model:
        questions, slots = [word_question(data_set, ask)], [list(places.values())]
        [weighed] = slot_log_probabilities(model, systems.processor, [show_case(case, data_set)], questions, slots)
    options = {entry["name"]: list_options(entry) for entry in fields if entry["name"] in places}
    confidences = {
        name: float(np.exp(scores[options[name].index(answer.value[name])]))
        for name, scores in zip(places, weighed, strict=True)
        if answer.value[name] in options[name]
    }
    return replace(answer, confidences=confidences)


def write_reasoning(systems: Systems, system: str, case: Case, data_set: DataSet) -> tuple[str, bool, str]:
    """Return what `system` writes when it shall describe first and then decide, whether it was cut off, the option."""
    question = reasoning.format_prompt(data_set.options)
    with use_system(systems, system) as model:
        shown = [show_case(case, data_set)]
        [(text, truncated)] = generate_answers(model, systems.processor, shown, [question], REASONING_TOKENS)
    return text, truncated, reasoning.parse(text, data_set.options)


@contextmanager
def use_system(systems: Systems, system: str) -> Iterator[PreTrainedModel | PeftModel]:
    """Hold the model as `system`. The adapter is one switch for everybody, so only one caller holds it at a time."""
    if system not in systems.names:
        raise ValueError(f"system is {system!r}, expected one of {systems.names}; load an adapter for the second")
    with systems.lock:
        if system == BASELINE and isinstance(systems.model, PeftModel):
            with systems.model.disable_adapter():
                yield systems.model
        else:
            yield systems.model


def show_case(case: Case, data_set: DataSet) -> list[Image.Image]:
    """Return the pictures that the model sees of a case: each one, and its crops where the data set cuts any."""
    return [scale for image in case for scale in show_scales(image, data_set.config.multi_scale)]
