"""The features of a frozen vision tower on disk, so that each distinct picture is encoded once.

The tower is more than half of a training step's arithmetic, and a frozen one gives the same features every time. They
lie in `FOLDER/FINGERPRINT` (see `feature_store`), where the fingerprint stands for everything beside the picture that
they depend on: another tower, processor or precision has another folder, so nothing stale is served either.
"""

import copy
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from filelock import FileLock, Timeout
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import BaseImageProcessor, BatchFeature, Gemma3Model, PreTrainedModel, ProcessorMixin
from transformers.image_utils import make_flat_list_of_images
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

from histolab_sft.data.pictures.decoding import hash_pixels
from histolab_sft.models.byte_pictures import send_bytes
from histolab_sft.models.compiled_layers import compiled_encoding
from histolab_sft.models.generate import evaluating
from histolab_sft.models.picture_loader import prepare_ahead
from histolab_sft.models.resolution import read_resolution
from histolab_sft.models.vision_cache.store import FeatureStore, hash_parts, view_bytes, writing_to

TOWER = "vision_tower."


def image_key(image: Image.Image) -> str:
    """Return the name of a picture in the cache, which is the `pixel_sha256` of audited rows."""
    return hash_pixels(image.convert("RGB"))


def build_vision_cache(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Iterable[tuple[str, Image.Image | Callable[[], Image.Image]]],
    folder: str | Path,
    batch_size: int = 16,
    shard_images: int = 64,
    compiled: bool = False,
) -> "VisionCache":
    """Encode every distinct picture that is not in the cache yet.

    Processes that build at once, on this machine or on others that share the folder, divide the work; one that is
    killed loses the shard that it was at. Call it under the autocast of the run that will read the features.

    Args:
        model (`PreTrainedModel` or `PeftModel`): A Gemma 3. Where its projector is trained or adapted, the pooled
            features that go into the projector are kept, else those that come out of it.
        images (`(key, picture)` pairs): The keys are those of `image_key`; a picture may be a function that opens it,
            called only if it must be encoded.
        compiled (`bool`): Whether full batches go through compiled layers of the tower.

    Raises:
        ValueError: A picture isn't the one that its key names, or the model isn't a Gemma 3 with a frozen tower.
    """
    cache = open_vision_cache(model, processor, folder, compiled)
    fill_vision_cache(cache, model, processor, dict(images), batch_size, shard_images)
    return cache


def fill_vision_cache(
    cache: "VisionCache",
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: dict[str, Image.Image | Callable[[], Image.Image]],
    batch_size: int,
    shard_images: int = 64,
) -> None:
    """Do the work of `build_vision_cache` on a cache that was opened for the same model and processor.

    Raises:
        StoreWriteError: Features are missing and can't be written.
    """
    gemma = find_gemma(model)
    sending = send_bytes(model, processor)
    cache.remove_leftovers()
    # In the order given, which is that of the files: neighbours in a container are read together.
    keys = list(images)
    shards = [keys[start : start + shard_images] for start in range(0, len(keys), shard_images)]

    def prepare(batch: list[str]) -> torch.Tensor:
        pictures = [images[key]() if callable(images[key]) else images[key] for key in batch]
        for key, picture in zip(batch, pictures, strict=True):
            if (found := image_key(picture)) != key:
                raise ValueError(
                    f"picture {found} was given as {key}; name pictures by image_key and leave them unchanged"
                )
        return sending.image_processor(pictures, return_tensors="pt", **processor.images_kwargs)["pixel_values"]

    todo = sum(key not in cache for key in keys)

    def encode(several: list[list[str]], timeout: float, count: int) -> None:
        claimed: deque[_Claim] = deque()
        writing: deque[Future] = deque()
        try:
            for pixels in prepare_ahead(prepare, _claim(cache, several, timeout, batch_size, claimed), count):
                claimed[0].features.append(_encode(gemma, pixels, cache.pooled))
                progress.update(len(pixels))
                if sum(map(len, claimed[0].features)) == len(claimed[0].keys):
                    # Copying from the device, checksums and the disk take their time while the next are encoded.
                    writing.append(writer.submit(_write, cache, claimed.popleft()))
                # A full disk is noticed while it is of use, not after the last picture.
                while writing and writing[0].done():
                    writing.popleft().result()
            for written in writing:
                written.result()
        finally:
            for claim in claimed:
                claim.lock.release()

    progress = tqdm(total=len(keys), initial=len(keys) - todo, desc="encoding", unit="patch")
    # First the shards that nobody is at, then one by one those that another process was at, should it have died.
    compiling = compiled_encoding(gemma.vision_tower, batch_size) if cache.compiled and todo else nullcontext()
    with progress, evaluating(gemma), compiling, ThreadPoolExecutor(1) as writer:
        encode(shards, 0, todo)
        for shard in shards:
            if not all(key in cache for key in shard):
                encode([shard], -1, len(shard))


