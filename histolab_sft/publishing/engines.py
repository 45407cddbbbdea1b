"""
Compare a merged model's answers with those that llama.cpp or a vLLM server gives with the same weights:

    python -m histolab_sft.publishing.engines --config RECIPE.yaml [--engine_url http://127.0.0.1:8000]

An engine that isn't there is left out, and named.
"""

import base64
import io
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from datasets import Dataset
from PIL import Image
from transformers import HfArgumentParser
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments, parse_recipe
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.data.rows import load_patches
from histolab_sft.models.generate import generate_answers
from histolab_sft.models.load import load_processor
from histolab_sft.provenance import write_json
from histolab_sft.publishing.merge import MIN_AGREEMENT, load_merged
from histolab_sft.publishing.push_gate import PublishError
from histolab_sft.tasks import classification

logger = logging.getLogger(__name__)

COMMAND = "llama-mtmd-cli"
MARKER = "<__media__>"  # where llama.cpp puts the picture: before the question, as in training
SECONDS = 600  # for one answer, loading the weights included


@dataclass
class EngineArguments:
    """Keys beside those of a recipe."""

    engine_url: str | None = field(default=None, metadata={"help": "A server of vLLM, as `vllm serve` says it."})
    engine_patches: int = field(default=16, metadata={"help": "Patches of the validation split to ask about."})


def main(
    engine_args: EngineArguments, histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output_dir = Path(training_args.output_dir)
    engines = find_engines(output_dir, engine_args.engine_url, histo_args.max_new_tokens)
    if engines:
        patches = load_patches(histo_args)["validation"].shuffle(seed=training_args.seed)
        patches = patches.select(range(min(engine_args.engine_patches, len(patches))))
        compare_engines(engines, patches, histo_args, output_dir)


def find_engines(output_dir: Path, url: str | None, max_new_tokens: int) -> dict[str, Callable[[bytes, str], str]]:
    """Return engine -> function of a PNG's bytes and a question that gives the answer; log which is left out."""
    engines = {}
    weights = (output_dir / "m.gguf", output_dir / "mmproj.gguf")
    missing = [str(path) for path in weights if not path.is_file()]
    if shutil.which(COMMAND) is None:
        missing.append(f"{COMMAND} on the PATH")
    if missing:
        logger.info("llama.cpp: left out, without %s", ", ".join(missing))
    else:
        engines["llama.cpp"] = lambda picture, question: ask_llama(*weights, picture, question, max_new_tokens)
    if url is None:
        logger.info("vLLM: left out, without engine_url")
    else:
        engines["vLLM"] = lambda picture, question: ask_server(url, picture, question, max_new_tokens)
    return engines


def compare_engines(
    engines: dict[str, Callable[[bytes, str], str]], patches: Dataset, histo_args: HistoArguments, output_dir: Path
) -> dict:
    """Ask each engine and the merged model about the same patches and write `output_dir/engine_parity.json`.

    Returns:
        `dict`: `n_patches`, `min_agreement`, and `engines`: name -> `agreement`, the share of patches with the same
        class (or, from both, none).

    Raises:
        PublishError: An engine fails, or agrees on fewer patches than the tolerance.
    """
    options = {config.name: list(config.class_names.values()) for config in histo_args.datasets}
    questions = [prompt[0]["content"] for prompt in patches["prompt"]]
    merged = output_dir / "merged"
    answers = generate_answers(
        load_merged(merged), load_processor(str(merged)), patches["image"], questions, histo_args.max_new_tokens
    )
    expected = [
        classification.parse(text, options[name]) for (text, _), name in zip(answers, patches["dataset"], strict=True)
    ]
    parity = {"n_patches": len(patches), "min_agreement": MIN_AGREEMENT, "engines": {}}
    for engine, ask in engines.items():
        same = 0
        for row, question, name, own in zip(patches, questions, patches["dataset"], expected, strict=True):
            same += classification.parse(ask(_encode(row["image"]), question), options[name]) == own
        parity["engines"][engine] = {"agreement": same / len(patches)}
        logger.info("%s: %d of %d answers as the merged model", engine, same, len(patches))
    write_json(output_dir / "engine_parity.json", parity)
    worse = [name for name, entry in parity["engines"].items() if entry["agreement"] < MIN_AGREEMENT]
    if worse:
        raise PublishError(
            f"{', '.join(worse)} agrees on less than {MIN_AGREEMENT:.0%} of the answers, expected the same model; see "
            f"{output_dir / 'engine_parity.json'}, and convert the weights again in bfloat16"
        )
    return parity


def ask_llama(weights: Path, projector: Path, picture: bytes, question: str, max_new_tokens: int) -> str:
    """Return the greedy answer of llama.cpp's command line."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(picture)
        file.flush()
        command = [COMMAND, "-m", str(weights), "--mmproj", str(projector), "--image", file.name]
        command += ["-p", f"{MARKER}{question}", "--temp", "0", "-n", str(max_new_tokens)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            last = (str(error.stderr or "").strip().splitlines() or ["no word"])[-1]
            raise PublishError(f"{COMMAND} failed ({last}), expected an answer; convert the weights again") from error
    return run.stdout


def ask_server(url: str, picture: bytes, question: str, max_new_tokens: int) -> str:
    """Return the greedy answer of a server that speaks OpenAI's chat completions, as vLLM does."""
    image = {"url": f"data:image/png;base64,{base64.b64encode(picture).decode()}"}
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": question}]
    try:
        model = httpx2.get(f"{url}/v1/models", timeout=SECONDS).raise_for_status().json()["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": content}]}
        body |= {"temperature": 0, "max_tokens": max_new_tokens}
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=SECONDS).raise_for_status()
    except httpx2.HTTPError as error:
        raise PublishError(f"{url} failed ({error}), expected an answer; start `vllm serve` first") from error
    return answer.json()["choices"][0]["message"]["content"]


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    engine_args, recipe = HfArgumentParser(EngineArguments).parse_args_into_dataclasses(return_remaining_strings=True)
    try:
        main(engine_args, *parse_recipe(recipe))
    except PublishError as error:
        sys.exit(f"no parity: {error}")
