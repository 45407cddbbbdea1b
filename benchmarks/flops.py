"""Count the arithmetic of one training sample of MedGemma-4B: no weights, no GPU, under a minute.

    python benchmarks/flops.py

The model's exact geometry stands on the meta device, where tensors have shapes and no data, and PyTorch's own counter
adds up the matrix products of a forward and a backward pass (a multiplication and an addition are two operations).
4-bit weights stand as frozen bfloat16: the products are the same.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma3ForConditionalGeneration, SiglipVisionModel

from histolab_sft.models.geometry import build_medgemma_4b_config
from histolab_sft.models.resolution import Resolution, set_resolution
from histolab_sft.models.vision_tower import freeze_vision_tower

TEXT_TOKENS = 54  # of question and answer
LABELLED = 8  # tokens of the answer, the only positions at which logits are computed
TERA = 1e12
OWN = Resolution(896, 256)
RESOLUTIONS = [OWN, Resolution(448, 256), Resolution(448, 64)]

FROM_PIXELS = "frozen tower under no_grad"
# Name -> is the frozen tower back-propagated, are its features cached, are activations checkpointed.
CONFIGURATIONS = {
    "TRL's default": (True, False, True),
    "frozen tower under no_grad, checkpointing": (False, False, True),
    FROM_PIXELS: (False, False, False),
    "cached features, checkpointing": (False, True, True),
    "cached features": (False, True, False),
}


def main() -> None:
    results = {name: count_flops(*settings) for name, settings in CONFIGURATIONS.items()}
    first = sum(results["TRL's default"])
    print(
        f"MedGemma-4B, LoRA r16 on q, k, v, o of the language layers, one sample at {OWN} and {TEXT_TOKENS} of text, "
        "TFLOP:"
    )
    print(f"{'configuration':<44}{'forward':>9}{'backward':>10}{'total':>8}{'of the first':>14}")
    for name, (forward, backward) in results.items():
        total = forward + backward
        print(f"{name:<44}{forward:>9.2f}{backward:>10.2f}{total:>8.2f}{total / first:>13.0%}")
    print("\nThe same with pictures of another resolution, TFLOP:")
    print(f"{'resolution':<44}{'tower':>9}{'cached features':>18}{'from pixels':>14}")
    for resolution in RESOLUTIONS:
        steps = [sum(count_flops(*CONFIGURATIONS[name], resolution)) for name in ("cached features", FROM_PIXELS)]
        print(f"{str(resolution):<44}{count_tower(resolution):>9.2f}{steps[0]:>18.2f}{steps[1]:>14.2f}")


def count_flops(
    tower_trap: bool, cached: bool, checkpointing: bool, resolution: Resolution = OWN
) -> tuple[float, float]:
    """Count the forward and the backward pass of one sample, in TFLOP; the recomputation counts as backward.

    Args:
        tower_trap: Leave the frozen tower as TRL does, whose hook on every input embedding makes its output require
            a gradient as soon as checkpointing is on.
        cached: Feed the tower's projected features in place of pixels.
        checkpointing: Keep only the input of each layer and recompute the layer in the backward pass.
        resolution: Of the picture.
    """
    config = build_medgemma_4b_config()
    set_resolution(config, resolution.side, resolution.tokens)
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        model = get_peft_model(
            model,
            LoraConfig(
                r=16, target_modules=r".*language_model\.layers\.\d+\.self_attn\.[qkvo]_proj", task_type="CAUSAL_LM"
            ),
        )
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if not tower_trap:
        freeze_vision_tower(model)
    with torch.device("meta"), FlopCounterMode(display=False) as forward:
        loss = compute_loss(model, config, cached)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops() / TERA, backward.get_total_flops() / TERA


def count_tower(resolution: Resolution = OWN) -> float:
    """Count the tower's forward pass over one picture, in TFLOP."""
    config = build_medgemma_4b_config()
    set_resolution(config, resolution.side, resolution.tokens)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        tower = SiglipVisionModel._from_config(config.vision_config, dtype=torch.bfloat16, attn_implementation="sdpa")
        tower(torch.zeros(1, 3, resolution.side, resolution.side, dtype=torch.bfloat16))
    return counter.get_total_flops() / TERA


def compute_loss(model, config, cached: bool) -> torch.Tensor:
    """Run the parts in the order of `Gemma3Model.forward`, which looks into the values of its tensors."""
    size = config.vision_config.image_size
    if cached:
        features = torch.zeros(1, config.mm_tokens_per_image, config.text_config.hidden_size, dtype=torch.bfloat16)
    else:
        features = model.get_image_features(torch.zeros(1, 3, size, size, dtype=torch.bfloat16)).pooler_output
    text = model.get_input_embeddings()(torch.zeros(1, TEXT_TOKENS, dtype=torch.long))
    tokens = features.shape[1] + TEXT_TOKENS
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
    hidden = model.get_decoder()(
        inputs_embeds=torch.cat([features, text], dim=1),
        attention_mask={"full_attention": mask, "sliding_attention": mask},
        use_cache=False,
    ).last_hidden_state
    logits = model.get_output_embeddings()(hidden[:, -LABELLED:])
    return logits.float().logsumexp(-1).sum()


if __name__ == "__main__":
    main()
