"""What the page shows, as HTML. Whatever a model, a file name or a recipe says is escaped."""

from collections.abc import Mapping
from html import escape

from PIL import Image

from histolab_sft.demo.data_set import DataSet, word_question
from histolab_sft.demo.history import say_briefly, shorten
from histolab_sft.demo.systems import TITLES, Answer
from histolab_sft.metrics.biomarkers import UNKNOWN
from histolab_sft.tasks import TASKS
from histolab_sft.tasks.answer_forms import encode_picture, write_value

RESEARCH_NOTICE = (
    "This is no medical device: it must not be used for diagnosis or treatment. "
    "Don't upload pictures that identify a patient."
)
WAITING = "waiting …"
OWN_WORDS = "<h3>In its own words</h3>"
ABSENT = "not in the answer"
UNPARSED = "No answer could be read from its words; in scoring it counts as wrong."
CUT_OFF = "Cut off: the answer may lack its end."
SIGNS = {"right": "✓ right", "wrong": "✗ wrong"}
EVALUATE = "score this model first (make evaluate)."
TRAIN = "train and score a model first (make train, then make evaluate)."
LONGEST = 80  # letters of a cell of the history
SIDE = 640  # pixels of a picture with places on it


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


def format_placeholder() -> str:
    return '<p class="hs-empty">Choose a picture, then press Ask.</p>'


def format_answers(
    data_set: DataSet,
    ask: dict,
    answers: Mapping[str, Answer | None],
    image: Image.Image | None = None,
    truth: object | None = None,
) -> str:
    """Return one card a system, side by side; None is a system that is still writing.

    Args:
        ask: The question in the task's own form.
        image: The picture that places are drawn on; needed where the task draws them.
        truth: The true answer in the task's own form, None where it isn't known.
    """
    task, cards = TASKS[data_set.task], ""
    for system, answer in answers.items():
        drawn = None
        if task.draw_answers and answer and answer.value is not None:
            shown = ({} if truth is None else {"truth": truth}) | {system: answer.value}
            drawn = task.draw_answers(image, ask, shown, SIDE)
        cards += _format_card(data_set, system, answer, drawn, truth)
    return (
        f'<div class="hs-cards" role="status">{cards}</div>{_format_truth(data_set, truth)}'
        '<details class="hs-question"><summary>The question, word for word</summary>'
        f"<p>{escape_text(word_question(data_set, ask))}</p></details>"
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
            body = f'{_quote(text, truncated)}<p class="hs-muted">{read}</p>'
        cards.append(f'<section class="hs-card hs-{system}"><h3>{_mark(system)}{TITLES[system]}</h3>{body}</section>')
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


def format_score(data_set: DataSet, adapted: bool) -> str:
    """Return how well these systems answer the test split, so that one answer isn't taken for their measure."""
    scored = data_set.scored
    if not scored:
        do = EVALUATE if adapted else TRAIN
        return f'<p class="hs-score hs-muted">How often answers are right is not known here: {do}</p>'
    warnings = "".join(f"<li>{escape_text(warning)}</li>" for warning in scored["warnings"])
    listed = f"<ul>{warnings}</ul>" if warnings else ""
    if "name" not in scored:
        return f'<section class="hs-score"><h2>No score on the test split</h2>{listed}</section>'
    rows = "".join(
        f'<tr><th scope="row">{_mark(system)}{TITLES[system]}</th><td>{escape_text(scored[system])}</td></tr>'
        for system in TITLES
    )
    floor = f'<tr><th scope="row">Floor: {scored["floor_name"]}</th><td>{escape_text(scored["floor"])}</td></tr>'
    caption = f"{scored['name']} on {scored['n']} test rows of {data_set.name}, with the 95 % interval"
    return (
        '<section class="hs-score"><h2>How good are these models?</h2>'
        f'<table class="hs-fields"><caption>{escape_text(caption)}</caption><tbody>{rows}{floor}</tbody></table>'
        f"{listed}</section>"
    )


def format_history(entries: list[dict]) -> str:
    """Return what was asked so far as a table, the newest first."""
    if not entries:
        return '<p class="hs-empty">Nothing was asked yet.</p>'
    systems = [system for system in TITLES if system in entries[-1]]
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ["Time (UTC)", "Data set", "Question", "Truth", *(_mark(s) + TITLES[s] for s in systems)]
    )
    rows = ""
    for entry in reversed(entries):
        cells = [entry["asked_at"][:19].replace("T", " "), entry["data_set"], shorten(entry["question"], LONGEST)]
        cells.append("–" if entry["truth"] is None else shorten(say_briefly(entry["task"], entry["truth"]), LONGEST))
        for system in systems:
            said = "unparsed" if entry[system] is None else shorten(say_briefly(entry["task"], entry[system]), LONGEST)
            sure = entry[f"{system}_confidence"]
            said += "" if sure is None else f" {sure:.1%}"
            cells.append(f"No answer ({said})" if entry[f"{system}_withheld"] else said)
        rows += "<tr>" + "".join(f"<td>{escape_text(cell)}</td>" for cell in cells) + "</tr>"
    table = f'<table class="hs-fields hs-history"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="hs-rows" tabindex="0" role="region" aria-label="History">{table}</div>'


