"""Find which patches belong together: of one patient or slide, with equal pixels, or of the same tissue."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from histolab_sft.config.dataset import SPLITS
from histolab_sft.data.audit.near_copies import THUMBNAIL_SIDE, find_near_duplicates
from histolab_sft.data.pictures.containers import name_patch

PICTURE = ["path", "row", "rendering"]
EQUAL, NEAR, SIBLING = "equal pixels", "near copy", "sibling"
GROUP = "same patient or slide"


def join_inspected(rows: pd.DataFrame, inspected: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return `columns` of the rows, the name `patch` of each and what was found of its picture, in the rows' order.

    Raises:
        ValueError: `rows` lack a column, or `inspected` lacks a picture.
    """
    missing = [column for column in columns if column not in rows.columns]
    if missing:
        raise ValueError(f"rows lack {missing}; expected {list(columns)}")
    rows, inspected = (
        table.reindex(columns=[*dict.fromkeys((*names, *PICTURE))], fill_value="")
        for table, names in ((rows, columns), (inspected, inspected.columns))
    )
    table = rows.merge(_unify_hashes(inspected).drop_duplicates(PICTURE), on=PICTURE, how="left")
    if table["verdict"].isna().any():
        gone = table.loc[table["verdict"].isna(), "path"]
        raise ValueError(f"{len(gone)} patches such as {gone.iloc[0]} haven't been inspected; check them first")
    table["patch"] = [name_patch(path, row) for path, row in zip(table["path"], table["row"], strict=True)]
    return table


def find_near_copies(inspected: pd.DataFrame) -> pd.DataFrame:
    """Return pairs of pictures that are the same but for compression, scale, rotation by right angles or mirroring.

    Args:
        inspected: What `check_images` says of the pictures.

    Returns:
        One row a pair, the most alike first: `first` and `second` (`pixel_sha256`, which differ), `likeness`
        (correlation) and `kind` (near copy).
    """
    usable = _unify_hashes(inspected[inspected["verdict"] != "refused"]).drop_duplicates("pixel_sha256")
    thumbnails = np.frombuffer(b"".join(usable["thumbnail"]), np.uint8).reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    pairs, correlations = find_near_duplicates(thumbnails)
    pixels = usable["pixel_sha256"].to_numpy(object)
    near = pd.DataFrame({"first": pixels[pairs[:, 0]], "second": pixels[pairs[:, 1]], "likeness": correlations})
    return near.assign(kind=NEAR).sort_values("likeness", ascending=False, kind="stable", ignore_index=True)


def tie_patches(pictures: pd.DataFrame, inspected: pd.DataFrame, near: pd.DataFrame) -> pd.Series:
    """Return for each patch the number of its set, all patches of which must be in one split.

    Patches are in one set if they share patient, picture or file, or are a near pair, or a chain of such ties links
    them. Pictures of one even colour tie no patches: they are equal without being the same tissue.

    Args:
        pictures: One row a picture: `path`, `row`, `rendering` where there is one, `cohort`, `group`. Rows with one
            index value are the pictures of one question.
        inspected: What `check_images` says of them.
        near: From `find_related`.

    Returns:
        Numbers under the distinct values of the index of `pictures`.
    """
    table = join_inspected(pictures, inspected, ("path", "row", "cohort", "group"))
    patches, numbers = np.unique(pictures.index, return_inverse=True)
    shown = table["pixel_sha256"].where(table["contrast"] > 0)
    files = table["path"] + "\n" + table["row"].astype(str)
    codes, pixels = pd.factorize(shown)
    ties = [codes, pd.factorize(name_groups(table))[0], pd.factorize(files)[0]]
    nodes, starts, ends = len(patches), [], []
    for keys in ties:
        starts.append(numbers[keys >= 0])
        ends.append(keys[keys >= 0] + nodes)
        if keys is codes:
            sides = [pd.Index(pixels).get_indexer(near[side]) for side in ("first", "second")]
            known = (sides[0] >= 0) & (sides[1] >= 0)
            starts.append(sides[0][known] + nodes)
            ends.append(sides[1][known] + nodes)
        nodes += keys.max(initial=-1) + 1
    starts, ends = np.concatenate(starts), np.concatenate(ends)
    graph = coo_array((np.ones(len(starts), bool), (starts, ends)), shape=(nodes, nodes))
    return pd.Series(connected_components(graph, directed=False)[1][: len(patches)], index=patches)


