"""Where an answer gives its fields: one text for every legal value in place of the one it gives."""

import json
import re
from collections.abc import Mapping, Sequence

from histolab_sft.metrics.biomarkers import UNKNOWN
from histolab_sft.tasks.biomarkers import Field, plain_key, read_value

_PAIR = re.compile(
    r"""(?P<quote>["'])(?P<key>(?:\\.|(?!(?P=quote))[^\\\n])+)(?P=quote)\s*:\s*
    (?P<value>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s"'{}\[\],:]+)""",
    re.VERBOSE,
)


def list_options(field: Field) -> list[str]:
    """Return the legal values of a field with words for values, "unknown" the last."""
    return [*field["values"], UNKNOWN]


def find_places(text: str, answer: Mapping | None, fields: Sequence[Field]) -> dict[str, list[tuple[str, int]]]:
    """Return for each field with words for values the model's `text` with each of `list_options` in its place.

    Args:
        text: What the model wrote.
        answer: The values that were read in it, from `tasks.biomarkers.read_answer`; None for unparsed.

    Returns:
        Field -> `(text, end)` for each value, `end` the position after its closing quote; in the order of the text. A
        field isn't there if the answer lacks it, has it cut off, or says several things about it.
    """
    names = {
        plain_key(key): field
        for field in fields
        if "values" in field
        for key in (field["name"], *field.get("aliases", []))
    }
    places = {}
    for pair in _PAIR.finditer(text) if answer else ():
        field = names.get(plain_key(pair["key"]))
        if field is None or field["name"] in places or field["name"] not in answer:
            continue
        value, (start, end) = pair["value"], pair.span("value")
        given = value[1:-1] if value[0] in "\"'" else value
        # What stands here has to be what was read as the answer, not a remark before it.
        if read_value(given, field) == answer[field["name"]]:
            written = [_quote(option, single=value[0] == "'") for option in list_options(field)]
            places[field["name"]] = [(text[:start] + option + text[end:], start + len(option)) for option in written]
    return places


def _quote(value: str, single: bool) -> str:
    quoted = json.dumps(value, ensure_ascii=False)
    return "'" + quoted[1:-1].replace("'", "\\'") + "'" if single else quoted
