"""What is measured on a GPU, arm by arm: training, its step in parts, encoding and scoring.

Ours runs by the recipes' own code (`build_trainer`, `prepare_vision_cache`, `predict`), so that what a recipe turns on
is what is measured. One trainer a precision serves all arms: only its batch, its pictures and its rows change.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path

import torch
from datasets import Dataset
from peft import get_peft_model
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import enable_full_determinism
from trl import SFTConfig, SFTTrainer

from benchmarks.gpu_recipe import free_memory, measure_peaks
from histolab_sft.config.arguments import parse_recipe
from histolab_sft.data.rows import load_audited_patches
from histolab_sft.evaluation.predictions import System, predict
from histolab_sft.models.compiled_layers import LayerSwitch, find_missing
from histolab_sft.models.load import (
    build_lora_config,
    build_model_init_kwargs,
    build_quantization_config,
    load_base_model,
    load_base_processor,
)
from histolab_sft.models.precision import read_precision
from histolab_sft.models.vision_cache.choice import list_pictures, prepare_vision_cache
from histolab_sft.training.assembly import build_trainer
from histolab_sft.training.compiled_steps import EvenLengthCollator, choose_lengths
from histolab_sft.training.phases import plan_phases

# Precision -> what of the recipe differs.
PRECISIONS = {
    "bfloat16": ["--load_in_4bit", "false", "--use_bnb_nested_quant", "false"],
    "NF4": ["--load_in_4bit", "true", "--use_bnb_nested_quant", "true"],
}
# Of pictures -> side and tokens, at MedGemma's sizes and at toy size, whose own are 896 and 256, and 56 and 4.
RESOLUTIONS = {"448 and 256": ((448, 256), (28, 4)), "448 and 64": ((448, 64), (28, 1))}
MEASURED_STEPS = 8
FEW_STEPS = 4  # where nothing is prefetched and a step takes seconds
WARM_UP = 2
TOP_KERNELS = 12


class Session:
    """The model that is loaded, in one precision and for one road, and the rows."""

    def __init__(self, recipe: Path, tiny: bool, end: float):
        self.recipe, self.tiny, self.end = recipe, tiny, end
        self.loaded = None
        self.trainer = self.cache = self.model = None
        self.patches = load_audited_patches(self.parse("NF4")[0], str(recipe.parent / "audit"))

    def parse(self, precision: str, *flags: str) -> tuple:
        """Return the recipe's arguments as the largest profile has them, in this precision.

        Args:
            precision: Of `PRECISIONS`; behind `at `, one of `RESOLUTIONS` as well.
        """
        precision, _, resolution = precision.partition(" at ")
        own = ["--hardware", "cpu" if self.tiny else "gpu_80gb", "--vision_cache", "off", "--compiled_layers", "off"]
        own += [] if self.tiny else PRECISIONS[precision]
        if resolution:
            side, tokens = RESOLUTIONS[resolution][self.tiny]
            own += ["--image_side", str(side), "--image_tokens", str(tokens)]
        return parse_recipe(["--config", str(self.recipe), *own, *flags])

    def load(self, road: str, precision: str, build: Callable[[str], object]) -> None:
        """Load what `build` gives unless it is there; what was there before goes first."""
        if self.loaded == (road, precision):
            return
        self.release()
        build(precision)
        self.loaded = road, precision

    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def release(self) -> None:
        self.loaded = self.trainer = self.cache = self.model = None
        free_memory()

    def rows(self, count: int) -> Dataset:
        """Return as many training rows; from the second round on pictures come again."""
        rows = self.patches["train"]
        return rows.select([number % len(rows) for number in range(count)])


def train_as_trl(session: Session, precision: str, batch: int) -> dict:
    """Train as TRL does when told nothing but model, data and adapter."""

    def build(precision: str) -> None:
        model_args = session.parse(precision)[2]
        args = SFTConfig(
            output_dir=str(session.recipe.parent / "trl"),
            use_cpu=session.tiny,
            bf16=not session.tiny,
            max_length=None,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            model_init_kwargs=build_model_init_kwargs(model_args),
        )
        session.trainer = SFTTrainer(
            model=model_args.model_name_or_path,
            args=args,
            train_dataset=session.patches["train"],
            processing_class=load_base_processor(model_args),
            quantization_config=build_quantization_config(model_args),
            peft_config=build_lora_config(model_args, "language"),
        )
        session.trainer.remove_callback(PrinterCallback)

    session.load("TRL", precision, build)
    return time_training(session, batch, measured=FEW_STEPS)


def train(session: Session, precision: str, batch: int, cached: bool = True, compiled: bool = True) -> dict:
    """Train by the recipe's own road, from features or from pixels."""
    load_recipe(session, precision)
    read_features(session) if cached else read_pixels(session)
    with compiled_training(session, batch) if compiled else nullcontext():
        return time_training(session, batch)


