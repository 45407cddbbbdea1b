"""Fetch models from the Hub, and say in one sentence why a model or data set can't be had."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import ResolvedRevision, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers.utils.hub import resolve_revision

KNOWN = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx2.TransportError)
# Kind of repository: where its page lies, the key of a recipe that names it, and how it is fetched by hand.
KINDS = {
    "model": ("", "model_name_or_path", ""),
    "encoder": ("", "encoders or cnn", ""),
    "dataset": ("datasets/", "source", " --repo-type dataset"),
}
# Of a base model: weights and processor, and no code.
FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"]
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubAccessError(RuntimeError):
    """A model or data set can't be had, and the message says what to do about it."""


def check_model_name(
    name: str,
    needed: str = "config.json",
    key: str = "model_name_or_path",
    example: str = "google/medgemma-4b-it",
) -> None:
    """Refuse what is neither a folder that holds a file which is `needed` nor in the form of an id on the Hub.

    Args:
        key (`str`): The recipe's key that names it.
        example (`str`): An id that the key takes.

    Raises:
        HubAccessError: It is a file, a folder without the needed one, or a path to nothing.
    """
    path = Path(name)
    if path.is_dir():
        if Path(path, needed).is_file():
            return
        found = f"a folder without {needed}"
        found += ", with weights in the form of llama.cpp" if list(path.glob("*.gguf")) else ""
    elif path.is_file():
        found = "a file"
    else:
        try:
            validate_repo_id(name)
            return
        except HFValidationError:
            found = "neither a folder nor the form of an id on the Hub"
    raise HubAccessError(
        f"{key} {name} is {found}, expected an id such as {example}, or a folder in which "
        "save_pretrained has left a model and its processor; correct it"
    )


def fetch_base_model(name: str, revision: str = "main", kind: str = "model") -> None:
    """Bring weights and processor of a model on the Hub into its cache, so that loading needs no network.

    Trying again is left to huggingface_hub: at 429, 5xx and time-outs, up to five times with growing pauses, each told
    in its log. A model that is there already needs no answer from the Hub.

    Args:
        name (`str`): Id on the Hub, or a folder, with which nothing is done.
        revision (`str`): Branch, tag or commit.
        kind (`str`): As in `explain_hub_errors`.

    Raises:
        HubAccessError: It can't be had.
    """
    if Path(name).is_dir():
        return
    with explain_hub_errors(name, kind):
        # One small file first: who may not read the model, or finds the Hub busy, is told at once.
        hf_hub_download(name, "config.json", revision=revision)
        snapshot_download(name, revision=revision, allow_patterns=FILES)


def resolve_commit(name: str, revision: str = "main") -> str:
    """Return the commit that a branch or tag of a model is at, by the cache of this machine, which may not know it.

    Of a folder, and of a model that isn't in the cache, it is `revision` itself.
    """
    found = resolve_revision(name, revision, local_files_only=True)
    # As text it still is the name of the branch.
    return found.resolved if isinstance(found, ResolvedRevision) else revision


def name_different_commits(name: str, one: str, other: str) -> tuple[str, str] | None:
    """Return the two commits that two revisions of a model stand for, None if they are one or aren't both known."""
    commits = resolve_commit(name, one), resolve_commit(name, other)
    return commits if commits[0] != commits[1] and all(map(_COMMIT.fullmatch, commits)) else None


@contextmanager
def explain_hub_errors(name: str, kind: str = "model") -> Iterator[None]:
    """Turn whatever the Hub or the network answers while `name` is loaded into one `HubAccessError`.

    Args:
        name (`str`): Id on the Hub.
        kind (`str`): A key of `KINDS`.
    """
    try:
        yield
    except (OSError, httpx2.TransportError) as error:
        causes = list(_list_causes(error))
        if not causes:
            raise
        # The chain would show signed addresses in a traceback.
        raise HubAccessError(_explain(causes, name, kind)) from None


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """What the Hub or the network said below `error`, outermost first: transformers and the Hub's client wrap it."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, KNOWN):
            yield error
        error = error.__cause__ or error.__context__


def _explain(causes: list[BaseException], name: str, kind: str) -> str:
    folder, key, flags = KINDS[kind]
    page, fetch = f"{constants.ENDPOINT}/{folder}{name}", f"`hf download {name}{flags}`"
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return (
                f"{name} is gated, and this login may not read it: open {page}, accept its terms there, and log in "
                "with `hf auth login`"
            )
        if isinstance(cause, RevisionNotFoundError):
            return f"{name} has no such revision: see {page}/commits/main, and correct model_revision"
        if isinstance(cause, RepositoryNotFoundError):
            return f"{page} isn't there, or this login can't see it: correct {key}, or log in with `hf auth login`"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            if status in (408, 429) or status >= 500:
                return f"the Hub answered {status} for {name}, again and again: wait some minutes, and start again"
            return f"the Hub answered {status} for {name}: look at {page}, and log in with `hf auth login`"
        if isinstance(cause, OfflineModeIsEnabled):
            return (
                f"{name} isn't in the cache whole, and HF_HUB_OFFLINE is set: fetch it once with {fetch} "
                "on a machine with a connection, or unset HF_HUB_OFFLINE"
            )
        if isinstance(cause, httpx2.TransportError):
            return (
                f"no connection to {constants.ENDPOINT} for {name} ({type(cause).__name__}), again and again: check "
                f"the network and the proxy, or fetch it once with {fetch} and set HF_HUB_OFFLINE=1"
            )
    return f"{name} isn't in the cache whole, and there is no connection: fetch it once with {fetch}"
