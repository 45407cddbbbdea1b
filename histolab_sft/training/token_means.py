"""Logged values that depend neither on the size of a micro-batch nor on the number of processes.

TRL weights the gradient by tokens over accumulation and processes. Two things are left uneven, and are mended here:

- If the last batch of an epoch has too few rows for all processes, accelerate fills it up with the first rows of the
  epoch. They would be learnt and counted twice, so their labels are removed (`mask_repeated_rows`).
- The logged values and `eval_loss` are means over micro-batches of means over tokens. A token of a short answer in a
  small batch then weighs more. Here they are means over all tokens of an optimiser step or of an evaluation.
"""

import torch
from accelerate import Accelerator
from accelerate.state import GradientState

IGNORED = -100  # label of a token that isn't learnt
# Name of a value -> its sum over tokens and the number of these tokens
Sums = dict[str, tuple[torch.Tensor, torch.Tensor]]


def mask_repeated_rows(batch: dict, batch_size: int, state: GradientState, args) -> dict:
    """Set the labels of rows that only fill up the last batch of an epoch to -100.

    Args:
        batch (`dict`): One micro-batch of this process; its `labels` `(rows, length)` are changed.
        batch_size (`int`): Rows of a full micro-batch.
        args (`SFTConfig`): With the number of processes and this one's index.
    """
    if state.end_of_dataloader and not args.dataloader_drop_last:
        left = len(state.active_dataloader.dataset) % (batch_size * args.world_size)
        # The last rows go to the processes in order, the repeated rows after them.
        own = left - args.process_index * batch_size
        if left and own < batch_size:
            batch["labels"][max(0, own) :] = IGNORED
    return batch


def sum_tokens(outputs, deciding: torch.Tensor) -> Sums:
    """Return what is logged beside the loss, summed over the tokens of a micro-batch.

    Args:
        outputs: Of the model, with `log_probs`, `entropy`, `is_top1` and `label_mask` of `(rows, length - 1)`.
        deciding (`torch.BoolTensor` of shape `(rows, length)`): From `mask_deciding_tokens`. What lost its label since
            then doesn't count.
    """
    tokens = outputs.label_mask.sum()
    # The output at one position predicts the label at the next.
    deciding = deciding[:, 1:] & outputs.label_mask
    count = deciding.sum()
    return {
        "entropy": (outputs.entropy.sum(), tokens),
        "mean_token_accuracy": (outputs.is_top1.sum(), tokens),
        "answer_loss": (-(outputs.log_probs * deciding).sum(), count),
        "answer_accuracy": ((outputs.is_top1 * deciding).sum(), count),
    }


def add_sums(totals: Sums, sums: Sums) -> None:
    """Add the sums of a micro-batch to `totals`, in float64."""
    for name, (total, count) in sums.items():
        before = totals.get(name, (0.0, 0.0))
        totals[name] = before[0] + total.double(), before[1] + count.double()


def pop_means(totals: Sums, accelerator: Accelerator) -> dict[str, float]:
    """Return the means over the tokens of all processes, of the names that have any; `totals` is empty afterwards."""
    if not totals:
        return {}
    table = torch.stack([torch.stack(pair) for pair in totals.values()])
    table = accelerator.gather(table[None]).sum(dim=0).tolist()
    means = {name: total / count for name, (total, count) in zip(totals, table, strict=True) if count}
    totals.clear()
    return means
