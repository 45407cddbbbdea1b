"""Read one question of FLARE: its kind, what the task needs to word it, and the true answer."""

import json
import math
import re
from typing import NamedTuple

from histolab_sft.tasks import multilabel, quantity, report
from histolab_sft.tasks.parsing import box_codecs

# Kind -> every spelling of `TaskType` that is known, as `_plain` writes it.
TASK_TYPES = {
    "classification": ("classification", "cls", "disease diagnosis", "disease diagnosis classification"),
    "multilabel": ("multi label classification", "multilabel classification", "multilabel", "multi label"),
    "detection": ("detection",),
    "instance detection": ("instance detection",),
    "counting": ("counting", "cell counting", "count"),
    "regression": ("regression",),
    "report": ("report generation", "report"),
}
TASKS = {
    "classification": "classification",
    "multilabel": "multilabel",
    "detection": "boxes",
    "instance detection": "boxes",
    "counting": "quantity",
    "regression": "quantity",
    "report": "report",
}
_KINDS = {spelling: kind for kind, spellings in TASK_TYPES.items() for spelling in spellings}
_MARKER = re.compile(r"(?<![^\s,;(])\(?([A-Z])(?:[:)]\s*|\.\s+)")
_LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?(?:\s+(.*))?", re.DOTALL)
# The last option may be followed by a sentence of its own.
_SENTENCE = re.compile(r"(?<=[a-z0-9)])[.?!]\s+(?=[A-Z])|\n")


class Known(NamedTuple):
    """Answers seen in a whole data set, for questions that don't list what may be answered."""

    options: dict[str, list[str]]  # question -> the answers to it and to every question that shares one of them
    labels: list[str]


def is_hidden(answer: object) -> bool:
    """Whether a question has no answer: no such field, null, NaN or an empty text."""
    blank = isinstance(answer, str) and not answer.strip()
    return answer is None or blank or (isinstance(answer, float) and math.isnan(answer))


def find_kind(record: dict) -> str:
    """Return the kind of question, a key of `TASKS`, from `TaskType`, or from question and answer where it is missing.

    Raises:
        ValueError: The spelling is unknown, or it is missing and the rest of the record leaves it open.
    """
    given = record.get("TaskType")
    if not is_hidden(given):
        kind = _KINDS.get(_plain(str(given)))
        if kind is None:
            raise ValueError(f"TaskType {given!r}, expected one of {sorted(_KINDS)}")
        return kind
    question, answer = str(record.get("Question")), record.get("Answer")
    if re.search(r"select all|all that apply|multiple selections", question.casefold()):
        return "multilabel"
    if parse_options(question):
        return "classification"
    if isinstance(answer, dict):
        return "instance detection"
    if isinstance(answer, list) or re.search(r"bounding box|x_min", question):
        return "detection"
    if re.search(r"\bcount\b|how many|number of", question.casefold()):
        return "counting"
    if not is_hidden(answer) and quantity.parse(str(answer), "regression") is not None:
        return "regression"
    raise ValueError(f"no TaskType, question {question[:80]!r}, answer {answer!r:.40}, expected a TaskType")


def parse_options(question: str) -> dict[str, str]:
    """Return letter -> words of the options that stand in a question (`A: No, B: Yes`, `A. No B. Yes`), or {}.

    The letters follow one another from A, so that a `vitamin D. ` inside an option doesn't begin another one; of
    several such rows the longest counts, the last of equals.
    """
    markers, best = list(_MARKER.finditer(question)), []
    for start, first in enumerate(markers):
        if first[1] == "A":
            row = [first]
            for marker in markers[start + 1 :]:
                if ord(marker[1]) == ord(row[-1][1]) + 1:
                    row.append(marker)
            best = row if len(row) >= len(best) else best
    if len(best) < 2:
        return {}
    ends = [marker.start() for marker in best[1:]] + [len(question)]
    texts = [question[marker.end() : end] for marker, end in zip(best, ends, strict=True)]
    texts[-1] = _SENTENCE.split(texts[-1])[0]
    options = {marker[1]: text.strip(" \t\n,;.") for marker, text in zip(best, texts, strict=True)}
    return options if all(options.values()) and len(set(map(_plain, options.values()))) == len(options) else {}


def parse_label_list(question: str) -> list[str]:
    """Return the labels that a question lists after its last colon with semicolons between them, or []."""
    labels = [label.strip() for label in question.rpartition(":")[2].strip(" .\n").split(";")]
    return labels if len(labels) > 1 and all(labels) else []


