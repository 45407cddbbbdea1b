"""Describe a patch first, then decide: the question of the optional second look, and its parser."""

from histolab_sft.tasks.parsing.answers import parse_answer

QUESTION = (
    "Look at this histopathology image. First describe what it shows in two or three sentences: architecture, cells, "
    "nuclei and what lies between them. Then decide which of these it is: {options}. "
    "End with a line of its own: Answer: followed by only that name."
)


def format_prompt(options: list[str]) -> str:
    """Return the question, with the class names in the order in which they are listed."""
    return QUESTION.replace("{options}", ", ".join(options))


def parse(text: str, options: list[str]) -> str:
    """Return the class name that the model's `text` ends with, or `"unparsed"`."""
    return parse_answer(text, options)
