"""The one parser that turns a model's words into an answer, shared by every task with a fixed set of answers."""

import re

from histolab_sft.config.class_names import LETTERS, SIGN, Token, name_tokens, read_tokens
from histolab_sft.metrics.classification import UNPARSED
from histolab_sft.tasks.parsing.final_text import read_final

_LETTER = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])(?=$|[).:]))[).:]*\s*(.*)", re.DOTALL)
# What turns a name into its opposite, in the languages that models answer in most.
_DENIALS = frozenset(
    "no not non none nor neither never without cannot cant isnt arent doesnt dont didnt wasnt lacks lack lacking "
    "absent absence free negative exclude excludes excluded excluding except instead unlikely rather "
    "kein keine keinen keiner keines nicht nie ohne weder ne pas sans aucun aucune jamais "
    "ni sin ningun ninguno ninguna nunca tampoco não nao sem nenhum nenhuma senza nessun nessuna".split()
)
_CONTRACTION = re.compile(r"n['\N{RIGHT SINGLE QUOTATION MARK}]t\b", re.IGNORECASE)


def parse_answer(text: str, options: list[str]) -> str:
    """Return the one of `options` that `text` names, or `"unparsed"`. It never guesses.

    The order of trust: the exact words of one option; an exact option letter (`B`, `(B)`, `B.`, `B: words`) where no
    option is a letter itself; then the only option mentioned as whole words. Case, blanks, punctuation and hyphens
    between words don't count; signs, digits and the order of words do: `HER2+` is never `HER2-`, nor `<1%` `1%`.
    Unparsed are two options mentioned, or none; a part of a word or of a compound ("abnormal", "tumor-free"), a
    mention with a sign beside it that isn't the option's, and a mention in an answer that denies anything ("There is
    no tumor"), unless the option denies by itself and comes first. With `Normal` and `Normal mucosa`, "normal mucosa"
    mentions the second alone. A thinking block is left out, and of the rest only what follows the last `Answer:`
    (`The answer is:`, `Final answer:`) is read where there is such a marker.

    Args:
        text (`str`): The model's words, without the prompt.
        options (`list[str]`): Class names in the order of the prompt; the first has the letter A.
    """
    text = read_final(text)
    if text in options:
        return text
    names = {option: name_tokens(option) for option in options}
    tokens = read_tokens(text)
    spans = {option: _find(tokens, name) for option, name in names.items()}
    if whole := [option for option, found in spans.items() if (0, len(tokens)) in found]:
        return whole[0] if len(whole) == 1 else UNPARSED

    letter = _LETTER.match(text)
    position = ord((letter[1] or letter[2]).upper()) - ord("A") if letter else len(options)
    letters = any(len(name) == 1 and len(name[0].text) == 1 and name[0].kind == LETTERS for name in names.values())
    if position < len(options) and not letters:
        lettered = options[position]
        return lettered if not letter[3] or parse_answer(letter[3], options) == lettered else UNPARSED

    every = [span for found in spans.values() for span in found]
    mentions = {
        option: [span for span in found if _stands_alone(tokens, *span) and not _lies_inside(span, every)]
        for option, found in spans.items()
    }
    mentioned = [option for option, found in mentions.items() if found]
    if len(mentioned) != 1:
        return UNPARSED
    [option] = mentioned
    covered = {place for start, end in mentions[option] for place in range(start, end)}
    denials = [place for place, token in enumerate(tokens) if token.text in _DENIALS and place not in covered]
    if denials or _CONTRACTION.search(text):
        # "No, there is none" denies once more what the option `No` has denied.
        denies = any(token.text in _DENIALS for token in names[option])
        return option if denies and min(covered) < min([*denials, len(tokens)]) else UNPARSED
    return option


def _find(tokens: list[Token], name: list[Token]) -> list[tuple[int, int]]:
    """Return start and end of the tokens that spell a name. Words may be run together, as in `insitu`, never torn."""
    return [(start, end) for start in range(len(tokens)) if (end := _match(tokens, start, name)) is not None]


def _match(tokens: list[Token], start: int, name: list[Token]) -> int | None:
    place, rest = start, list(name)
    while rest:
        if place == len(tokens):
            return None
        spelt = ""
        while rest and len(spelt) < len(tokens[place].text):
            if spelt and rest[0].kind != LETTERS:
                return None
            spelt += rest.pop(0).text
        if spelt != tokens[place].text:
            return None
        place += 1
    return place if place > start else None


def _stands_alone(tokens: list[Token], start: int, end: int) -> bool:
    """Whether no word is joined to these tokens and no sign stands beside them."""
    before, last = tokens[start - 1] if start else None, tokens[end - 1]
    if before is not None and (before.joined or (before.near and before.kind == SIGN)):
        return False
    return not (end < len(tokens) and (last.joined or (last.near and tokens[end].kind == SIGN)))


def _lies_inside(span: tuple[int, int], others: list[tuple[int, int]]) -> bool:
    return any(start <= span[0] and span[1] <= end and (start, end) != span for start, end in others)
