"""Profiles of graphics cards: the keys of a recipe that depend on the card, each with its reason."""

from collections.abc import Mapping, Set
from pathlib import Path

import psutil
import torch

GIB = 2**30
CPU = "cpu"
NO_PROFILE = "none"

# GiB for everything, the CUDA context included: the nominal size less what driver and display take.
USABLE_GIB = {
    "gpu_4gb": 3.75,
    "gpu_16gb_turing": 14.5,  # a T4 shows 14.6 to 14.75 GiB, error correction takes the rest
    "gpu_16gb": 14.5,
    "gpu_24gb": 22.0,
    "gpu_80gb": 76.0,
}
# Kernels, cuBLAS workspaces and the driver's own; 0.4 to 0.6 GiB are usual. Not measured by this project.
CUDA_CONTEXT = GIB // 2
# From here on there are tensor cores and attention kernels for bfloat16. Before, PyTorch emulates it, and
# `torch.cuda.is_bf16_supported` says yes to the emulation.
BFLOAT16_CAPABILITY = (8, 0)
HOPPER = (9, 0)

_FLOAT16_OVERFLOWS = "Gemma 3's residual stream exceeds 65504, the largest float16"
_NO_AUTOCAST = "no bfloat16 cores; the 4-bit layers multiply in float16 and cast in and out themselves"
_FRACTION_OF_SPEED = "recomputing every layer costs a third of the time, and these activations fit"
_STEP = "16 patches a step"
_SMALLER_PICTURES = "a pass of the tower costs 1.0 TFLOP in place of 5.5 at 896, where MedGemma was trained"
_FROZEN_4BIT = "the language layers take 1.5 GiB in place of 6.0"

_EVERY_GPU = {
    "dtype": ("bfloat16", f"storage and sums: {_FLOAT16_OVERFLOWS}"),
    "fp16": (False, _FLOAT16_OVERFLOWS),
    "attn_implementation": ("sdpa", "fused kernels that take Gemma 3's own mask; flash attention drops it"),
    "load_in_4bit": (True, _FROZEN_4BIT),
    "use_bnb_nested_quant": (True, "saves 0.14 GiB of scales"),
    "activation_checkpointing": (False, _FRACTION_OF_SPEED),
    "vision_cache": ("auto", "each picture is encoded once in place of once an epoch"),
}
_WHOLE_WEIGHTS = {
    "load_in_4bit": (False, "8 GiB of weights fit as they are: nothing is lost in 4 bits or spent on unpacking"),
    "use_bnb_nested_quant": (False, "nothing is quantised"),
}
_BFLOAT16 = {
    "bf16": (True, "tensor cores; the adapter stays in float32"),
    "bnb_4bit_compute_dtype": ("bfloat16", "as autocast"),
    "vision_tower_dtype": ("bfloat16", "as published"),
}
_FLOAT16 = {
    "bf16": (False, _NO_AUTOCAST),
    "bnb_4bit_compute_dtype": ("float16", "what a Turing card's tensor cores multiply"),
    "vision_tower_dtype": ("float16", "in bfloat16, attention over 4,096 patches has no fused kernel and takes 2 GiB"),
}
# Name -> key of the recipe -> (value, reason). The two sizes of the batch belong together: their product is 16.
PROFILES = {
    "cpu": {
        "use_cpu": (True, "no CUDA device"),
        "dtype": ("float32", "the fastest on most processors"),
        "bf16": (False, "emulated on most processors"),
        "fp16": (False, _FLOAT16_OVERFLOWS),
        "attn_implementation": _EVERY_GPU["attn_implementation"],
        "activation_checkpointing": (False, _FRACTION_OF_SPEED),
        "per_device_train_batch_size": (16, "main memory is large"),
        "gradient_accumulation_steps": (1, _STEP),
        "vision_cache": _EVERY_GPU["vision_cache"],
    },
    # Cards of this size are Turing as often as not, and later ones lose nothing.
    "gpu_4gb": _EVERY_GPU
    | _FLOAT16
    | {
        "image_side": (448, _SMALLER_PICTURES),
        "image_tokens": (64, "as many pixels a token as at 896 and 256, for rows of less than half the length"),
        "activation_checkpointing": (True, "the activations of one patch, 0.7 GiB, would not fit"),
        "per_device_train_batch_size": (1, "what is left beside 2.8 GiB of weights"),
        "gradient_accumulation_steps": (16, _STEP),
        "per_device_eval_batch_size": (1, "as in training"),
        "candidate_batch_size": (1, "the logits of each answer that is read take 20 MiB"),
        "vision_cache": (
            "outputs/vision_cache",
            "a folder always encodes first; the tower (0.8 GiB) has no room",
        ),
        "optim": ("adamw_bnb_8bit", "two moments of 8.9 million weights in 8 bits take 17 MiB in place of 68"),
    },
    "gpu_16gb_turing": _EVERY_GPU
    | _FLOAT16
    | {
        "image_side": (448, _SMALLER_PICTURES),
        "per_device_train_batch_size": (4, "the largest power of two without checkpointing"),
        "gradient_accumulation_steps": (4, _STEP),
    },
    "gpu_16gb": _EVERY_GPU
    | _BFLOAT16
    | {
        "per_device_train_batch_size": (4, "the largest power of two without checkpointing"),
        "gradient_accumulation_steps": (4, _STEP),
    },
    "gpu_24gb": _EVERY_GPU
    | _BFLOAT16
    | _WHOLE_WEIGHTS
    | {
        "per_device_train_batch_size": (4, "the largest power of two without checkpointing"),
        "gradient_accumulation_steps": (4, _STEP),
    },
    "gpu_80gb": _EVERY_GPU
    | _BFLOAT16
    | _WHOLE_WEIGHTS
    | {
        "per_device_train_batch_size": (16, "the whole step at once"),
        "gradient_accumulation_steps": (1, _STEP),
        "per_device_eval_batch_size": (32, "a pass over few patches waits for its launches"),
    },
}
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")  # two names of one key
QUANTISED = ("load_in_4bit", "load_in_8bit")  # one at most
# Models whose image tokens see each other in both directions.
BIDIRECTIONAL = ("gemma3", "paligemma")


