"""Find pictures that are the same but for compression, scale, brightness, rotation by right angles or mirroring."""

import numpy as np
from scipy.fft import dctn

THUMBNAIL_SIDE = 16
# Least correlation of two thumbnails of the same picture. Different patches of PatchCamelyon stay below
# it (nearest: empty glass with a scrap of tissue in the same corner); copies by JPEG or by scaling stay well above.
SAME_PICTURE = 0.985
# Grey levels. Below this a thumbnail is nearly uniform, and its correlation with another is that of noise.
MIN_STRUCTURE = 3.0
# Frequencies of 16 that the first comparison uses: more cost time, fewer leave more pairs to the second one.
LOW = 8
BLOCK, CANDIDATES = 256, 4096


def find_near_duplicates(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of near-identical pictures among N.

    Two thumbnails are compared by their correlation (mean, contrast and the lowest horizontal and vertical frequency,
    which is shading rather than tissue, taken out), the best over the eight rotations and mirror images. To spare all
    but a few comparisons, a descriptor that is equal for the eight views is compared first: a discrete cosine
    transform turns mirroring into changes of sign and transposing into swaps, so magnitudes, and sums and differences
    of swapped magnitudes, don't change. It is never further apart than the closest views are, so no pair is missed.

    Args:
        thumbnails: (N, 16, 16) uint8 grey.

    Returns:
        Pairs of positions, (P, 2) with the smaller first, and their correlations (P,). Pictures that are all but
        uniform are in no pair.
    """
    spectra = dctn(thumbnails.astype(np.float32), axes=(1, 2), norm="ortho")
    spectra[:, 0, 0] = spectra[:, 0, 1] = spectra[:, 1, 0] = 0
    norms = np.sqrt((spectra**2).sum(axis=(1, 2)))
    structured = np.flatnonzero(norms / THUMBNAIL_SIDE >= MIN_STRUCTURE)
    spectra = spectra[structured] / norms[structured, None, None]
    descriptors = _describe(spectra)
    squares = (descriptors**2).sum(axis=1)
    # Unit vectors with correlation c are sqrt(2 - 2 c) apart; a little is left for rounding.
    limit = 2 - 2 * SAME_PICTURE + 1e-5
    pairs, correlations = [np.empty((0, 2), int)], [np.empty(0)]
    for start in range(0, len(descriptors), BLOCK):
        block = slice(start, start + BLOCK)
        distances = squares[block, None] + squares[None, start:] - 2 * descriptors[block] @ descriptors[start:].T
        first, second = np.nonzero(distances <= limit)
        candidates = np.stack([first, second], axis=1)[first < second] + start
        for part in range(0, len(candidates), CANDIDATES):
            chosen = candidates[part : part + CANDIDATES]
            values = _correlate(spectra[chosen[:, 0]], spectra[chosen[:, 1]])
            pairs.append(chosen[values >= SAME_PICTURE])
            correlations.append(values[values >= SAME_PICTURE])
    return structured[np.concatenate(pairs)], np.concatenate(correlations)


def _describe(spectra: np.ndarray) -> np.ndarray:
    """Return (N, 64) values that are the same for all eight views of a picture."""
    magnitudes = np.abs(spectra[:, :LOW, :LOW])
    diagonal = np.arange(LOW)
    upper, lower = np.triu_indices(LOW, 1)
    over, under = magnitudes[:, upper, lower], magnitudes[:, lower, upper]
    halves = [magnitudes[:, diagonal, diagonal], (over + under) / np.sqrt(2), np.abs(over - under) / np.sqrt(2)]
    return np.concatenate(halves, axis=1).astype(np.float32)


def _correlate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the best correlation (P,) of spectra (P, 16, 16) over the eight views of the second."""
    same = np.ones(THUMBNAIL_SIDE, np.float32)
    odd = np.where(np.arange(THUMBNAIL_SIDE) % 2, -same, same)  # what mirroring does to rows, columns or both
    mirrors = np.stack([np.outer(rows, columns) for rows in (same, odd) for columns in (same, odd)])
    views = [np.einsum("pij,vij->vp", first * other, mirrors) for other in (second, second.transpose(0, 2, 1))]
    return np.concatenate(views).max(axis=0)
