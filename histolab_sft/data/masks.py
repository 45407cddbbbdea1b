"""Which tokens of a row carry loss, seen through TRL's own collator."""

from datasets import Dataset
from transformers import ProcessorMixin
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling


def audit_masks(
    rows: Dataset, processor: ProcessorMixin, max_length: int | None = None, limit: int = 200, batch_size: int = 8
) -> int:
    """Collate up to `limit` rows, evenly spread, and check that the loss is on the answer and its end alone.

    Returns:
        `int`: How many rows were checked.

    Raises:
        ValueError: A row has a label outside its answer, none at all (its answer was cut off), or lost image tokens.
    """
    collator = DataCollatorForVisionLanguageModeling(
        processor=processor, max_length=max_length, completion_only_loss=True
    )
    chosen = range(0, len(rows), max(1, len(rows) // limit))
    chosen = list(chosen)[:limit]
    for start in range(0, len(chosen), batch_size):
        batch = [rows[i] for i in chosen[start : start + batch_size]]
        answers = [row["completion"][0]["content"] for row in batch]
        ids = [row["id"] for row in batch]
        collated = collator(batch)
        for name, answer, tokens, labels in zip(ids, answers, collated["input_ids"], collated["labels"], strict=True):
            _check_row(name, answer, tokens, labels, processor)
    return len(chosen)


def describe_row(rows: Dataset, dataset: str, processor: ProcessorMixin, max_length: int | None = None) -> str:
    """Return the first row of a data set as the model sees it, with the tokens that carry loss in brackets."""
    index = rows.with_format(None)["dataset"].index(dataset)
    row, place = rows[index], rows.with_format(None)[index]["image"]
    size = row["image"].size
    collator = DataCollatorForVisionLanguageModeling(
        processor=processor, max_length=max_length, completion_only_loss=True
    )
    collated = collator([row])
    text, image_tokens = [], 0
    for token, label in zip(collated["input_ids"][0].tolist(), collated["labels"][0].tolist(), strict=True):
        if token == processor.tokenizer.image_token_id:
            image_tokens += 1
            continue
        if image_tokens:
            text.append(f"<{image_tokens} image tokens>")
            image_tokens = 0
        word = processor.tokenizer.decode([token])
        text.append(f"[{word}]" if label != -100 else word)
    where = place["path"] + (f" row {place['row']}" if place["row"] >= 0 else "")
    return f"{dataset}: {where}, {size[0]} x {size[1]} pixels\n{''.join(text)}\n"


def _check_row(name: str, answer: str, tokens, labels, processor: ProcessorMixin) -> None:
    kept = labels != -100
    if not kept.any():
        raise ValueError(f"{name}: no token carries loss, expected {answer!r}; raise max_length or set it to null")
    learnt = processor.tokenizer.decode(labels[kept])
    expected = f"{answer}{_end_of_turn(processor)}"
    if learnt != expected:
        raise ValueError(
            f"{name}: the loss is on {learnt!r}, expected {expected!r}; check max_length and the template"
        )
    found = int((tokens == processor.tokenizer.image_token_id).sum())
    if found != processor.image_seq_length:
        raise ValueError(
            f"{name}: {found} image tokens, expected {processor.image_seq_length}; raise max_length or set it to null"
        )


def _end_of_turn(processor: ProcessorMixin) -> str:
    """What the chat template writes after an answer."""
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return processor.apply_chat_template(conversation, tokenize=False).rsplit("b", 1)[1]
