"""Try one training step, and refuse a precision in which activations overflow or gradients vanish.

Otherwise both are hard to see. An overflow shows as a loss of NaN, without the layer where it began. Gradients that
are too small for float16 become zeros, and training goes on and learns little.
"""

import logging

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch.utils._pytree import tree_iter
from trl import SFTTrainer

logger = logging.getLogger(__name__)

# Multiplying the loss by a power of two changes no digit of a gradient, only whether it is large enough to be stored.
SCALE = 2.0**10
# Share of the gradients that may lose more than half of their size to that. On GPUs, sums in changing order alter the
# smallest ones from one pass to the next, so some must be allowed.
LARGEST_LOSS = 0.05
ADVICE = "set dtype: bfloat16, fp16: false, or take the values of this card (hardware: auto)"


class CanaryError(RuntimeError):
    """The model can't be trained in the recipe's precision."""


def run_canary(trainer: SFTTrainer) -> None:
    """Pass one micro-batch forwards and backwards, twice; nothing of it is left in model or trainer.

    It isn't run where everything is float32, under `fp16: true`, whose scaler finds the right factor itself, and where
    DeepSpeed or FSDP hold the weights.

    Raises:
        CanaryError: A module's output isn't finite; no gradient arrives; or more than `LARGEST_LOSS` of the gradients
            of a weight lose more than half of their size because they are too small for their dtype.
    """
    model, args = trainer.model, trainer.args
    if args.fp16 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or not _has_half_precision(model, args):
        return
    count = min(args.per_device_train_batch_size, len(trainer.train_dataset))
    # Evenly spread: the first rows are of one class.
    rows = [trainer.train_dataset[row * len(trainer.train_dataset) // count] for row in range(count)]
    training = model.training
    model.train()
    try:
        with torch.random.fork_rng():
            inputs = trainer._prepare_inputs(trainer.data_collator(rows))
            gradients, scaled = (_compute_gradients(trainer, inputs, factor) for factor in (1.0, SCALE))
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
    _check_gradients(gradients, scaled)


def _compute_gradients(trainer: SFTTrainer, inputs: dict, factor: float) -> dict[str, torch.Tensor]:
    """Return the gradients, on the CPU, of `factor` times the loss."""
    model = trainer.model
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    hooks = [module.register_forward_hook(_make_hook(name)) for name, module in model.named_modules()]
    try:
        loss = model(**tensors, fused_lm_head=True).loss
    finally:
        for hook in hooks:
            hook.remove()
    (loss * factor).backward()
    return {
        name: parameter.grad.float().cpu() / factor
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def _make_hook(name: str):
    def check(module, args, output):
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
                value = tensor[~tensor.isfinite()].flatten()[0].item()
                entering = [part for part in tree_iter(args) if isinstance(part, torch.Tensor) and part.numel()]
                largest = max((part.abs().max().item() for part in entering), default=0)
                raise CanaryError(
                    f"canary step: {name or 'the model'} ({type(module).__name__}) gives {value} in {tensor.dtype}, "
                    f"whose largest number is {torch.finfo(tensor.dtype).max:g}; the largest that enters is "
                    f"{largest:g}. Expected finite activations; {ADVICE}"
                )

    return check


def _check_gradients(gradients: dict[str, torch.Tensor], scaled: dict[str, torch.Tensor]) -> None:
    nonzero = lost = 0
    worst, most = "", 0.0
    for name, gradient in gradients.items():
        if not gradient.isfinite().all():
            value = gradient[~gradient.isfinite()][0].item()
            raise CanaryError(f"canary step: the gradient of {name} holds {value}, expected finite ones; {ADVICE}")
        there = scaled[name] != 0
        small = there & (gradient.abs() < scaled[name].abs() / 2)
        nonzero, lost = nonzero + int(there.sum()), lost + int(small.sum())
        share = small.sum().item() / max(1, int(there.sum()))
        worst, most = (name, share) if share > most else (worst, most)
    if not nonzero:
        raise CanaryError(
            f"canary step: found no gradient in {len(gradients)} weights, expected some; check lora_target_modules, "
            f"or {ADVICE}"
        )
    if lost > LARGEST_LOSS * nonzero:
        raise CanaryError(
            f"canary step: {lost / nonzero:.1%} of {nonzero} gradients lose more than half of their size because they "
            f"are too small for their dtype, expected at most {LARGEST_LOSS:.0%}; most in {worst} ({most:.1%}); "
            f"{ADVICE}"
        )
    logger.info("canary step: all is finite, %.2f %% of the gradients are too small", 100 * lost / nonzero)


def _has_half_precision(model, args) -> bool:
    dtypes = {parameter.dtype for parameter in model.parameters()}
    dtypes |= {module.compute_dtype for module in model.modules() if isinstance(module, Linear4bit)}
    # 8-bit layers take what they multiply in float16, whatever the dtype around them.
    dtypes |= {torch.float16 for module in model.modules() if isinstance(module, Linear8bitLt)}
    return args.bf16 or bool(dtypes & {torch.bfloat16, torch.float16})
