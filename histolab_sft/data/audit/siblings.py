"""Find patches cut from one picture: turned by any angle, mirrored, scaled a little and cropped.

Augmented sets are made so, and comparing the eight rotations and mirror images doesn't find them. Each patch is
described by local features (SIFT: D. Lowe, IJCV 60 (2004) 91-110). Patches that share rare features are candidates.
Two of them are siblings if turning, scaling, shifting and mirroring lays one upon the other so that their features
meet and they look alike where they overlap.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
from PIL import Image
from scipy.sparse import csr_array
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from tqdm import tqdm

from histolab_sft.data.pictures.containers import ImageRefused
from histolab_sft.data.pictures.decoding import open_stored
from histolab_sft.files import unfinished_folder

SIDE = 128  # pixels of the longer side: finer details survive neither turning nor compression
FEATURES, VALUES = 128, 128  # of a patch, the strongest; of a feature
CONTRAST = 0.005  # an eighth of the library's default, as stained tissue is soft
# A word is a pair of clusters, one in each half of a feature (A. Babenko, V. Lempitsky, The inverted multi-index, CVPR
# 2012): as fine as 65,536 clusters at the price of 512.
DIMENSIONS, CLUSTERS = 24, 256
LEARNT_PATCHES, LEARNT_FEATURES = 1_500, 50_000
COMMON = 0.02  # a word in more than this share of the patches tells little and costs much
# On real patches 95 % of siblings share at least 8 words, and 99 % of other candidates at most 7.
SHARED, RANKED = 5, 10  # words, and candidates of a patch
RATIO = 0.9  # of the distances to the nearest feature and to the next
REACH = 3.0  # pixels between features that meet
SCALES = (0.55, 1.8)
OVERLAP = 0.3  # of a patch
# Meeting features, and the correlation from which on so many are enough: nearly empty patches are alike in little but
# their features. On real patches other pairs came to 6 features and 0.45.
MEETING = ((6, 0.5), (12, 0.25))
CHUNK, BLOCK, PAIRS = 64, 256, 500
PATCHES_WORTH_PROCESSES = 500
CONTROLS = 2_000


class Features(NamedTuple):
    """Of N patches, on disk: how many features each has, its height and width when shrunk, and its grey pixels."""

    counts: np.ndarray  # (N,)
    points: np.ndarray  # (N, 128, 2): x and y in pixels
    descriptors: np.ndarray  # (N, 128, 128) uint8
    sides: np.ndarray  # (N, 2)
    grey: np.ndarray  # (N, 128, 128) uint8


def find_siblings(
    references: Sequence[Mapping], identities: np.ndarray, folder: str | Path, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of siblings among N patches, and which pairs of different patches pass for siblings.

    Args:
        references: Where each patch lies, as for `open_stored`.
        identities: (N,) numbers, such as of patients: patches with two different ones are known to be different; -1
            if unknown. Each patch's most alike pair of this kind passes the same test, for at most 2,000 patches.
        folder: For temporary files of 35 kB a patch.
        workers: Processes; by default one per available core.

    Returns:
        Pairs of positions (P, 2), the smaller first; correlations where they overlap (P,); the pairs of different
        patches that were tried (C, 2), and whether each passes (C,).
    """
    jobs = (workers or joblib.cpu_count()) if len(references) >= PATCHES_WORTH_PROCESSES else 1
    with unfinished_folder(folder) as unfinished, joblib.Parallel(n_jobs=jobs, batch_size=1) as pool:
        features = describe_patches(references, unfinished, pool)
        pairs, controls = rank_candidates(features, identities)
        controls = controls[np.random.default_rng(0).permutation(len(controls))[:CONTROLS]]
        alike = check_pairs(features, np.concatenate([pairs, controls]), pool)
    alike, passed = alike[: len(pairs)], alike[len(pairs) :] > 0
    return pairs[alike > 0], alike[alike > 0], controls, passed


def describe_patches(references: Sequence[Mapping], folder: Path, pool: joblib.Parallel) -> Features:
    """Return the features of each patch; one that can't be read, or shows nothing, has none."""
    n = len(references)
    shapes = [((n,), int), ((n, FEATURES, 2), np.float32), ((n, FEATURES, VALUES), np.uint8), ((n, 2), int)]
    shapes.append(((n, SIDE, SIDE), np.uint8))
    features = Features(
        *(
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, shape)
            for name, (shape, kind) in zip(Features._fields, shapes, strict=True)
        )
    )
    starts = range(0, n, CHUNK * 20)
    for start in tqdm(starts, desc="Describing patches", unit_scale=CHUNK * 20, unit="patch", disable=None):
        part = references[start : start + CHUNK * 20]
        chunks = [part[at : at + CHUNK] for at in range(0, len(part), CHUNK)]
        described = [one for chunk in pool(joblib.delayed(_describe)(chunk) for chunk in chunks) for one in chunk]
        for at, (points, descriptors, grey) in enumerate(described, start):
            count, (height, width) = len(points), grey.shape
            features.counts[at], features.sides[at] = count, grey.shape
            features.points[at, :count], features.descriptors[at, :count] = points, descriptors
            features.grey[at, :height, :width] = grey
    return features


