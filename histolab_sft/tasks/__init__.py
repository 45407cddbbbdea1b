"""Each kind of answer is one file that owns its wording: question, target, parser, scores.

For records (a data set with a `format`), every module has `HEADLINE`, the score to look at first, `MAX_NEW_TOKENS`,
`ANSWER_IS` and `SCORED_AS`, what page and report say of the answer and of its score, and the functions
`format_question(ask, config)`, `format_answer(ask, answer, config)`, `read_answer(text, ask, config)`,
`guess_answers(train, asks, config)` and `measure_answers(gold, predicted, asks, guesses, config)`.
"""

from histolab_sft.tasks import biomarkers, boxes, classification, masks, multilabel, quantity, report

TASKS = {
    "classification": classification,
    "multilabel": multilabel,
    "quantity": quantity,
    "boxes": boxes,
    "masks": masks,
    "report": report,
    "biomarkers": biomarkers,
}
# Tasks whose answer is a JSON object of fields: its form is known, and each field has a confidence.
WITH_FIELDS = ("biomarkers",)


def choose_limit(task: str, own: int | None, recipe: int | None) -> int:
    """Return how many tokens an answer to a record may have: the data set's own limit, the recipe's, or the task's."""
    return own or recipe or TASKS[task].MAX_NEW_TOKENS