def name_groups(table: pd.DataFrame) -> pd.Series:
    """Return the patient or slide of each row together with its cohort, missing where it isn't known."""
    return table["cohort"].astype(str).str.cat(table["group"].astype("string"), sep="\n")


def find_leaking_rows(rows: pd.DataFrame, inspected: pd.DataFrame, near: pd.DataFrame) -> pd.Series:
    """Return the positions of rows to drop so that no picture, near copy or group crosses splits, and why each.

    The later split stays whole: rows of train and validation that are tied to test go first, then rows of train that
    are tied to what is left of validation.

    Args:
        rows, inspected: As for `audit_patches`.
        near: From `find_related`.

    Returns:
        Position -> reason (`equal pixels`, `near copy`, `sibling`, `same patient or slide`), in the rows' order.
    """
    table = join_inspected(rows, inspected, ("path", "row", "cohort", "group", "split"))
    rank = table["split"].map(SPLITS.index)
    pixels = table["pixel_sha256"].where(table["contrast"] > 0)
    ends = {"first": "second", "second": "first"}
    partners = pd.concat([near, near.rename(columns=ends)], ignore_index=True)
    groups, reasons = name_groups(table), pd.Series(None, index=table.index, dtype=object)
    for split in ("test", "validation"):
        scored = (table["split"] == split) & reasons.isna()
        open_ = (rank < SPLITS.index(split)) & reasons.isna()
        reached = partners[partners["second"].isin(table.loc[scored, "pixel_sha256"])]
        ties = {EQUAL: pixels.isin(pixels[scored].dropna())}
        ties |= {kind: table["pixel_sha256"].isin(part["first"]) for kind, part in reached.groupby("kind")}
        ties[GROUP] = groups.isin(groups[scored].dropna())
        for reason, tied in ties.items():
            reasons[open_ & tied & reasons.isna()] = reason
    return reasons.dropna()


def locate_pairs(table: pd.DataFrame, near: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return two tables, the first and the second patch of each near pair, for every combination of their splits.

    Args:
        table: Rows of `join_inspected`; of rows with equal pixels the first in each split is taken.
    """
    firsts = table.drop_duplicates(["pixel_sha256", "split"])
    firsts = pd.Series(firsts.index, index=firsts["pixel_sha256"]).rename_axis("pixels").rename("at").reset_index()
    pairs = near.merge(firsts, left_on="first", right_on="pixels").merge(firsts, left_on="second", right_on="pixels")
    return tuple(
        table.loc[pairs[at]].reset_index(drop=True).assign(kind=pairs["kind"], likeness=pairs["likeness"])
        for at in ("at_x", "at_y")
    )


def list_copies(rows: pd.DataFrame, inspected: pd.DataFrame, near: pd.DataFrame) -> pd.DataFrame:
    """Return every set of pictures with equal pixels and every near pair, one row a patch in it.

    Args:
        rows, inspected: As for `audit_patches`.
        near: From `find_related`.

    Returns:
        `set` (number), `kind` (equal pixels, near copy, sibling), `patch`, `dataset`, `split`, `label` and `likeness`
        (of a pair; null for equal pixels).
    """
    table = join_inspected(rows, inspected, ("path", "row", "label", "dataset", "split"))
    shown = ["patch", "dataset", "split", "label"]
    equal = table[table.duplicated("pixel_sha256", keep=False) & (table["contrast"] > 0)]
    numbers = equal.groupby("pixel_sha256", sort=False).ngroup()
    sets = [equal[shown].assign(set=numbers, kind=EQUAL, likeness=np.nan)]
    first, second = locate_pairs(table, near)
    start = numbers.max() + 1 if len(equal) else 0
    for side in (first, second):
        sets.append(side[[*shown, "kind", "likeness"]].assign(set=side.index + start))
    listed = pd.concat(sets).sort_values("set", kind="stable", ignore_index=True)
    return listed[["set", "kind", *shown, "likeness"]]


def _unify_hashes(inspected: pd.DataFrame) -> pd.DataFrame:
    """Give equal files one `pixel_sha256`, also where two data sets have different windows or steps for them."""
    return inspected.assign(pixel_sha256=inspected.groupby("file_sha256")["pixel_sha256"].transform("first"))