def _mark(system: str) -> str:
    return f'<span class="key {system}" aria-hidden="true"></span>'


def _format_card(
    data_set: DataSet, system: str, answer: Answer | None, drawn: Image.Image | None, truth: object | None
) -> str:
    if answer is None:
        body = f'<p class="hs-muted">{WAITING}</p>'
    elif answer.probabilities is not None:
        words = f'<p class="hs-muted">{WAITING}</p>' if answer.text is None else _quote(answer.text, answer.truncated)
        verdict = _format_verdict(data_set, answer, truth)
        bars = f"{_format_decision(data_set, system, answer)}{verdict}{_format_bars(data_set, answer)}"
        body = f"{bars}{OWN_WORDS}{words}"
    elif answer.value is None:
        body = (
            f'<p class="hs-decision hs-withheld">Unparsed</p><p class="hs-muted">{UNPARSED}</p>'
            f"{OWN_WORDS}{_quote(answer.text, answer.truncated)}"
        )
    else:
        cut = f'<p class="hs-muted">{CUT_OFF}</p>' if answer.truncated else ""
        words = f"<summary>In its own words</summary>{_quote(answer.text, answer.truncated)}"
        value = _format_value(data_set, answer, drawn, truth)
        verdict = _format_verdict(data_set, answer, truth)
        body = f'{cut}{verdict}{value}<details class="hs-question">{words}</details>'
    head = f"<h2>{_mark(system)}{TITLES[system]}</h2>"
    return f'<section class="hs-card hs-{system}" data-system="{system}">{head}{body}</section>'


def _format_decision(data_set: DataSet, system: str, answer: Answer) -> str:
    sure = f"{answer.confidence:.1%}"
    if not answer.withheld:
        return f'<p class="hs-decision">{escape_text(answer.value)} <span class="hs-muted">{sure}</span></p>'
    threshold, target = data_set.thresholds[system], f"{data_set.target:.0%}"
    reason = (
        f"on the validation split no confidence was high enough for {target} right answers"
        if threshold is None
        else f"answers on the validation split are {target} right from {threshold:.1%} on"
    )
    if system in data_set.temperatures and threshold is not None:
        reason += f", and calibrated this one has {data_set.measure_confidence(system, answer.probabilities):.1%}"
    return (
        '<p class="hs-decision hs-withheld">No answer</p>'
        f'<p class="hs-muted">Likeliest: {escape_text(answer.value)} at {sure}, but {reason}.</p>'
    )


def _format_bars(data_set: DataSet, answer: Answer) -> str:
    rows = "".join(
        f'<tr{" class=hs-best" if option == answer.value else ""}><th scope="row">{escape_text(option)}</th>'
        f'<td class="hs-track" aria-hidden="true"><span style="width:{100 * probability:.2f}%"></span></td>'
        f'<td class="hs-value" data-probability="{probability!r}">{probability:.1%}</td></tr>'
        for option, probability in zip(data_set.options, answer.probabilities, strict=True)
    )
    faded = " hs-faded" if answer.withheld else ""
    return f'<table class="hs-bars{faded}"><caption>Probability of each class</caption><tbody>{rows}</tbody></table>'


