"""Error messages of a command: one sentence for a mistake of the user, a traceback for a bug of ours."""

import dis
import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from histolab_sft.secrets import mask_secrets

MISTAKE = 2  # exit code: something in the recipe, the data or the machine is to be mended
REFUSAL = 1  # exit code: the audit of the data refuses

PACKAGE = Path(__file__).resolve().parent
# What the operating system says about a folder or disk, and what to do.
DISK = {
    errno.EACCES: "choose a folder that you may read and write",
    errno.EPERM: "choose a folder that you may read and write",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOSPC: "make room, or choose a folder on another disk",
    errno.EDQUOT: "make room, or choose a folder on another disk",
}


class AuditRefusal(ValueError):
    """Pictures or splits are not fit to be trained on or scored, and the message says what to do."""


@contextmanager
def plain_errors(label: str = "error") -> Iterator[None]:
    """End the command with one message on stderr where the block raises what is addressed to the user.

    The exit code is 1 if the audit of the data refuses and 2 after any other mistake. A bug keeps its traceback.

    Args:
        label (`str`): What the message begins with.
    """
    try:
        yield
    except Exception as error:
        if not is_for_user(error):
            raise
        print(f"{label}: {mask_secrets(describe(error))}", file=sys.stderr)  # noqa: T201
        sys.exit(REFUSAL if isinstance(error, AuditRefusal) else MISTAKE)


def is_for_user(error: BaseException) -> bool:
    """Whether `error` says what the user can mend: this project raised it, or a disk is full or closed to the user.

    What this project raises by a `raise` of its own is a message that it wrote. The same class of error from a
    library, or from an expression such as `int("x")`, was not foreseen and is a bug.
    """
    if type(error).__module__.startswith("histolab_sft."):
        return True
    if isinstance(error, OSError) and error.errno in DISK:
        return True
    if isinstance(error, AssertionError | NotImplementedError) or error.__traceback__ is None:
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    file = Path(code.co_filename).resolve()
    ours = PACKAGE in file.parents or (file.parent.name == "recipes" and file.parent.parent == PACKAGE.parent)
    return ours and dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def describe(error: BaseException) -> str:
    """Return the message of an error, with what to do where the operating system doesn't say it."""
    if isinstance(error, OSError) and error.errno in DISK:
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror}; {DISK[error.errno]}"
    return str(error)


def say_count(number: int, singular: str, plural: str | None = None) -> str:
    """Return the number with its noun: `1 picture`, `2 pictures`, `1,039 patches`.

    Args:
        number (`int`): How many.
        singular (`str`): The noun for one.
        plural (`str`, *optional*): The noun for any other number; with `s`, or `es` after a hiss, if omitted.
    """
    if plural is None:
        plural = singular + ("es" if singular.endswith(("s", "x", "z", "ch", "sh")) else "s")
    return f"{number:,} {singular if number == 1 else plural}"