def rank_candidates(features: Features, identities: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs (P, 2) of patches that share rare words, and each patch's most alike pair known to be different."""
    words = assign_words(features, seed)
    rows, columns = np.nonzero(words >= 0)
    names, columns = np.unique(words[rows, columns], return_inverse=True)
    table = csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(words), len(names)))
    table.sum_duplicates()
    table.data[:] = 1
    frequency = table.sum(axis=0)
    useful = (frequency > 1) & (frequency <= max(COMMON * len(words), 10))
    table = csr_array(table[:, useful])
    weighted = table.copy()
    weighted.data = np.log1p(len(words) / frequency[useful]).astype(np.float32)[table.indices]
    transposed, pairs, controls = table.T.tocsr(), [np.empty((0, 2), int)], [np.empty((0, 2), int)]
    for start in range(0, len(words), BLOCK):
        shared, scores = (csr_array(side[start : start + BLOCK] @ transposed) for side in (table, weighted))
        shared.sort_indices()
        scores.sort_indices()
        for row in range(scores.shape[0]):
            span, at = slice(scores.indptr[row], scores.indptr[row + 1]), start + row
            others, values = scores.indices[span], scores.data[span]
            many = np.flatnonzero((shared.data[span] >= SHARED) & (others != at))
            best = others[many[np.argsort(-values[many], kind="stable")[:RANKED]]]
            pairs.append(np.stack([np.full(len(best), at), best], axis=1))
            known = (identities[others] >= 0) & (identities[others] != identities[at]) & (identities[at] >= 0)
            if known.any():
                controls.append(np.array([[at, others[known][values[known].argmax()]]]))
    return tuple(np.unique(np.sort(np.concatenate(found), axis=1), axis=0) for found in (pairs, controls))


def assign_words(features: Features, seed: int = 0) -> np.ndarray:
    """Return the word of each feature (N, 128), -1 where there is none; a feature's mirror image has the same word."""
    random = np.random.default_rng(seed)
    learnt = np.sort(random.permutation(len(features.counts))[:LEARNT_PATCHES])
    drawn = np.concatenate([features.descriptors[at, : features.counts[at]] for at in learnt])
    drawn = _take_roots(drawn[random.permutation(len(drawn))[:LEARNT_FEATURES]])
    words = np.full(features.descriptors.shape[:2], -1, np.int32)
    if len(drawn) < CLUSTERS:
        return words
    # The direction in which features differ most from their mirror images: it decides which of both is used.
    axis = np.linalg.eigh(np.cov((drawn - mirror(drawn)).T))[1][:, -1].astype(np.float32)
    reduction = PCA(DIMENSIONS, random_state=seed).fit(_unmirror(drawn, axis))
    # Every other dimension, as the first ones tell the most.
    halves = [np.arange(side, DIMENSIONS, 2) for side in (0, 1)]
    points = reduction.transform(_unmirror(drawn, axis))
    clusters = [
        MiniBatchKMeans(CLUSTERS, random_state=seed, n_init=1, batch_size=4096).fit(points[:, half]) for half in halves
    ]
    for start in range(0, len(words), BLOCK):
        block = slice(start, start + BLOCK)
        known = np.arange(FEATURES) < features.counts[block, None]
        if known.any():
            points = reduction.transform(_unmirror(_take_roots(features.descriptors[block][known]), axis))
            first, second = (
                means.predict(np.ascontiguousarray(points[:, half]))
                for means, half in zip(clusters, halves, strict=True)
            )
            words[block][known] = first * CLUSTERS + second
    return words


def check_pairs(features: Features, pairs: np.ndarray, pool: joblib.Parallel) -> np.ndarray:
    """Return for each pair (P, 2) the correlation (P,) where one lies upon the other, 0 for all but siblings."""
    chunks = [pairs[start : start + PAIRS] for start in range(0, len(pairs), PAIRS)]
    return np.concatenate([*pool(joblib.delayed(_check)(features, chunk) for chunk in chunks), np.empty(0)])


