"""Describe a picture in words: the question, the target, the parser of captions, reports and sectioned reports."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.metrics.measures import multilabel_measure, text_measure
from histolab_sft.metrics.text import compute_text
from histolab_sft.metrics.weighted import Measure
from histolab_sft.tasks.parsing.final_text import strip_thinking

# The wording of published systems, so that their tables can be reproduced like for like: a clinical captioning
# adapter, FLARE 2026's baseline (stage 2), ExplainMyXray.
QUESTIONS = {
    "caption": "You are a medical imaging expert. Describe the findings in this medical image.",
    "report": (
        "You are given a medical image. "
        "Generate a concise radiology-style report with relevant findings and impression."
    ),
    "sectioned": """You are an expert board-certified radiologist AI analyzing chest X-rays. Produce a structured \
radiology report following this exact format:

FINDINGS:
- State each finding on a separate line
- Include anatomical location in parentheses when known

LOCATIONS:
- List all affected anatomical regions

IMPRESSION:
- Provide a concise clinical summary

Be systematic: check lung fields, mediastinum, cardiac silhouette, diaphragm, pleural spaces, and bony thorax.

Analyze this chest X-ray (projection: {projection}). Provide FINDINGS, LOCATIONS, and IMPRESSION.""",
    # One section of a report alone.
    "findings": (
        "You are given the images of one chest X-ray study. Write the FINDINGS section of the radiology report."
    ),
    "impression": (
        "You are given the images of one chest X-ray study. Write the IMPRESSION section of the radiology report."
    ),
    # The data set's own words, for rows that each bring theirs.
    "question": "{question}",
}
NAME = "report"
HEADLINE = "rouge_l"
MAX_NEW_TOKENS = 512
ANSWER_IS = "a text"
SCORED_AS = (
    "ROUGE-L is the longest common run of words; CIDEr-D, from 0 to 10, counts what few other texts say. Like all "
    "scores of words they know nothing of medicine."
)
count_cut = draw_answers = list_fields = None
NORMAL = "normal"
NORMAL_LINE = "No significant abnormalities detected"
# A change against an earlier picture says nothing about this one; `exclude` marks a report that can't be used.
NO_FINDING = {"unchanged", "exclude", "nan", ""}
# Whole phrases, in the words of `normalise_phrase`. `consolidation` is a finding of its own in PadChest.
SYNONYMS = {
    "cardiomegaly": ("enlarged heart", "cardiac enlargement", "enlarged cardiac silhouette"),
    "pleural effusion": ("fluid in pleural space", "pleural fluid"),
    "atelectasis": ("lung collapse", "partial collapse"),
    "pneumonia": ("lung infection", "pneumonic infiltrate"),
    "pneumothorax": ("collapsed lung", "air in pleural space"),
    "edema": ("pulmonary edema", "fluid overload"),
    NORMAL: ("no significant abnormalities detected", "no acute findings", "unremarkable"),
}
MAX_LOCATIONS = 3  # in the brackets behind a finding
MAX_NAMED = 4  # in the impression
_SECTION = re.compile(r"^[ #*_]*(FINDINGS|LOCATIONS|IMPRESSION)[ *_]*:[*_]*", re.IGNORECASE | re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*[-*\N{BULLET}][ \t]+(.+)$", re.MULTILINE)
_BLANKS = str.maketrans(string.punctuation, " " * len(string.punctuation))


class Report(NamedTuple):
    """A sectioned report: findings as canonical phrases in the order of the text, `["normal"]` if there are none."""

    findings: list[str]
    locations: list[str]
    impression: str


def format_prompt(style: str = "caption", instruction: str | None = None, **values: str) -> str:
    """Return the question that training and scoring both ask.

    Args:
        style (`str`): A key of `QUESTIONS`.
        instruction (`str`, *optional*): Replaces the question, in another language for instance.
        values: What stands in place of `{name}` in the question: `projection` for `sectioned`, a data set's own
            `question`.

    Raises:
        ValueError: A `{name}` is left without a value, or a value has no place.
    """
    text = QUESTIONS[style] if instruction is None else instruction
    found, expected = set(re.findall(r"\{([a-z_]+)\}", text)), set(values)
    if found != expected:
        raise ValueError(f"values for {sorted(expected)}, expected {sorted(found)}; change the instruction or the row")
    return re.sub(r"\{([a-z_]+)\}", lambda match: values[match[1]], text)


def format_target(text: str) -> str:
    """Return the whole answer that the model learns to give: the caption or report, its line breaks kept.

    Raises:
        ValueError: There is no word in it.
    """
    if not re.search(r"\w", text):
        raise ValueError(f"text {text!r}, expected words; leave the row out")
    return text.strip()


def parse(text: str) -> str | None:
    """Return the caption or report in the model's `text`, None (unparsed) where there is no word."""
    text = strip_thinking(text)
    return text if re.search(r"\w", text) else None


