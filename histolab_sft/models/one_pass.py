"""All answers to a prompt in one pass of the model, without keys and values kept in between.

Prompt, common words and the tree of what differs stand in one row, each token seeing the prompt and its own path
(SpecInfer's tree attention, Miao et al. 2024, section 4, with the prompt in front). The pass has the shape of a
training step, so that layers compiled for one length serve every batch.
"""

import torch
from torch import nn
from transformers import Gemma3ForConditionalGeneration, PreTrainedModel
from transformers.models.gemma3.modeling_gemma3 import get_block_sequence_ids_for_mask

# Rows are padded to a multiple of it: attention kernels want masks so aligned, and few lengths are few compilations.
MULTIPLE = 16


def takes_one_pass(model: PreTrainedModel, inputs: dict[str, torch.Tensor], answers: list[list[int]]) -> bool:
    """Return whether `score_in_one_pass` gives what a pass over the prompt and another over the answers give.

    Only PyTorch's own attention takes any mask; a row must lie within the sliding window, so that one mask holds for
    all layers; and answers longer than the prompt are better read in parts.
    """
    if not isinstance(model, Gemma3ForConditionalGeneration) or "token_type_ids" not in inputs:
        return False
    config = model.config.get_text_config()
    prompt, nodes = inputs["input_ids"].shape[1], len(_list_nodes(answers))
    length = prompt + nodes + MULTIPLE
    plain = config._attn_implementation == "sdpa" and config.final_logit_softcapping is None
    return plain and nodes <= prompt and length < config.sliding_window


def score_in_one_pass(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    answers: list[list[int]],
    positions: torch.Tensor,
    held: int,
) -> torch.Tensor:
    """Return `(B, K)` float64 log-likelihoods of the same K answers (token ids) after each of B prompts.

    Args:
        inputs (`dict`): From `encode_prompts`, padded on the left.
        positions (`torch.Tensor` of shape `(B, length)`): Of the prompts' tokens.
        held (`int`): Tokens whose logits are held at once.
    """
    nodes = _list_nodes(answers)
    prompt = inputs["input_ids"].shape[1]
    blank = -(prompt + len(nodes)) % MULTIPLE
    new = inputs["input_ids"].new_tensor
    ids = new([node[-1] for node in nodes] + [0] * blank).expand(len(positions), -1)
    depths = new([len(node) for node in nodes] + [0] * blank)
    mask = _build_mask(inputs, nodes, blank)
    hidden = model.model(
        input_ids=torch.cat([inputs["input_ids"], ids], dim=1),
        pixel_values=inputs.get("pixel_values"),
        position_ids=torch.cat([positions, positions[:, -1:] + depths], dim=1),
        attention_mask={"full_attention": mask, "sliding_attention": mask},
        use_cache=False,
    ).last_hidden_state[:, prompt - 1 : prompt + len(nodes)]
    # The prompt's last token predicts how answers begin, and each node what follows it.
    index = {(): 0} | {node: number for number, node in enumerate(nodes, 1)}
    following: list[list[int]] = [[] for _ in index]
    for answer in answers:
        for end, token in enumerate(answer):
            words = following[index[tuple(answer[:end])]]
            if token not in words:
                words.append(token)
    most = max(map(len, following))
    table = new([words + [0] * (most - len(words)) for words in following])
    weighed = _weigh(model.lm_head, hidden, table, held)
    steps = [
        (k, number := index[tuple(answer[:end])], following[number].index(token))
        for k, answer in enumerate(answers)
        for end, token in enumerate(answer)
    ]
    owners, sources, choices = (new(column) for column in zip(*steps, strict=True))
    return weighed.new_zeros(len(weighed), len(answers)).index_add_(1, owners, weighed[:, sources, choices])


def _list_nodes(answers: list[list[int]]) -> list[tuple[int, ...]]:
    """Return every beginning of an answer once, as token ids; whole answers predict nothing and are not read."""
    return list(dict.fromkeys(tuple(answer[:end]) for answer in answers for end in range(1, len(answer))))


def _build_mask(inputs: dict[str, torch.Tensor], nodes: list[tuple[int, ...]], blank: int) -> torch.Tensor:
    """Return `(B, 1, length, length)`: what each token of prompt, tree and padding sees."""
    real = inputs["attention_mask"].bool()
    count, prompt = real.shape
    pictures = get_block_sequence_ids_for_mask(inputs["token_type_ids"], device=real.device)
    together = (pictures[:, :, None] == pictures[:, None, :]) & (pictures[:, :, None] >= 0)
    causal = torch.ones(prompt, prompt, dtype=torch.bool, device=real.device).tril()
    length = prompt + len(nodes) + blank
    mask = torch.zeros(count, length, length, dtype=torch.bool, device=real.device)
    mask[:, :prompt, :prompt] = (together | causal) & real[:, None]
    tree = slice(prompt, prompt + len(nodes))
    mask[:, tree, :prompt] = real[:, None]
    sees = [[node[: len(other)] == other for other in nodes] for node in nodes]
    if nodes:
        mask[:, tree, tree] = torch.tensor(sees, device=real.device)
    # A row of the mask without a token to see would give NaN.
    mask |= torch.eye(length, dtype=torch.bool, device=real.device)
    return mask[:, None]


def _weigh(head: nn.Module, hidden: torch.Tensor, table: torch.Tensor, held: int) -> torch.Tensor:
    """Return log-probabilities `(rows, positions, choices)`, float64, of the words in `table`."""
    rows, positions, _ = hidden.shape
    words = table.expand(rows, -1, -1).flatten(0, 1)
    weighed = []
    for part, choices in zip(hidden.flatten(0, 1).split(held), words.split(held), strict=True):
        logits = head(part).float()
        # Long answers add up to hundreds of nats, where float32 has only five decimals left.
        weighed.append((logits.gather(1, choices) - logits.logsumexp(-1, keepdim=True)).double())
    return torch.cat(weighed).unflatten(0, (rows, positions))
