"""Decode one DICOM picture to 8-bit RGB. Needs the optional extra: `pip install histolab_sft[dicom]`.

Only the elements named here are read, and no message of the DICOM library is passed on, because others could bring a
patient's name into a log.
"""

import io
import struct

import numpy as np
from PIL import Image

from histolab_sft.data.pictures.containers import ImageRefused

REQUIRED = "Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored PixelData".split()
OPTIONAL = (
    "NumberOfFrames PixelRepresentation HighBit PlanarConfiguration VOILUTFunction RescaleSlope RescaleIntercept "
    "ModalityLUTSequence WindowCenter WindowWidth"
).split()
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def decode_dicom(data: bytes, name: str, max_pixels: int) -> tuple[Image.Image, list[str], str]:
    """Return the picture in RGB, the conversions in words, and the photometric interpretation.

    Grey values pass the modality transform (rescale), then the first window, or else the range from least to greatest
    value is spread over 0 to 255; MONOCHROME1 is inverted. DICOM PS3.3, C.11.1 and C.11.2.

    Raises:
        ImageRefused: The file has several frames or too many pixels, lacks an element, or can't be decoded.
    """
    try:
        import pydicom
    except ImportError as error:
        reason = "a DICOM file, expected pydicom to read it; run `pip install histolab_sft[dicom]`"
        raise ImageRefused(name, reason) from error
    # `from None`: the chained message would be printed with the traceback.
    errors = (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
    errors += (MemoryError, struct.error, pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException)
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=[*REQUIRED, *OPTIONAL])
        missing = [element for element in REQUIRED if element not in dataset]
        if missing:
            raise ImageRefused(name, f"no {', '.join(missing)}, expected a DICOM picture; export it again")
        frames, kind = int(dataset.get("NumberOfFrames") or 1), str(dataset.PhotometricInterpretation)
        if frames != 1:
            raise ImageRefused(name, f"{frames} frames, expected one; export the right frame by itself")
        if dataset.Rows * dataset.Columns > max_pixels:
            found = f"{dataset.Columns} x {dataset.Rows} pixels"
            raise ImageRefused(name, f"{found}, expected at most {max_pixels} in all; cut it into patches")
        if kind not in ("MONOCHROME1", "MONOCHROME2", *COLOURS):
            raise ImageRefused(name, f"{kind} colours, expected MONOCHROME1 or 2, RGB or YBR; export it as RGB")
        values = pydicom.pixels.pixel_array(dataset)  # YBR comes out as RGB
        if kind in COLOURS:
            values, conversions = values * (255.0 / (2**dataset.BitsStored - 1)), [f"{dataset.BitsStored}-bit {kind}"]
        else:
            values, conversions = _window(values, dataset)
    except ImageRefused:
        raise
    except errors as error:
        reason = f"the DICOM library stopped with {type(error).__name__}; expected an uncompressed or JPEG picture"
        raise ImageRefused(name, f"{reason}; export it again, uncompressed") from None
    if kind == "MONOCHROME1":
        values = 255.0 - values
        conversions.append("MONOCHROME1 inverted")
    pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB"), [f"DICOM: {step}" for step in conversions], kind


def _window(values: np.ndarray, dataset) -> tuple[np.ndarray, list[str]]:
    """Map grey values (H, W) to 0..255 as floats."""
    from pydicom import pixels

    values = pixels.apply_modality_lut(values, dataset).astype(np.float32)
    if "WindowCenter" not in dataset or "WindowWidth" not in dataset:
        low, high = float(values.min()), float(values.max())
        return (values - low) * (255.0 / max(high - low, 1e-6)), ["least to greatest value spread over 8 bits"]
    # The window's outputs for very small and very large values are black and white.
    with np.errstate(over="ignore"):
        low, high = pixels.apply_windowing(np.array([-1e9, 1e9]), dataset)
        values = pixels.apply_windowing(values, dataset)
    return (values - low) * (255.0 / (high - low)), ["first window applied"]
