"""The one form that the answer about a list of fields may take, as a grammar for decoding."""

import json
import re
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from histolab_sft.metrics.biomarkers import UNKNOWN
from histolab_sft.tasks.biomarkers import Field


def format_grammar(fields: Sequence[Field]) -> str:
    """Return a grammar, in Lark's notation, of what `format_target` can write: every field, in order, each legal.

    Raises:
        ValueError: No number with a field's decimals lies in its range.
    """
    parts = ["start:"]
    for position, field in enumerate(fields):
        name = json.dumps(field["name"], ensure_ascii=False)
        parts.append(_literal(("{\n  " if position == 0 else ",\n  ") + name + ": "))
        options = [_literal(json.dumps(value, ensure_ascii=False)) for value in (*field.get("values", []), UNKNOWN)]
        if "range" in field:
            options.append(f"/{format_range(field)}/")
        parts.append(f"({' | '.join(options)})")
    return " ".join([*parts, _literal("\n}")])


def format_range(field: Field) -> str:
    """Return a regular expression of the numbers in a field's range with its decimals: `0.000` to `1.000`."""
    decimals = field.get("decimals", 3)
    low, high = (Decimal(str(bound)).scaleb(decimals) for bound in field["range"])
    low, high = int(low.to_integral_value(ROUND_CEILING)), int(high.to_integral_value(ROUND_FLOOR))
    # Zero is written without a sign.
    signs = [("-", max(1, -high), -low), ("", max(0, low), high)]
    options = [sign + pattern for sign, least, most in signs for pattern in _between_numbers(least, most, decimals)]
    if not options:
        raise ValueError(
            f"field {field['name']!r} has range {field['range']} and {decimals} decimals, expected a number with so "
            "many decimals in it; widen the range or raise decimals"
        )
    return "|".join(options)


def _between_numbers(least: int, most: int, decimals: int) -> list[str]:
    """One pattern for each number of digits, with the point before the last `decimals`."""
    if least > most:
        return []
    patterns = []
    for digits in range(max(len(str(least)), decimals + 1), max(len(str(most)), decimals + 1) + 1):
        low = max(least, 0 if digits == decimals + 1 else 10 ** (digits - 1))
        ends = [f"{bound:0{digits}d}" for bound in (low, min(most, 10**digits - 1))]
        ends = [f"{end[:-decimals]}.{end[-decimals:]}" for end in ends] if decimals else ends
        patterns.append(_between(*ends))
    return patterns


def _between(low: str, high: str) -> str:
    """Pattern of the numbers between two that have equally many digits and the point in the same place."""
    if not low:
        return ""
    if low[0] == high[0]:
        return re.escape(low[0]) + _between(low[1:], high[1:])
    lowest, highest = re.sub(r"\d", "0", low[1:]), re.sub(r"\d", "9", low[1:])
    if (low[1:], high[1:]) == (lowest, highest):
        return f"[{low[0]}-{high[0]}]" + lowest.replace(".", "\\.").replace("0", "[0-9]")
    options = [low[0] + _between(low[1:], highest), high[0] + _between(lowest, high[1:])]
    if int(high[0]) - int(low[0]) > 1:
        options.append(_between(f"{int(low[0]) + 1}{lowest}", f"{int(high[0]) - 1}{highest}"))
    return f"(?:{'|'.join(options)})"


def _literal(text: str) -> str:
    # Lark writes strings as JSON does.
    return json.dumps(text, ensure_ascii=False)