def format_sections(findings: list[tuple[str, list[str]]]) -> str:
    """Return a sectioned report (ExplainMyXray's template) of (finding, its locations); `normal` isn't listed.

    Raises:
        ValueError: No findings at all: a picture of which nothing is known isn't a normal one.
    """
    findings = [(name, places) for name, places in findings if name not in NO_FINDING]
    if not findings:
        raise ValueError(f"no finding, expected some or {NORMAL!r}; leave the row out")
    places = list(dict.fromkeys(place for _, places in findings for place in places))
    abnormal = [(name[:1].upper() + name[1:], places) for name, places in findings if name != NORMAL]
    lines = [name + f" ({', '.join(p[:MAX_LOCATIONS])})" * bool(p) for name, p in abnormal]
    names = list(dict.fromkeys(name for name, _ in abnormal))
    if not names:
        impression = "Normal chest X-ray. No acute cardiopulmonary disease."
    elif len(names) == 1:
        impression = f"{names[0]} identified. Clinical correlation recommended."
    else:
        named = ", ".join(names[:MAX_NAMED])
        impression = f"Multiple findings: {named}. Clinical correlation and follow-up recommended."
    listed = "\n".join(f"- {line}" for line in dict.fromkeys(lines or [NORMAL_LINE]))
    return f"FINDINGS:\n{listed}\n\nLOCATIONS:\n{', '.join(places) or 'Not specified'}\n\nIMPRESSION:\n{impression}"


