"""Frozen picture encoders beside the base model's own: loaded, and read as one row of features a picture.

A transformer's features are its class token and the mean of its patch tokens, side by side, as the cards of Virchow2
and Midnight recommend; without a class token the mean alone. A convolutional network's are the mean over space.
"""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BaseImageProcessor,
    BitImageProcessorPil,
    PretrainedConfig,
    PreTrainedModel,
    TimmWrapperModel,
)

from histolab_sft.files import cache_folder
from histolab_sft.hub_access import check_model_name, explain_hub_errors, fetch_base_model
from histolab_sft.models.generate import evaluating
from histolab_sft.models.picture_loader import prepare_ahead
from histolab_sft.models.vision_cache.store import FeatureStore, hash_parts, view_bytes
from histolab_sft.models.weight_checks import check_loaded

SHARD = 256  # pictures between two writes: what a kill can cost
TIMM = "timm_wrapper"
PROCESSOR = "preprocessor_config.json"
# Of models whose pages give the steps in words alone: the side in pixels, and mean and deviation of each channel.
STEPS_OF_CARDS = {"kaiko-ai/midnight": (224, 0.5, 0.5)}


class EncoderError(ValueError):
    """A model can't serve as an image encoder or classifier, and the message says what to do about it."""


@dataclass(frozen=True)
class ImageEncoder:
    """A frozen encoder and how it is given pictures.

    Attributes:
        fingerprint (`str`): Stands for weights and steps of the processor; features are kept under it.
    """

    model: PreTrainedModel
    processor: BaseImageProcessor
    fingerprint: str


def check_image_model(name: str, key: str) -> None:
    """Refuse a model that can't be had or read as pictures' encoder, and bring one on the Hub into its cache.

    Args:
        name (`str`): A folder, or an id on the Hub.
        key (`str`): The recipe's key that names it.

    Raises:
        HubAccessError: It can't be had.
        EncoderError: It needs packages that aren't here, or doesn't say how it is given pictures.
    """
    check_model_name(name, key=key, example="facebook/dinov2-base")
    fetch_base_model(name, kind="encoder")
    load_image_processor(name)


def _read_config(name: str) -> PretrainedConfig:
    """Read the configuration of an encoder; errors as in `check_image_model`."""
    with explain_hub_errors(name, "encoder"), _explain_packages(name):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


@contextmanager
def _explain_packages(name: str) -> Iterator[None]:
    """Turn transformers' refusal of a model that needs packages which aren't here into an `EncoderError`."""
    try:
        yield
    except ImportError as error:
        missing = [package for package in ("timm", "torchvision") if importlib.util.find_spec(package) is None]
        if not missing:
            raise
        raise EncoderError(
            f"{name} is a model of timm, which needs {' and '.join(missing)}; run `pip install {' '.join(missing)}`, "
            "or name a model of transformers"
        ) from error


def load_image_processor(name: str) -> BaseImageProcessor:
    """Load what makes pixels of pictures, by Pillow as everywhere here; errors as in `check_image_model`."""
    timm = _read_config(name).model_type == TIMM
    with explain_hub_errors(name, "encoder"), _explain_packages(name):
        try:
            # The one of timm has no other backend than torchvision.
            return AutoImageProcessor.from_pretrained(
                name, trust_remote_code=False, **({} if timm else {"backend": "pil"})
            )
        except OSError as error:
            if PROCESSOR not in str(error):
                raise
    if name in STEPS_OF_CARDS:
        side, mean, deviation = STEPS_OF_CARDS[name]
        return BitImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=[mean] * 3,
            image_std=[deviation] * 3,
        )
    raise EncoderError(
        f"{name} has no {PROCESSOR}, expected one that says how pictures are scaled and normalised; download the "
        "model to a folder, write the file as its page tells (an image processor's `save_pretrained`), and name it"
    )


def load_encoder(name: str, device: torch.device) -> ImageEncoder:
    """Load an encoder in float32; of a model of pictures and text, such as CLIP, the half that reads pictures.

    Raises:
        HubAccessError: It can't be had.
        EncoderError, WeightsError: It is no encoder of pictures, or weights are missing.
    """
    processor = load_image_processor(name)
    # A pooling layer that files lack is drawn, the same at each start; no feature is read from it.
    with torch.random.fork_rng(), explain_hub_errors(name, "encoder"):
        torch.manual_seed(0)
        model, found = AutoModel.from_pretrained(
            name, trust_remote_code=False, dtype="float32", output_loading_info=True
        )
    check_loaded(name, [key for key in found["missing_keys"] if "pool" not in key], [])
    if "vision_config" in model.config.to_dict():
        model = model.get_encoder(modality="image")
    model = model.to(device).eval().requires_grad_(False)
    encoder = ImageEncoder(model, processor, _fingerprint(model, processor))
    blank = np.zeros((64, 64, 3), dtype=np.uint8)
    try:
        with torch.no_grad():
            _read_features(model, processor([blank], return_tensors="pt")["pixel_values"])
    except (TypeError, ValueError) as error:
        raise EncoderError(
            f"{name} is a {type(model).__name__}, expected an encoder that takes pictures alone and gives tokens or "
            f"maps of features ({error}); name another"
        ) from error
    return encoder