@dataclass
class _Claim:
    """Pictures that this process alone encodes, while it holds the lock of their shard."""

    keys: list[str]
    name: str
    lock: FileLock
    features: list[torch.Tensor] = field(default_factory=list)


def _claim(cache, shards, timeout: float, batch_size: int, claimed: deque) -> Iterator[list[str]]:
    """Yield the keys of one batch after the other, of shards that are claimed when their first batch is drawn."""
    for shard in shards:
        if all(key in cache for key in shard):
            continue
        name = hash_parts(*(key.encode() for key in shard))
        # Another thread gives it back.
        lock = FileLock(cache.folder / f"{name}.lock", timeout=timeout, thread_local=False)
        with writing_to(cache.folder):
            try:
                lock.acquire()
            except Timeout:
                continue
        cache.refresh()
        missing = [key for key in shard if key not in cache]
        if not missing:
            lock.release()
            continue
        claimed.append(_Claim(missing, name, lock))
        for start in range(0, len(missing), batch_size):
            yield missing[start : start + batch_size]


def _write(cache: "VisionCache", claim: _Claim) -> None:
    features = torch.cat([part.cpu() for part in claim.features])
    try:
        cache.write(dict(zip(claim.keys, features, strict=True)), claim.name)
    finally:
        claim.lock.release()


def open_vision_cache(
    model: PreTrainedModel, processor: ProcessorMixin, folder: str | Path, compiled: bool = False
) -> "VisionCache":
    """Return what the cache holds for this model and processor, each feature checked; arguments as for building."""
    gemma = find_gemma(model)
    if _is_adapted(gemma.vision_tower):
        raise ValueError("found an adapter in the vision tower, expected fixed features; set vision_cache: off")
    pooled = varies(gemma.multi_modal_projector)
    device = gemma.device.type
    parts = [gemma.vision_tower] if pooled else [gemma.vision_tower, gemma.multi_modal_projector]
    settings = {
        "weights": [_hash_weights(part) for part in parts],
        "pooled": pooled,
        # The pooling has no weights.
        "resolution": str(read_resolution(gemma.config)),
        "autocast": str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None,
        "image_processor": processor.image_processor.to_dict() | processor.images_kwargs,
        "transformers": transformers.__version__.split(".")[0],
    }
    if compiled:
        # Rounded otherwise. Without it the name is that of caches from before there was a choice.
        settings["compiled"] = True
    fingerprint = hash_parts(json.dumps(settings, sort_keys=True, default=str).encode())
    return VisionCache(Path(folder) / fingerprint, pooled, compiled)