def collect_known(records: list[tuple[str, dict]]) -> Known:
    """Return the answers to the questions, (kind, record) each, of one data set that list no options."""
    answers, labels, spelling = {}, [], {}
    for kind, record in records:
        question, answer = str(record.get("Question")), record.get("Answer")
        if is_hidden(answer) or parse_options(question) or parse_label_list(question):
            continue
        if kind == "classification" and not _LETTER.fullmatch(str(answer).strip()):
            word = spelling.setdefault(_plain(str(answer)), str(answer).strip())
            answers.setdefault(question, set()).add(word)
        elif kind == "multilabel":
            labels.append(str(answer) if isinstance(answer, str) else "; ".join(answer))
    # One label holds commas, so a data set that writes semicolons anywhere is never cut at commas.
    separator = ";" if any(";" in text for text in labels) else ","
    pieces = [piece.strip(" .") for text in labels for piece in text.split(separator)]
    unique = {_plain(piece): piece for piece in reversed(pieces) if piece}
    return Known(_pool(answers), sorted(unique.values()))


def read_answer(record: dict, kind: str, known: Known, size: tuple[int, int] | None) -> tuple[dict, object | None]:
    """Return `ask` and `answer` of a record, the latter None where it is hidden.

    Args:
        size: Width and height of the record's picture, for boxes alone.

    Raises:
        ValueError: The question or the answer isn't of its kind; says what was found and expected.
    """
    question, answer = record.get("Question"), record.get("Answer")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"Question {question!r}, expected a text")
    hidden = is_hidden(answer)
    if kind == "classification":
        options = parse_options(question)
        words = list(options.values()) or known.options.get(question) or sorted({*sum(known.options.values(), [])})
        if len(words) < 2:
            raise ValueError(f"no options in question {question[:80]!r}, expected two or more, as in `A: No, B: Yes`")
        return {"question": question, "options": words}, None if hidden else read_option(answer, options, words)
    if kind == "multilabel":
        options = parse_options(question)
        vocabulary = list(options.values()) or parse_label_list(question) or known.labels
        if not vocabulary:
            raise ValueError(f"no labels in question {question[:80]!r} or in any answer, expected a list of them")
        labels = None if hidden else _read_labels(answer, options, vocabulary)
        return {"question": question, "vocabulary": vocabulary}, labels
    if kind in ("counting", "regression"):
        value = None if hidden else quantity.parse(str(answer), kind)
        if value is None and not hidden:
            raise ValueError(f"answer {answer!r}, expected one number ({kind})")
        value = int(value) if value is not None and kind == "counting" else value
        return {"question": question, "kind": kind}, value
    if kind == "report":
        return {"style": "question", "question": question}, None if hidden else report.format_target(str(answer))
    labelled = kind == "instance detection"
    ask = {"question": question, "size": list(size), "label_aware": labelled}
    return ask, None if hidden else _read_boxes(answer, size, labelled)


def read_option(answer: object, options: dict[str, str], words: list[str]) -> str:
    """Return the option that a classification's answer names, by its words or by its letter in the question."""
    text = str(answer).strip()
    by_words = {_plain(option): option for option in words}
    if _plain(text) in by_words:
        return by_words[_plain(text)]
    letter = _LETTER.fullmatch(text)
    option = options.get(letter[1]) if letter else None
    if option is None or (letter[2] and _plain(letter[2]) != _plain(option)):
        listed = [f"{letter}: {option}" for letter, option in options.items()] or words
        raise ValueError(f"answer {answer!r}, expected one of {listed}")
    return option


def _read_labels(answer: object, options: dict[str, str], vocabulary: list[str]) -> list[str]:
    if not isinstance(answer, str | list):
        raise ValueError(f"answer {answer!r}, expected labels")
    text = answer if isinstance(answer, str) else "; ".join(map(str, answer))
    letters = re.split(r"[;,\s]+", text.strip(" ,;."))
    if all(letter in options for letter in letters):
        return [options[letter] for letter in dict.fromkeys(letters)]
    return multilabel.read_labels(text, vocabulary)


def _read_boxes(answer: object, size: tuple[int, int], labelled: bool) -> list[list]:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    decoded = box_codecs.decode_pixels(text, size)
    if decoded is None or decoded.dropped or decoded.truncated:
        raise ValueError(
            f"answer {text[:80]!r}, expected whole [x_min, y_min, x_max, y_max] with an area inside the picture, "
            f"{size[0]} x {size[1]} pixels"
        )
    if labelled and any(box.label is None for box in decoded.boxes):
        raise ValueError(
            f"answer {text[:80]!r}, expected boxes by name: {{name: [[x_min, y_min, x_max, y_max], ...]}}"
        )
    return [list(box) for box in decoded.boxes]


def _pool(answers: dict[str, set[str]]) -> dict[str, list[str]]:
    """Return question -> answers to it and to all questions that share one: they ask the same in other words."""
    groups = []
    for found in answers.values():
        shared = [group for group in groups if group & found]
        groups = [group for group in groups if not group & found] + [found.union(*shared)]
    return {question: sorted(next(group for group in groups if found <= group)) for question, found in answers.items()}


def _plain(text: str) -> str:
    """Return a text as texts are compared: lower case, no final stop, one blank for blanks, `_`, `-` and brackets."""
    return " ".join(re.sub(r"[_()-]", " ", text.casefold()).split()).rstrip(".")
