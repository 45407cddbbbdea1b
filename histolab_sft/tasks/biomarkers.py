"""Fill in the fields of a JSON object: the question, the target, the parser. Which fields is data, not code.

A field is a mapping with `name` and either `values` (the words it may take) or `range` (lowest and highest number)
with `decimals` (3 unless told); `aliases` lists other spellings of its name, `value_aliases` maps other spellings of
its values. Every field may also be `"unknown"`. The eight of ImmunoPath v3.1 are `FIELDS`; a recipe can bring its own.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.metrics.biomarkers import UNKNOWN, compute_biomarkers, find_known
from histolab_sft.metrics.measures import biomarkers_measure
from histolab_sft.metrics.weighted import Measure
from histolab_sft.tasks.answer_forms import write_value
from histolab_sft.tasks.parsing.json_text import read_json

Field = Mapping[str, object]

# In the order of the keys of ImmunoPath v3.1.
FIELDS: list[Field] = [
    {
        "name": "cd274_expression",
        "values": ["high", "low"],
        "aliases": ["cd274_rna_proxy_level", "cd274_rna_proxy", "cd274_proxy", "cd274_proxy_level", "cd274_level"]
        + ["pdl1_expression"],
    },
    {"name": "msi_status", "values": ["MSI-H", "MSS"], "value_aliases": {"MSI-L": "MSS"}},
    {"name": "tme_subtype", "values": ["IE", "IE/F", "F", "D"], "value_aliases": {"IE_F": "IE/F", "IE-F": "IE/F"}},
    {"name": "til_fraction", "range": [0, 1]},
    {"name": "til_density", "values": ["high", "moderate", "low"], "aliases": ["til_bucket"]},
    {"name": "immune_phenotype", "values": ["inflamed", "excluded", "desert"]},
    {"name": "cd8_infiltration", "values": ["high", "moderate", "low"], "aliases": ["cd8_t_cell_infiltration"]},
    {"name": "immune_score", "range": [0, 1], "aliases": ["overall_immune_score"]},
]
# `training` and `card` are ImmunoPath's two, which differ: it was trained with one and published with the other.
QUESTIONS = {
    "generic": "Look at this histopathology patch and return a JSON object with these fields:\n{fields}",
    "card": """Analyze this H&E histopathology patch from a lung cancer biopsy.
Predict the tumor immune microenvironment and return a JSON object with these fields:
{fields}""",
    "training": """Analyze these H&E-stained histopathology images from a {cancer_type} tumor.

Extract the following **H&E-inferred immune signals** as a *research* output (not diagnostic):
1. **CD274 (PD-L1) RNA proxy level** (high/low)
2. **MSI status** (MSI-H or MSS)
3. **TIL fraction** (0.0-1.0) + density bucket (low/moderate/high)
4. **TME subtype** (IE / IE/F / F / D)
5. **Immune phenotype** (inflamed/excluded/desert)
6. **CD8+ T-cell infiltration** (low/moderate/high)
7. **Overall immune score** (0.0-1.0)

Rules:
- If a field is not inferable, output "unknown".
- CD274 is an RNA proxy — NOT clinical PD-L1 IHC TPS.

