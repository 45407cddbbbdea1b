"""Decode one patch from any format, mode and container to an 8-bit RGB picture."""

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from PIL import ExifTags, Image, ImageOps

from histolab_sft.data.pictures import dicom
from histolab_sft.data.pictures.containers import ImageRefused, name_patch, read_patch
from histolab_sft.data.pictures.steps import MAX_PIXELS, apply_steps, cut_cell

# The formats in which patches are published. Not JPEG 2000 (its decoder needs four bytes a channel value, which breaks
# the memory limit below), not GIF (256 colours), not EPS (Pillow hands it to Ghostscript), not icons or documents.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"II*\0", b"MM\0*", b"RIFF", b"BM")
UNWINDOWED = "16-bit grey scaled to 8-bit RGB"
# What Pillow's decoders raise on damaged files.
DECODING_ERRORS = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
DECODING_ERRORS += (struct.error, zlib.error)


def open_patch(path: str, row: int = -1, image_column: str = "image", rendering: str = "") -> Image.Image:
    """Return a patch as an 8-bit RGB picture, upright, on a white ground; `info` has its `source_mode` and format.

    `rendering` is the data set's own window and steps, as text from `config.picture.format_rendering`.

    Raises:
        ImageRefused: The file, the row or the picture in it can't be used; the message says why.
    """
    image, _ = decode_image(read_patch(path, row, image_column), name_patch(path, row), rendering=rendering)
    return image


def open_stored(reference: Mapping, change: Callable[[Image.Image], Image.Image] | None = None) -> Image.Image:
    """Return the patch of a table's row, as `open_patch`: `path`, `row`, `column` and `rendering`.

    With a `cell` that isn't None it is that crop of it (`steps.cut_cell`), after `change`.
    """
    image = open_patch(reference["path"], reference["row"], reference["column"], reference["rendering"])
    image = image if change is None else change(image)
    cell = reference.get("cell")
    return image if cell is None else cut_cell(image, *cell)


def hash_pixels(image: Image.Image) -> str:
    """Return the SHA-256 of a picture's size and pixels (RGB), by which pictures are compared everywhere."""
    return hashlib.sha256(b"%d x %d " % image.size + image.tobytes()).hexdigest()


def decode_image(
    data: bytes | np.ndarray, name: str, max_pixels: int = MAX_PIXELS, rendering: str = ""
) -> tuple[Image.Image, list[str]]:
    """Decode a picture to 8-bit RGB and say what had to be converted for it.

    16-bit values are scaled (65535 becomes 255), never clipped unless the data set has an `intensity_window`;
    transparency is laid on white, the ground of a slide; EXIF rotation is carried out; colour profiles are not
    applied, as no published patch set was trained with them. A file with several frames is refused: nothing tells a
    pyramid level from a focus plane or another patch. A DICOM file says itself what its window is and whether it is
    inverted. The data set's own steps come last.

    Args:
        data: The bytes of an image file, or pixels (H, W, 3) uint8.
        name: What an error calls the picture.
        max_pixels: Largest width times height, checked in the header before anything is decoded.
        rendering: As in `open_patch`.

    Returns:
        The picture, its `info` reduced to `source_mode`, `source_format` and `placement` (where the stored picture is
        in it, `box_geometry.Placement`), and the conversions in words.

    Raises:
        ImageRefused: The bytes are no picture of an allowed format, or are damaged, too large or ambiguous.
    """
    wanted = json.loads(rendering) if rendering else {}
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
            raise ImageRefused(name, f"pixels {data.dtype} {data.shape}, expected uint8 (H, W, 3); store them so")
        image, conversions, mode, kind = Image.fromarray(data), [], "RGB", "HDF5"
    elif data[128:132] == b"DICM":
        image, conversions, mode = dicom.decode_dicom(data, name, max_pixels)
        kind = "DICOM"
    else:
        image, conversions, mode, kind = _decode_file(data, name, max_pixels, wanted.get("window"))
        if wanted.get("inverted"):
            image = ImageOps.invert(image)
            conversions.append("MONOCHROME1 inverted")
    try:
        image, placement = apply_steps(image, wanted.get("steps", []))
    except ValueError as error:
        raise ImageRefused(name, f"image_steps: {error}") from error
    image.info = {"source_mode": mode, "source_format": kind, "placement": placement}
    return image, conversions


