"""Read parquet files of a data set on the Hub by byte ranges over HTTP, without keeping them on disk.

An address is `hf://datasets/OWNER/NAME@COMMIT/FILE`: with the commit in it, the same address is always the same bytes.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import HfApi, HfFileSystem, constants

from histolab_sft.hub_access import explain_hub_errors

PREFIX = "hf://datasets/"


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address on the Hub and not a file of this machine."""
    return str(path).startswith(PREFIX)


def list_parquet(repo_id: str) -> list[str]:
    """Return the addresses of a data set's parquet files, sorted: those in `data/`, else those beside it.

    Raises:
        HubAccessError: The data set can't be had.
    """
    with explain_hub_errors(repo_id, "dataset"):
        info = HfApi().dataset_info(repo_id)
    names = sorted(file.rfilename for file in info.siblings if file.rfilename.endswith(".parquet"))
    folder = "data/" if any(name.startswith("data/") for name in names) else ""
    names = [name for name in names if name.startswith(folder) and "/" not in name.removeprefix(folder)]
    return [f"{PREFIX}{repo_id}@{info.sha}/{name}" for name in names]


def open_remote(address: str) -> BinaryIO:
    """Open a file on the Hub, of which each read fetches the range asked for and no byte more.

    Tried again at 429, 5xx and time-outs by huggingface_hub, up to five times with growing pauses.
    """
    with reading(address):
        return HfFileSystem(endpoint=constants.ENDPOINT).open(address, cache_type="none")


def reading(path: str | Path) -> AbstractContextManager:
    """Return a context in which a failure to read from the Hub becomes one `HubAccessError`.

    It must stop the run: a patch that couldn't be fetched isn't broken, so it is neither refused nor quarantined.
    """
    if not is_remote(path):
        return nullcontext()
    return explain_hub_errors(str(path).removeprefix(PREFIX).split("@")[0], "dataset")
