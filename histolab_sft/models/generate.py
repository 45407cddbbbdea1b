"""Prompts and completions as the chat template writes them, and greedy answers to a batch of patches."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from PIL import Image
from tqdm import tqdm
from transformers import (
    BatchFeature,
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from histolab_sft.models.picture_loader import prepare_ahead
from histolab_sft.tasks.parsing.final_text import CLOSING, END_OF_TURN, OPENING, strip_thinking

logger = logging.getLogger(__name__)


def render_prompt(processor: ProcessorMixin, question: str, n_images: int = 1) -> str:
    """Return the user's turn, its pictures and the question, and the beginning of the model's turn.

    The text is the one that `SFTTrainer` trains on, written without TRL, so that answering needs no training stack.
    """
    return processor.apply_chat_template(
        _build_user_turn(question, n_images), tokenize=False, add_generation_prompt=True
    )


def render_prompts(
    processor: ProcessorMixin, questions: list[str], images: Sequence[Image.Image | list[Image.Image]]
) -> list[str]:
    """Return `render_prompt` of each question with its one picture or several."""
    counts = [len(image) if isinstance(image, list) else 1 for image in images]
    return [render_prompt(processor, question, count) for question, count in zip(questions, counts, strict=True)]


def render_completion(processor: ProcessorMixin, question: str, answer: str) -> str:
    """Return what follows `render_prompt(processor, question)` when the model gives `answer`, with its end of turn.

    Raises:
        ValueError: The chat template writes the prompt differently once it has an answer.
    """
    conversation = [*_build_user_turn(question), {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    prompt = render_prompt(processor, question)
    text = processor.apply_chat_template(conversation, tokenize=False)
    if not text.startswith(prompt):
        raise ValueError(
            f"the chat template gives {text[: len(prompt)]!r} with an answer and {prompt!r} without one, expected the "
            "same; use a template whose generation prompt is how the model's turn begins"
        )
    return text[len(prompt) :]


def encode_prompts(
    processor: ProcessorMixin, images: Sequence[Image.Image | list[Image.Image]], prompts: list[str]
) -> BatchFeature:
    """Return the model's inputs for rendered prompts and their pictures, padded on the left, on the CPU."""
    return processor(
        images=[image if isinstance(image, list) else [image] for image in images],
        text=prompts,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        add_special_tokens=False,  # the template has written <bos>
    )


def encode_ahead(
    processor: ProcessorMixin,
    images: Sequence[Image.Image | list[Image.Image]],
    questions: list[str],
    batches: Sequence[Sequence[int]],
    device: torch.device,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the model's inputs for each batch of rows, on `device`; other processes prepare them meanwhile.

    Args:
        images, questions: Of all rows; only pictures of rows that stand in a batch are read.
        batches: The numbers of the rows that are read at once.
    """

    def encode(batch: Sequence[int]) -> dict[str, torch.Tensor]:
        pictures = [images[row] for row in batch]
        prompts = render_prompts(processor, [questions[row] for row in batch], pictures)
        return dict(encode_prompts(processor, pictures, prompts))

    for encoded in prepare_ahead(encode, batches, sum(map(len, batches))):
        yield {name: values.to(device, non_blocking=True) for name, values in encoded.items()}


def generate_answers(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image | list[Image.Image]],
    questions: list[str],
    max_new_tokens: int = 64,
    batch_size: int = 16,
    limits: Callable[[], LogitsProcessor] | None = None,
) -> list[tuple[str, bool]]:
    """Answer each question about its patch, or its several pictures, by greedy decoding.

    Args:
        images (`Sequence` of N pictures or lists of pictures): Read one batch at a time, so that a data set's column
            need not be in memory.
        questions (`list` of N strings): The user's words, without turn markers.
        limits (*optional*): Called once a batch, from `compile_grammar`: what bars tokens.

    Returns:
        `list` of N `(text, truncated)`: what the model wrote, without special tokens and without what it thought
        aloud before, and whether `max_new_tokens` cut it off before its end of turn.
    """
    model = unwrap_adapter(model)
    check_lengths(images, questions)
    stop = find_stop_tokens(model, processor)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=processor.tokenizer.pad_token_id,
        # Neutral: the model's own sampling settings would be filled in, only to draw a warning.
        top_k=50,
        top_p=1.0,
    )
    stop = torch.tensor(stop)
    markers = find_thinking_markers(processor.tokenizer)
    rows = range(len(questions))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    answers, lost = [], 0
    with evaluating(model):
        # A bar on a terminal only, and not for a caller that gives one batch at a time.
        hidden = len(questions) <= batch_size or None
        ahead = encode_ahead(processor, images, questions, batches, model.device)
        for inputs in tqdm(ahead, total=len(batches), desc="answering", unit="batch", disable=hidden):
            barring = [limits()] if limits else []
            written = model.generate(**inputs, generation_config=config, logits_processor=barring)
            written = written[:, inputs["input_ids"].shape[1] :].cpu()
            texts = [_decode(processor.tokenizer, tokens, markers) for tokens in written.tolist()]
            stopped = torch.isin(written, stop).any(dim=1).tolist()
            answers += [(text, not ended) for text, ended in zip(texts, stopped, strict=True)]
            lost += sum(_ends_thinking(tokens, markers) for tokens in written.tolist())
    if lost:
        logger.warning(
            "%d of %d answers ended while the model still thought aloud, and are empty; raise max_new_tokens (%d)",
            *(lost, len(questions), max_new_tokens),
        )
    return answers


def find_thinking_markers(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return `{id: word}` of the tokens between which a model thinks aloud; none where its vocabulary lacks them."""
    vocabulary = tokenizer.get_vocab()
    return {vocabulary[word]: word for word in (OPENING, CLOSING) if word in vocabulary}


def find_stop_tokens(model: PreTrainedModel, processor: ProcessorMixin) -> list[int]:
    """Return the ids that end an answer: the model's and the tokenizer's, and Gemma's end of turn where it exists.

    A model file that has lost its generation settings would otherwise write on after the end of its turn.
    """
    own = model.generation_config.eos_token_id
    stop = {processor.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    vocabulary = processor.tokenizer.get_vocab()
    return sorted(stop | {vocabulary[END_OF_TURN]} if END_OF_TURN in vocabulary else stop)


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int], markers: dict[int, str]) -> str:
    """Return an answer in words. The markers count, also for a tokenizer that leaves them out as special tokens."""
    if not markers.keys() & set(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=True)
    parts = itertools.groupby(tokens, key=markers.get)
    return strip_thinking(
        "".join(marker or tokenizer.decode(list(part), skip_special_tokens=True) for marker, part in parts)
    )


def _ends_thinking(tokens: list[int], markers: dict[int, str]) -> bool:
    met = [markers[token] for token in tokens if token in markers]
    return met[-1:] == [OPENING]


def unwrap_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model of transformers, in whose layers the adapter's weights sit."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def check_lengths(images: Sequence, questions: Sequence) -> None:
    """Raise `ValueError` unless there is one question a patch."""
    if len(images) != len(questions):
        raise ValueError(f"found {len(images)} images and {len(questions)} questions; give one question an image")


@contextmanager
def evaluating(model: PreTrainedModel):
    """Switch dropout, checkpointing and gradients off, and the first two on again afterwards if they were on."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _build_user_turn(question: str, n_images: int = 1) -> list[dict]:
    # Only the number of pictures counts here: the processor gets the pictures themselves.
    return [{"role": "user", "content": [{"type": "image"}] * n_images + [{"type": "text", "text": question}]}]