class VisionCache(FeatureStore):
    """The features of one fingerprint, which is the name of its folder.

    Attributes:
        pooled (`bool`): Whether the features are those that go into the projector, after pooling.
        compiled (`bool`): Whether they come from compiled layers.
    """

    def __init__(self, folder: Path, pooled: bool, compiled: bool):
        super().__init__(folder)
        self.pooled = pooled
        self.compiled = compiled

    def processor(self, processor: ProcessorMixin) -> ProcessorMixin:
        """Return a copy of the processor whose `pixel_values` are the features of the pictures that it is given."""
        reading = copy.copy(processor)
        reading.image_processor = _FeatureReader(self, processor.image_processor)
        return reading

    def attach(self, model: PreTrainedModel) -> None:
        """Let the model take features as `pixel_values`, in training, scoring and generation, until `detach`.

        Meanwhile the tower is on the CPU and no part of the model, so that nothing moves it back to the GPU. In what
        is saved and loaded it is one.
        """
        gemma = find_gemma(model)
        tower = gemma.vision_tower.to("cpu")
        # A list hides a module from the model, whose weights all must lie on one kind of device in a parallel run.
        gemma.parked, gemma.vision_tower = [tower], nn.Identity()
        gemma.parked_hooks = [
            gemma.register_state_dict_post_hook(_add_parked),
            gemma.register_load_state_dict_pre_hook(_take_parked),
        ]

        def get_image_features(pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
            if pixel_values.dim() != 3:
                raise ValueError(
                    f"found pixels {tuple(pixel_values.shape)}, expected cached features (images, tokens, width); use "
                    "the processor of the cache, or detach it"
                )
            parts = [tower] if self.pooled else [tower, gemma.multi_modal_projector]
            if torch.is_grad_enabled() and any(map(_is_trained, parts)):
                raise ValueError("found a trained vision tower, expected a frozen one; set vision_cache: off")
            features = gemma.multi_modal_projector(pixel_values) if self.pooled else pixel_values
            return BaseModelOutputWithPooling(pooler_output=features)

        # Where Gemma 3 makes `mm_encoder_outputs` of pixels, for `forward` and `generate`. They can't come with the
        # batch: a data loader that pins memory can't copy them, and a trained projector must run in `forward`.
        gemma.get_image_features = get_image_features
        for projector in _find_projectors(gemma) if self.pooled else ():
            projector.patches_per_image, projector.avg_pool = projector.tokens_per_side, nn.Identity()

    def detach(self, model: PreTrainedModel) -> None:
        """Let the model take pixels again."""
        gemma = find_gemma(model)
        gemma.vision_tower = gemma.parked.pop().to(gemma.device)
        for hook in gemma.parked_hooks:
            hook.remove()
        del gemma.get_image_features
        for projector in _find_projectors(gemma) if self.pooled else ():
            projector.patches_per_image = projector.tokens_per_side * projector.kernel_size
            projector.avg_pool = nn.AvgPool2d(projector.kernel_size)


class _FeatureReader:
    """Replaces the image processor inside a processor: the cached features come out."""

    def __init__(self, cache: VisionCache, image_processor: BaseImageProcessor):
        self.cache = cache
        self.image_processor = image_processor

    def to_json_string(self) -> str:
        # Features stand for pixels: whoever names results by these settings must find them by the same name.
        return self.image_processor.to_json_string()

    def fetch_images(self, images):
        return images

    def __call__(self, images, **kwargs) -> BatchFeature:
        keys = [
            image.key if isinstance(image, CachedPicture) else image_key(image)
            for image in make_flat_list_of_images(images)
        ]
        return BatchFeature({"pixel_values": self.cache.features(keys), "num_crops": [0] * len(keys)})


class CachedPicture(Image.Image):
    """A picture of which only the name is read, because its features lie in a cache."""

    def __init__(self, key: str):
        super().__init__()
        self.key = key


def read_pictures(rows: Dataset, processor: ProcessorMixin) -> Sequence:
    """Return each row's list of pictures: by name where the processor is a cache's, else to open."""
    if not isinstance(processor.image_processor, _FeatureReader):
        return rows["images"]
    return [list(map(CachedPicture, keys)) for keys in rows.with_format(None)["pixel_sha256"]]


def name_pictures(rows: Dataset) -> Dataset:
    """Return the rows with `CachedPicture` in place of pictures, so that none is opened; their column stays."""
    return rows.with_transform(_name_pictures)


def _name_pictures(batch: dict) -> dict:
    keys = batch.pop("pixel_sha256")
    if "images" in batch:
        batch["images"] = [list(map(CachedPicture, row)) for row in keys]
    return batch


def find_gemma(model: nn.Module) -> Gemma3Model:
    for module in model.modules():
        if isinstance(module, Gemma3Model):
            return module
    raise ValueError(f"found a {type(model).__name__}, expected a Gemma 3 for the vision cache; set vision_cache: off")


def _add_parked(gemma: Gemma3Model, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    [tower] = gemma.parked
    tower.state_dict(destination=state_dict, prefix=prefix + TOWER)


def _take_parked(
    gemma: Gemma3Model,
    state_dict: dict,
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing: list,
    unexpected: list,
    errors: list,
) -> None:
    found = {name: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix + TOWER)}
    [tower] = gemma.parked
    result = tower.load_state_dict({name.removeprefix(prefix + TOWER): found[name] for name in found}, strict=False)
    missing += [prefix + TOWER + name for name in result.missing_keys]
    unexpected += [prefix + TOWER + name for name in result.unexpected_keys]


def _find_projectors(gemma: Gemma3Model) -> list[Gemma3MultiModalProjector]:
    # An adapter that trains the projector holds a second one.
    return [part for part in gemma.multi_modal_projector.modules() if isinstance(part, Gemma3MultiModalProjector)]


def varies(part: nn.Module) -> bool:
    return _is_trained(part) or _is_adapted(part)


def _is_trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _is_adapted(part: nn.Module) -> bool:
    # An adapter can be switched off, which no weight shows.
    return any(isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) for module in part.modules())


def _encode(gemma: Gemma3Model, pixels: torch.Tensor, pooled: bool) -> torch.Tensor:
    """Return `(images, image tokens, width)`: what goes into the projector, pooled, or what comes out of it."""
    hidden = gemma.vision_tower(pixel_values=pixels.to(gemma.device, non_blocking=True)).last_hidden_state
    if not pooled:
        return gemma.multi_modal_projector(hidden)
    side = int(hidden.shape[1] ** 0.5)
    grid = hidden.transpose(1, 2).unflatten(2, (side, side)).contiguous()
    return nn.functional.avg_pool2d(grid, _find_projectors(gemma)[0].kernel_size).flatten(2).transpose(1, 2)


def _hash_weights(part: nn.Module) -> str:
    parts = []
    for name, tensor in sorted(part.state_dict().items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), view_bytes(tensor.cpu())]
    return hash_parts(*parts)
