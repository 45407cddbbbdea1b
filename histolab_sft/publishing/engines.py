"""Ask a model that another engine serves: llama.cpp, started here, or any server that speaks OpenAI's completions."""

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx2
import torch
from PIL import Image

from histolab_sft.publishing.gguf import INSTALL
from histolab_sft.publishing.push_gate import PublishError
from histolab_sft.tasks.parsing.final_text import strip_thinking

SECONDS = 600  # for one answer; a large model on a processor takes minutes to read its first picture
CONTEXT = 8192  # tokens of pictures, question and answer together


@dataclass(frozen=True)
class Engine:
    """A running server.

    Args:
        name: As the card calls it.
        url: Where its paths begin, without `/v1`.
        model: What it calls the model.
    """

    name: str
    url: str
    model: str


def check_llama() -> None:
    """Raise `PublishError` where llama.cpp isn't installed; the message has the command that brings it."""
    if find_spec("xllamacpp") is None:
        raise PublishError(
            f"llama.cpp isn't installed; run `{INSTALL}`, or start `llama-server` with the files and give its address "
            "by engine_url"
        )


@contextmanager
def serve_gguf(model: Path, projector: Path) -> Iterator[Engine]:
    """Serve GGUF files by llama.cpp on a free port of this machine while the block runs."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.mmproj.path = str(model), str(projector)
    settings.n_ctx, settings.n_parallel = CONTEXT, 1
    # Its threads wait for each other at full speed, so there must be no more than cores that are free for them.
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = torch.get_num_threads()
    settings.verbosity = -1
    try:
        server = xllamacpp.Server(settings)
    except RuntimeError as error:
        raise PublishError(f"llama.cpp can't serve {model} ({error}); write it again") from error
    try:
        yield Engine("llama.cpp", server.listening_address, model.name)
    finally:
        del server  # which stops it


def find_engine(url: str, model: str | None) -> Engine:
    """Return the server at `url`, and of its models the one named, or the first.

    Raises:
        PublishError: Nobody answers there, or it has no such model.
    """
    try:
        answer = httpx2.get(f"{url}/v1/models", timeout=SECONDS).raise_for_status().json()
    except (httpx2.HTTPError, ValueError) as error:
        raise PublishError(
            f"{url} doesn't answer ({error}), expected a server; start it, or correct engine_url"
        ) from error
    names = [entry["id"] for entry in answer["data"]]
    if not names or model is not None and model not in names:
        raise PublishError(f"{url} serves {names}, expected {model or 'a model'}; correct engine_model")
    return Engine(answer["data"][0].get("owned_by", "the server"), url, model or names[0])


def ask(
    engine: Engine, pictures: Sequence[Image.Image], question: str, max_new_tokens: int
) -> tuple[str, float | None]:
    """Return the greedy answer to a question about a row's pictures, and its log-probability in nats.

    The log-probability is that of the whole answer, end of turn included. It is None where the engine gives none, or
    where the answer was cut off.

    Raises:
        PublishError: The engine refuses, or is gone.
    """
    # The pictures before the question, as in training.
    content = [{"type": "image_url", "image_url": {"url": _encode(picture)}} for picture in pictures]
    content.append({"type": "text", "text": question})
    body = {
        "model": engine.model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": max_new_tokens,
        "logprobs": True,
    }
    try:
        answer = httpx2.post(f"{engine.url}/v1/chat/completions", json=body, timeout=SECONDS)
        choice = answer.raise_for_status().json()["choices"][0]
    except (httpx2.HTTPError, ValueError) as error:
        raise PublishError(f"{engine.name} failed ({error}), expected an answer; see what it logs") from error
    tokens = (choice.get("logprobs") or {}).get("content") or []
    whole = choice["finish_reason"] == "stop" and tokens
    probability = sum(token["logprob"] for token in tokens) if whole else None
    return strip_thinking(choice["message"]["content"]), probability


def _encode(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
