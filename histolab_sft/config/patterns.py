"""Search with the regular expressions of a recipe, within a limit of time: some would never end."""

import regex

SECONDS = 2.0  # for one name; a pattern without repetitions inside of repetitions takes microseconds


def search(pattern: str, text: str) -> regex.Match | None:
    """Return the first match of a pattern in a text.

    Raises:
        ValueError: It is no regular expression, or takes too long.
    """
    try:
        return regex.search(pattern, text, timeout=SECONDS)
    except TimeoutError as error:
        raise ValueError(
            f"the pattern {pattern!r} takes more than {SECONDS:g} s on {text!r}; write it without repetitions "
            "inside of repetitions"
        ) from error
    except regex.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error}); correct it") from error
