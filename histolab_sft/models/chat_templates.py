"""Complete a processor's chat template: a beginning of sequence, an end after each answer, nothing after that end.

Training and scoring tokenise what the chat template writes and add nothing. Some templates leave the beginning of
sequence to the tokenizer (Llama's `<s>`), some write no end of turn (LLaVA). A model that never sees an end doesn't
learn to stop.
"""

import transformers
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from histolab_sft.signals import ending_within

SECONDS = 20.0  # for one question and answer, which take a millisecond: a template is a program, and may loop

QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
ANSWER = [{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
# PaliGemma was never given one: a picture and a prefix go in, a suffix and an end come out.
PREFIX_TEMPLATE = (
    "{%- for message in messages -%}{%- for part in message['content'] -%}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{%- endfor -%}{%- endfor -%}"
)


def complete_chat_template(processor: ProcessorMixin) -> ProcessorMixin:
    """Return the processor with a chat template that writes every special token of a conversation, and no more.

    - What follows the end of an answer is removed: Gemma writes `<end_of_turn>` and a line break, and the model stops
      at the first, so the second would be a label that no answer needs.
    - If no special token ends the answer, the end of sequence is added.
    - If the tokenizer would begin with its beginning of sequence and the template doesn't, it is added.

    Raises:
        ValueError: There is no chat template, or it finds no end.
    """
    if isinstance(processor, transformers.PaliGemmaProcessor):
        processor = PaliGemmaProcessor(processor.image_processor, processor.tokenizer, PREFIX_TEMPLATE)
    template = processor.chat_template
    if template is None:
        raise ValueError(
            f"{type(processor).__name__} has no chat template, expected a model that answers questions; use its "
            "instruction-tuned version, or save a chat_template.jinja beside its processor"
        )
    tokenizer = processor.tokenizer
    try:
        with ending_within(SECONDS):
            conversation = processor.apply_chat_template(QUESTION + ANSWER, tokenize=False)
    except TimeoutError as error:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} takes more than {SECONDS:g} s for one question and "
            "answer, expected a millisecond; take the model, or its template, from those who made it"
        ) from error
    begin = "" if not _adds_beginning(tokenizer) or conversation.startswith(tokenizer.bos_token) else "{{ bos_token }}"
    last = tokenizer(conversation.rstrip(), add_special_tokens=False)["input_ids"][-1]
    end = "" if last in tokenizer.added_tokens_decoder else "{{ eos_token }}"
    processor.chat_template = (
        "{%- set conversation -%}" + template + "{%- endset -%}" + begin
        + "{%- if add_generation_prompt or messages[-1]['role'] != 'assistant' -%}{{ conversation }}"
        + "{%- else -%}{{ conversation.rstrip() }}" + end + "{%- endif -%}"
    )  # fmt: skip
    return processor


class PaliGemmaProcessor(transformers.PaliGemmaProcessor):
    """PaliGemma's processor that also takes an answer without a picture, as training and scoring give it.

    The tokens of picture and question see each other both ways (type 0), those of the answer only what stands before
    them (type 1). Types come from the processor; of an answer by itself, it would refuse the missing picture.
    """

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        if images is None:
            encoded = self.tokenizer(text, return_token_type_ids=True, **kwargs)
            types = encoded["token_type_ids"]
            encoded["token_type_ids"] = [[1] * len(row) for row in types] if isinstance(types, list) else types * 0 + 1
            return BatchFeature(encoded)
        encoded = super().__call__(images=images, text=text, **kwargs)
        # They are for answers given along with the question, which none is here.
        encoded.pop("labels", None)
        return encoded


def _adds_beginning(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
