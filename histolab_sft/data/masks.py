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
    collator, uncut = (
        DataCollatorForVisionLanguageModeling(processor=processor, max_length=length, completion_only_loss=True)
        for length in (max_length, None)
    )
    chosen = range(0, len(rows), max(1, len(rows) // limit))
    chosen = list(chosen)[:limit]
    for start in range(0, len(chosen), batch_size):
        batch = [rows[i] for i in chosen[start : start + batch_size]]
        expected = [_render_answer(row, processor) for row in batch]
        # The collator changes the rows that it is given.
        collated = collator([dict(row) for row in batch])
        whole = collated if max_length is None else uncut([dict(row) for row in batch])
        pictures = (whole["input_ids"] == processor.image_token_id).sum(dim=1).tolist()
        checked = zip(batch, expected, pictures, collated["input_ids"], collated["labels"], strict=True)
        for row, answer, image_tokens, tokens, labels in checked:
            _check_row(row["id"], answer, image_tokens, tokens, labels, processor)
    return len(chosen)


def describe_row(rows: Dataset, dataset: str, processor: ProcessorMixin, max_length: int | None = None) -> str:
    """Return the first row of a data set as the model sees it, with the tokens that carry loss in brackets."""
    index = rows.with_format(None)["dataset"].index(dataset)
    row, place = rows[index], rows.with_format(None)[index]
    if "images" in row:
        where, pictures = ", ".join(image["path"] for image in place["images"]), row["images"]
    else:
        place = place["image"]
        where = place["path"] + (f" row {place['row']}" if place["row"] >= 0 else "")
        pictures = [row["image"]]
    sizes = ", ".join(f"{picture.width} x {picture.height}" for picture in pictures)
    collator = DataCollatorForVisionLanguageModeling(
        processor=processor, max_length=max_length, completion_only_loss=True
    )
    collated = collator([row])
    text, image_tokens = [], 0
    for token, label in zip(collated["input_ids"][0].tolist(), collated["labels"][0].tolist(), strict=True):
        if token == processor.image_token_id:
            image_tokens += 1
            continue
        if image_tokens:
            text.append(f"<{image_tokens} image tokens>")
            image_tokens = 0
        word = processor.tokenizer.decode([token])
        text.append(f"[{word}]" if label != -100 else word)
    return f"{dataset}: {where}, {sizes} pixels\n{''.join(text)}\n"


def _check_row(name: str, answer: str, image_tokens: int, tokens, labels, processor: ProcessorMixin) -> None:
    kept = labels != -100
    if not kept.any():
        raise ValueError(f"{name}: no token carries loss, expected {answer!r}; raise max_length or set it to null")
    learnt = processor.tokenizer.decode(labels[kept])
    if learnt != answer:
        raise ValueError(f"{name}: the loss is on {learnt!r}, expected {answer!r}; check max_length and the template")
    found = int((tokens == processor.image_token_id).sum())
    if not found or found != image_tokens:
        raise ValueError(
            f"{name}: {found} image tokens, expected {image_tokens or 'some'}; raise max_length or set it to null, "
            "and check that the template writes a picture"
        )


def _render_answer(row: dict, processor: ProcessorMixin) -> str:
    """The answer and its end as the chat template writes them, in the tokenizer's spelling of spaces."""
    question, answer = row["prompt"][0]["content"], row["completion"][0]["content"]
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    before = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    completion = processor.apply_chat_template(answered, tokenize=False).removeprefix(before)
    if not completion.strip().startswith(answer.strip()):
        raise ValueError(
            f"{row['id']}: the chat template writes {completion!r}, expected {answer!r} and its end; correct it"
        )
    return processor.tokenizer.decode(processor.tokenizer(completion, add_special_tokens=False)["input_ids"])