def _format_verdict(data_set: DataSet, answer: Answer, truth: object | None) -> str:
    """Say whether an answer is the truth, where one word or number is to be compared; else the truth stands below."""
    task = TASKS[data_set.task]
    if truth is None or task.draw_answers or not task.describe_answer(truth)["parts"]:
        return ""
    told, said = (sorted(task.describe_answer(value)["parts"]) for value in (truth, answer.value))
    subject = "The likeliest class is " if answer.withheld else ""
    if told == said:
        return f'<p class="hs-verdict hs-right">✓ {(subject + "right").capitalize()}</p>'
    away = f"off by {write_value(abs(answer.value - truth))}" if isinstance(truth, int | float) else "wrong"
    said = f"✗ {(subject + away).capitalize()}: the truth is {escape_text(', '.join(told))}"
    return f'<p class="hs-verdict hs-wrong">{said}</p>'


def _format_truth(data_set: DataSet, truth: object | None) -> str:
    """Return the truth in its task's own form, where it isn't a word or number that stands in the verdict."""
    task = TASKS[data_set.task]
    if truth is None or (task.describe_answer(truth)["parts"] and not task.draw_answers):
        return ""
    legend = '<p class="hs-muted">On the pictures above it is drawn in green.</p>' if task.draw_answers else ""
    return f'<section class="hs-truth"><h2>The truth</h2>{_format_form(data_set, truth)}{legend}</section>'


def _format_value(data_set: DataSet, answer: Answer, drawn: Image.Image | None, truth: object | None) -> str:
    """Return a written answer in its task's own form."""
    picture = ""
    if drawn is not None:
        address = encode_picture(drawn, SIDE)
        picture = f'<img class="hs-places" src="{address}" alt="The picture with the answer on it">'
    return picture + _format_form(data_set, answer.value, answer.confidences, truth)


def _format_form(
    data_set: DataSet, value: object, confidences: Mapping[str, float] | None = None, truth: object | None = None
) -> str:
    task = TASKS[data_set.task]
    form = task.describe_answer(value)
    said = "".join(f'<p class="hs-decision">{escape_text(part)}</p>' for part in form["parts"])
    if form["kind"] == "sections":
        return said + "".join(f"<h3>{escape_text(name)}</h3>{_format_text(body)}" for name, body in form["sections"])
    if form["kind"] == "rows":
        fields = task.list_fields(data_set.config) if task.list_fields else ()
        absent = [(field["name"], ABSENT) for field in fields if field["name"] not in value]
        true = dict(task.describe_answer(truth)["rows"]) if truth is not None and task.list_fields else {}
        return said + _format_rows([*form["rows"], *absent], form["caption"], confidences or {}, true)
    return said or _format_text(form["text"])


def _format_rows(
    rows: list[tuple[str, str]], caption: str, confidences: Mapping[str, float], true: Mapping[str, str]
) -> str:
    cells = ""
    for name, value in rows:
        known = true.get(name, UNKNOWN) != UNKNOWN
        kind = "right" if value == true.get(name) else "wrong"
        sign = f' <span class="hs-{kind}">{SIGNS[kind]}</span>' if known else ""
        sure = f' <span class="hs-muted">{confidences[name]:.1%}</span>' if name in confidences else ""
        cells += f'<tr><th scope="row">{escape_text(name)}</th><td>{escape_text(value)}{sign}{sure}</td></tr>'
    caption += ", each with how likely the model finds it" if confidences else ""
    table = f'<table class="hs-fields"><caption>{caption}</caption><tbody>{cells}</tbody></table>'
    return f'<div class="hs-rows" tabindex="0" role="region" aria-label="{caption}">{table}</div>'


def _format_text(text: str) -> str:
    return f'<p class="hs-text">{escape_text(text)}</p>' if text else '<p class="hs-muted">Nothing.</p>'


def _quote(text: str, truncated: bool) -> str:
    cut = '<p class="hs-muted">Cut off at the longest answer allowed.</p>' if truncated else ""
    said = (
        f"<blockquote>{escape_text(text.strip())}</blockquote>" if text.strip() else '<p class="hs-muted">Nothing.</p>'
    )
    return said + cut


def escape_text(text: str) -> str:
    # Braces and dollars too: the page's own templates must never read them.
    return escape(text).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")
