"""The grammar of a JSON answer holds what the target can be, and nothing else."""

import re

import pytest
from llguidance import LLMatcher

from histolab_sft.tasks.biomarkers import FIELDS
from histolab_sft.tasks.parsing.field_grammar import format_grammar, format_range


@pytest.mark.parametrize(
    ("low", "high", "decimals"),
    [
        (0, 1, 3),
        (-5, 12, 1),
        (3, 250, 0),
        (-20, -3, 0),
        (0.25, 0.75, 2),
        (-0.5, 0.5, 1),
        (99, 1001, 1),
        (0.5, 0.5001, 3),
    ],
)
def test_the_numbers_of_a_range_are_those_in_it_with_its_decimals(low, high, decimals):
    pattern = re.compile(format_range({"name": "x", "range": [low, high], "decimals": decimals}))
    scale = 10**decimals
    for number in range(int(scale * (low - 3)), int(scale * (high + 3)) + 1):
        inside = round(low * scale, 6) <= number <= round(high * scale, 6)
        assert bool(pattern.fullmatch(f"{number / scale:.{decimals}f}")) == inside, number
    assert not any(map(pattern.fullmatch, ["", "-0", "-0.0", "007", "0.50000", ".5", "1e0", "unknown"]))


def test_a_range_without_a_number_is_refused():
    with pytest.raises(ValueError, match="widen the range"):
        format_range({"name": "x", "range": [0.0001, 0.0002], "decimals": 3})


def test_names_and_values_of_any_script_are_written_into_a_valid_grammar():
    odd = [{"name": 'la "clé"', "values": ["sí", "a\\b", "x/y|z"]}, {"name": "n", "range": [-1, 100], "decimals": 0}]
    for fields in (FIELDS, odd):
        assert LLMatcher.validate_grammar(format_grammar(fields)) == ""
