"""Plan the memory that a run will need, part by part, from the shape of its model alone.

Weights are counted from the model on the meta device, activations are traced (see `activations`), the rest is
arithmetic that each row names. What no shape tells (the CUDA context, cuBLAS, what the caching allocator can't hand
out) is an allowance, with its source beside it.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

import torch
from torch import nn

from histolab_sft.config.hardware import CUDA_CONTEXT
from histolab_sft.memory.activations import (
    VOCABULARY_CHUNK,
    Precision,
    trace_cache,
    trace_head,
    trace_language,
    trace_tower,
)
from histolab_sft.models.one_pass import MULTIPLE
from histolab_sft.models.precision import count_4bit
from histolab_sft.models.vision_tower import find_vision_tower

# The moments of a run; a part that is there in some of them counts in those. The largest is the peak.
MOMENTS = ("tower", "loss", "backward", "optimiser", "encoding", "scoring")
STEP = MOMENTS[:3]
TRAINING = MOMENTS[:4]
SCORING = MOMENTS[4:]
# AdamW keeps two moments of each trained weight: in float32, or in 8 bits with a float32 for every 256.
OPTIMISER_BYTES = {
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "paged_adamw_32bit": 8,
    "adamw_bnb_8bit": 2 * (1 + 4 / 256),
    "adamw_8bit": 2 * (1 + 4 / 256),
    "paged_adamw_8bit": 2 * (1 + 4 / 256),
    "sgd": 0,
}
LARGEST_MICRO_BATCH = 64
# cuBLAS and cuBLASLt keep a workspace each for the thread of the forward and for that of the backward pass: 32 MiB on
# Hopper, 8 before (PyTorch, CUDABlas.cpp).
WORKSPACES = 4
WORKSPACE = {"hopper": 32 * 2**20, "earlier": 8 * 2**20}
# Of the activations: a block is handed out whole where less than 1 MiB of it would be left over, and some of what is
# reserved fits nobody. Under a cap of 14.5 GiB both came to 8 % in training (benchmarks/results).
ALLOCATOR_SHARE = 0.08


@dataclass(frozen=True)
class Setup:
    """What a plan is made for.

    Args:
        precision (`Precision`): The dtypes.
        load_in_4bit, load_in_8bit, double_quantized (`bool`): Of the language layers.
        compute_4bit (`torch.dtype`, *optional*): In which 4-bit layers multiply, if not as autocast or the weights.
        batch_size (`int`): Rows at once in training.
        accumulation (`int`): Micro-batches of a step. From the second one on there are gradients of the one before.
        tokens, labelled (`int`): Longest sequence, and its longest answer.
        pictures (`int`): Most pictures of a row.
        options (`int`, *optional*): Most answers that a row chooses from, if it chooses.
        checkpointing (`bool`): Recompute activations in the backward pass.
        cached (`bool`): Features come from the cache and the tower is not on the device.
        optimiser (`str`): As in `SFTConfig.optim`.
        scoring_batch, candidates (`int`): Rows and, beside them, answers read at once in scoring.
        on_gpu (`bool`): There is a CUDA context, and TRL projects the labelled positions alone.
        hopper (`bool`): The GPU is of compute capability 9 or later.
    """

    precision: Precision
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    double_quantized: bool = False
    compute_4bit: torch.dtype | None = None
    batch_size: int = 1
    accumulation: int = 1
    tokens: int = 310
    labelled: int = 8
    pictures: int = 1
    options: int | None = None
    checkpointing: bool = True
    cached: bool = False
    optimiser: str = "adamw_torch_fused"
    scoring_batch: int = 8
    candidates: int = 96
    on_gpu: bool = True
    hopper: bool = False


@dataclass(frozen=True)
class MemoryRow:
    """One part of the plan: its dtype, its bytes, the moments in which it is there, where the number comes from."""

    part: str
    dtype: str
    bytes: int
    moments: tuple[str, ...]
    source: str


def plan_memory(model, setup: Setup) -> list[MemoryRow]:
    """Return the rows of the plan.

    Args:
        model (`PreTrainedModel` or `PeftModel`): On the meta device, with its adapter.
        setup (`Setup`): Of the run.

    Raises:
        ValueError: An optimiser whose state isn't known, or a trained tower together with cached features.
    """
    if setup.optimiser not in OPTIMISER_BYTES:
        raise ValueError(
            f"optim {setup.optimiser!r}: its memory is not known; use one of {', '.join(OPTIMISER_BYTES)}"
        )
    tower_trained = any(parameter.requires_grad for parameter in find_vision_tower(model).parameters())
    if tower_trained and setup.cached:
        raise ValueError(
            "features are cached and the vision tower is trained, so they would go stale; set vision_cache: off"
        )
    rows = _weigh(model, setup)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    state = round(trained * OPTIMISER_BYTES[setup.optimiser])
    # A backward pass frees activations while it makes gradients, so their peaks don't add up.
    while_gradients = TRAINING if setup.accumulation > 1 else TRAINING[-1:]
    rows += [
        MemoryRow("trained weights", "float32", 4 * trained, MOMENTS, f"{trained:,} parameters"),
        MemoryRow("gradients", "float32", 4 * trained, while_gradients, "one for each trained weight"),
        MemoryRow("optimiser state", setup.optimiser, state, TRAINING, "two moments for each trained weight"),
    ]
    if setup.optimiser == "adamw_torch":
        rows.append(
            MemoryRow("optimiser step", "float32", 4 * trained, ("optimiser",), "square roots; fused needs none")
        )
    if not setup.cached:
        rows += _plan_tower(model, setup, tower_trained)
    rows += _plan_language(model, setup) + _plan_scoring(model, setup)
    if setup.on_gpu:
        rows += _plan_allowances(rows, setup)
    return [row for row in rows if row.bytes]


def compute_peak(rows: list[MemoryRow], moments: tuple[str, ...] = MOMENTS) -> int:
    """Return the bytes of the largest of the moments."""
    return max(sum(row.bytes for row in rows if moment in row.moments) for moment in moments)


def find_largest_micro_batch(model, setup: Setup, available: int) -> int:
    """Return the largest training batch, up to 64, whose plan stays within `available` bytes; 0 if none does."""
    sizes = range(1, LARGEST_MICRO_BATCH + 1)
    return bisect_right(
        sizes,
        available,
        key=lambda size: compute_peak(plan_memory(model, replace(setup, batch_size=size)), TRAINING),
    )


def _weigh(model, setup: Setup) -> list[MemoryRow]:
    """Rows of the frozen weights; a parameter counts in the first part that holds it."""
    decoder = model.get_decoder()
    parts = {
        "vision tower": [find_vision_tower(model)],
        "embedding and head": [model.get_input_embeddings(), model.get_output_embeddings()],
        "language layers": [module for module in decoder.modules() if isinstance(module, nn.Linear)],
        "language norms": [decoder],
        "projector": [model],
    }
    rows, seen = [], set()
    for part, modules in parts.items():
        frozen = {parameter for module in modules for parameter in module.parameters() if not parameter.requires_grad}
        frozen -= seen
        seen |= frozen
        if part == "vision tower" and setup.cached:
            continue
        dtype = setup.precision.tower if part == "vision tower" else setup.precision.weights
        bits = _name(dtype)
        count = sum(parameter.numel() for parameter in frozen)
        size = count * dtype.itemsize
        if part == "language layers" and setup.load_in_4bit:
            bits, size = "4 bits", sum(count_4bit(parameter.numel(), setup.double_quantized) for parameter in frozen)
        elif part == "language layers" and setup.load_in_8bit:
            bits, size = "8 bits", sum(parameter.numel() + 4 * len(parameter) for parameter in frozen)
        rows.append(MemoryRow(part, bits, size, MOMENTS, f"{count / 1e6:,.1f} million frozen parameters"))
    return rows


def _plan_allowances(rows: list[MemoryRow], setup: Setup) -> list[MemoryRow]:
    """Rows of what a GPU takes beside the tensors."""
    workspace = WORKSPACES * WORKSPACE["hopper" if setup.hopper else "earlier"]
    passing = [row for row in rows if set(row.moments) != set(MOMENTS) and "optimiser" not in row.moments]
    slack = {
        moment: round(ALLOCATOR_SHARE * sum(row.bytes for row in passing if moment in row.moments))
        for moment in MOMENTS
    }
    source = f"{ALLOCATOR_SHARE:.0%} of the activations: blocks can't be cut to size"
    return [
        *(MemoryRow("allocator", "", size, (moment,), f"{source}, in {moment}") for moment, size in slack.items()),
        MemoryRow("cuBLAS", "", workspace, MOMENTS, f"{WORKSPACES} workspaces"),
        MemoryRow("CUDA context", "", CUDA_CONTEXT, MOMENTS, "assumed, not measured"),
    ]


def _plan_tower(model, setup: Setup, trained: bool) -> list[MemoryRow]:
    """Rows of the pictures and of the tower's pass over them."""
    size = model.config.vision_config.to_dict().get("image_size")
    if size is None:
        raise ValueError(
            f"{type(model.config).__name__} has no image_size: its pictures differ in size, and the plan knows only "
            "towers that read one size; plan with vision_cache, or measure"
        )
    tower = trace_tower(model, setup.precision, size, trained, setup.checkpointing)
    dtype, pictures, pixels = _name(setup.precision.tower), setup.batch_size * setup.pictures, 3 * size**2 * 4
    kept = "kept for the backward pass" if trained else "output, held during the forward pass"
    passing = ("tower", "backward") if trained else ("tower",)
    scored = setup.scoring_batch * setup.pictures
    # Trainer fetches the micro-batches of a step together, to count their tokens.
    held = pictures * setup.accumulation
    return [
        MemoryRow("pictures", "float32", held * pixels, STEP, f"{held} x 3 x {size} x {size}, of the whole step"),
        MemoryRow("tower, kept", dtype, pictures * tower.kept, STEP, f"traced, {kept}"),
        MemoryRow("tower, passing", dtype, pictures * tower.above, passing, "traced, one layer's pass"),
        MemoryRow(
            "tower in scoring",
            dtype,
            scored * (pixels + tower.kept + tower.above),
            ("encoding",),
            f"{scored} pictures, traced",
        ),
    ]


