"""Tiny random models and pictures for the tests of `histolab_sft.models`."""

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

from histolab_sft.models.tiny import build_untrained_tiny_model

LANGUAGE_LORA = r".*language_model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
QUESTIONS = [
    "What type of tissue is shown?",
    "Classify this histopathology image. The possible tissue types are: Adipose, Stroma, Tumor. Answer.",
    "How large are the nuclei, and how are the nuclei arranged?",
]


def load_tiny(folder, seed=0, **text_sizes):
    """Give the tiny Gemma 3 in float32, whose logits differ by whole nats, and its processor."""
    build_untrained_tiny_model(folder, seed, **text_sizes)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    sharpen(model)
    return model, AutoProcessor.from_pretrained(folder)


def sharpen(model, factor=5.0):
    """Scale the weights up: at the usual initialisation every token is about as likely as any other."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)


def paint_patches(count, seed=0, size=48):
    """Give `count` different RGB pictures."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


def format_row(image, question, answer):
    return {
        "image": image,
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def build_trainer(model, processor, folder, lora=None, **overrides):
    """Give an `SFTTrainer` in float32 on eight patches whose answers differ in length."""
    answers = ["The answer is: Tumor", "The answer is: In Situ Carcinoma"]
    rows = [format_row(image, QUESTIONS[i % 3], answers[i % 2]) for i, image in enumerate(paint_patches(8))]
    args = SFTConfig(
        output_dir=str(folder),
        **{
            "use_cpu": True,
            "bf16": False,
            "max_length": None,
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            **overrides,
        },
    )
    lora = lora or LoraConfig(target_modules=LANGUAGE_LORA, r=4, lora_dropout=0.0, task_type="CAUSAL_LM")
    return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=processor, peft_config=lora)


def compute_gradients(trainer):
    """Give loss and gradients of the first batch: {name: gradient} of everything that is trained."""
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters() if parameter.requires_grad
    }
    return loss.detach(), gradients
