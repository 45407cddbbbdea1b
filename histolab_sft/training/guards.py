"""Stop a run whose loss, gradient or weights aren't finite, before they reach a checkpoint."""

import math

import torch
from torch import nn

SHOWN_ROWS = 16


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or a weight is NaN or infinite."""


def check_loss(loss: torch.Tensor, step: int, rows: list[str], accelerator) -> None:
    """Raise `NonFiniteError` on every process if the loss of any of them isn't finite.

    Args:
        loss (`torch.Tensor`): Scalar of this process's micro-batch.
        step (`int`): The optimiser step that it belongs to, counted from 1.
        rows (`list[str]`): Ids of the rows in the micro-batch.
    """
    broken = ~loss.detach().isfinite()
    if accelerator.gather(broken.reshape(1)).any():
        found = f"the loss is {loss.item()}" if broken else "the loss of another process isn't finite"
        raise NonFiniteError(_explain(found, step, rows if broken else []))


def check_gradient(norm: torch.Tensor | float | None, step: int, rows: list[str]) -> None:
    """Raise `NonFiniteError` if the norm of the gradient over all trained weights isn't finite (None: not known)."""
    if norm is not None and not math.isfinite(norm):
        raise NonFiniteError(_explain(f"the norm of the gradient is {float(norm)}", step, rows))


def check_weights(parameters: list[tuple[str, nn.Parameter]], step: int, rows: list[str]) -> None:
    """Raise `NonFiniteError` if a weight isn't finite, naming one.

    Args:
        parameters: Of what is trained, names and weights.
    """
    trained = [(name, parameter.detach()) for name, parameter in parameters if parameter.numel()]
    # The largest absolute value is finite exactly if all are: one transfer from the device for all tensors.
    if not torch.nn.utils.get_total_norm([weights for _, weights in trained], norm_type=math.inf).isfinite():
        name = next(name for name, weights in trained if not weights.isfinite().all())
        raise NonFiniteError(_explain(f"the weights {name} aren't finite", step, rows))


def _explain(found: str, step: int, rows: list[str]) -> str:
    shown = ", ".join(rows[:SHOWN_ROWS]) + (f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else "")
    return (
        f"{found} in step {step}, expected finite numbers; rows: {shown or 'of another process'}. Nothing of this "
        "step was saved: the last checkpoint is from before it. Look at these rows; if they are sound, lower "
        "learning_rate or max_grad_norm, and train in bfloat16 or float32"
    )
