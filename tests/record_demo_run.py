"""A run on data sets that bring their own questions, whose adapter has learnt one answer to each by heart."""

import numpy as np
import torch
import yaml
from open_fixture import FLARE_TASKS, RECORD, write_biomarkers, write_flare
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, set_seed

from histolab_sft.arguments import parse_recipe
from histolab_sft.demo.records import RecordSet, fill_ask, word_question
from histolab_sft.models.generate import encode_prompts, render_completion, render_prompt
from histolab_sft.models.load import load_processor
from histolab_sft.publishing.space import describe_data_sets
from histolab_sft.tasks import TASKS

SPLITS = {"train": "training", "test": "validation-public"}
FLARE = [
    {"name": task, "source": "flare", "format": "flare", "subset": task, "task": task, "splits": SPLITS}
    for task in FLARE_TASKS
]
# One data set has a way of its own to show its pictures.
LOOK = {"quantity": {"intensity_window": "minmax", "image_steps": ["pad_to_square"]}}
FLARE = [entry | LOOK.get(entry["name"], {}) for entry in FLARE]
DATASETS = [*FLARE, {"name": "biomarkers", "source": "biomarkers", "format": "biomarkers", "style": "training"}]
# What the adapter says, in the task's own form
ANSWERS = {
    "classification": "Malignant",
    "multilabel": ["Dental Caries", "Pulp Diseases"],
    "quantity": 13,
    "boxes": [[20, 30, 90, 120, "lesion"], [110, 20, 140, 60, "calcification"]],
    "report": "Heart is normal. No effusion.",
    "biomarkers": RECORD | {"msi_status": "unknown"},
}
TARGETS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"


def write_record_run(folder, base, taught=True, **keys):
    """Write data, a recipe of the model in `base` and, if `taught`, an adapter that says `ANSWERS`."""
    write_flare(folder, FLARE)
    write_biomarkers(folder / "data", DATASETS[-1:])
    recipe = {
        "model_name_or_path": str(base),
        "data_dir": str(folder / "data"),
        "datasets": DATASETS,
        "output_dir": str(folder / "out"),
        "use_peft": True,
        "lora_target_modules": ["q_proj", "v_proj"],
        "use_cpu": True,
        "bf16": False,
        "max_new_tokens": 200 if taught else 8,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | keys))
    if taught:
        histo_args, _, _ = parse_recipe(["--config", str(path)])
        entries, _ = describe_data_sets(histo_args, folder / "out")
        teach(base, [RecordSet(**entry) for entry in entries], folder / "out")
    return path


def noise(size=(160, 140)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def teach(base, record_sets, folder, steps=60):
    """Save an adapter that gives each data set's first question its answer, whatever the picture."""
    set_seed(0)
    processor, rows = load_processor(str(base)), []
    for entry in record_sets:
        ask = fill_ask(entry, entry.asks[0], *_read_form(entry), [noise()])
        question = word_question(entry, ask, processor.tokenizer)
        answer = TASKS[entry.task].format_answer(ask, ANSWERS[entry.name], entry.config)
        completion = render_completion(processor, question, answer)
        prompt = render_prompt(processor, question)
        asked, inputs = (encode_prompts(processor, [noise()], [text]) for text in (prompt, prompt + completion))
        labels = inputs["input_ids"].clone()
        labels[:, : asked["input_ids"].shape[1]] = -100
        rows.append(dict(inputs, labels=labels))
    config = LoraConfig(r=32, lora_alpha=64, target_modules=TARGETS)
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(steps):
        for row in rows:
            (model(**row).loss / len(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def _read_form(entry):
    """What stands in the page's two texts when nobody has changed them."""
    ask = entry.asks[0]
    return ask.get("question", ""), "\n".join(ask.get("options") or ask.get("vocabulary") or [])
