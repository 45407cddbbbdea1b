"""The recipe's key `vision_cache`: whether a run reads cached features or pixels."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from PIL import Image
from transformers import Gemma3Model, PreTrainedModel, ProcessorMixin

from histolab_sft.files import cache_folder, measure_free_space
from histolab_sft.models.byte_pictures import send_bytes
from histolab_sft.models.compiled_layers import decide_encoding
from histolab_sft.models.precision import autocasting
from histolab_sft.models.vision_cache.features import (
    VisionCache,
    fill_vision_cache,
    find_gemma,
    open_vision_cache,
    varies,
)
from histolab_sft.models.vision_cache.store import StoreWriteError

logger = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"
# Of the disk that is free: what a run writes beside the features (checkpoints, predictions) must find room too.
DISK_SHARE = 0.8
Pictures = dict[str, Callable[[], Image.Image]]


@contextmanager
def attached_cache(
    choice: str,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    uses: Sequence[tuple[Dataset, int]],
    batch_size: int,
    compiled_layers: str = OFF,
) -> Iterator[ProcessorMixin]:
    """Give the processor for a model that is scored: that of the cache, to which the model is attached meanwhile.

    Where there is to be no cache it sends bytes, if it can. Arguments as in `prepare_vision_cache`.
    """
    cache = prepare_vision_cache(choice, model, processor, *list_pictures(uses), batch_size, compiled_layers)
    if cache is None:
        yield send_bytes(model, processor)
        return
    cache.attach(model)
    try:
        yield cache.processor(processor)
    finally:
        cache.detach(model)


def prepare_vision_cache(
    choice: str,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    pictures: Pictures,
    passes: float,
    batch_size: int,
    compiled_layers: str = OFF,
) -> VisionCache | None:
    """Decide, say what it costs and saves, and encode what is missing, in the model's precision.

    Args:
        choice (`str`): `off`; `auto`, which declines where it doesn't pay or there is no room; or a folder, which is
            used however little it saves.
        model (`PreTrainedModel` or `PeftModel`): With `requires_grad` set as in the run that is meant.
        pictures (`dict`): `pixel_sha256` -> function that opens the picture.
        passes (`float`): How often the run reads each picture on average.
        batch_size (`int`): Pictures in one pass of the tower.
        compiled_layers (`str`): The recipe's key.

    Returns:
        The cache with all the pictures in it; None where there is to be none.

    Raises:
        ValueError: A folder is asked for and its disk is too small, or the vision tower is trained.
        StoreWriteError: A folder is asked for, or there are several processes, and features can't be written.
    """
    if choice == OFF:
        return None
    if not any(isinstance(module, Gemma3Model) for module in model.modules()):
        logger.info("vision cache: it knows Gemma 3 and not %s, whose tower runs in every step", type(model).__name__)
        return None
    try:
        return _open_and_fill(choice, model, processor, pictures, passes, batch_size, compiled_layers)
    except StoreWriteError as error:
        # Of several processes some would read features and others pixels.
        if choice != AUTO or PartialState().num_processes > 1:
            raise StoreWriteError(
                f"vision_cache is {choice}, and {error}; make room, name another folder, or set vision_cache: off"
            ) from error
        logger.warning("vision cache: not used, %s; the vision tower runs in every step", error)
        return None


def _open_and_fill(
    choice, model, processor, pictures: Pictures, passes: float, batch_size: int, compiled_layers: str
) -> VisionCache | None:
    folder = cache_folder() / "vision" if choice == AUTO else Path(choice)
    if varies(find_gemma(model).vision_tower):
        worthwhile, reason = cache_worthwhile(len(pictures), passes, folder, model)
    else:
        with autocasting(model):
            compiled = decide_encoding(compiled_layers, find_gemma(model).device)
            cache = open_vision_cache(model, processor, folder, compiled)
        n_cached = sum(key in cache for key in pictures)
        wanted = passes if choice == AUTO else max(passes, 2)
        worthwhile, reason = cache_worthwhile(len(pictures), wanted, folder, model, n_cached)
    if not worthwhile and choice != AUTO:
        raise ValueError(f"vision_cache is {choice}, and {reason}; set vision_cache: off, or change that")
    logger.info("vision cache: %s%s", "" if worthwhile else "not used, ", reason)
    if not worthwhile:
        return None
    with autocasting(model):
        fill_vision_cache(cache, model, processor, pictures, batch_size)
    return cache


def list_pictures(uses: Sequence[tuple[Dataset, int]]) -> tuple[Pictures, float]:
    """Return the distinct pictures of audited rows, unopened, and how often each is read on average.

    Args:
        uses (`list` of `(rows, times)`): Rows have `images` and `pixel_sha256`.
    """
    pictures, total = {}, 0
    for rows, times in uses:
        images = rows.select_columns(["images"])
        for row, keys in enumerate(rows.with_format(None)["pixel_sha256"]):
            for number, key in enumerate(keys):
                pictures.setdefault(key, partial(_open, images, row, number))
                total += times
    return pictures, total / max(1, len(pictures))


def predict_cache_size(n_images: int, model: PreTrainedModel) -> int:
    """Return the bytes that the features of `n_images` distinct pictures take on disk."""
    gemma = find_gemma(model)
    part = gemma.config.vision_config if varies(gemma.multi_modal_projector) else gemma.config.text_config
    return n_images * gemma.config.mm_tokens_per_image * part.hidden_size * gemma.vision_tower.dtype.itemsize


def cache_worthwhile(
    n_images: int, passes: float, folder: str | Path, model: PreTrainedModel, n_cached: int = 0
) -> tuple[bool, str]:
    """Decide for `vision_cache: auto`, and say why.

    Args:
        n_images (`int`): Distinct pictures.
        passes (`float`): How often the tower would see each of them: epochs, and once for every scoring.
        model (`PreTrainedModel` or `PeftModel`): With `requires_grad` set as in the run that is meant.
        n_cached (`int`): How many of the pictures are in the cache already.
    """
    if varies(find_gemma(model).vision_tower):
        return False, "the vision tower is trained or carries an adapter, so its features change"
    missing = n_images - n_cached
    need = predict_cache_size(missing, model)
    if need and passes < 2:
        return False, "each picture is needed once, so keeping its features saves nothing"
    folder = Path(folder).absolute()
    free = measure_free_space(folder)
    if need > DISK_SHARE * free:
        return False, f"the features need {need / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free"
    return True, (
        f"{missing} of {n_images} pictures are encoded first, into {need / 1e9:.2f} GB of {folder}; "
        f"{n_images * passes - missing:.0f} of {n_images * passes:.0f} passes of the vision tower are saved"
    )


def _open(images: Dataset, row: int, number: int) -> Image.Image:
    return images[row]["images"][number]
