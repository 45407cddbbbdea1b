"""Each kind of answer is one file that owns its wording: question, target, parser, scores.

Every module has `NAME`; `HEADLINE`, the score to look at first; `MAX_NEW_TOKENS`; `ANSWER_IS` and `SCORED_AS`, what
page and report say of the answer and of its score; and the functions `format_question(ask, config)`,
`format_answer(ask, answer, config)`, `read_answer(text, ask, config)`, `guess_answers(train, asks, config)`,
`measure_answers(gold, predicted, asks, guesses, config)` and `describe_answer(answer)`, which gives a form of
`answer_forms`.

What a task has no use for is None in its module: `list_fields(config)`, the fields of a JSON object, of which each has
a confidence; `draw_answers(picture, ask, answers, side)`, a picture with the places on it that answers name, and
`count_cut(ask, answer)`, how many of these the data set's `image_steps` cut away.
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


def choose_limit(task: str, own: int | None, recipe: int | None) -> int:
    """Return how many tokens an answer to a record may have: the data set's own limit, the recipe's, or the task's."""
    return own or recipe or TASKS[task].MAX_NEW_TOKENS