@contextmanager
def compiled_training(session: Session, batch: int) -> Iterator[None]:
    """Do as `compiled_layers: on` does, for as long as it takes: arms differ in their batches."""
    trainer, plain = session.trainer, session.trainer.data_collator
    if missing := find_missing(trainer.args.device):
        raise RuntimeError(missing)
    kept = {field.name: getattr(plain, field.name) for field in fields(plain)}
    trainer.data_collator = EvenLengthCollator(**kept, lengths=choose_lengths(trainer))
    switch = LayerSwitch(trainer.model, batch, learning=True)
    try:
        yield
    finally:
        switch.remove()
        trainer.data_collator = plain


def train_deterministic(session: Session, precision: str, batch: int) -> dict:
    """Train from the cache as the key `full_determinism` has it, with operations whose results repeat bit by bit."""
    load_recipe(session, precision)
    read_features(session)
    enable_full_determinism(0)
    try:
        return time_training(session, batch)
    finally:
        torch.use_deterministic_algorithms(False)


def load_recipe(session: Session, precision: str) -> None:
    def build(precision: str) -> None:
        histo_args, training_args, model_args = session.parse(precision)
        [phase] = plan_phases(histo_args, training_args)
        session.trainer = build_trainer(session.patches, phase, histo_args, model_args)
        session.trainer.remove_callback(PrinterCallback)

    session.load("recipe", precision, build)


def read_features(session: Session) -> None:
    """Encode what isn't encoded yet, and let the trainer read features."""
    if session.cache is None:
        encode(session, session.patches["train"])
        session.trainer.data_collator.processor = session.cache.processor(session.trainer.processing_class)
        session.cache.attach(session.trainer.model)


def read_pixels(session: Session) -> None:
    if session.cache is not None:
        session.cache.detach(session.trainer.model)
        session.trainer.data_collator.processor = session.trainer.processing_class
        session.cache = None


def encode(session: Session, rows: Dataset, compiled_layers: str = "off") -> None:
    """Encode the pictures of the rows that the cache lacks."""
    pictures, _ = list_pictures([(rows, 2)])
    trainer = session.trainer
    with trainer.accelerator.autocast():
        session.cache = prepare_vision_cache(
            str(session.recipe.parent / "features"),
            trainer.model,
            trainer.processing_class,
            pictures,
            2,
            trainer.args.per_device_eval_batch_size,
            compiled_layers,
        )


def measure_encoding(session: Session, precision: str, compiled_layers: str = "off") -> dict:
    """Return patches a second of the pass that fills the cache: reading, scaling, tower, projector, writing.

    The cache is opened, workers are started and the last features are written once, however many patches there are.
    So the rate is that of the patches which a longer pass has more than a shorter one; `start_s` is what is left.
    """
    load_recipe(session, precision)
    rows = session.patches["train"]
    part, spent = len(rows) // 8, []
    for stop in (part, 2 * part, len(rows)):
        start = time.perf_counter()
        encode(session, rows.select(range(stop)), compiled_layers)
        spent.append(time.perf_counter() - start)
    session.cache = None
    warm_up, few, many = spent
    patches = len(rows) - 2 * part
    # At toy size chance decides which is longer.
    rate = (patches - part) / (many - few) if many > few else patches / many
    return {"patches_per_s": rate, "patches": patches, "warm_up_s": warm_up, "start_s": many - patches / rate}


