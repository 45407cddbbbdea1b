"""Training runs that differ in what they do with the frozen tower, and nothing else: what `bench.py` compares."""

import tempfile
import time
from pathlib import Path

from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.miniature import build_lora
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.models.load import load_base_processor, load_weights
from histolab_sft.models.resolution import Resolution
from histolab_sft.models.vision_cache.features import build_vision_cache
from histolab_sft.training.trainer import PatchTrainer

# Name -> trainer, activation checkpointing, cached features. TRL's default is to checkpoint.
ARMS = {
    "TRL": (SFTTrainer, True, False),
    "uncached": (PatchTrainer, False, False),
    "cached": (PatchTrainer, False, True),
}
WITH_CHECKPOINTING = {
    "uncached, checkpointing": (PatchTrainer, True, False),
    "cached, checkpointing": (PatchTrainer, True, True),
}


def run_arm(
    arm: tuple, model: Path, rows: Dataset, epochs: int, batch_size: int, resolution: Resolution | None = None
) -> dict:
    """Train once, from a cold cache, and return seconds: `steps`, and from the start to the end of each epoch.

    The clock starts when the trainer is built, so that imports and the loading of weights don't count, and encoding
    does. `resolution` is that of the pictures, if not the model's own.
    """
    trainer_class, checkpointing, cached = arm
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(trainer_class, model, rows, folder, checkpointing, epochs, batch_size, resolution)
        trainer.add_callback(clock := Clock())
        clock.start = time.perf_counter()
        if cached:
            read_features(trainer, rows, Path(folder, "features"), batch_size)
        encoded = time.perf_counter()
        trainer.train()
        return {"steps": clock.steps, "epochs": clock.epochs, "encoding": encoded - clock.start}


def train_apart(name: str, model: Path, rows, batch_size: int) -> dict:
    """Train two steps and return the seconds of the second."""
    return {"step_s": run_arm(ARMS[name], model, rows, 1, batch_size)["steps"][-1]}


def build_trainer(
    trainer_class,
    model: Path,
    rows: Dataset,
    folder: str,
    checkpointing: bool,
    epochs: int,
    batch: int,
    resolution: Resolution | None = None,
):
    """Return a trainer in float32 on the processor; what isn't named here is TRL's default in every arm."""
    args = SFTConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=checkpointing,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    asked = {} if resolution is None else {"image_side": resolution.side, "image_tokens": resolution.tokens}
    model_args = ModelConfig(str(model), **asked)
    trainer = trainer_class(
        # TRL is given a name, as in its own scripts.
        model=str(model) if resolution is None else load_weights(model, model_args),
        args=args,
        train_dataset=rows,
        processing_class=load_base_processor(model_args),
        peft_config=build_lora(),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def read_features(trainer, rows: Dataset, folder: Path, batch_size: int) -> None:
    """Encode the pictures and attach the cache, as `recipes/sft.py` does it."""
    pictures = {
        key: (lambda row=row: rows[row]["images"][0])
        for row, [key] in enumerate(rows.with_format(None)["pixel_sha256"])
    }
    cache = build_vision_cache(trainer.model, trainer.processing_class, pictures.items(), folder, batch_size)
    trainer.data_collator.processor = cache.processor(trainer.processing_class)
    cache.attach(trainer.model)


class Clock(TrainerCallback):
    """Note how long each step took and when each epoch ended."""

    def __init__(self):
        self.start = 0.0
        self.last = None
        self.steps: list[float] = []
        self.epochs: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        if self.last is not None:
            self.steps.append(now - self.last)
        self.last = now

    def on_epoch_end(self, args, state, control, **kwargs):
        self.epochs.append(time.perf_counter() - self.start)
        # What happens between epochs belongs to no step.
        self.last = None
