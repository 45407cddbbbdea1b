"""Decoding within a grammar: of the next tokens only those stay from which an answer of the grammar can be reached."""

from collections.abc import Callable
from functools import partial

import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from transformers import LogitsProcessor, PreTrainedModel, ProcessorMixin

from histolab_sft.models.generate import find_stop_tokens


def compile_grammar(grammar: str, model: PreTrainedModel, processor: ProcessorMixin) -> Callable[[], LogitsProcessor]:
    """Return what makes the `limits` of `generate_answers` for a batch.

    Args:
        grammar (`str`): In Lark's notation. The answer ends where it does, with any of the model's stop tokens.

    Raises:
        ValueError: The grammar can't be read, or the tokenizer isn't one of the `tokenizers` library.
    """
    stop = find_stop_tokens(model, processor)
    vocabulary = from_tokenizer(processor.tokenizer, n_vocab=model.config.get_text_config().vocab_size, eos_token=stop)
    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar))
    if matcher.is_error():
        raise ValueError(
            f"grammar {grammar[:60]!r}...: {matcher.get_error()}; change the names or values of the fields"
        )
    return partial(GrammarLimits, matcher, stop)


class GrammarLimits(LogitsProcessor):
    """Bars every token that leaves the grammar, for one batch from its first generated token on."""

    def __init__(self, matcher: LLMatcher, stop: list[int]):
        self.matcher, self.stop, self.rows = matcher, set(stop), None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.rows is None:
            self.rows = [self.matcher.deep_copy() for _ in input_ids]
        else:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                # An answer that has ended is padded until the others have.
                if self.rows[row] and token in self.stop:
                    self.rows[row] = None
                if self.rows[row] and not self.rows[row].consume_token(token):
                    raise RuntimeError(f"token {token} left the grammar: {self.rows[row].get_error()}")
        barred = torch.zeros_like(scores, dtype=torch.bool)
        for row, matcher in enumerate(self.rows):
            if matcher:
                allowed = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)
                barred[row] = (allowed == 0).to(scores.device)
        return scores.masked_fill(barred, -torch.inf)