def read_size(path: str) -> tuple[int, int]:
    """Return width and height in pixels of the upright picture, as `open_patch` gives it, from the header.

    Raises:
        ImageRefused: There is no such file, or its header can't be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            size, turned = image.size, False
            # Pillow has turned TIFF files itself, and decodes a PNG to find its orientation.
            if image.format != "TIFF" and (image.format != "PNG" or _has_notes(path)):
                turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except (*DECODING_ERRORS, Image.DecompressionBombError) as error:
        reason = f"its size can't be read ({type(error).__name__}), expected a picture as {', '.join(FORMATS)}"
        raise ImageRefused(path, f"{reason}; export it again") from error
    return size[::-1] if turned else size


def _has_notes(path: str) -> bool:
    """Whether a PNG file has a chunk of EXIF or text, anywhere, that could hold its orientation."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(length + 4, os.SEEK_CUR)
    return False


def _decode_file(
    data: bytes, name: str, max_pixels: int, window: list | None
) -> tuple[Image.Image, list[str], str, str]:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        mode, kind = image.mode, image.format
        if image.width * image.height > max_pixels:
            found = f"{image.width} x {image.height} pixels"
            raise ImageRefused(name, f"{found}, expected at most {max_pixels} in all; cut it into patches")
        # Only these plugins know frames; a JPEG with more than one shows as MPO.
        if kind in ("TIFF", "PNG", "WEBP", "MPO") and image.is_animated:
            raise ImageRefused(name, f"several frames in one {kind} file, expected one; save the right one by itself")
        deep_colour = kind in ("PNG", "TIFF") and any(";16" in str(tile.args) for tile in image.tile)
        # Pillow turns TIFF files while it loads them and forgets the tag, and finds PNG's only after the pixels.
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        image.load()
        upright = ImageOps.exif_transpose(image)
        orientation = orientation or image.getexif().get(ExifTags.Base.Orientation)
    except ImageRefused:
        raise
    except Image.UnidentifiedImageError as error:
        if data.startswith(SIGNATURES):
            reason = "its header can't be read: it is cut off, damaged, or its values aren't 8 or 16-bit integers"
        else:
            reason = "isn't a picture of a known format (a web page, an SVG or a text under an image's name?)"
        raise ImageRefused(name, f"{reason}; expected one of {', '.join(FORMATS)}; export it again") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit comes first
        raise ImageRefused(name, f"{error}; expected at most {max_pixels} pixels; cut it into patches") from error
    except DECODING_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise ImageRefused(name, f"{reason}; expected a complete picture; copy or download it again") from error
    image, conversions = _convert_mode(upright, name, deep_colour, window)
    if orientation not in (None, 1):
        conversions.append("turned upright by EXIF")
    return image, conversions, mode, kind


def _convert_mode(
    image: Image.Image, name: str, deep_colour: bool, window: list | None
) -> tuple[Image.Image, list[str]]:
    mode, conversions = image.mode, []
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageRefused(name, "32-bit grey, expected values from 0 to 65535; save it as 8-bit RGB")
        if window is None:
            image = Image.fromarray(scale_16_bit(values))
            conversions.append(UNWINDOWED)
        else:
            image = Image.fromarray(apply_window(values, window))
            # Not the picture's own values: reports count equal words.
            conversions.append(f"16-bit grey, window {window[0]}-{window[1]}")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        conversions.append(f"{mode} with transparency laid on white")
    elif mode in ("1", "L", "P", "CMYK", "YCbCr", "RGBX"):
        names = {"1": "1-bit", "L": "grey", "P": "palette"}
        conversions.append(f"{names.get(mode, mode)} to RGB")
    elif mode != "RGB":
        raise ImageRefused(name, f"mode {mode}, expected 8 or 16-bit grey or colour; save it as 8-bit RGB")
    elif deep_colour:
        conversions.append("16-bit RGB scaled to 8 bit")  # by Pillow, which keeps the upper byte
    return image.convert("RGB"), conversions


def scale_16_bit(values: np.ndarray) -> np.ndarray:
    """Map integers of 0 to 65535, any shape, to uint8 so that 65535 becomes 255, rounding to the nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def apply_window(values: np.ndarray, window: list[float | str]) -> np.ndarray:
    """Map integers of 0 to 65535, any shape, to uint8: the lower bound and less becomes 0, the upper and more 255.

    Args:
        window: Two bounds, each a stored value or a percentile of `values` such as `1%`, which is the least of them
            that so many pixels don't exceed.
    """
    # Over the 65,536 possible values rather than millions of pixels.
    seen = np.cumsum(np.bincount(values.ravel(), minlength=2**16))
    low, high = (
        np.searchsorted(seen, max(float(bound[:-1]) / 100 * seen[-1], 1)) if isinstance(bound, str) else bound
        for bound in window
    )
    shades = (np.arange(2**16, dtype=np.float32) - low) * (255.0 / max(high - low, 1))
    return np.rint(shades.clip(0, 255)).astype(np.uint8)[values]
