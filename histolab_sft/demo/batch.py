"""Many pictures in, one table out: files and zip archives as a browser sends them, answered, nothing left on disk."""

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pandas as pd
from PIL import Image

from histolab_sft.data.pictures.archives import UnsafeArchiveError, extract
from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES, ImageRefused, read_patch
from histolab_sft.data.pictures.decoding import decode_image
from histolab_sft.demo.data_set import DataSet
from histolab_sft.demo.picture_notes import note_picture
from histolab_sft.demo.systems import Answer, Systems, answer_patches, write_answers

MAX_PATCHES = 1000
MAX_FOLDERS = 50
MAX_UNPACKED = 200 * 2**20  # bytes of an archive, once unpacked
CHUNK = 16  # pictures held at once
# Written by macOS and Windows beside the pictures.
IGNORED_FOLDERS, IGNORED_FILES = ("__MACOSX",), (".DS_Store", "Thumbs.db", "desktop.ini")
# What a spreadsheet takes for the beginning of a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class BatchRefused(ValueError):
    """The upload can't be read as a batch; the message holds no path of this machine."""


@dataclass(frozen=True)
class Upload:
    """One picture of a batch: what it is called in the table, and where it lies."""

    name: str
    path: Path


def answer_batch(
    systems: Systems,
    data_set: DataSet,
    ask: Callable[[Image.Image], dict],
    paths: Sequence[str],
    report: Callable[[int, int], None],
) -> pd.DataFrame:
    """Return one row per picture in the uploaded files and archives, each a case of its own.

    Args:
        ask: Gives the question about a picture in the task's own form.
        paths: Pictures, and `.zip` archives whose pictures lie in folders.
        report: Called with the number of pictures done, and of all.

    Returns:
        `file`, `data_set`, `refused` (the reason, empty if it was read), `notes`; then for each system its answer.
        Where the data set has options, that is followed by its confidence, whether that is too low to count (`yes` or
        `no`), and the probability of every option; else the answer is JSON text in the task's own form, empty where
        none could be read, and followed by what the system wrote.

    Raises:
        BatchRefused: An archive is unsafe, damaged or without pictures, or there are too many pictures.
    """
    with TemporaryDirectory() as folder:
        uploads = list_uploads([Path(path) for path in paths], Path(folder))
        rows = []
        for start in range(0, len(uploads), CHUNK):
            report(start, len(uploads))
            rows += _answer_chunk(systems, data_set, ask, uploads[start : start + CHUNK])
        report(len(uploads), len(uploads))
    return pd.DataFrame(rows)


def list_uploads(paths: Sequence[Path], folder: Path) -> list[Upload]:
    """Unpack the archives among `paths` into `folder` and return all pictures, in the order of the upload."""
    uploads = []
    for number, path in enumerate(paths):
        if path.suffix.lower() == ".zip":
            target = folder / str(number)
            target.mkdir()
            uploads += _unpack(path, target)
        else:
            uploads.append(Upload(path.name, path))
        if len(uploads) > MAX_PATCHES:
            raise BatchRefused(f"More than {MAX_PATCHES} pictures, expected at most that; send them in parts.")
    if not uploads:
        raise BatchRefused("No picture found, expected at least one; choose pictures or a zip of folders.")
    return uploads


def open_upload(path: Path, rendering: str = "") -> tuple[Image.Image, list[str]]:
    """Return an uploaded picture as 8-bit RGB, and the conversions in words.

    `rendering` is that of the data set (`config.picture.choose_rendering`), so that a picture looks as in training; a
    picture that has been rendered already takes none.

    Raises:
        ImageRefused: It is no picture that can be used; `reason` says why, and names no path.
    """
    return decode_image(read_patch(str(path)), "the picture", rendering=rendering)


def format_csv(table: pd.DataFrame) -> str:
    """Return the table as CSV in which no text can act as a formula of a spreadsheet."""
    safe = table.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell)
    return safe.to_csv(index=False, float_format="%.6g")


def _unpack(archive: Path, folder: Path) -> Iterator[Upload]:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [PurePosixPath(name) for name in opened.namelist() if not name.endswith("/")]
        names = [name for name in names if name.parts and name.parts[0] not in IGNORED_FOLDERS]
        names = [name for name in names if name.name not in IGNORED_FILES]
        loose = [name.name for name in names if len(name.parts) == 1]
        tops = list(dict.fromkeys(name.parts[0] for name in names))
        if loose:
            raise BatchRefused(
                f"{archive.name}: {len(loose)} files such as {loose[0]} lie in no folder, expected folders of "
                "pictures; put them into one and zip that, or send the pictures themselves."
            )
        if len(tops) > MAX_FOLDERS:
            raise BatchRefused(f"{archive.name}: {len(tops)} folders, expected at most {MAX_FOLDERS}; send parts.")
        for top in tops:
            # A name that leaves the folder makes `extract` refuse the archive, whichever part of it is asked for.
            extract(archive, folder, "refused" if top in ("/", "..") else top, MAX_UNPACKED)
    except (zipfile.BadZipFile, FileExistsError) as error:
        raise BatchRefused(f"{archive.name} is damaged or no zip archive; make it again.") from error
    except UnsafeArchiveError as error:
        raise BatchRefused(str(error).replace(str(archive), archive.name)) from error
    found = [path for top in tops for path in sorted((folder / top).rglob("*")) if path.is_file()]
    for path in found:
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._"):
            yield Upload(f"{archive.name}/{path.relative_to(folder).as_posix()}", path)


def _answer_chunk(
    systems: Systems, data_set: DataSet, ask: Callable[[Image.Image], dict], uploads: Sequence[Upload]
) -> list[dict]:
    rows, images = [], []
    for upload in uploads:
        row = {"file": upload.name, "data_set": data_set.name, "refused": "", "notes": ""}
        try:
            image, conversions = open_upload(upload.path, data_set.rendering)
        except ImageRefused as error:
            row["refused"] = error.reason
        else:
            row["notes"] = " ".join([*(f"{done}." for done in conversions), *note_picture(image, data_set)])
            images.append((row, image))
        rows.append(row)
    shown = [image for _, image in images]
    for system in systems.names if images else []:
        if data_set.options:
            answers = answer_patches(systems, system, shown, data_set, CHUNK)
        else:
            asks, chosen = [ask(image) for image in shown], [None] * len(shown)
            answers = write_answers(systems, system, [[image] for image in shown], data_set, asks, chosen, CHUNK)
        for (row, _), answer in zip(images, answers, strict=True):
            row |= _write_answer(data_set, system, answer)
    return rows


def _write_answer(data_set: DataSet, system: str, answer: Answer) -> dict:
    if not data_set.options:
        value = "" if answer.value is None else json.dumps(answer.value, ensure_ascii=False)
        return {system: value, f"{system}_written": answer.text}
    probabilities = zip(data_set.options, answer.probabilities, strict=True)
    return {
        system: answer.value,
        f"{system}_confidence": answer.confidence,
        f"{system}_withheld": "yes" if answer.withheld else "no",
        **{f"{system}: {option}": probability for option, probability in probabilities},
    }
