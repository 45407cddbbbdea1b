"""What a run does to its pictures before the model sees them: augment them, or encode them once and for all."""

import logging
import math
from functools import partial

from datasets import DatasetDict
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.trainings import count_trainings
from histolab_sft.data.augmentation import SYMMETRIES, PatchAugmentation, augment, turn
from histolab_sft.models.byte_pictures import send_bytes
from histolab_sft.models.devices import move_tower
from histolab_sft.models.precision import read_precision, set_precision
from histolab_sft.models.vision_cache.choice import AUTO, OFF, list_pictures, prepare_vision_cache
from histolab_sft.models.vision_cache.features import VisionCache, image_key, name_pictures

logger = logging.getLogger(__name__)


def prepare_pictures(trainer, patches: DatasetDict, histo_args: HistoArguments) -> VisionCache | None:
    """Carry out the keys of precision, `augmentation` and `vision_cache`, in the trainer, before it trains.

    Pictures with jittered stain are new ones each time, so there is no cache. With the symmetries alone, all eight
    views of a training patch are cached, which pays from 16 epochs on.

    Args:
        trainer (`SFTTrainer`): As it will train: its adapter attached, what is frozen frozen.
        patches (`DatasetDict`): The rows that it was given, audited.

    Returns:
        The cache that the model reads, None where it reads pixels.
    """
    set_precision(trainer.model, read_precision(histo_args, trainer.args))
    if histo_args.augmentation != "none":
        trainer.train_dataset, augmentation = augment(patches["train"], histo_args.augmentation, trainer.args.seed)
        trainer.add_callback(EpochCallback(augmentation))
    cache = attach_vision_cache(trainer, patches, histo_args)
    if cache is None:
        trainer.data_collator.processor = send_bytes(trainer.model, trainer.processing_class)
    elif histo_args.augmentation == "none":
        # Rows name their pictures, none of which is opened again.
        trainer.train_dataset, trainer.eval_dataset = map(name_pictures, (trainer.train_dataset, trainer.eval_dataset))
    return cache


class EpochCallback(TrainerCallback):
    """Tell the augmentation which epoch it is, after a resume as well."""

    def __init__(self, augmentation: PatchAugmentation):
        self.augmentation = augmentation

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.augmentation.epoch.fill_(int(state.epoch or 0))


def attach_vision_cache(trainer, patches: DatasetDict, histo_args: HistoArguments) -> VisionCache | None:
    """Encode the pictures of training and of its evaluations, and let the trainer read their features."""
    choice, args = histo_args.vision_cache, trainer.args
    if choice == OFF:
        return None
    refusals = {
        "stain jitter makes other pictures each epoch": histo_args.augmentation in ("stain", "all"),
        "no process holds a whole vision tower": trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled(),
    }
    for reason, applies in refusals.items():
        if applies and choice != AUTO:
            raise ValueError(f"vision_cache is {choice}, and {reason}; set vision_cache: off, or change that")
        if applies:
            logger.info("vision cache: not used, %s", reason)
            return None
    epochs = args.num_train_epochs
    if args.max_steps > 0:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        epochs = args.max_steps * batch / len(patches["train"])
    uses = [(patches["train"], epochs)]
    evaluated = args.eval_strategy != "no" or args.eval_on_start
    if evaluated:
        # At least; how many there will be depends on steps and early stopping.
        uses.append((patches["validation"], max(1, math.floor(epochs))))
    pictures, passes = list_pictures(uses)
    if histo_args.augmentation == "symmetries":
        views, passes = list_views(patches["train"]), epochs / len(SYMMETRIES)
        pictures = views | (list_pictures(uses[1:])[0])
    # The other trainings of a study read the same pictures.
    passes *= count_trainings(histo_args)
    # DeepSpeed, and a folder for the features, leave the model on the CPU until training begins.
    move_tower(trainer.model, args.device)
    cache = prepare_vision_cache(
        choice,
        trainer.model,
        trainer.processing_class,
        pictures,
        passes,
        args.per_device_eval_batch_size,
        histo_args.compiled_layers,
    )
    if cache is not None:
        trainer.data_collator.processor = cache.processor(trainer.processing_class)
        cache.attach(trainer.model)
    trainer.model.to(args.device)
    return cache


def list_views(rows) -> dict:
    """Return the eight views of each picture, unopened, by `image_key`; each picture is decoded once to find them."""
    views = {}
    for row in range(len(rows)):
        [image] = rows[row]["images"]
        for symmetry in SYMMETRIES:
            views.setdefault(image_key(turn(image, symmetry)), partial(_open_view, rows, row, symmetry))
    return views


def _open_view(rows, row: int, symmetry) -> Image.Image:
    return turn(rows[row]["images"][0], symmetry)