def mirror(descriptors: np.ndarray) -> np.ndarray:
    """Return the descriptors (..., 128) of the mirrored picture: rows of cells, and angles, the other way round."""
    cells = descriptors.reshape(*descriptors.shape[:-1], 4, 4, 8)
    return cells[..., ::-1, :, :][..., -np.arange(8) % 8].reshape(descriptors.shape)


def _describe(references: Sequence[Mapping]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    import cv2

    cv2.setNumThreads(1)  # as many processes as cores do this
    detector, described = cv2.SIFT_create(FEATURES, contrastThreshold=CONTRAST), []
    for reference in references:
        try:
            image = open_stored(reference).convert("L")
        except ImageRefused:  # which the audit reports
            image = Image.new("L", (1, 1))
        scale = SIDE / max(image.size)
        size = [max(1, round(side * scale)) for side in image.size]
        grey = np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3))
        points, descriptors = detector.detectAndCompute(grey, None)
        order = np.argsort([-point.response for point in points], kind="stable")[:FEATURES]
        positions = np.array([points[at].pt for at in order]).reshape(-1, 2)
        described.append((positions, np.empty((0, VALUES)) if descriptors is None else descriptors[order], grey))
    return described


def _take_roots(descriptors: np.ndarray) -> np.ndarray:
    """Return unit vectors that compare better (R. Arandjelovic, A. Zisserman, Three things everyone should know to
    improve object retrieval, CVPR 2012)."""
    values = descriptors.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(axis=-1, keepdims=True), 1))


def _unmirror(roots: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Return the one of each feature and its mirror image that lies on the positive side of `axis`."""
    mirrored = mirror(roots)
    return np.where(((roots - mirrored) @ axis < 0)[:, None], mirrored, roots)


def _check(features: Features, pairs: np.ndarray) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)
    alike = np.zeros(len(pairs))
    for number, (first, second) in enumerate(pairs):
        (points, roots, grey), (others, other_roots, other_grey) = (
            (
                features.points[at, : features.counts[at]],
                _take_roots(features.descriptors[at, : features.counts[at]]),
                np.asarray(features.grey[at, : features.sides[at, 0], : features.sides[at, 1]]),
            )
            for at in (first, second)
        )
        if min(len(points), len(others)) < MEETING[0][0]:
            continue
        flipped = [-1, 1] * others + [other_grey.shape[1] - 1, 0]
        views = (others, other_roots, other_grey), (flipped, mirror(other_roots), other_grey[:, ::-1])
        alike[number] = max(_align(points, roots, grey, *view) for view in views)
    return alike


def _align(points, roots, grey, others, other_roots, other_grey) -> float:
    """Return the correlation of a patch with another that is aligned to it by their features; 0 if that fails."""
    import cv2

    products = roots @ other_roots.T  # of unit vectors: distances are sqrt(2 - 2 products)
    nearest = products.argmax(axis=1)
    numbers = np.arange(len(points))
    best = products[numbers, nearest]
    mutual = products.argmax(axis=0)[nearest] == numbers
    products[numbers, nearest] = -1
    matched = mutual & (1 - best <= RATIO**2 * (1 - products.max(axis=1)))
    if matched.sum() < MEETING[0][0]:
        return 0.0
    ends = others[nearest[matched]].astype(np.float32), points[matched].astype(np.float32)
    matrix, inliers = cv2.estimateAffinePartial2D(*ends, ransacReprojThreshold=REACH)
    if matrix is None or not SCALES[0] <= np.hypot(*matrix[:, 0]) <= SCALES[1]:
        return 0.0
    size, other_grey = grey.shape[::-1], np.ascontiguousarray(other_grey)
    inside = cv2.warpAffine(np.ones_like(other_grey), matrix, size, flags=cv2.INTER_NEAREST) > 0
    if inside.mean() < OVERLAP:
        return 0.0
    aligned = cv2.warpAffine(other_grey, matrix, size)
    one, other = (_take_out_shading(picture, inside)[inside] for picture in (grey, aligned))
    correlation = float(one @ other / max(np.sqrt((one @ one) * (other @ other)), 1e-6))
    enough = any(inliers.sum() >= meeting and correlation >= least for meeting, least in MEETING)
    return correlation if enough else 0.0


def _take_out_shading(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the details between 1 and 8 pixels of a picture: shading alone doesn't make two patches alike."""
    import cv2

    weights = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 8)
    fine = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 1)
    return fine - cv2.GaussianBlur(fine * inside, (0, 0), 8) / np.maximum(weights, 1e-3)
