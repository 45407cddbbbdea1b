"""Example patches for the page, from a folder."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from histolab_sft.data.pictures.containers import IMAGE_SUFFIXES
from histolab_sft.data.pictures.decoding import open_patch

EXAMPLES = 9  # of a data set


def read_examples(folder: Path, renderings: Mapping[str, str]) -> list[tuple[Image.Image, str, str]]:
    """Return (picture, data set, class) of the first pictures in `folder/<data set>/<class>/`, by name.

    Args:
        renderings: Data set -> what is done to its stored pictures (`picture_config.choose_rendering`).

    Raises:
        FileNotFoundError: There is no such folder, or none for any of the data sets.
        ImageRefused: A picture can't be used.
    """
    examples = []
    for name, rendering in renderings.items():
        paths = sorted(path for path in folder.glob(f"{name}/*/*") if path.suffix.lower() in IMAGE_SUFFIXES)
        examples += [(open_patch(str(path), rendering=rendering), name, path.parent.name) for path in paths[:EXAMPLES]]
    if not examples:
        raise FileNotFoundError(
            f"no picture in {folder}/<data set>/<class>/ for any of {list(renderings)}; put examples there, or choose "
            "another folder"
        )
    return examples
