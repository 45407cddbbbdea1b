"""`SFTTrainer` for patches: trainable weights in float32, a frozen tower at no cost, the answer's own loss."""

from histolab_sft.models.load import keep_quantized_layers_trainable
from histolab_sft.models.vision_tower import freeze_vision_tower
from histolab_sft.training.answer_tokens import (
    collect_answers,
    compute_guessing_level,
    find_branches,
    mask_deciding_tokens,
)
from histolab_sft.training.steady_trainer import SteadyTrainer
from histolab_sft.training.task_metric import collect_options, measure_balanced_accuracy


class PatchTrainer(SteadyTrainer):
    """`SteadyTrainer` that also logs `answer_loss` and `answer_accuracy`.

    Both are means over the tokens that tell the classes apart (see `answer_tokens`), in training and, with the prefix
    `eval_`, in evaluation. `guessing_level` holds what both would be for a model that only knows how frequent
    the classes are. Each evaluation of a data set with fixed answers also gives `eval_balanced_accuracy`, by label
    likelihood: use it as `metric_for_best_model` or `early_stopping_metric`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        keep_quantized_layers_trainable(self.model)
        freeze_vision_tower(self.model)
        # TRL casts what is trained on a quantised model to bfloat16, where small AdamW steps are lost, and resuming
        # would cast it back to float32. Here it is float32 from the start.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        answers = collect_answers(self.train_dataset, self.data_collator)
        self.branches = find_branches(answers)
        self.guessing_level = compute_guessing_level(answers)
        self.options = collect_options(self.train_dataset) if self.branches else {}

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.options:
            with self.compute_loss_context_manager():
                output.metrics[f"{metric_key_prefix}_balanced_accuracy"] = measure_balanced_accuracy(
                    self.model,
                    self.data_collator.processor,
                    self.eval_dataset,
                    self.options,
                    self.args.per_device_eval_batch_size,
                    self.accelerator,
                )
        return output

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = []
        hook = self.model.register_forward_hook(lambda module, args, output: outputs.append(output))
        labels = inputs["labels"]
        try:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            hook.remove()
        # The outputs stand one place to the left of the labels.
        deciding = mask_deciding_tokens(labels, self.branches)[:, 1:]
        log_probs, right = outputs[0].log_probs.detach(), outputs[0].is_top1
        sums = [deciding.sum(), -(log_probs * deciding).sum(), (right * deciding).sum()]
        count, nll, right = (self.accelerator.gather_for_metrics(value).sum().item() for value in sums)
        metrics = self._metrics["train" if self.model.training else "eval"]
        if count:
            metrics["answer_loss"].append(nll / count)
            metrics["answer_accuracy"].append(right / count)
        return loss
