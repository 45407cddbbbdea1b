"""Examples to click on: pictures from a folder of classes, or painted ones."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES
from histolab_sft.data.pictures.decoding import open_patch
from histolab_sft.demo.data_set import DataSet

EXAMPLES = 12  # of a data set
SIDE = 160  # pixels of the small picture to click on


@dataclass(frozen=True)
class Example:
    """A case to click on.

    Args:
        data_set: The name of the one that it is for.
        caption: What stands below its picture.
        thumbnail: Its first picture, small.
        open_pictures: Gives its pictures as the model sees them; raises `ImageRefused` where one is gone.
        ask: Its own question in the task's own form, None for that of the data set.
        truth: The answer to it in the task's own form, None where it isn't known.
    """

    data_set: str
    caption: str
    thumbnail: Image.Image
    open_pictures: Callable[[], list[Image.Image]]
    ask: dict | None = None
    truth: object | None = None


def read_examples(folder: Path, data_sets: Iterable[DataSet]) -> list[Example]:
    """Return the first pictures in `folder/<data set>/<class>/`, by name; what lies in a folder is called after it.

    Raises:
        FileNotFoundError: There is no such folder, or none for any of the data sets.
        ImageRefused: A picture can't be used.
    """
    examples = []
    for data_set in data_sets:
        paths = sorted(path for path in folder.glob(f"{data_set.name}/*/*") if path.suffix.lower() in IMAGE_SUFFIXES)
        for path in paths[:EXAMPLES]:
            image = open_patch(str(path), rendering=data_set.rendering)
            examples.append(make_example(data_set, path.parent.name, [image]))
    if not examples:
        raise FileNotFoundError(
            f"no picture in {folder}/<data set>/<class>/ for any of {[entry.name for entry in data_sets]}; put "
            "examples there, or choose another folder"
        )
    return examples


def make_example(data_set: DataSet, caption: str, images: list[Image.Image]) -> Example:
    """Return an example of pictures that are held in memory; a caption that is an option is its truth."""
    truth = caption if caption in (data_set.options or []) else None
    return Example(data_set.name, caption, shrink(images[0]), partial(list, images), truth=truth)


def shrink(image: Image.Image) -> Image.Image:
    """Return a small copy."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return small
