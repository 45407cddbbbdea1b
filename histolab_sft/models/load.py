"""Load the base model, its processor and an adapter; say what is quantised and where LoRA goes."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from trl import get_peft_config, get_quantization_config

from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.phase import LANGUAGE, VISION
from histolab_sft.embedded import tiny_model
from histolab_sft.hub_access import check_model_name, explain_hub_errors, fetch_base_model
from histolab_sft.models.adapter_checks import check_adapter, read_adapter_config
from histolab_sft.models.chat_templates import complete_chat_template
from histolab_sft.models.devices import choose_device_map
from histolab_sft.models.geometry import MEDGEMMA_4B_SIZED, build_medgemma_4b_config
from histolab_sft.models.precision import DTYPES, Precision, set_precision
from histolab_sft.models.resolution import (
    check_same_resolution,
    read_resolution,
    resize_processor,
    resize_tower,
    set_resolution,
)
from histolab_sft.models.trainable import (
    find_parts,
    freeze_dtypes,
    list_linear_layers,
    list_saved_modules,
    list_siblings,
)
from histolab_sft.models.vision_cache.choice import OFF
from histolab_sft.models.weight_checks import check_loaded
from histolab_sft.processes import unsharded

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
_PLAIN = Precision()


def locate_base_model(name: str) -> str:
    """Return what `from_pretrained` loads for `model_name_or_path`, where `embedded` is the built-in tiny model.

    Raises:
        HubAccessError: It is a file, a folder without a model, or a path to nothing.
    """
    if name == EMBEDDED:
        return str(tiny_model.load_tiny_base_model())
    check_model_name(name)
    return name


def load_processor(name: str, revision: str = "main") -> ProcessorMixin:
    """Load the processor of a folder or an id on the Hub, with a complete chat template (see `chat_templates`).

    Pictures are scaled by Pillow, also where torchvision is installed, whose pixels differ a little: training, scoring
    and demo see the same ones on every machine.

    Raises:
        HubAccessError: It can't be had.
    """
    check_model_name(name, needed="tokenizer_config.json")
    with explain_hub_errors(name):
        processor = AutoProcessor.from_pretrained(name, revision=revision, backend="pil", trust_remote_code=False)
    return complete_chat_template(processor)


def load_base_processor(model_args: ModelConfig) -> ProcessorMixin:
    """Load the processor of a recipe's base model, for pictures of the recipe's resolution; errors as above."""
    name = locate_base_model(model_args.model_name_or_path)
    return adapt_processor(load_processor(name, model_args.model_revision), model_args)


def adapt_processor(processor: ProcessorMixin, model_args: ModelConfig) -> ProcessorMixin:
    """Return the base model's processor for pictures of the recipe's resolution."""
    return resize_processor(processor, load_config(model_args)) if model_args.names_resolution else processor


def load_config(model_args: ModelConfig) -> PretrainedConfig:
    """Load the base model's configuration, with the recipe's resolution of pictures.

    Raises:
        ValueError: The model can't have this resolution (see `set_resolution`).
    """
    config = read_config(locate_base_model(model_args.model_name_or_path), model_args.model_revision)
    set_resolution(config, model_args.image_side, model_args.image_tokens)
    return config


def read_config(name: str | Path, revision: str = "main") -> PretrainedConfig:
    """Read the configuration of a model, without the mark that its weights, now plain ones, came from a GGUF file.

    A model that transformers has read from GGUF keeps `quantization_config: {quant_method: gguf}` in the part that was
    read. Saved in a larger model, its weights are what they became on reading, but the mark would have the whole model
    taken for a quantised one, which can't be trained.
    """
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        if (vars(part).get("quantization_config") or {}).get("quant_method") == "gguf":
            del part.quantization_config
    return config


def check_recipe_model(model_args: ModelConfig) -> None:
    """Refuse a base model that isn't there, or can't have the recipe's resolution, before data are read.

    Raises:
        HubAccessError: From `check_model_name`.
        ValueError: From `set_resolution`.
    """
    # The built-in one isn't built before it is needed.
    if model_args.model_name_or_path != EMBEDDED:
        check_model_name(model_args.model_name_or_path)
    if not model_args.names_resolution:
        return
    if model_args.model_name_or_path in MEDGEMMA_4B_SIZED:
        # Known without the gated download.
        set_resolution(build_medgemma_4b_config(), model_args.image_side, model_args.image_tokens)
    else:
        load_config(model_args)


def load_weights(
    name: str | Path,
    model_args: ModelConfig,
    precision: Precision = _PLAIN,
    vision_cache: str = OFF,
    dtype: str | None = None,
) -> PreTrainedModel:
    """Load a model as training begins with it, on this process's own device (see `devices`).

    Args:
        name: Folder, or id on the Hub. Its pictures get the recipe's resolution.
        precision: In which its 4-bit layers are to multiply; the rest of it is `set_precision`'s.
        vision_cache (`str`): The recipe's key, which may keep the model on the CPU until its pictures are encoded.
        dtype (`str`, *optional*): Of the weights, in place of the recipe's.

    Raises:
        HubAccessError: It can't be had.
        WeightsError: A weight of the model isn't in its files, or one of the files isn't the model's.
    """
    name = str(name)
    fetch_base_model(name, model_args.model_revision)
    model, found = AutoModelForImageTextToText.from_pretrained(
        name,
        config=read_config(name, model_args.model_revision),
        quantization_config=build_quantization_config(model_args, precision.compute),
        device_map=choose_device_map(vision_cache),
        output_loading_info=True,
        **build_model_init_kwargs(model_args) | ({"dtype": dtype} if dtype else {}),
    )
    check_loaded(name, found["missing_keys"], found["unexpected_keys"])
    resize_tower(model, model_args.image_side, model_args.image_tokens)
    return model


def load_base_model(
    model_args: ModelConfig, precision: Precision = _PLAIN, vision_cache: str = OFF
) -> PreTrainedModel:
    """Load the base model for scoring, in the precision in which it is trained; arguments and errors as above."""
    model = load_weights(locate_base_model(model_args.model_name_or_path), model_args, precision, vision_cache)
    return _prepare_scoring(model, precision)


def find_adapter(folder: str | Path) -> Path:
    """Return the adapter's weights in `folder`.

    Raises:
        FileNotFoundError: There is no adapter in `folder`.
    """
    path = Path(folder, "adapter_model.safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {folder}; train first, or correct output_dir")
    return path


def load_adapter(
    model: PreTrainedModel, folder: str | Path, revision: str = "main", any_resolution: bool = False
) -> PeftModel:
    """Attach the adapter saved in `folder` to the base model, which was loaded at `revision`.

    Args:
        any_resolution (`bool`): Take it although pictures have another resolution than in training, for a comparison.

    Raises:
        AdapterError: It doesn't fit the base model, or isn't a plain adapter (see `adapter_checks`).
    """
    path = find_adapter(folder)
    config = read_adapter_config(path.parent)
    base_model = locate_base_model(config["base_model_name_or_path"])
    checked = check_adapter(path, config, model, base_model, revision, any_resolution)
    return PeftModel.from_pretrained(model, path.parent, config=checked).eval()


def find_weights(folder: str | Path, use_peft: bool) -> None:
    """Raise `FileNotFoundError` unless training has left an adapter or, without `use_peft`, a model in `folder`."""
    if use_peft:
        find_adapter(folder)
    elif not Path(folder, "config.json").is_file() or not list(Path(folder).glob("model*.safetensors")):
        raise FileNotFoundError(f"no whole model in {folder} and use_peft is off; train first, or correct output_dir")


def load_finetuned(
    model: PreTrainedModel,
    model_args: ModelConfig,
    folder: str | Path,
    parts: Sequence[str] = (LANGUAGE,),
    precision: Precision = _PLAIN,
    vision_cache: str = OFF,
) -> PreTrainedModel | PeftModel:
    """Return what training has left in `folder`: the base model with its adapter or, without `use_peft`, a new one.

    Args:
        parts: What was trained, in whatever phase; of a whole model it stays in float32, as it was trained.
    """
    if model_args.use_peft:
        return load_adapter(model, folder, model_args.model_revision)
    whole = load_whole(folder, model_args, parts, vision_cache)
    return _prepare_scoring(whole, precision)


def load_whole(
    folder: str | Path, model_args: ModelConfig, parts: Sequence[str], vision_cache: str = OFF
) -> PreTrainedModel:
    """Load a whole model that training has left, each weight in the dtype that it had there.

    Raises:
        ValueError: It was trained on pictures of another resolution than the recipe's.
    """
    config = load_config(model_args)
    check_same_resolution(folder, read_resolution(read_config(folder)), read_resolution(config))
    frozen = config.dtype if model_args.dtype == "auto" else DTYPES[model_args.dtype]
    model = load_weights(
        folder, replace(model_args, model_revision="main"), vision_cache=vision_cache, dtype="float32"
    )
    freeze_dtypes(model, parts, frozen)
    return model


def restore_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """Give a whole model the weights that were saved of it in `folder`; errors as in `load_weights`."""
    saved, found = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32", output_loading_info=True)
    check_loaded(folder, found["missing_keys"], found["unexpected_keys"])
    model.load_state_dict(saved.state_dict())


def _prepare_scoring(model: PreTrainedModel, precision: Precision) -> PreTrainedModel:
    keep_quantized_layers_trainable(model).eval().requires_grad_(False)
    set_precision(model, precision)
    return model


def build_model_init_kwargs(model_args: ModelConfig) -> dict:
    """Return the arguments of `from_pretrained` that training and scoring share.

    Without `trust_remote_code: False`, weights that come with code would ask at the prompt and run it after a `y`.
    """
    return {
        "trust_remote_code": False,
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation or "sdpa",
    }


def build_quantization_config(model_args: ModelConfig, compute_dtype: str | None = None) -> BitsAndBytesConfig | None:
    """Return the 4-bit or 8-bit configuration with everything outside the language layers left as it is.

    4-bit layers multiply in `compute_dtype`, in the model's own dtype if omitted.

    A list given to bitsandbytes replaces its defaults and is matched from the start of a module's full name, so all
    the parts beside the language layers stand in it: vision tower, projector and head.
    """
    config = get_quantization_config(model_args)
    if config is not None:
        model, decoder = build_meta_model(model_args)
        config.llm_int8_skip_modules = list_siblings(model, decoder)
        if compute_dtype is not None:
            config.bnb_4bit_compute_dtype = DTYPES[compute_dtype]
    return config


def build_lora_config(model_args: ModelConfig, scope: str, parts: Sequence[str] = (LANGUAGE,)) -> LoraConfig | None:
    """Return the LoRA configuration whose targets are a regular expression, never a bare list of names.

    `q_proj` alone would be found in the vision tower too.

    Args:
        model_args (`ModelConfig`): `lora_target_modules` are the names of linear layers.
        scope (`str`): `language` for the language layers alone, `language_and_vision` for the tower's as well.
        parts: What is to be trained, now or in a later phase. Projector, and tower without LoRA, are held whole.

    Raises:
        ValueError: No layer of the model, or of the tower that the scope names, is called so.
    """
    config = get_peft_config(model_args)
    if config is not None:
        names = model_args.lora_target_modules
        names = [names] if isinstance(names, str) else names
        if not names:
            raise ValueError(
                "use_peft is on and lora_target_modules is empty; name linear layers such as [q_proj, v_proj]"
            )
        model, decoder = build_meta_model(model_args)
        tower = find_parts(model)[VISION][0]
        parts_with_lora = [decoder] + ([tower] if scope == "language_and_vision" else [])
        for part in parts_with_lora:
            layers = {name.rpartition(".")[2] for name in list_linear_layers(model, part)}
            if not layers & set(names):
                raise ValueError(
                    f"lora_target_modules {names}: none is in {part}, expected some of {', '.join(sorted(layers))}; "
                    "add one, or change lora_scope"
                )
        alternatives = "|".join(map(re.escape, names))
        layers = "|".join(map(re.escape, parts_with_lora))
        config.target_modules = rf".*({layers})\.(.*\.)?\d+\.(.*\.)?({alternatives})"
        config.modules_to_save = list_saved_modules(model, config, parts) or None
    return config


def build_meta_model(model_args: ModelConfig) -> tuple[PreTrainedModel, str]:
    """Return the model without weights, and the full name of its language model."""
    with unsharded(), init_empty_weights():
        model = AutoModelForImageTextToText.from_config(load_config(model_args))
    # Making the weights on the meta device one by one has untied the head from the embedding.
    model.tie_weights()
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