def detect_profile() -> str:
    """Return the profile of this machine's current device."""
    if not torch.cuda.is_available():
        return CPU
    return choose_profile(detect_capability(), detect_available())


def detect_available() -> int:
    """Return the bytes that a run can take: of the current GPU, or of main memory without one."""
    if not torch.cuda.is_available():
        return psutil.virtual_memory().available
    free, total = torch.cuda.mem_get_info()
    # Asking has made a CUDA context, which every plan includes. On a shared card, PyTorch may have a limit set.
    return min(free, int(torch.cuda.get_per_process_memory_fraction() * total)) + CUDA_CONTEXT


def detect_capability() -> tuple[int, int] | None:
    """Return the compute capability of the current GPU, none without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def choose_profile(capability: tuple[int, int], free: int) -> str:
    """Return the profile for a GPU.

    Args:
        capability (`tuple[int, int]`): Compute capability, major and minor.
        free (`int`): Bytes that nobody else has taken.

    Raises:
        ValueError: Less is free than the smallest profile needs.
    """
    fitting = [name for name, usable in USABLE_GIB.items() if usable * GIB <= free]
    if not fitting:
        raise ValueError(
            f"{free / GIB:.2f} GiB of GPU memory are free, expected at least {min(USABLE_GIB.values())}; "
            "end what else runs on the GPU, or set use_cpu: true"
        )
    if capability < BFLOAT16_CAPABILITY and fitting[-1] != "gpu_4gb":
        return "gpu_16gb_turing"
    return next(name for name in reversed(fitting) if name != "gpu_16gb_turing")


def check_gpu(recipe: Mapping) -> None:
    """Stop a recipe that is meant for a GPU on a machine where PyTorch finds none.

    Args:
        recipe: Keys and values of the recipe, its profile and the command line.

    Raises:
        ValueError: `use_cpu` isn't set, and no accelerator can be used; the message says why, as far as can be seen.
    """
    if recipe.get("use_cpu", False) or torch.accelerator.is_available():
        return
    reason = explain_missing_gpu(Path("/proc/driver/nvidia/version").exists(), torch.version.cuda)
    raise ValueError(
        f"no GPU that PyTorch can use, expected one unless the recipe has use_cpu: true: {reason}. Without a GPU, "
        "`make demo` runs everything on a tiny model, and `make check RECIPE=...` looks at this recipe and its data"
    )


def explain_missing_gpu(driver: bool, cuda: str | None) -> str:
    """Return why PyTorch finds no GPU, and what to do.

    Args:
        driver (`bool`): Whether there is an NVIDIA driver.
        cuda (`str`, *optional*): The version of CUDA that PyTorch was built for, none for processors alone.
    """
    if driver and cuda is None:
        return "there is an NVIDIA driver, but this PyTorch was built without CUDA; install a CUDA build of torch"
    if driver:
        return (
            f"there is an NVIDIA driver, but this PyTorch, built for CUDA {cuda}, can't use it; compare with the CUDA "
            "version that `nvidia-smi` shows, and update the driver or install the build of torch for that version"
        )
    return "there is no NVIDIA driver; run it on a machine with a GPU"


def apply_profile(name: str, written: Set[str]) -> tuple[dict, list[str]]:
    """Return the values that a profile adds to a recipe, and where the recipe's own stand instead.

    Args:
        name (`str`): One of `PROFILES`, or `auto` for that of this machine.
        written (`set[str]`): Keys in the recipe or on the command line. They win. If one of the two keys of the batch,
            or of quantisation, is written, both are the recipe's.

    Returns:
        `tuple`: A dictionary for `parser.set_defaults(**values)`, and one note a key of the profile that is left out,
        or that gives pictures another resolution.

    Raises:
        ValueError: There is no such profile.
    """
    name = detect_profile() if name == "auto" else name
    if name not in PROFILES:
        raise ValueError(f"hardware is {name!r}, expected auto or one of {', '.join(PROFILES)}; correct it")
    own = set(written).union(*(keys for keys in (BATCH, CHECKPOINTING, QUANTISED) if set(written) & set(keys)))
    values = {key: value for key, (value, _) in PROFILES[name].items() if key not in own}
    notes = [
        f"{key}: the recipe's own value stands; {name} would take {value} ({reason})"
        for key, (value, reason) in PROFILES[name].items()
        if key in own
    ]
    # Unlike the others, these keys change what the model sees.
    notes += [
        f"{key}: {value} comes from {name} ({PROFILES[name][key][1]})"
        for key, value in values.items()
        if key in ("image_side", "image_tokens")
    ]
    return values, notes


def check_precision(training_args, model_args, model_type: str, capability: tuple[int, int] | None) -> list[str]:
    """Name what contradicts the model or the card.

    Args:
        training_args (`SFTConfig`), model_args (`ModelConfig`): As they will be used.
        model_type (`str`): Of the base model's configuration, such as `gemma3`.
        capability (`tuple[int, int]`, *optional*): Of the GPU; none on a processor.

    Returns:
        `list[str]`: What runs, but slowly or at a risk.

    Raises:
        ValueError: What would give wrong numbers: float16 or flash attention with Gemma 3.
    """
    if model_type.startswith("gemma3") and (training_args.fp16 or model_args.dtype == "float16"):
        raise ValueError(
            f"fp16: {training_args.fp16} and dtype: {model_args.dtype} with {model_type}: {_FLOAT16_OVERFLOWS}, so "
            "the loss becomes NaN; set fp16: false and dtype: bfloat16 (on cards before Ampere, bf16: false as well)"
        )
    if model_type.startswith(BIDIRECTIONAL) and "flash" in (model_args.attn_implementation or ""):
        raise ValueError(
            f"attn_implementation: {model_args.attn_implementation} with {model_type}: flash attention ignores the "
            "mask by which image tokens see each other both ways, without an error; set attn_implementation: sdpa"
        )
    notes = []
    if training_args.bf16 and capability is not None and capability < BFLOAT16_CAPABILITY:
        notes.append(
            f"bf16: true on a card of compute capability {'.'.join(map(str, capability))}: bfloat16 is emulated there "
            f"and slow; set bf16: false ({_NO_AUTOCAST})"
        )
    if model_args.load_in_8bit and model_type.startswith("gemma3"):
        notes.append(
            "load_in_8bit: on a GPU its layers take what they multiply in float16, where values above 65504 are "
            "infinite; the canary step before training refuses them. Half the memory and less time: load_in_4bit"
        )
    return notes
