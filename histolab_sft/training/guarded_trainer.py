"""`SFTTrainer` that knows which rows it works on, and stops when their numbers or the memory go wrong."""

import logging
from functools import cached_property, partial

from accelerate.utils.memory import should_reduce_batch_size
from transformers import set_seed
from trl import SFTTrainer

from histolab_sft.signals import ignore_stop_signals
from histolab_sft.training.guards import check_gradient, check_loss, check_weights
from histolab_sft.training.out_of_memory import OutOfMemoryError, explain_out_of_memory, split_batch
from histolab_sft.workers import PICTURE_BYTES, WORKER_TIMEOUT, limit_workers

logger = logging.getLogger(__name__)

ROWS = "row_ids"


def collate_with_rows(collate, examples: list[dict]) -> dict:
    """Collate, and keep beside the tensors which rows they are."""
    rows = [str(example.pop("id", "without id")) for example in examples]
    for example in examples:
        example.pop("pixel_sha256", None)
    batch = collate(examples)
    batch[ROWS] = rows
    return batch


def start_worker(start, worker: int) -> None:
    """Start a data loader worker that leaves stop signals to its parent."""
    ignore_stop_signals()
    if start is not None:
        start(worker)


class GuardedTrainer(SFTTrainer):
    """`SFTTrainer` that stops within the step in which a loss, a gradient or a weight isn't finite.

    Args:
        args (`SFTConfig`): `logging_nan_inf_filter` is switched off: it shows the mean of earlier losses in place of
            NaN, so that a broken run looks like a good one.
        oom (`str`): When memory runs out in training, `stop` with advice, or `halve` the micro-batch and accumulate
            twice as many: the same rows a step and the same loss, for one process. `micro_batch` then holds the rows
            that fit; a copy of the gradients is kept through each micro-batch, and dropout draws other numbers.
    """

    def __init__(self, *, args, oom: str = "stop", **kwargs):
        # Trainer would copy the model to every GPU that one process sees.
        args._n_gpu = min(args.n_gpu, 1)
        # The first weights of an adapter are drawn before Trainer sets the seed.
        set_seed(args.seed)
        super().__init__(args=args, **kwargs)
        args.logging_nan_inf_filter = False
        if oom == "halve" and (args.world_size > 1 or self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError(
                "oom is halve with several processes or DeepSpeed, expected one process: the others can't follow; "
                "set oom: stop and a smaller per_device_train_batch_size"
            )
        # What to do when memory runs out
        self.oom = oom
        self.micro_batch: int | None = None
        # Ids of the rows since the last optimiser step
        self._rows: list[str] = []

    def _move_model_to_device(self, model, device):
        """Leave the model where it was loaded: what isn't to be on the device at first would not fit there."""

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        # `pixel_sha256` for rows that name their pictures in place of opening them.
        for column in ("id", "pixel_sha256"):
            if column not in self._signature_columns:
                self._signature_columns.append(column)

    def _get_dataloader(self, *args, **kwargs):
        loader = super()._get_dataloader(*args, **kwargs)
        # What accelerate returns stands before the loader that reads.
        reader = loader.base_dataloader
        reader.collate_fn = partial(collate_with_rows, reader.collate_fn)
        reader.worker_init_fn = partial(start_worker, reader.worker_init_fn)
        reader.num_workers = limit_workers(reader.num_workers, PICTURE_BYTES * self._train_batch_size)
        reader.timeout = WORKER_TIMEOUT if reader.num_workers else 0
        return loader

    @cached_property
    def _arithmetic_a_token(self) -> int:
        return 6 * self.accelerator.unwrap_model(self.model).num_parameters(exclude_embeddings=True)

    def floating_point_ops(self, inputs) -> int:
        # Trainer would count the parameters anew at every step, 25 ms for which a GPU waits.
        return self._arithmetic_a_token * inputs["input_ids"].numel()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rows = inputs.pop(ROWS, [])
        outcome = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.model.training:
            self._rows += rows
        check_loss(outcome[0] if return_outputs else outcome, self.state.global_step + 1, rows, self.accelerator)
        return outcome

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        check_gradient(norm, self.state.global_step + 1, self._rows)
        return norm

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        check_weights(self.model, self.state.global_step, self._rows)
        self._rows = []
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        while True:
            parts = split_batch(inputs, self.micro_batch) if self.micro_batch else [inputs]
            before = self._copy_gradients() if self.oom == "halve" else None
            try:
                # The loss of a part is its sum over the tokens of the whole step, so that parts add up.
                losses = []
                for part in parts:
                    losses.append(super().training_step(model, part, num_items_in_batch))
                return sum(losses)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                rows = len(parts[0]["labels"])
                message = explain_out_of_memory(error, parts[0], self.args, self.state.global_step + 1, training=True)
                if before is None or rows == 1 or num_items_in_batch is None:
                    raise OutOfMemoryError(message) from error
            # Out of the handler, whose error held the failed step's tensors.
            self.micro_batch = rows // 2
            logger.warning("%s. Going on with micro-batches of %d", message, self.micro_batch)
            for parameter, gradient in before:
                parameter.grad = gradient

    def _copy_gradients(self) -> list[tuple]:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return [(p, None if p.grad is None else p.grad.clone()) for p in trained]

    def prediction_step(self, model, inputs, *args, **kwargs):
        try:
            return super().prediction_step(model, inputs, *args, **kwargs)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            message = explain_out_of_memory(error, inputs, self.args, self.state.global_step, training=False)
            raise OutOfMemoryError(message) from error
