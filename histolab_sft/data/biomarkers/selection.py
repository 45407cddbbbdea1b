"""Choose a few patches of a patient that differ in how they look."""

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from histolab_sft.data.pictures.stain import STAINS

FEATURE_NAMES = (
    *("haematoxylin_mean", "haematoxylin_std", "eosin_mean", "eosin_std"),
    *("haematoxylin_texture", "eosin_texture", "haematoxylin_p95", "rest_mean"),
)
_SIZE = 128


def describe_look(image: Image.Image) -> np.ndarray:
    """Return colour and texture statistics of a patch (8-bit RGB), float64 (8,), in the order of `FEATURE_NAMES`.

    Amounts of stain as in `histolab_sft.data.pictures.stain`, at 128 x 128 px; a texture is the mean gradient of an
    amount, a 95th percentile tells crowded nuclei from an even blue.
    """
    small = np.asarray(image.resize((_SIZE, _SIZE), Image.Resampling.BOX), dtype=np.float64)
    amounts = -np.log10(np.maximum(small, 0.5) / 255) @ np.linalg.inv(STAINS)
    blue, pink, rest = np.moveaxis(amounts, -1, 0)
    textures = [np.hypot(ndimage.sobel(stain, 0), ndimage.sobel(stain, 1)).mean() for stain in (blue, pink)]
    return np.array(
        [blue.mean(), blue.std(), pink.mean(), pink.std(), *textures, np.quantile(blue, 0.95), rest.mean()]
    )


def select_patches(features: np.ndarray, n_patches: int, seed: int = 42) -> list[int]:
    """Return the rows of at most `n_patches` patches: the one nearest to the centre of each cluster (K-means).

    The patch of the largest cluster comes first, so that a shorter list keeps the most common looks. Where patches
    look the same and clusters are missing, those farthest from all chosen ones fill the list.

    Args:
        features: (patches, features), in an order that doesn't depend on the file system.
    """
    spread = features.std(axis=0)
    points = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    n_patches = min(n_patches, len(points))
    n_clusters = min(n_patches, len(np.unique(points, axis=0)))
    clusters = KMeans(n_clusters, random_state=seed, n_init=10).fit(points)
    nearest = cdist(clusters.cluster_centers_, points).argmin(axis=1)
    sizes = np.bincount(clusters.labels_, minlength=n_clusters)
    chosen = [int(row) for _, row in sorted(zip(-sizes, nearest, strict=True))]
    chosen = list(dict.fromkeys(chosen))
    while len(chosen) < n_patches:
        distances = cdist(points, points[chosen]).min(axis=1)
        distances[chosen] = -1
        chosen.append(int(distances.argmax()))
    return chosen
