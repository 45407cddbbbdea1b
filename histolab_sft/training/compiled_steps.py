"""Training steps with compiled layers: batches padded to few lengths, and the layers switched (`compiled_layers`)."""

import logging
from dataclasses import dataclass, fields

import torch
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from histolab_sft.models.compiled_layers import OFF, ON, LayerSwitch, decide
from histolab_sft.models.one_pass import MULTIPLE

logger = logging.getLogger(__name__)

# The lower length, as a share of the higher one: batches of short rows alone are padded no further.
LOWER = 0.75
FILLING = {"attention_mask": 0, "token_type_ids": 0, "labels": -100}


@dataclass
class EvenLengthCollator(DataCollatorForVisionLanguageModeling):
    """TRL's collator, whose batches are padded on the right to the first of `lengths` (tokens) that holds them."""

    lengths: tuple[int, ...] = ()

    def torch_call(self, examples):
        batch = super().torch_call(examples)
        length = batch["input_ids"].shape[1]
        more = next((wanted - length for wanted in self.lengths if wanted >= length), 0)
        filling = FILLING | {"input_ids": self.processor.tokenizer.pad_token_id}
        for name in filling.keys() & batch.keys():
            batch[name] = torch.nn.functional.pad(batch[name], (0, more), value=filling[name])
        return batch


def compile_training(trainer, choice: str) -> bool:
    """Carry out the key `compiled_layers` in a trainer that is ready to train, and return whether layers are compiled.

    Args:
        trainer (`PatchTrainer`): After the canary, whose hooks must see every module.
        choice (`str`): `auto`, `on` or `off`.

    Raises:
        ValueError: It is `on` where no process holds whole layers.
    """
    sharded = trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()
    if sharded and choice == ON:
        raise ValueError(
            "compiled_layers is on, and no process holds whole layers; set compiled_layers: off, or use ZeRO-2"
        )
    args = trainer.args
    if sharded or choice == OFF:
        return False
    steps = args.max_steps
    if steps <= 0:
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = args.num_train_epochs * len(trainer.train_dataset) // rows
    if not decide(choice, trainer.model, args.device, steps * args.gradient_accumulation_steps, learning=True):
        return False
    plain = trainer.data_collator
    kept = {field.name: getattr(plain, field.name) for field in fields(plain)}
    trainer.data_collator = EvenLengthCollator(**kept, lengths=choose_lengths(trainer))
    LayerSwitch(trainer.model, args.train_batch_size, learning=True)
    return True


def choose_lengths(trainer) -> tuple[int, int]:
    """Return the two lengths, in tokens, that batches of the training set are padded to.

    The higher one holds the row with the longest question and the one with the longest answer side by side.
    """
    plain = trainer.train_dataset.with_format(None)
    columns = [plain[name] for name in ("prompt", "completion")]
    pictures = list(map(len, plain["images"]))
    sizes = [[len(turn[0]["content"]) for turn in column] for column in columns]
    longest = {max(range(len(plain)), key=lambda row: (pictures[row], sizes[0][row]))}
    longest |= {max(range(len(plain)), key=sizes[column].__getitem__) for column in (0, 1)}
    tokens = trainer.data_collator([trainer.train_dataset[row] for row in sorted(longest)])["input_ids"].shape[1]
    higher = -(-tokens // MULTIPLE) * MULTIPLE
    return int(LOWER * higher) // MULTIPLE * MULTIPLE, higher
