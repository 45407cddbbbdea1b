"""Load the base model, its processor and an adapter; say what is quantised and where LoRA goes."""

import logging
import re
from pathlib import Path

import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from trl import ModelConfig, get_peft_config, get_quantization_config

from histolab_sft.models import tiny
from histolab_sft.models.adapter_checks import check_adapter, read_adapter_config

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"


def locate_base_model(name: str) -> str:
    """Return what `from_pretrained` loads for `model_name_or_path`, where `embedded` is the built-in tiny model."""
    return str(tiny.load_tiny_base_model()) if name == EMBEDDED else name


def load_processor(name: str, revision: str = "main") -> ProcessorMixin:
    """Load the processor, with the line break after the last turn taken out of its chat template.

    Pictures are scaled by Pillow, also where torchvision is installed, whose pixels differ a little: training, scoring
    and demo see the same ones on every machine.

    Gemma's template writes `<end_of_turn>` and a line break. The model stops at the first, so the second would be a
    label that no answer ever needs.
    """
    processor = AutoProcessor.from_pretrained(name, revision=revision, backend="pil", trust_remote_code=False)
    processor.chat_template = (
        "{%- set conversation -%}" + processor.chat_template + "{%- endset -%}"
        "{%- if add_generation_prompt -%}{{ conversation }}{%- else -%}{{ conversation.rstrip('\\n') }}{%- endif -%}"
    )
    return processor


def load_base_model(model_args: ModelConfig) -> PreTrainedModel:
    """Load the base model for scoring, in the precision in which it is trained."""
    model = AutoModelForImageTextToText.from_pretrained(
        locate_base_model(model_args.model_name_or_path),
        quantization_config=build_quantization_config(model_args),
        device_map="auto" if torch.cuda.is_available() else "cpu",
        **build_model_init_kwargs(model_args),
    )
    return keep_quantized_layers_trainable(model).eval().requires_grad_(False)


def find_adapter(folder: str | Path) -> Path:
    """Return the adapter's weights in `folder`.

    Raises:
        FileNotFoundError: There is no adapter in `folder`.
    """
    path = Path(folder, "adapter_model.safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {folder}; train first, or correct output_dir")
    return path


def load_adapter(model: PreTrainedModel, folder: str | Path, revision: str = "main") -> PeftModel:
    """Attach the adapter saved in `folder` to the base model, which was loaded at `revision`.

    Raises:
        AdapterError: It doesn't fit the base model, or isn't a plain adapter (see `adapter_checks`).
    """
    path = find_adapter(folder)
    config = read_adapter_config(path.parent)
    base_model = locate_base_model(config["base_model_name_or_path"])
    checked = check_adapter(path, config, model, base_model, revision)
    return PeftModel.from_pretrained(model, path.parent, config=checked).eval()


def build_model_init_kwargs(model_args: ModelConfig) -> dict:
    """Return the arguments of `from_pretrained` that training and scoring share.

    Without a word on remote code, weights that bring code of their own would ask at the prompt, and run it on a `y`.
    """
    return {
        "trust_remote_code": False,
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation or "sdpa",
    }


def build_quantization_config(model_args: ModelConfig) -> BitsAndBytesConfig | None:
    """Return the 4-bit or 8-bit configuration with everything outside the language layers left as it is.

    A list given to bitsandbytes replaces its defaults and is matched from the start of a module's full name, so all
    the parts beside the language layers stand in it: vision tower, projector and head.
    """
    config = get_quantization_config(model_args)
    if config is not None:
        model, decoder = build_meta_model(model_args)
        config.llm_int8_skip_modules = _siblings(model, decoder)
    return config


def build_lora_config(model_args: ModelConfig, scope: str) -> LoraConfig | None:
    """Return the LoRA configuration whose targets are a regular expression, never a bare list of names.

    `q_proj` alone would be found in the vision tower too.

    Args:
        model_args (`ModelConfig`): `lora_target_modules` are the names of linear layers.
        scope (`str`): `language` for the language layers alone, `language_and_vision` for the tower's as well.
    """
    config = get_peft_config(model_args)
    if config is not None:
        names = model_args.lora_target_modules
        names = [names] if isinstance(names, str) else names
        if not names:
            raise ValueError(
                "use_peft is on and lora_target_modules is empty; name linear layers such as [q_proj, v_proj]"
            )
        alternatives = "|".join(map(re.escape, names))
        _, decoder = build_meta_model(model_args)
        layers = rf".*{re.escape(decoder)}\.layers\.\d+" if scope == "language" else r".*\.layers\.\d+"
        config.target_modules = rf"{layers}\.(.*\.)?({alternatives})"
    return config


def build_meta_model(model_args: ModelConfig) -> tuple[PreTrainedModel, str]:
    """Return the model without weights, and the full name of its language model."""
    config = AutoConfig.from_pretrained(
        locate_base_model(model_args.model_name_or_path), revision=model_args.model_revision, trust_remote_code=False
    )
    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(config)
    decoder = model.get_decoder()
    return model, next(name for name, module in model.named_modules() if module is decoder)


def keep_quantized_layers_trainable(model: PreTrainedModel) -> PreTrainedModel:
    """Stop bitsandbytes from repacking 4-bit weights on processors with AVX512-BF16.

    It repacks them in place at the first forward pass without gradients, and the packed kernel has no backward: after
    one evaluation, training would go on without a gradient and without an error.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def _siblings(model: PreTrainedModel, decoder: str) -> list[str]:
    """Names of the modules beside the path from the model to its language model."""
    path = decoder.split(".")
    siblings = []
    for depth, step in enumerate(path):
        prefix = ".".join(path[:depth])
        parent = model.get_submodule(prefix)
        siblings += [f"{prefix}.{name}".lstrip(".") for name, _ in parent.named_children() if name != step]
    return siblings
