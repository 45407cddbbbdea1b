"""Answers kept on disk in parts, so that an evaluation that was cut off goes on where it stood.

A part is a file of its own: a checksum over its rows and its content, then a parquet table. What is torn, edited, of
other rows or of another question fails the checksum and is asked again.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from accelerate import PartialState

from histolab_sft.files import cache_folder, replacing
from histolab_sft.processes import explain_lost_process

logger = logging.getLogger(__name__)

CHUNK = 256  # rows between two writes: what a kill can cost


def ask_in_parts(name: str, settings: dict, count: int, ask: Callable[[list[range]], Iterator[dict]]) -> pd.DataFrame:
    """Return what `ask` says of `count` rows, in parts of `CHUNK`, each kept under the settings and asked once.

    Several processes share the parts, and find each other's in the cache. Where nothing can be written, one process
    keeps its parts in memory.

    Args:
        name (`str`): The data set's, for the log.
        settings (`dict`): Everything that an answer depends on; calls with equal settings share answers.
        ask: Yields columns for each of the parts that it is given. It is called once, if any part is to be asked.

    Raises:
        FileNotFoundError: What other processes have answered can't be found.
        OSError: Of several processes, one can't write.
    """
    state = PartialState()
    folder = cache_folder() / "predictions" / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    parts = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    # Which process begins depends on the settings, so that the only parts of small data sets don't all fall to one.
    own = [
        part
        for turn, part in enumerate(parts, start=int(folder.name, 16))
        if turn % state.num_processes == state.process_index
    ]
    found = {part: read_part(folder, part) for part in own}
    if left := [part for part in own if found[part] is None]:
        for part, answers in zip(left, ask(left), strict=True):
            found[part] = pd.DataFrame(answers)
            _keep_part(folder, part, found[part], alone=state.num_processes == 1)
            logger.info("%s: %d of %d patches scored", name, part.stop, count)
    with explain_lost_process():
        state.wait_for_everyone()
    found |= {part: read_part(folder, part) for part in parts if part not in found}
    if missing := [_name_part(part.start) for part in parts if found[part] is None]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}, which other processes have scored, expected one cache for all; set "
            "XDG_CACHE_HOME to a folder that all machines share"
        )
    return pd.concat([found[part] for part in parts], ignore_index=True)


def read_part(folder: Path, rows: range) -> pd.DataFrame | None:
    """Return the answers to these rows; None where there are none that can be believed."""
    path = folder / _name_part(rows.start)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s can't be read (%s): its rows are asked again", path, error.strerror)
        return None
    checksum, _, table = content.partition(b"\n")
    if checksum.decode("latin-1") != _compute_checksum(folder, rows, table):
        logger.warning("%s is damaged, or answers something else: its rows are asked again", path)
        return None
    return pd.read_parquet(io.BytesIO(table))


def _keep_part(folder: Path, rows: range, part: pd.DataFrame, alone: bool) -> None:
    table = part.to_parquet(index=False)
    path = folder / _name_part(rows.start)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(_compute_checksum(folder, rows, table).encode() + b"\n" + table)
    except OSError as error:
        if not alone:
            raise
        logger.warning("answers can't be kept in %s (%s): a run that is cut off asks again", folder, error.strerror)


def _name_part(start: int) -> str:
    return f"part-{start:08d}.answers"


def _compute_checksum(folder: Path, rows: range, table: bytes) -> str:
    return hashlib.sha256(f"{folder.name} {rows.start} {rows.stop} ".encode() + table).hexdigest()
