"""Continue training from an adapter: check it, load its weights, and train it on as it is."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file

from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.phase import LANGUAGE
from histolab_sft.hub_access import explain_hub_errors
from histolab_sft.models.adapter_checks import AdapterError, check_adapter, keep_resolution, read_adapter_config
from histolab_sft.models.load import build_lora_config, build_meta_model, find_adapter, load_config, locate_base_model
from histolab_sft.models.resolution import read_resolution
from histolab_sft.models.trainable import list_saved_modules

FILES = ["adapter_config.json", "adapter_model.safetensors"]
# Key of a recipe -> what an adapter's configuration calls it.
SHAPE = {"lora_r": "r", "lora_alpha": "lora_alpha", "use_rslora": "use_rslora", "use_dora": "use_dora"}


def fetch_adapter(name: str) -> Path:
    """Return the folder of an adapter, which is brought from the Hub unless `name` is a folder.

    Raises:
        HubAccessError: It can't be had.
        FileNotFoundError: There is no adapter.
    """
    if Path(name).is_dir():
        return find_adapter(name).parent
    with explain_hub_errors(name):
        return find_adapter(snapshot_download(name, allow_patterns=FILES)).parent


def build_starting_point(
    model_args: ModelConfig, scope: str, start: str | None, parts: Sequence[str]
) -> tuple[LoraConfig | None, Path | None]:
    """Return the configuration of the adapter to train, and the folder of its first weights if it has any.

    Args:
        start (`str`, *optional*): Adapter to continue from, a folder or an id on the Hub.
        parts: As in `build_lora_config`, which also explains the rest.
    """
    if not model_args.use_peft:
        return None, None
    if start is None:
        config = build_lora_config(model_args, scope, parts)
        if model_args.names_resolution:
            config = keep_resolution(config, read_resolution(load_config(model_args)))
        return config, None
    folder = fetch_adapter(start)
    return build_continued_config(model_args, scope, folder, parts), folder


def build_continued_config(
    model_args: ModelConfig, scope: str, folder: str | Path, parts: Sequence[str] = (LANGUAGE,)
) -> LoraConfig:
    """Return the configuration of the adapter in `folder`, to be trained on; the rest is as in `build_lora_config`.

    Rank, scale and layers are the adapter's, the dropout is the recipe's. Parts that are to be trained and that the
    adapter doesn't hold begin as they are in the base model.

    Raises:
        AdapterError: It doesn't fit the base model (see `check_adapter`), or a key of the recipe contradicts it.
    """
    model, _ = build_meta_model(model_args)
    saved = read_adapter_config(folder)
    base_model = locate_base_model(saved["base_model_name_or_path"])
    config = check_adapter(find_adapter(folder), saved, model, base_model, model_args.model_revision)
    usual = ModelConfig()
    complaints = [
        f"{key} is {vars(model_args)[key]} and the adapter in {folder} has {vars(config)[name]}"
        for key, name in SHAPE.items()
        if vars(model_args)[key] not in (vars(usual)[key], vars(config)[name])
    ]
    if model_args.lora_target_modules:
        wanted = build_lora_config(model_args, scope)
        names = {name for name, _ in model.named_modules() if check_target_module_exists(wanted, name)}
        if names != config.target_modules:
            complaints.append(f"lora_target_modules and lora_scope name other layers than the adapter in {folder} has")
    if complaints:
        raise AdapterError(f"{'; '.join(complaints)}, expected its own values; remove these keys from the recipe")
    whole = [*(config.modules_to_save or []), *list_saved_modules(model, config, parts)]
    config.modules_to_save = sorted(set(whole)) or None
    config.lora_dropout = model_args.lora_dropout
    config.inference_mode = False
    return config


def load_adapter_weights(model: PeftModel, folder: str | Path) -> None:
    """Give the model's own adapter the weights in `folder`, which `build_continued_config` has checked.

    Raises:
        AdapterError: A weight of the file has no place in the model.
    """
    path = find_adapter(folder)
    # What the file lacks (a part that begins to be trained now) stays as it is.
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    result = set_peft_model_state_dict(model, own | load_file(path))
    if result.unexpected_keys:
        raise AdapterError(f"{path} holds {result.unexpected_keys[0]}, expected weights of this adapter; train again")
