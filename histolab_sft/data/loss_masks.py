"""Which tokens of a row carry loss, seen through TRL's own collator."""

import torch
from datasets import Dataset
from transformers import PretrainedConfig, ProcessorMixin
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling


def audit_masks(
    rows: Dataset,
    processor: ProcessorMixin,
    config: PretrainedConfig,
    max_length: int | None = None,
    limit: int = 200,
    batch_size: int = 8,
) -> int:
    """Collate up to `limit` rows, evenly spread, and check that the loss is on the answer and its end alone.

    Args:
        config (`PretrainedConfig`): The base model's, which tells how many image tokens its vision tower fills.

    Returns:
        `int`: How many rows were checked.

    Raises:
        ValueError: A row has a label outside its answer, none at all (its answer was cut off), or other image tokens
            than the tower fills.
    """
    collator = DataCollatorForVisionLanguageModeling(
        processor=processor, max_length=max_length, completion_only_loss=True
    )
    chosen = range(0, len(rows), max(1, len(rows) // limit))
    chosen = list(chosen)[:limit]
    for start in range(0, len(chosen), batch_size):
        batch = [rows[i] for i in chosen[start : start + batch_size]]
        expected = [_render_answer(row, processor) for row in batch]
        # The collator changes the rows that it is given.
        collated = collator([dict(row) for row in batch])
        filled = count_filled_tokens(config, collated, [len(row["images"]) for row in batch])
        filled = filled or [None] * len(batch)
        checked = zip(batch, expected, filled, collated["input_ids"], collated["labels"], strict=True)
        for row, answer, image_tokens, tokens, labels in checked:
            _check_row(row["id"], answer, image_tokens, tokens, labels, processor)
    return len(chosen)


def count_filled_tokens(config: PretrainedConfig, batch: dict, pictures: list[int]) -> list[int] | None:
    """Return how many image tokens the vision tower fills with features in each row of a batch.

    None for a family of models that isn't among those below: it stops by itself at the first step where it has other
    tokens than features.

    It is told by the model's shape and the pictures alone, so that it can be held against the tokens that the
    processor has written.

    Args:
        batch (`dict`): Of TRL's collator.
        pictures (`list[int]`): Number of pictures of each row.
    """
    family, vision = config.model_type, config.vision_config
    if family in ("qwen2_vl", "qwen2_5_vl"):  # a picture has as many tokens as it is large
        tokens = (batch["image_grid_thw"].prod(dim=1) // vision.spatial_merge_size**2).tolist()
        ends = torch.tensor(pictures).cumsum(0).tolist()
        return [sum(tokens[end - number : end]) for end, number in zip(ends, pictures, strict=True)]
    if family in ("idefics3", "smolvlm"):  # pictures are cut into tiles; rows with fewer have masked ones besides
        mask = batch["pixel_attention_mask"]
        patches = mask.shape[-2] // vision.patch_size * (mask.shape[-1] // vision.patch_size)
        return (mask.flatten(2).any(dim=2).sum(dim=1) * patches // config.scale_factor**2).tolist()
    tower = (getattr(vision, "image_size", 0) // vision.patch_size) ** 2
    per_picture = {
        "gemma3": lambda: config.mm_tokens_per_image,
        "paligemma": lambda: tower,
        "llava": lambda: tower + (config.vision_feature_select_strategy == "full"),
    }
    return [number * per_picture[family]() for number in pictures] if family in per_picture else None


def describe_row(rows: Dataset, dataset: str, processor: ProcessorMixin, max_length: int | None = None) -> str:
    """Return the first row of a data set as the model sees it, with the tokens that carry loss in brackets."""
    index = rows.with_format(None)["dataset"].index(dataset)
    row, place = rows[index], rows.with_format(None)[index]
    where = ", ".join(
        image["path"] + (f" row {image['row']}" if image["row"] >= 0 else "") for image in place["images"]
    )
    sizes = ", ".join(f"{picture.width} x {picture.height}" for picture in row["images"])
    collator = DataCollatorForVisionLanguageModeling(
        processor=processor, max_length=max_length, completion_only_loss=True
    )
    collated = collator([row])
    text, image_tokens = [], 0
    for token, label in zip(collated["input_ids"][0].tolist(), collated["labels"][0].tolist(), strict=True):
        if token in processor.image_token_ids:
            image_tokens += 1
            continue
        if image_tokens:
            text.append(f"<{image_tokens} image tokens>")
            image_tokens = 0
        word = processor.tokenizer.decode([token])
        text.append(f"[{word}]" if label != -100 else word)
    return f"{dataset}: {where}, {sizes} pixels\n{''.join(text)}\n"


def _check_row(name: str, answer: str, filled: int | None, tokens, labels, processor: ProcessorMixin) -> None:
    kept = labels != -100
    if not kept.any():
        raise ValueError(f"{name}: no token carries loss, expected {answer!r}; raise max_length or set it to null")
    learnt = processor.tokenizer.decode(labels[kept])
    if learnt != answer:
        raise ValueError(f"{name}: the loss is on {learnt!r}, expected {answer!r}; check max_length and the template")
    # Not `image_token_id`: in Gemma 3 that is the marker before a picture, once for all of its image tokens.
    found = int(torch.isin(tokens, torch.tensor(processor.image_token_ids)).sum())
    if not found or filled not in (found, None):
        raise ValueError(
            f"{name}: {found} image tokens, expected {filled or 'some'} as the vision tower fills; raise max_length "
            "or set it to null, and check that template and processor are those of the base model"
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