Provide your analysis as a JSON object.""",
}
NAME = "biomarkers"
HEADLINE = "mean_balanced_accuracy"
MAX_NEW_TOKENS = 256
ANSWER_IS = "fields"
SCORED_AS = "Field by field; an answer that can't be read, or says unknown, counts as wrong."
count_cut = draw_answers = None
FIELD_KEYS = {"name", "values", "range", "decimals", "aliases", "value_aliases"}
_DECIMAL = re.compile(r"[-+]?[0-9]{1,15}(?:\.[0-9]{1,15})?")


class FieldsAnswer(NamedTuple):
    """What an answer says about the fields; a field that isn't in `values` wasn't in the answer."""

    values: dict[str, str | float | None]  # None: the answer has the field, but not with a legal value
    repaired: bool
    truncated: bool


def check_fields(fields: Sequence[Field]) -> None:
    """Raise ValueError for fields that can't be asked, written and read back without doubt."""
    if nameless := [field for field in fields if not isinstance(field, Mapping) or "name" not in field]:
        raise ValueError(f"field {nameless[0]!r}, expected a mapping with name and either values or range; add them")
    names = [plain_key(key) for field in fields for key in (field["name"], *field.get("aliases", []))]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"fields share the names {sorted(doubled)}, expected different ones; rename them")
    for field in fields:
        if unknown := set(field) - FIELD_KEYS:
            raise ValueError(f"field {field['name']!r} has {sorted(unknown)}, expected other keys; see FIELDS")
        if ("values" in field) == ("range" in field):
            raise ValueError(f"field {field['name']!r}: expected either values or range; add one or take one away")
        if "values" in field:
            words = [_plain(value) for value in (*field["values"], *field.get("value_aliases", {}), UNKNOWN)]
            strange = set(field.get("value_aliases", {}).values()) - set(field["values"])
            if len(set(words)) != len(words) or len(words) < 3 or strange:
                raise ValueError(
                    f"field {field['name']!r} has values {field['values']} and value_aliases "
                    f"{field.get('value_aliases', {})}, expected two or more that differ in more than case, none of "
                    f"them {UNKNOWN!r}, and aliases of these; rename them"
                )
        elif not field["range"][0] < field["range"][1]:
            raise ValueError(
                f"field {field['name']!r} has range {field['range']}, expected lowest, highest; swap them"
            )


def format_prompt(fields: Sequence[Field], style: str = "generic", question: str | None = None, **values: str) -> str:
    """Return the question that training and scoring both ask.

    Args:
        fields: What to ask for; `training` names ImmunoPath's own fields whatever is given.
        style (`str`): A key of `QUESTIONS`.
        question (`str`, *optional*): The recipe's own wording, in which `{fields}` stands for a line a field.
        values: What stands in place of `{name}`, such as `cancer_type` for `training`.

    Raises:
        ValueError: A `{name}` without a value, or a value without a place.
    """
    text = QUESTIONS[style] if question is None else question
    expected = set(re.findall(r"\{([a-z_]+)\}", text)) - {"fields"}
    if expected != set(values):
        raise ValueError(f"values for {sorted(values)}, expected {sorted(expected)}; change the question or the row")
    values = values | {"fields": "\n".join(f"- {field['name']}: {_describe(field)}" for field in fields)}
    return re.sub(r"\{([a-z_]+)\}", lambda match: values[match[1]], text)


def format_target(record: Mapping[str, object], fields: Sequence[Field] = FIELDS) -> str:
    """Return the JSON object that the model learns to give; what `record` lacks (absent, None, NaN) is "unknown".

    Raises:
        ValueError: A value that its field doesn't allow.
    """
    lines = []
    for field in fields:
        given = record.get(field["name"], UNKNOWN)
        missing = given is None or (isinstance(given, float) and math.isnan(given))
        value = UNKNOWN if missing else read_value(given, field)
        if value is None:
            raise ValueError(f"field {field['name']!r} is {given!r}, expected {_describe(field)}; correct the row")
        written = json.dumps(value, ensure_ascii=False)
        if not isinstance(value, str):
            written = f"{value:.{field.get('decimals', 3)}f}"
        lines.append(f"  {json.dumps(field['name'], ensure_ascii=False)}: {written}")
    return "{\n" + ",\n".join(lines) + "\n}"


def parse(text: str, fields: Sequence[Field] = FIELDS) -> FieldsAnswer | None:
    """Return the fields in the model's `text`, None (unparsed) where there is no JSON object or several that differ.

    Fences, words around it and single quotes don't matter, and of a truncated object the finished fields count. A
    field given twice under two names with different values has no legal value.
    """
    found = read_json(text, opening="{")
    names = {plain_key(key): field for field in fields for key in (field["name"], *field.get("aliases", []))}
    answers = []
    for value in found.values:
        answer = {}
        for key, given in value.items():
            if field := names.get(plain_key(key)):
                read = read_value(given, field)
                answer[field["name"]] = read if answer.get(field["name"], read) == read else None
        if answer not in answers:
            answers.append(answer)
    return FieldsAnswer(answers[0], found.repaired, found.truncated) if len(answers) == 1 else None


