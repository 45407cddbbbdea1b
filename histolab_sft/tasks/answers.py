"""The one parser that turns a model's words into an answer, shared by every task with a fixed set of answers."""

import re
import string

from histolab_sft.metrics.classification import UNPARSED
from histolab_sft.tasks.final_text import read_final

_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_BLANKS = str.maketrans(string.punctuation, " " * len(string.punctuation))
_LETTER = re.compile(r"\(?([A-Za-z])(?:\)|\.|:|\)\.)?$")


def parse_answer(text: str, options: list[str]) -> str:
    """Return the one of `options` that `text` names, or `"unparsed"`.

    The order of trust: an exact option letter (`B`, `(B)`, `B.`, `B: words`), the exact words of one option, then the
    only option mentioned as whole words. Two options mentioned, or none, is unparsed: a part of a word ("abnormal")
    never counts, nor does the last word. A thinking block is left out, and of the rest only what follows the last
    `Answer:` (`The answer is:`, `Final answer:`) is read where there is such a marker.

    Args:
        text (`str`): The model's words, without the prompt.
        options (`list[str]`): Class names in the order of the prompt; the first has the letter A.
    """
    text = read_final(text)
    plain = _normalise(text)

    by_words = {_normalise(option): option for option in options}
    unspaced = {words.replace(" ", ""): option for words, option in by_words.items()}
    if plain.replace(" ", "") in unspaced:
        return unspaced[plain.replace(" ", "")]

    head, _, rest = text.partition(":")
    letter = _LETTER.match(head.strip())
    if letter and ord(letter[1].upper()) - ord("A") < len(options):
        option = options[ord(letter[1].upper()) - ord("A")]
        if not rest or _normalise(rest) == _normalise(option):
            return option
        if _normalise(rest) in by_words:
            return UNPARSED  # the letter names one option and the words another

    mentioned = _mentions(plain, list(by_words))
    return by_words[mentioned[0]] if len(mentioned) == 1 else UNPARSED


def _normalise(text: str) -> str:
    """Lower case, every run of blanks and punctuation one blank; `InSitu` and `in-situ` both become `in situ`."""
    text = _HUMP.sub(" ", text).casefold()
    return " ".join(text.translate(_BLANKS).split())


def _mentions(text: str, names: list[str]) -> list[str]:
    """Names that stand in `text` as whole words, where a name inside a longer one doesn't count.

    With `normal` and `normal mucosa` as names, "normal mucosa" mentions the second alone.
    """
    found = []
    for name in sorted(names, key=len, reverse=True):
        pattern = re.compile(r"(?<!\w)" + r"\s*".join(map(re.escape, name.split())) + r"(?!\w)")
        if pattern.search(text):
            found.append(name)
            text = pattern.sub(" ", text)
    return found
