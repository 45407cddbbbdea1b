"""`SFTTrainer` whose losses and metrics don't depend on the size of a micro-batch or the number of processes.

TRL weighs the gradient by tokens over accumulation and processes. What it and Trainer leave uneven is mended here:

- Where the last batch of an epoch doesn't suffice for all processes, accelerate fills it up with the epoch's first
  rows, which would be learnt and counted twice: their labels are taken away.
- The logged means, and `eval_loss`, are means over micro-batches of means over tokens, in which a short answer in a
  small batch weighs more: here they are means over the tokens of an optimiser step, and of a whole evaluation.
"""

import torch

from histolab_sft.training.guarded_trainer import GuardedTrainer

# What TRL logs as means over micro-batches
UNEVEN = ("entropy", "mean_token_accuracy")
IGNORED = -100  # label of a token that isn't learnt
Sums = dict[str, tuple[torch.Tensor, torch.Tensor]]


class EvenTrainer(GuardedTrainer):
    """`GuardedTrainer` that counts every row once and every token the same; arguments as there."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # Since the last optimiser step, and since the evaluation began
        self._sums: dict[str, Sums] = {"train": {}, "eval": {}}

    def sum_tokens(self, labels: torch.Tensor, outputs) -> Sums:
        """Return the values to log by name, each as a sum over tokens and the number of these.

        Args:
            labels (`torch.Tensor` of shape `(rows, length)`): -100 where nothing is learnt.
            outputs: Of the model, with `log_probs`, `entropy`, `is_top1` and `label_mask` of `(rows, length - 1)`.
        """
        tokens = outputs.label_mask.sum()
        return {"entropy": (outputs.entropy.sum(), tokens), "mean_token_accuracy": (outputs.is_top1.sum(), tokens)}

    # Every row once

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches = (self._forget_repeats(batch, self.args.train_batch_size) for batch in epoch_iterator)
        return super().get_batch_samples(batches, num_batches, device)

    def prediction_step(self, model, inputs, *args, **kwargs):
        inputs = self._forget_repeats(inputs, self.args.eval_batch_size)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _forget_repeats(self, batch: dict, batch_size: int) -> dict:
        state, args = self.accelerator.gradient_state, self.args
        if state.end_of_dataloader and not args.dataloader_drop_last:
            rows = len(state.active_dataloader.dataset) % (batch_size * args.world_size)
            # The rows of the last round go to the processes in order, the repeats after them.
            own = rows - args.process_index * batch_size
            if rows and own < batch_size:
                batch["labels"][max(0, own) :] = IGNORED
        return batch

    # Every token the same

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = []
        hook = self.model.register_forward_hook(lambda module, args, output: outputs.append(output))
        labels = inputs["labels"]
        try:
            outcome = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            hook.remove()
        mode = "train" if self.model.training else "eval"
        for name in UNEVEN:
            self._metrics[mode][name].pop()
        with torch.no_grad():
            sums = self.sum_tokens(labels, outputs[0])
            if mode == "eval":
                # In an evaluation the loss is the mean over the tokens of this batch.
                tokens, loss = outputs[0].label_mask.sum(), outcome[0] if return_outputs else outcome
                sums["loss"] = loss * tokens, tokens
        for name, (total, count) in sums.items():
            before = self._sums[mode].get(name, (0.0, 0.0))
            self._sums[mode][name] = before[0] + total.double(), before[1] + count.double()
        return outcome

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self._close_sums("eval")
        if "loss" in means:
            output.metrics[f"{metric_key_prefix}_loss"] = means.pop("loss")
        self._metrics["eval"].update({name: [mean] for name, mean in means.items()})
        return output

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        for name, mean in self._close_sums("train").items():
            self._metrics["train"][name].append(mean)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _close_sums(self, mode: str) -> dict[str, float]:
        """Return the means over the tokens of all processes, and begin anew."""
        sums, self._sums[mode] = self._sums[mode], {}
        if not sums:
            return {}
        table = torch.stack([torch.stack(pair) for pair in sums.values()])
        table = self.accelerator.gather(table[None]).sum(dim=0).tolist()
        return {name: total / count for name, (total, count) in zip(sums, table, strict=True) if count}