def read_value(given: object, field: Field) -> str | float | None:
    """Return the legal value that `given` means (case doesn't count), None if it means none."""
    plain = _plain(given) if isinstance(given, str) else None
    if plain == UNKNOWN:
        return UNKNOWN
    if "values" in field:
        spellings = {_plain(value): value for value in field["values"]}
        spellings |= {_plain(other): value for other, value in field.get("value_aliases", {}).items()}
        return spellings.get(plain)
    if isinstance(given, str):
        number = float(plain) if _DECIMAL.fullmatch(plain) else None
    else:
        number = given if isinstance(given, int | float) and not isinstance(given, bool) else None
    low, high = field["range"]
    return float(number) if number is not None and low <= number <= high else None


def format_question(ask: Mapping, config: DatasetConfig) -> str:
    """Return the prompt of a record.

    Raises:
        ValueError: The question names other fields than the recipe's own.
    """
    text = QUESTIONS[ask["style"]] if config.instruction is None else config.instruction
    if config.fields is not None and "{fields}" not in text:
        raise ValueError(
            f"fields of its own and the question {text[:40]!r}..., expected one with {{fields}} in it; set style: "
            "generic, or an instruction"
        )
    values = {key: value for key, value in ask["values"].items() if f"{{{key}}}" in text}
    return format_prompt(list_fields(config), ask["style"], config.instruction, **values)


def format_answer(ask: Mapping, answer: Mapping, config: DatasetConfig) -> str:
    """Return the target of a record."""
    return format_target(answer, list_fields(config))


def read_answer(text: str, ask: Mapping, config: DatasetConfig) -> tuple[dict | None, bool]:
    """Return the fields in the model's `text`, None for unparsed, and whether their JSON had to be mended."""
    found = parse(text, list_fields(config))
    return (None, False) if found is None else (found.values, found.repaired)


def describe_answer(answer: Mapping) -> dict:
    """Return the form of an answer, see `answer_forms`."""
    rows = [(name, write_value(value)) for name, value in answer.items()]
    return {"kind": "rows", "rows": rows, "caption": "Field by field", "parts": []}


def guess_answers(train: Sequence[tuple[Mapping, Mapping]], asks: Sequence[Mapping], config: DatasetConfig) -> list:
    """Return the constant answer of the floor: the majority or the median of each field in train."""
    records = [answer for _, answer in train]
    guess = {}
    for field in list_fields(config):
        seen = [records[row][field["name"]] for row in find_known(records, field["name"])]
        if seen and "values" in field:
            guess[field["name"]] = max(field["values"], key=seen.count)
        elif seen:
            guess[field["name"]] = float(median(seen))
    return [guess] * len(asks)


def measure_answers(
    gold: Sequence, predicted: Sequence, asks: Sequence[Mapping], guesses: Sequence, config: DatasetConfig
) -> tuple[Measure, dict]:
    """Return the measure for the bootstrap, and what `compute_biomarkers` says of the same answers, field by field."""
    fields = list_fields(config)
    return biomarkers_measure(gold, predicted, guesses, fields), compute_biomarkers(gold, predicted, guesses, fields)


def list_fields(config: DatasetConfig) -> Sequence[Field]:
    """Return the fields that a data set asks for: its own, else ImmunoPath's; errors as in `check_fields`."""
    check_fields(config.fields or ())
    return FIELDS if config.fields is None else config.fields


def _describe(field: Field) -> str:
    """The legal values in the words of ImmunoPath's card."""
    if "range" in field:
        return "float {:g}-{:g}".format(*field["range"])
    quoted = [f'"{value}"' for value in field["values"]]
    if len(quoted) == 2:
        return " or ".join(quoted)
    if len(quoted) == 3:
        return f"{quoted[0]}, {quoted[1]}, or {quoted[2]}"
    return f"one of {', '.join(quoted)}"


def _plain(value: str) -> str:
    return value.strip().casefold()


def plain_key(key: str) -> str:
    return re.sub(r"\W+", "_", key.casefold()).strip("_")