def _plan_language(model, setup: Setup) -> list[MemoryRow]:
    """Rows of the language model's activations in a training step."""
    precision, batch, decoder = setup.precision, setup.batch_size, model.get_decoder()
    traced = trace_language(model, precision, setup.tokens, setup.checkpointing)
    compute, dtype = precision.autocast or precision.weights, _name(precision.weights)
    how = "inputs of the layers" if setup.checkpointing else "no checkpointing"
    if setup.on_gpu:
        positions = batch * setup.labelled
        # One tile of logits, and the gradient of the hidden states in float32 and as they are.
        width = min(model.get_output_embeddings().out_features, VOCABULARY_CHUNK)
        tile = positions * (width * compute.itemsize + decoder.config.hidden_size * (4 + precision.weights.itemsize))
    else:
        positions = batch * (setup.tokens - 1)
        tile = trace_head(model, precision, positions)
    rows = [
        MemoryRow("language, kept", dtype, batch * traced.kept, ("loss", "backward"), f"traced, {how}"),
        MemoryRow("language, passing", dtype, batch * traced.above, ("backward",), "traced, one layer's pass"),
        MemoryRow(
            "logits", _name(compute), tile, ("loss",), f"{positions} positions, {VOCABULARY_CHUNK:,} words at once"
        ),
    ]
    if setup.load_in_4bit or setup.load_in_8bit:
        largest = max(module.weight.numel() for module in decoder.modules() if isinstance(module, nn.Linear))
        multiplied = setup.compute_4bit or compute
        # Backwards it is unpacked in the dtype in which it was packed, and cast from there.
        size = largest * (multiplied.itemsize + (precision.weights.itemsize if multiplied != precision.weights else 0))
        rows.append(MemoryRow("unpacked layer", _name(multiplied), size, ("loss", "backward"), "the largest"))
        rows.append(
            MemoryRow("unpacked layer", _name(multiplied), largest * multiplied.itemsize, ("scoring",), "the largest")
        )
    if setup.load_in_8bit and setup.checkpointing:
        # bitsandbytes keeps them itself, where checkpointing can't drop them. Layers side by side with inputs of one
        # width have one input.
        inputs = {
            (name.removesuffix(".base_layer").rpartition(".")[0], module.in_features)
            for name, module in decoder.named_modules()
            if isinstance(module, nn.Linear) and "lora_" not in name
        }
        size = batch * setup.tokens * sum(width for _, width in inputs) * precision.weights.itemsize
        rows.append(MemoryRow("8-bit inputs", dtype, size, ("loss", "backward"), "kept in spite of checkpointing"))
    if setup.cached:
        # What enters the projector is smaller than what comes out of it.
        held = batch * setup.accumulation * setup.pictures
        size = held * model.config.mm_tokens_per_image * decoder.config.hidden_size * precision.weights.itemsize
        rows.append(MemoryRow("features", dtype, size, STEP, f"{held} pictures, of the whole step"))
    return rows


