"""Cut a model's words down to its answer: without the thinking block, the turn marker and the lead-in."""

import re

# Between these MedGemma 1.5 thinks aloud before it answers: `<unused94>thought ... <unused95>`.
OPENING, CLOSING, END_OF_TURN = "<unused94>", "<unused95>", "<end_of_turn>"
_THINKING = re.compile(rf"{OPENING}.*?(?:{CLOSING}|$)", re.DOTALL)
_MARKER = re.compile(r"(?:final answer|the answer is|answer)\s*:", re.IGNORECASE)


def strip_thinking(text: str) -> str:
    """Return `text` without thinking blocks, up to the end of the turn.

    A block that isn't closed reaches to the end of the text; one that is only closed, since it was opened for the
    model, from its beginning.
    """
    return _THINKING.sub("", text).rpartition(CLOSING)[2].split(END_OF_TURN)[0].strip()


def read_final(text: str) -> str:
    """Return what follows the last `Answer:`, `The answer is:` or `Final answer:`, all of it where there is none."""
    return _MARKER.split(strip_thinking(text))[-1].strip()


def check_target(text: str) -> str:
    """Return an answer that is to be learnt; it holds nothing that a parser would take away again.

    Raises:
        ValueError: It holds a thinking block's marker, or an end of turn.
    """
    if found := [word for word in (OPENING, CLOSING, END_OF_TURN) if word in text]:
        raise ValueError(
            f"the answer holds {', '.join(found)}, expected the answer alone, without what a model thinks aloud and "
            "without the end of its turn; take it out"
        )
    return text
