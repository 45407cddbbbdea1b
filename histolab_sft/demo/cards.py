"""What the page shows, as HTML. Whatever a model, a file name or a recipe says is escaped."""

from html import escape

from histolab_sft.demo.systems import TITLES, Answer, DataSet

RESEARCH_NOTICE = (
    "This is no medical device: it must not be used for diagnosis or treatment. "
    "Don't upload pictures that identify a patient."
)
WAITING = "waiting …"


def format_head(base_model: str, adapted: bool, remarks: list[str]) -> str:
    """Return title, research notice and what there is to say about this set-up."""
    systems = "the base model beside its fine-tuned adapter" if adapted else "the base model alone"
    remarks = "".join(f"<li>{escape_text(remark)}</li>" for remark in remarks)
    return (
        f'<header class="hs-head"><h1>HistoLab demo</h1>'
        f"<p>{escape_text(base_model)}: {systems}.</p></header>"
        f'<p class="hs-notice" role="note"><strong>Research use only.</strong> {escape_text(RESEARCH_NOTICE)}</p>'
        + (f'<ul class="hs-remarks">{remarks}</ul>' if remarks else "")
    )


def format_notes(notes: list[str]) -> str:
    """Return the notes on a patch as a list, or an empty string."""
    items = "".join(f"<li>{escape_text(note)}</li>" for note in notes)
    return f'<div class="hs-notes" role="status"><h3>About this picture</h3><ul>{items}</ul></div>' if notes else ""


def format_refusal(reason: str) -> str:
    """Return why nothing could be done; it stays until the next try, unlike a message that fades."""
    return f'<p class="hs-refused" role="alert">{escape_text(reason)}</p>'


def describe_unusable(reason: str) -> str:
    return f"This picture can't be used: {reason}."


def format_placeholder(button: str = "Classify") -> str:
    return f'<p class="hs-empty">Choose a picture, then press {button}.</p>'


def format_answers(data_set: DataSet, answers: dict[str, Answer], words: dict[str, tuple[str, bool]]) -> str:
    """Return one card a system, side by side; a system without `words` yet is still writing."""
    cards = "".join(_format_card(data_set, system, answer, words.get(system)) for system, answer in answers.items())
    return (
        f'<div class="hs-cards" role="status">{cards}</div>'
        '<details class="hs-question"><summary>The question, word for word</summary>'
        f"<p>{escape_text(data_set.question)}</p></details>"
    )


def format_reasoning(reasoned: dict[str, tuple[str, bool, str] | None]) -> str:
    """Return what the systems wrote when they described first; None is a system that is still writing."""
    cards = []
    for system, written in reasoned.items():
        body = f'<p class="hs-muted">{WAITING}</p>'
        if written is not None:
            text, truncated, option = written
            read = (
                "No class could be read from it." if option == "unparsed" else f"It ends with: {escape_text(option)}."
            )
            body = f'{format_words(text, truncated)}<p class="hs-muted">{read}</p>'
        cards.append(f'<section class="hs-card hs-{system}"><h3>{TITLES[system]}</h3>{body}</section>')
    return (
        '<section class="hs-reasoning"><h2>Described first, then decided</h2>'
        '<p class="hs-muted">Asked anew, with another question. Written text may sound sure and be wrong: it has no '
        "probability, and the bars above don't come from it.</p>"
        f'<div class="hs-cards" role="status">{"".join(cards)}</div></section>'
    )


def format_batch(total: int, refused: list[tuple[str, str]], withheld: dict[str, int]) -> str:
    """Return the summary of a batch: how many were answered, withheld and refused, and the first refusals."""
    lines = [f"{total - len(refused)} of {total} pictures answered."]
    lines += [f"{TITLES[system]}: {count} answers withheld." for system, count in withheld.items() if count]
    items = "".join(f"<li>{escape_text(name)}: {escape_text(reason)}</li>" for name, reason in refused[:10])
    more = f"<p>{len(refused) - 10} more in the CSV.</p>" if len(refused) > 10 else ""
    listed = f"<h3>Refused: {len(refused)}</h3><ul>{items}</ul>{more}" if refused else ""
    return f'<div class="hs-notes" role="status"><p>{" ".join(lines)}</p>{listed}</div>'


def _format_card(data_set: DataSet, system: str, answer: Answer, words: tuple[str, bool] | None) -> str:
    written = f'<p class="hs-muted">{WAITING}</p>' if words is None else format_words(*words)
    return (
        f'<section class="hs-card hs-{system}" data-system="{system}"><h2>{TITLES[system]}</h2>'
        f"{_format_decision(data_set, system, answer)}{_format_bars(data_set, answer)}"
        f"<h3>In its own words</h3>{written}</section>"
    )


def _format_decision(data_set: DataSet, system: str, answer: Answer) -> str:
    sure = f"{answer.confidence:.1%}"
    if not answer.withheld:
        return f'<p class="hs-decision">{escape_text(answer.option)} <span class="hs-muted">{sure}</span></p>'
    threshold, target = data_set.thresholds[system], f"{data_set.target:.0%}"
    reason = (
        f"on the validation split no confidence was high enough for {target} right answers"
        if threshold is None
        else f"answers on the validation split are {target} right from {threshold:.1%} on"
    )
    return (
        '<p class="hs-decision hs-withheld">No answer</p>'
        f'<p class="hs-muted">Likeliest: {escape_text(answer.option)} at {sure}, but {reason}.</p>'
    )


def _format_bars(data_set: DataSet, answer: Answer) -> str:
    rows = "".join(
        f'<tr{" class=hs-best" if option == answer.option else ""}><th scope="row">{escape_text(option)}</th>'
        f'<td class="hs-track" aria-hidden="true"><span style="width:{100 * probability:.2f}%"></span></td>'
        f'<td class="hs-value" data-probability="{probability!r}">{probability:.1%}</td></tr>'
        for option, probability in zip(data_set.options, answer.probabilities, strict=True)
    )
    return f'<table class="hs-bars"><caption>Probability of each class</caption><tbody>{rows}</tbody></table>'


def format_words(text: str, truncated: bool) -> str:
    cut = '<p class="hs-muted">Cut off at the longest answer allowed.</p>' if truncated else ""
    said = (
        f"<blockquote>{escape_text(text.strip())}</blockquote>" if text.strip() else '<p class="hs-muted">Nothing.</p>'
    )
    return said + cut


def escape_text(text: str) -> str:
    # Braces and dollars too: the page's own templates must never read them.
    return escape(text).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")
