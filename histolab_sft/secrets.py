"""Recognise tokens and passwords by their shape, refuse them in recipes, and mask them in messages and files."""

import re
from collections.abc import Mapping

# Hugging Face, GitHub, OpenAI-style, AWS, Slack and Weights & Biases in turn.
TOKEN = (
    r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bsk-[\w-]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bxox[abp]-[\w-]{10,}|\bwandb_v1_\w{20,}"
)
PASSWORD = r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"  # inside a URL
PRIVATE_KEY = r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*"
SECRET = re.compile("|".join((TOKEN, PASSWORD, PRIVATE_KEY)))


def mask_secrets(text: str) -> str:
    """Return `text` with every token, key and password in a URL replaced by `<secret>`."""
    return SECRET.sub("<secret>", text)


def check_secrets(values: Mapping, source: str) -> None:
    """Raise a `ValueError` that names the keys of `values` in which a secret stands, and never the secret.

    Args:
        values: Keys and values of a recipe or a command line.
        source (`str`): What `values` is called in the message.
    """
    keys = [str(key) for key, value in values.items() if SECRET.search(f"{key} {value}")]
    if keys:
        raise ValueError(
            f"{source} holds a token or password under {', '.join(map(mask_secrets, keys))}, expected none: recipes, "
            "logs and process lists are read by others; take it out, revoke it, and log in with `hf auth login` or "
            "set HF_TOKEN"
        )
