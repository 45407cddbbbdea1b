"""Cut a model's words down to its answer: without the thinking block, the turn marker and the lead-in."""

import re

_THINKING = re.compile(r"<unused94>.*?(?:<unused95>|$)", re.DOTALL)
_MARKER = re.compile(r"(?:final answer|the answer is|answer)\s*:", re.IGNORECASE)


def strip_thinking(text: str) -> str:
    """Return `text` without thinking blocks (an unclosed one reaches to the end), up to the end of the turn."""
    return _THINKING.sub("", text).split("<end_of_turn>")[0].strip()


def read_final(text: str) -> str:
    """Return what follows the last `Answer:`, `The answer is:` or `Final answer:`, all of it where there is none."""
    return _MARKER.split(strip_thinking(text))[-1].strip()