def encode_rows(rows: Dataset, encoder: ImageEncoder, batch_size: int) -> np.ndarray:
    """Return the features of each row's first picture: float32, shape (rows, width).

    Each distinct picture is encoded once and its features are kept in the cache of this machine, a shard at a time:
    a call that was cut off goes on where it stood, and other splits, folds and recipes find them too.
    """
    keys = [hashes[0] for hashes in rows.with_format(None)["pixel_sha256"]]
    store = FeatureStore(cache_folder() / "features" / encoder.fingerprint)
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    missing = sorted(row for key, row in first.items() if key not in store)
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    images, found = rows["images"], {}

    def prepare(batch: list[int]) -> torch.Tensor:
        pictures = [images[row][0].convert("RGB") for row in batch]
        return encoder.processor(pictures, return_tensors="pt")["pixel_values"]

    with evaluating(encoder.model):
        prepared = prepare_ahead(prepare, batches, len(missing))
        shown = tqdm(prepared, "encoding", len(batches), unit="batch", disable=None)
        for batch, pixels in zip(batches, shown, strict=True):
            features = _read_features(encoder.model, pixels).cpu()
            found |= {keys[row]: one for row, one in zip(batch, features, strict=True)}
            if len(found) >= SHARD or batch is batches[-1]:
                name = hash_parts(*(key.encode() for key in found))
                # The lock's name is that of the unfinished file, which another process may be writing too.
                with FileLock(store.folder / f"{name}.lock"):
                    store.write(found, name)
                found = {}
    return store.features(keys).numpy()


def _read_features(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return features of shape (pictures, width) of pixels of shape (pictures, 3, height, width)."""
    hidden = model(pixel_values=pixels.to(model.device, non_blocking=True)).get("last_hidden_state")
    if hidden is None:
        raise ValueError("it gives no last_hidden_state")
    if hidden.dim() == 4:
        return hidden.float().mean(dim=(2, 3))
    n_prefix = _count_prefix(model, pixels, hidden.shape[1])
    mean = hidden[:, n_prefix:].float().mean(dim=1)
    return torch.cat([hidden[:, 0].float(), mean], dim=1) if n_prefix else mean


def _count_prefix(model: PreTrainedModel, pixels: torch.Tensor, n_tokens: int) -> int:
    """Return how many tokens stand before those of the patches: class token first, then registers and the like."""
    if isinstance(model, TimmWrapperModel):
        return model.timm_model.num_prefix_tokens
    patch = model.config.to_dict().get("patch_size")
    if not isinstance(patch, int):
        raise ValueError(f"its configuration has a patch_size of {patch}")
    n_patches = (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
    # A hierarchical transformer such as Swin merges patches by four, and has no other tokens.
    if n_tokens < n_patches and n_patches % n_tokens == 0:
        return 0
    if n_tokens < n_patches:
        raise ValueError(f"it gives {n_tokens} tokens for {n_patches} patches")
    return n_tokens - n_patches


def _fingerprint(model: PreTrainedModel, processor: BaseImageProcessor) -> str:
    parts = [processor.to_json_string().encode(), describe_config(model).encode()]
    for name, tensor in sorted(model.state_dict().items()):
        parts += [name.encode(), view_bytes(tensor.cpu())]
    return hash_parts(*parts)


def describe_config(model: PreTrainedModel) -> str:
    """Return what weights don't show, such as the number of heads, wherever the model was loaded from."""
    known = {key: str(value) for key, value in model.config.to_dict().items() if key != "_name_or_path"}
    return json.dumps(known, sort_keys=True)


def name_encoders(names: list[str]) -> dict[str, str]:
    """Return `{short name: name}`: the last parts of a path or id, as many as tell it from the others."""
    parts = [Path(name).parts for name in names]
    count = 1
    while len({own[-count:] for own in parts}) < len(set(parts)):
        count += 1
    return {"/".join(own[-count:]): name for own, name in zip(parts, names, strict=True)}
