"""Find the vision tower of a model, and run a frozen one without gradients."""

import logging

import torch

logger = logging.getLogger(__name__)


def freeze_vision_tower(model) -> bool:
    """Run the frozen vision tower without gradients: one forward pass a step, no recomputation, no backward pass.

    Activation checkpointing makes the output of every input embedding require a gradient, that of the tower's patch
    embedding as well (`PreTrainedModel.enable_input_require_grads`, which TRL also calls for adapters). A tower in
    which nothing is learnt is then run twice and back-propagated once for gradients that nobody reads, at twice the
    arithmetic of the whole step. Under `no_grad` the hook has no effect. A projector that is trained lies behind the
    tower and keeps its gradient.

    Call it when it is settled what is trained: after an adapter is attached, so after `SFTTrainer(peft_config=...)`
    is built. It does not matter whether checkpointing is switched on before or after. If any parameter of the tower
    is trained, the tower is left alone.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The tower is what its `get_encoder(modality="image")` returns. For
            models that keep the projector inside it (Qwen2-VL), a trained projector counts as a trained tower.

    Returns:
        `bool`: Whether the tower now runs without gradients.

    Raises:
        ValueError: The model has no vision tower.
    """
    tower = find_vision_tower(model)
    trained = sum(parameter.requires_grad for parameter in tower.parameters())
    if trained:
        logger.info("the vision tower keeps its gradients: %d of its parameters are trained", trained)
        return False
    tower.forward = torch.no_grad()(tower.forward)
    return True


def find_vision_tower(model) -> torch.nn.Module:
    """Return the module that turns pixels into features; arguments and errors as in `freeze_vision_tower`."""
    tower = model.get_encoder(modality="image")
    decoder = model.get_decoder()
    # A model without a tower answers with itself.
    if any(module is decoder for module in tower.modules()):
        raise ValueError(
            f"{type(model).__name__} has no vision tower, expected a vision-language model; check model_name_or_path"
        )
    return tower