def read_sections(text: str) -> dict[str, str]:
    """Return the body of each section that `text` has a heading of, empty where it has none."""
    parts = _SECTION.split(strip_thinking(text))
    return {name.upper(): body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def parse_sections(text: str, synonyms: dict[str, tuple[str, ...]] = SYNONYMS) -> Report | None:
    """Return the sections of the model's `text`, None for unparsed: a text without a list of findings isn't normal."""
    sections = read_sections(text)
    lines = [line.partition("(")[0] for line in _BULLET.findall(sections.get("FINDINGS", ""))]
    findings = list(dict.fromkeys(name for line in lines if (name := match_finding(line, synonyms))))
    if not findings:
        return None
    abnormal = [name for name in findings if name != NORMAL]
    places = [place.strip(" -*.") for place in re.split(r"[,\n]", sections.get("LOCATIONS", ""))]
    places = [place for place in places if place and place.casefold() != "not specified"]
    return Report(abnormal or [NORMAL], places, sections.get("IMPRESSION", ""))


def match_finding(phrase: str, synonyms: dict[str, tuple[str, ...]] = SYNONYMS) -> str:
    """Return the canonical name of `phrase`, itself in plain words where no whole phrase of `synonyms` equals it."""
    plain = normalise_phrase(phrase)
    for name, others in synonyms.items():
        if plain == name or plain in others:
            return name
    return plain


def normalise_phrase(phrase: str) -> str:
    """Lower case, every run of blanks and punctuation one blank."""
    return " ".join(phrase.casefold().translate(_BLANKS).split())


def read_sentence(items: list[str]) -> list[tuple[str, list[str]]]:
    """Return (finding, locations) of one sentence of PadChest's `LabelsLocalizationsBySentence`.

    An item that starts with `loc ` belongs to the finding before it; one without a finding before it is left out.
    """
    findings = []
    for item in (" ".join(str(item).split()) for item in items):
        if item.startswith("loc "):
            if findings:
                findings[-1][1].append(item.removeprefix("loc "))
        elif item not in NO_FINDING:
            findings.append((item, []))
    return findings


def image_findings(labels: list[str]) -> list[str] | None:
    """Return the findings of a picture from PadChest's `Labels` column, which holds for the whole picture.

    `["normal"]` only where nothing but `normal` stands there; None where nothing is known (only `unchanged`, or
    `exclude`), so that such a picture is neither trained nor scored as normal.
    """
    labels = list(dict.fromkeys(" ".join(str(label).split()) for label in labels))
    labels = [label for label in labels if label not in ("", "nan") and not label.startswith("loc ")]
    if "exclude" in labels:
        return None
    abnormal = [label for label in labels if label not in NO_FINDING and label != NORMAL]
    return abnormal or ([NORMAL] if labels == [NORMAL] else None)


def format_question(ask: Mapping, config: DatasetConfig) -> str:
    """Return the prompt of a record; a data set's own instruction takes the values that it has places for."""
    values = {key: value for key, value in ask.items() if key != "style"}
    if config.instruction is not None:
        values = {key: value for key, value in values.items() if f"{{{key}}}" in config.instruction}
    return format_prompt(ask["style"], config.instruction, **values)


def format_answer(ask: Mapping, answer: str, config: DatasetConfig) -> str:
    """Return the target of a record."""
    return format_target(answer)


def read_answer(text: str, ask: Mapping, config: DatasetConfig) -> tuple[str | None, bool]:
    """Return the model's words, None for unparsed, and False: nothing here is ever mended."""
    return parse(text), False


def describe_answer(answer: str) -> dict:
    """Return the form of an answer, see `answer_forms`: its sections, where it has any."""
    if sections := read_sections(answer):
        named = [(name.capitalize(), body) for name, body in sections.items()]
        return {"kind": "sections", "sections": named, "parts": []}
    return {"kind": "text", "text": answer, "parts": []}


def guess_answers(train: Sequence[tuple[Mapping, str]], asks: Sequence[Mapping], config: DatasetConfig) -> list[str]:
    """Return the constant answer of the floor: the most frequent text of train, of several the first."""
    return [Counter(answer for _, answer in train).most_common(1)[0][0]] * len(asks)


def measure_answers(
    gold: Sequence, predicted: Sequence, asks: Sequence[Mapping], guesses: Sequence, config: DatasetConfig
) -> tuple[Measure, dict]:
    """Return the measure for the bootstrap, and what `compute_text` says of the same answers.

    Where the truth has sections, also `findings_f1` (mean over the rows), `findings_micro_f1` and
    `sections_unparsed_rate`, of answers without a list of findings, which have missed every one.
    """
    words = text_measure(gold, predicted)
    truth = [
        parse_sections(text) if ask["style"] == "sectioned" else None for text, ask in zip(gold, asks, strict=True)
    ]
    rows = [row for row, report in enumerate(truth) if report is not None]
    if not rows:
        return words, compute_text(gold, predicted)
    read = [parse_sections(predicted[row] or "") for row in rows]
    findings = multilabel_measure(
        [truth[row].findings for row in rows], [report and report.findings for report in read]
    )

    def measure(weights):
        scores = findings(weights[rows])
        return words(weights) | {
            "findings_f1": scores["example_f1"],
            "findings_micro_f1": scores["micro_f1"],
            "sections_unparsed_rate": scores["unparsed_rate"],
        }

    return measure, compute_text(gold, predicted)
