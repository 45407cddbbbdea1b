"""Find in the names of patches what may be a patient or slide, for a person to confirm."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

FEWEST_GROUPS = 6  # fewer can't be dealt to three splits with the shares that a recipe asks for
# Regular expressions on the path below the source, most telling first, each with what it takes.
PATTERNS = (
    (r"(TCGA-\w{2}-\w{4})", "the patient in a name of The Cancer Genome Atlas"),
    (r"([^/]+)/[^/]+$", "the folder that a picture lies in"),
    (r"(?:^|/)([^/_-]+)[_-][^/]*$", "the first part of a name"),
    (r"[/_-](?![xy]\d)([A-Za-z]{1,8}\d+)[_-][^/]*$", "letters with a number inside of a name"),
    (r"([^/]+)[_-]\d+\.\w+$", "a name without its last number"),
)


class GroupPattern(NamedTuple):
    """A `group_by` that fits, what it takes from a path, and how many patches each group would have."""

    pattern: str
    meaning: str
    sizes: Counter


def find_group_pattern(places: Sequence[str], labels: Sequence[str]) -> GroupPattern | None:
    """Return the first pattern that gives every patch a group and most groups several patches, None without one.

    A pattern doesn't count if it gives the classes, fewer than six groups, or half of all patches one group.

    Args:
        places: Paths of the patches below the source, each with the label of its patch in `labels`.
    """
    for pattern, meaning in PATTERNS:
        matches = [re.search(pattern, place) for place in places]
        if not all(matches):
            continue
        sizes = Counter(match[1] for match in matches)
        named_like_labels = set(sizes) & set(labels)
        enough = max(FEWEST_GROUPS, len(set(labels)) + 1) <= len(sizes) <= len(places) / 2
        if enough and not named_like_labels and max(sizes.values()) <= len(places) / 2:
            return GroupPattern(pattern, meaning, sizes)
    return None
