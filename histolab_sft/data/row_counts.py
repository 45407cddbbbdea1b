"""How many rows of a source come through to each split, for the audit: what caps hold back is seen nowhere else."""

from collections.abc import Mapping, Sequence

import pandas as pd

FLOW = ("found", "given")  # columns that the audit alone reads


def count_found(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one data set with `given`, the split in the source, and `found`, how many rows that has."""
    return rows.assign(found=rows.groupby("split")["split"].transform("size"), given=rows["split"])


def count_flow(rows: pd.DataFrame, left_out: Sequence[Mapping] = ()) -> dict[str, dict]:
    """Return, for each data set, how many rows were found and are used.

    Args:
        rows: What is left of the rows of `count_found`, with `dataset`, `group` and the splits that hold.
        left_out: `dataset`, `split` and `rows` of what was found and never came to be counted there.

    Returns:
        Data set -> `found` (split in the source, empty where the recipe deals them -> rows) and `splits` (split ->
        `used`, `groups`, the number of known patients or slides, and `without_group`, rows of whom none is known).
    """
    flow = {}
    for dataset, part in rows.groupby("dataset", sort=False):
        splits = {
            split: {
                "used": len(used),
                "groups": int(used["group"].nunique()),
                "without_group": int(used["group"].isna().sum()),
            }
            for split, used in part.groupby("split")
        }
        found = part.drop_duplicates("given").set_index("given")["found"]
        flow[dataset] = {"found": {given: int(count) for given, count in found.items()}, "splits": splits}
    for entry in left_out:
        found = flow[entry["dataset"]]["found"]
        given = entry["split"] if entry["split"] in found else ""
        found[given] = found.get(given, 0) + entry["rows"]
    return flow
