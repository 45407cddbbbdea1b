"""Check labels and class names: in one Unicode form, and different enough for the parser of answers."""

import itertools
import re
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

LETTERS, NUMBER, SIGN = "letters", "number", "sign"
_ALIKE = str.maketrans(
    {"≤": "<=", "≥": ">=", "⩽": "<=", "⩾": ">=", "\N{RIGHT SINGLE QUOTATION MARK}": "'", "⁄": "/"}
    | dict.fromkeys("\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}", "-")
)
# Unicode calls the first ones punctuation, but they matter in a name; the others are no signs, though Unicode says so.
_SIGNS, _NO_SIGNS = "%&/@\\", "`´"
# Matches kinds of characters (see `_kind`). A dash is a sign after a word's end (`HER2-`), between numbers (`1 - 49`)
# and before a number (`-1`); elsewhere it joins words or is punctuation.
_TOKENS = re.compile(r"a+|0(?:0|[.,:](?=0))*|\+|(?<=[a0])-(?![a0-])|(?<=0)\s*-\s*(?=0)|(?<![a0-])-\s*(?=0)")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_RESERVED = re.compile(r"answer\s*:|<unused9|<end_of_turn>", re.IGNORECASE)


class Token(NamedTuple):
    """A word, number or sign of a text in lower case.

    `joined`: the next token follows without a blank, as in `tumor-free` and `T1`. `near`: only blanks, or nothing,
    stand before the next token.
    """

    text: str
    kind: str
    joined: bool
    near: bool


def compose(text: str) -> str:
    """Return text in the Unicode form in which file names, labels and recipes are compared (NFC).

    macOS and some archives write `ä` as two characters (NFD), keyboards as one.
    """
    return unicodedata.normalize("NFC", text)


def read_tokens(text: str) -> list[Token]:
    """Return the words, numbers and signs of a text, without case, punctuation and kinds of dashes and blanks."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).translate(_ALIKE).casefold())
    kinds = "".join(map(_kind, text))
    matches = list(_TOKENS.finditer(kinds))
    names = {"a": LETTERS, "0": NUMBER}
    tokens = []
    for match, after in itertools.zip_longest(matches, matches[1:]):
        gap = None if after is None else kinds[match.end() : after.start()]
        tokens.append(
            Token(
                text=text[match.start() : match.end()].strip(),
                kind=names.get(match[0][0], SIGN),
                joined=gap is not None and not gap.strip("-_'"),
                near=gap is not None and not gap.strip(),
            )
        )
    return tokens


def name_tokens(name: str) -> list[Token]:
    """Return the tokens of a class name, of which `InSitu` has two."""
    return read_tokens(_HUMP.sub(" ", name))


def reading_key(name: str) -> str:
    """Return the letters, digits and signs of a name, which is all that the parser of answers compares."""
    tokens = read_tokens(name)
    # `1 0` is not 10, while `In Situ` is `insitu`.
    ends = [one.kind == NUMBER == other.kind for one, other in itertools.pairwise(tokens)]
    return "".join(token.text + " " * apart for token, apart in itertools.zip_longest(tokens, ends, fillvalue=False))


def check_class_names(class_names: Mapping) -> dict[str, str]:
    """Return labels and names in one Unicode form; an answer can mean only one of the names.

    Args:
        class_names: Label in the data -> words that the model says.

    Raises:
        ValueError: A label or name that isn't text, is empty, or holds words that mark an answer; two labels or names
            that are the same for the parser of answers.
    """
    check_text(class_names)
    checked: dict[str, str] = {}
    named: dict[str, str] = {}
    for label, name in ((compose(label), compose(name)) for label, name in class_names.items()):
        key, entry = reading_key(name), f"class_names has {label!r}: {name!r}"
        if not label.strip() or not key or not name.isprintable() or name != name.strip():
            raise ValueError(
                f"{entry}, expected a label, and a name with a letter, digit or sign in it, on one line and without "
                "blanks at its ends; correct it"
            )
        if key == "unparsed" or _RESERVED.search(name):
            raise ValueError(f"{entry}, expected other words, since these mark answers; rename it")
        if label in checked:
            raise ValueError(f"class_names has the label {label!r} twice; remove one")
        if key in named:
            raise ValueError(
                f"two labels share one name: {named[key]!r} and {name!r} are the same but for case, blanks, "
                "punctuation or the way that characters are written, and answers could not be told apart; give each "
                "label its own words"
            )
        checked[label] = named[key] = name
    return checked


def check_text(class_names: Mapping) -> None:
    """Raise ValueError for labels and names that aren't text, as JSON and Python can hold them."""
    odd = [word for pair in class_names.items() for word in pair if not isinstance(word, str)]
    if odd:
        raise ValueError(
            f"class_names holds {', '.join(map(repr, odd))}, expected text alone; quote it, as in {str(odd[0])!r}"
        )


def _kind(character: str) -> str:
    """Return `a` for a letter, `0` for a digit, `+` for a sign, `-` for a dash, a blank, or the character itself."""
    category = unicodedata.category(character)
    if character in _SIGNS or (category[0] == "S" and character not in _NO_SIGNS):
        return "+"
    if character == "-" or category == "Pd":
        return "-"
    if character.isspace():
        return " "
    return {"L": "a", "M": "a", "N": "0"}.get(category[0], "." if character in "+a0-" else character)
