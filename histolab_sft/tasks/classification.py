"""Name the class of a patch: the question, the target, the parser of answers. No English about it stands elsewhere."""

from histolab_sft.tasks.answers import parse_answer

# HistoLab's wording, so that its published table can be reproduced like for like.
GENERIC_QUESTION = (
    "Classify this histopathology image. The possible tissue types are: {options}. "
    "What type of tissue is shown? Answer with only the tissue type name."
)
QUESTIONS = {
    "crc": (
        "This is an H&E stained colorectal tissue patch at 20x magnification. "
        "Classify the tissue type. Options: [{options}]. Answer with only the tissue type."
    ),
    "pcam": (
        "This is an H&E stained lymph node tissue section. Does this patch contain metastatic tumor tissue? "
        "Options: [{options}]. Answer with only Normal or Tumor."
    ),
    "bach": (
        "This is an H&E stained breast tissue biopsy at high magnification. "
        "Classify the tissue as one of: [{options}]. Answer with only the classification."
    ),
}
TARGET = "The answer is: {name}"

# The same question in other words, to measure how much hangs on the wording; nothing is trained on them.
PARAPHRASES = (
    "What tissue does this histopathology patch show? Choose one of: {options}. Reply with its name only.",
    "Look at this picture of stained tissue under the microscope. Which of these fits it best: {options}? "
    "Give only the name.",
    "Options: {options}. Name the one that describes this histopathology image. Answer with the name alone.",
)


def format_prompt(name: str, options: list[str], style: str = "generic", question: str | None = None) -> str:
    """Return the question that training and scoring both ask.

    Args:
        name (`str`): Data set; with `style="dataset_specific"` it selects the question.
        options (`list[str]`): Class names in the order in which they are listed.
        style (`str`): `generic` or `dataset_specific`; a data set without its own question gets the generic one.
        question (`str`, *optional*): The recipe's own wording, in which `{options}` stands for the class names.
    """
    if question is None:
        question = QUESTIONS.get(name, GENERIC_QUESTION) if style == "dataset_specific" else GENERIC_QUESTION
    return question.replace("{options}", ", ".join(options))


def format_paraphrases(options: list[str]) -> list[str]:
    """Return other wordings of the question, with the class names in the order given."""
    return [question.replace("{options}", ", ".join(options)) for question in PARAPHRASES]


def format_target(option: str) -> str:
    """Return the whole answer that the model learns to give for the class name `option`."""
    return TARGET.format(name=option)


def parse(text: str, options: list[str]) -> str:
    """Return the class name in the model's `text`, or `"unparsed"`."""
    return parse_answer(text, options)
