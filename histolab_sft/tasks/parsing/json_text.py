"""Read JSON out of a model's words: between other text, in single quotes, or cut off by the token limit."""

import json
import re
from typing import NamedTuple

from histolab_sft.tasks.parsing.final_text import read_final

# A box or a field stands at most four levels deep; the interpreter's own limit would be a crash.
MAX_DEPTH = 16
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)(?=\s*[,\]}])
      | (?P<word>true|false|null|True|False|None|NaN)(?=\s*[,\]}])
      | (?P<mark>[\[\]{},:])
    )""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"True": "true", "False": "false", "None": "null", "NaN": "null"}
_CLOSING = {"[": "]", "{": "}"}


class JsonText(NamedTuple):
    """The lists and objects that stand in an answer, outermost only, and what it took to read them."""

    values: list
    repaired: bool  # something was mended: quotes, a comma too many, Python's words, a missing end
    truncated: bool  # the text ended inside a list or object; whatever was unfinished there is left out


def read_json(text: str, opening: str = "[{") -> JsonText:
    """Return every list and object (`opening` names which) in the answer part of `text`; never raises.

    An unfinished list or object keeps its finished items. A number at the cut is unfinished: `57` may have been going
    to be `572`. So an answer cut off before its first finished item holds nothing, which is not the same as `[]`.
    """
    text = read_final(text)
    values, repaired, truncated, position = [], False, False, 0
    starts = re.compile("[" + re.escape(opening) + "]")
    while start := starts.search(text, position):
        body, position, mended, cut = _scan(text, start.start())
        try:
            value = json.loads(body, strict=False)
        except ValueError:  # also a number of more digits than int() takes
            continue
        values.append(value)
        repaired, truncated = repaired or mended or cut, truncated or cut
    return JsonText(values, repaired, truncated)


def _scan(text: str, position: int) -> tuple[str, int, bool, bool]:
    """Return the value that opens at `position` as clean JSON, where it ends, and whether it was mended or cut."""
    pieces, stack, mended = [], [], False
    finished = (0, [])  # number of pieces up to the last finished item, and what was open then
    end = position
    while token := _TOKEN.match(text, end):
        kind, word = token.lastgroup, token[token.lastgroup]
        closes = word in "]}" and kind == "mark"
        if (closes and word != _CLOSING[stack[-1]]) or (word in "[{" and len(stack) == MAX_DEPTH):
            break
        end = token.end()
        if kind == "string" and word[0] == "'":
            word, mended = json.dumps(re.sub(r"\\(.)", r"\1", word[1:-1])), True
        elif word in _WORDS:
            word, mended = _WORDS[word], True
        if kind == "mark" and word in "[{":
            stack.append(word)
        elif word == ",":
            finished = (len(pieces), stack.copy())
        elif closes:
            if pieces[-1] == ",":
                pieces.pop()
                mended = True
            stack.pop()
        pieces.append(word)
        if closes:
            finished = (len(pieces), stack.copy())
            if not stack:
                return "".join(pieces), end, mended, False
    count, stack = finished
    closing = "".join(_CLOSING[mark] for mark in reversed(stack))
    return "".join(pieces[:count]) + closing, max(end, position + 1), mended, True
