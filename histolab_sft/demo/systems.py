"""Two systems in one set of weights: the fine-tuned model, and the base model, which is it with the adapter off.

This module and all that it imports work without the training stack, so that they also run in a Space.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from peft import PeftModel
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from histolab_sft.data.pictures.steps import show_scales
from histolab_sft.models.generate import generate_answers
from histolab_sft.models.likelihood import label_log_likelihoods, probabilities
from histolab_sft.tasks import classification, reasoning

BASELINE, FINETUNED = "baseline", "finetuned"
TITLES = {BASELINE: "Base model", FINETUNED: "Fine-tuned"}
REASONING_TOKENS = 256


@dataclass(frozen=True)
class DataSet:
    """What is asked about a patch, and when an answer counts.

    Args:
        name: As in the recipe.
        options: Class names in the order of the prompt.
        question: The prompt, word for word.
        thresholds: System -> the confidence below which its answer is withheld; None where no confidence reached the
            target on the validation split; a system that was never scored isn't listed, and withholds nothing.
        target: The accuracy on the validation split that the thresholds stand for.
        rendering: What is done to a stored picture before it is shown (`picture_config.choose_rendering`).
        multi_scale: Crops along each side that a picture is also shown in, None for the whole picture alone.
        log_priors: System -> what is taken from its log-likelihoods of the options before they are compared; the base
            model's leaning towards some words, where it was scored without it.
    """

    name: str
    options: list[str]
    question: str
    thresholds: dict[str, float | None] = field(default_factory=dict)
    target: float = 0.0
    rendering: str = ""
    multi_scale: int | None = None
    log_priors: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a system says: `probabilities` in the order of the options; `withheld` where its confidence is too low."""

    option: str
    confidence: float
    probabilities: list[float]
    withheld: bool


@dataclass
class Systems:
    """The loaded model, with or without an adapter, and its processor."""

    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin
    max_new_tokens: int = 64
    lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def names(self) -> list[str]:
        return [BASELINE, FINETUNED] if isinstance(self.model, PeftModel) else [BASELINE]


def answer_patches(
    systems: Systems, system: str, images: Sequence[Image.Image], data_set: DataSet, batch_size: int = 8
) -> list[Answer]:
    """Return the class that `system` finds likeliest for each of N patches, by the likelihood of whole answers."""
    targets = [classification.format_target(option) for option in data_set.options]
    shown = [show_scales(image, data_set.multi_scale) for image in images]
    with use_system(systems, system) as model:
        scores, _ = label_log_likelihoods(
            model, systems.processor, shown, [data_set.question] * len(images), targets, batch_size
        )
    return [decide(row, data_set, system) for row in probabilities(scores, data_set.log_priors.get(system))]


def decide(row: np.ndarray, data_set: DataSet, system: str) -> Answer:
    """Return the answer that probabilities `(K,)` stand for."""
    best = int(row.argmax())
    threshold = data_set.thresholds.get(system, 0.0)
    withheld = threshold is None or row[best] < threshold
    return Answer(data_set.options[best], float(row[best]), row.tolist(), bool(withheld))


def write_answer(systems: Systems, system: str, image: Image.Image, data_set: DataSet) -> tuple[str, bool]:
    """Return what `system` writes when it is asked about the patch, and whether it was cut off."""
    with use_system(systems, system) as model:
        shown = show_scales(image, data_set.multi_scale)
        [written] = generate_answers(model, systems.processor, [shown], [data_set.question], systems.max_new_tokens)
    return written


def write_reasoning(systems: Systems, system: str, image: Image.Image, data_set: DataSet) -> tuple[str, bool, str]:
    """Return what `system` writes when it shall describe first and then decide, whether it was cut off, the class."""
    question = reasoning.format_prompt(data_set.options)
    with use_system(systems, system) as model:
        shown = show_scales(image, data_set.multi_scale)
        [(text, truncated)] = generate_answers(model, systems.processor, [shown], [question], REASONING_TOKENS)
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