def _plan_scoring(model, setup: Setup) -> list[MemoryRow]:
    """Rows of the likelihood of the answers, as `one_pass` reads them, or else `shared_prefix`."""
    precision, patches = replace(setup.precision, autocast=None, adapter_casts=True), setup.scoring_batch
    dtype, answers = _name(precision.weights), min(setup.candidates, patches * (setup.options or setup.candidates))
    answers, words = max(patches, answers), model.get_output_embeddings().out_features
    window = model.get_decoder().config.to_dict().get("sliding_window") or math.inf
    nodes = (setup.options or math.inf) * setup.labelled
    if nodes <= setup.tokens and setup.tokens + nodes + MULTIPLE < window:
        # One pass over prompt and answers; what is written afterwards has keys and values.
        above, positions = trace_cache(model, precision, setup.tokens + nodes).above, min(answers, patches * nodes)
        beside = setup.labelled
    else:
        above, positions = trace_cache(model, precision, setup.tokens).above, answers * setup.labelled
        beside = answers // patches * setup.labelled
    kept = trace_cache(model, precision, setup.tokens).kept
    # A tree of answers beside each prompt or, where a window would cut the prompt, a copy of it for each answer.
    length = patches * (setup.tokens + beside)
    if setup.tokens + beside >= window:
        length = (patches + answers) * setup.tokens
    # As they come, in float32, and once more in the normalisation.
    logits = positions * words * (precision.weights.itemsize + 8)
    rows = [
        ("keys and values", dtype, round(kept * length / setup.tokens), f"{length:,} tokens"),
        ("scoring, passing", dtype, patches * above, "traced, one layer's pass"),
        ("logits in scoring", "float32", logits, f"{positions} positions x {words:,} words"),
    ]
    return [MemoryRow(part, name, size, ("scoring",), source) for part, name, size, source in rows]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
