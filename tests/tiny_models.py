"""Tiny random models and pictures for the tests of `histolab_sft.models`."""

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GemmaConfig,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    Lfm2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from histolab_sft.models.tiny import build_untrained_tiny_model
from histolab_sft.models.tiny_tokenizer import build_processor

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


def build_llava(text_config=None):
    """Give a LLaVA (CLIP and Llama, or another language model) with 16 image tokens a picture."""
    tokenizer, template = _prepare_tokenizer()
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **_SMALL)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text_config or LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.image_token_id,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _build(config), LlavaProcessor(images, tokenizer, 8, "default", template, num_additional_image_tokens=1)


def build_recurrent_llava():
    """Give a LLaVA whose language model, LFM2, has layers without keys and values."""
    tokenizer, _ = _prepare_tokenizer()
    layers = {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8, "conv_L_cache": 3}
    return build_llava(Lfm2Config(**_text(tokenizer), **layers))


def build_idefics3():
    """Give an Idefics 3 with 4 image tokens a picture."""
    tokenizer, template = _prepare_tokenizer("<image>")
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    vision = {"image_size": 32, "patch_size": 8, **_SMALL}
    text = {"model_type": "llama", **_text(tokenizer)}
    return _build(
        Idefics3Config(image_token_id=processor.image_token_id, vision_config=vision, text_config=text, scale_factor=2)
    ), processor


def build_qwen2_vl():
    """Give a Qwen2-VL, whose picture tokens have positions in height and width."""
    tokenizer, template = _prepare_tokenizer()
    images = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=64 * 64, temporal_patch_size=2
    )
    vision = {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 4, "patch_size": 8, "mlp_ratio": 2}
    return _build_qwen(Qwen2VLConfig, tokenizer, vision), PictureProcessor(images, tokenizer, template)


def build_qwen2_5_vl():
    """Give a Qwen2.5-VL, whose tower looks through windows; the projector is a part of it."""
    _, processor = build_qwen2_vl()
    tokenizer = processor.tokenizer
    vision = {"hidden_size": 32, "out_hidden_size": 32, "depth": 2, "num_heads": 4, "patch_size": 8}
    vision |= {"intermediate_size": 48, "window_size": 32, "fullatt_block_indexes": [1]}
    return _build_qwen(Qwen2_5_VLConfig, tokenizer, vision), processor


def build_paligemma():
    """Give a PaliGemma (SigLIP and Gemma) with 16 image tokens a picture, and its processor, without chat template."""
    tokenizer, _ = _prepare_tokenizer()
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    # It looks for this very word in what it is given.
    tokenizer.add_special_tokens({"image_token": "<image>"})
    processor = PaliGemmaProcessor(images, tokenizer)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(image_size=32, patch_size=8, **_SMALL).to_dict(),
        text_config=GemmaConfig(**_text(tokenizer), head_dim=8).to_dict(),
        image_token_index=processor.image_token_id,
        projection_dim=32,
    )
    return _build(config), processor


class PictureProcessor(Qwen2VLProcessor):
    """Qwen2-VL's processor without films, whose part needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
        self.video_token, self.video_token_id = "<video>", tokenizer.unk_token_id
        super(Qwen2VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)


_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def _text(tokenizer):
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 2, "eos_token_id": 1}
    return {"vocab_size": len(tokenizer) + 8, "num_key_value_heads": 2, **_SMALL, **ids}


def _prepare_tokenizer(image_token="<image_soft_token>"):
    processor = build_processor(64, 16)
    return processor.tokenizer, processor.chat_template.replace("<start_of_image>", image_token)


def _build(config):
    set_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    sharpen(model)
    return model


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


def _build_qwen(config, tokenizer, vision):
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return _build(
        config(
            text_config={**_text(tokenizer), "rope_parameters": rope},
            vision_config=vision,
            image_token_id=tokenizer.image_token_id,
            video_token_id=tokenizer.unk_token_id,
            vision_start_token_id=tokenizer.boi_token_id,
            vision_end_token_id=tokenizer.eoi_token_id,
        )
    )