def time_training(
    session: Session, batch: int, callback: TrainerCallback | None = None, measured: int = MEASURED_STEPS
) -> dict:
    """Train a few steps and return seconds a step, samples a second and the allocator's peak.

    What data loader workers have ready before the first step isn't counted: as many steps warm up as they prefetch.
    """
    trainer, args = session.trainer, session.trainer.args
    ahead = args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
    steps = WARM_UP + ahead + measured
    args.per_device_train_batch_size = trainer._train_batch_size = batch
    args.gradient_accumulation_steps = trainer.accelerator.gradient_accumulation_steps = 1
    args.max_steps, args.logging_steps = steps, steps
    trainer.train_dataset = session.rows(batch * steps)
    free_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clock = Clock()
    callbacks = [clock, *([callback] if callback else [])]
    for each in callbacks:
        trainer.add_callback(each)
    try:
        trainer.train()
    finally:
        for each in callbacks:
            trainer.remove_callback(each)
        trainer.model.zero_grad(set_to_none=True)
    seconds = (clock.ends[-1] - clock.ends[WARM_UP + ahead - 1]) / measured
    return {
        "batch": batch,
        "tokens": trainer.data_collator([trainer.train_dataset[0]])["input_ids"].shape[1],
        "step_s": seconds,
        "samples_per_s": batch / seconds,
        "first_step_s": clock.ends[0] - clock.start,
    } | measure_peaks()


def profile_step(session: Session, precision: str, batch: int, compiled: bool = True) -> dict:
    """Look into steps from the cache: launches, the share of time in which the card waits, and what it computes."""
    load_recipe(session, precision)
    read_features(session)
    recorder = Recorder(MEASURED_STEPS // 2)
    with compiled_training(session, batch) if compiled else nullcontext():
        # Under the profiler a step takes longer, so its length is that of the steps before.
        plain = time_training(session, batch)
        time_training(session, batch, recorder)
    kernels = [event for event in recorder.events if event.device_type == DeviceType.CUDA]
    launches = sum(
        event.name in ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
        for event in recorder.events
    )
    busy = sum(kernel.device_time_total for kernel in kernels) / 1e6 / recorder.steps
    by_name: dict[str, float] = {}
    for kernel in kernels:
        by_name[kernel.name] = by_name.get(kernel.name, 0) + kernel.device_time_total / 1e3 / recorder.steps
    top = sorted(by_name.items(), key=lambda pair: -pair[1])[:TOP_KERNELS]
    return {
        "batch": batch,
        "step_s": plain["step_s"],
        "card_computes_s": busy,
        "card_waits_share": max(0.0, 1 - busy / plain["step_s"]) if kernels else None,
        "launches_a_step": launches / recorder.steps,
        "top_kernels_ms": {name[:100]: round(ms, 3) for name, ms in top},
    }


def score(session: Session, precision: str, generate: bool = False) -> dict:
    """Return patches a second of one system, base model or adapter, from a warm cache of features."""

    def build(precision: str) -> None:
        histo_args, training_args, model_args = session.parse(precision)
        base = load_base_model(model_args, read_precision(histo_args, training_args))
        session.model = get_peft_model(base, build_lora_config(model_args, "language")).eval().requires_grad_(False)

    session.load("scoring", precision, build)
    histo_args, training_args, model_args = session.parse(
        precision, "--compiled_layers", "off" if session.tiny else "on"
    )
    processor, batch = load_base_processor(model_args), training_args.per_device_eval_batch_size
    rows = session.patches["train"]
    pictures, _ = list_pictures([(rows, 2)])
    cache = prepare_vision_cache(
        str(session.recipe.parent / "features-scoring"), session.model, processor, pictures, 2, batch
    )
    cache.attach(session.model)
    reader = cache.processor(processor)
    first, rates = len(rows) // 4, {}
    # Generating is slow, so fewer patches do.
    counted = rows.select(range(first, 2 * first if generate else len(rows)))
    try:
        for system, state in (("base model", session.model.disable_adapter), ("adapter", nullcontext)):
            weights = f"{system} {time.time()}"
            asked = System(system, session.model, reader, weights, histo_args, batch), histo_args.datasets[0]
            with state():
                predict(rows.select(range(first)), *asked, generate=generate)
                start = time.perf_counter()
                predict(counted, *asked, generate=generate)
                rates[system] = len(counted) / (time.perf_counter() - start)
    finally:
        cache.detach(session.model)
    return {"patches_per_s": min(rates.values()), "systems": rates, "patches": len(counted), "batch": batch}


class Clock(TrainerCallback):
    """Note when training began and when each step ended."""

    def __init__(self):
        self.start = 0.0
        self.ends: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


class Recorder(TrainerCallback):
    """Profile the last steps of a training."""

    def __init__(self, steps: int):
        self.steps = steps
        self.events = []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps - self.steps:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self.profiler = profile(activities=activities)
            self.profiler.start()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.profiler.stop()
            self.events = self.profiler.events()
