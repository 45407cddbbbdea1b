"""Write the trained weights of a run: each file whole or not at all, in the precision of the optimiser."""

import os
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from histolab_sft.run_lock import SAVING


def save_weights(model: nn.Module, folder: Path, state_dict: dict | None, processor=None) -> None:
    """Write an adapter or a whole model into `folder`, the weights last.

    Args:
        state_dict (`dict`, *optional*): The weights, where `model` doesn't hold them itself.
        processor (*optional*): Written beside them.
    """
    temporary = folder / SAVING
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # PEFT would query the Hub whether the vocabulary of the base model was changed.
    options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    model.save_pretrained(temporary, state_dict=state_dict, **options)
    if processor is not None:
        processor.save_pretrained(temporary)
    # A card that PEFT fills with placeholders.
    temporary.joinpath("README.md").unlink(missing_ok=True)
    for path in sorted(temporary.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        os.replace(path, folder / path.name)
    temporary.rmdir()


def gather_master_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained weights in float32 as DeepSpeed's optimiser (ZeRO-1 or 2) holds them.

    The model itself has them rounded to bfloat16. Every process must call this.
    """
    # An extra of the package, which no other run needs.
    from deepspeed.utils import safe_get_full_fp32_param

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gathered = {name: safe_get_full_fp32_param(parameter) for name, parameter in trained.items()}
    return {name: weight.cpu() for name, weight in gathered.items() if weight is not None}
