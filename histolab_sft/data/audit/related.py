"""Find related pictures: near copies always, and siblings (cut from one picture) where the recipe has that key."""

import hashlib
import json
import logging

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from histolab_sft.data.audit.copies import SIBLING, find_near_copies, join_inspected, name_groups
from histolab_sft.data.audit.siblings import find_siblings
from histolab_sft.errors import say_count
from histolab_sft.files import cache_folder, write_text

logger = logging.getLogger(__name__)

# Part of the cache's name: raise it whenever siblings are found in another way.
SIBLINGS_VERSION = 1
REFERENCE = ["path", "row", "column", "rendering"]


def find_related(pictures: pd.DataFrame, inspected: pd.DataFrame, siblings: bool) -> tuple[pd.DataFrame, dict | None]:
    """Return pairs of related pictures, and how reliable the search for siblings was.

    The search for siblings takes minutes, so its result is cached by the pictures and their groups.

    Args:
        pictures: Rows of the audit, with `column`.
        inspected: What `check_images` says of them.
        siblings: Whether patches that were turned by any angle are looked for as well (`find_siblings`).

    Returns:
        Pairs as `find_near_copies` gives them, of `kind` near copy or sibling; and without `siblings` None, else
        `pairs` (how many are siblings), and `control`: of the most alike pairs known to be different, how many were
        `tried`, how many `passed` for siblings, the `rate` with its upper 95 % limit `at_most`, and from what they
        are `known` (groups or classes; None where neither is known).
    """
    near = find_near_copies(inspected)
    if not siblings:
        return near, None
    table = join_inspected(pictures, inspected, (*REFERENCE, "label", "cohort", "group"))
    table = table[(table["verdict"] != "refused") & (table["contrast"] > 0)]
    table = table.drop_duplicates("pixel_sha256").sort_values("pixel_sha256", ignore_index=True)
    groups = name_groups(table)
    known = "groups" if groups.notna().any() else "classes" if table["label"].notna().any() else None
    identities = pd.factorize(groups if known == "groups" else table["label"])[0]
    found = _search_once(table, identities)
    # Near copies are reported apart, and are no controls, whatever their groups.
    copies = {tuple(sorted(pair)) for pair in near[["first", "second"]].itertuples(index=False)}
    pixels = table["pixel_sha256"].to_numpy(object)
    # Positions are in the order of the hashes, and so are the pairs.
    siblings, controls = (
        [(*(pixels[at] for at in pair), value) for *pair, value in found[name]] for name in ("siblings", "controls")
    )
    tried = [passed for *pair, passed in controls if tuple(pair) not in copies]
    siblings = [row for row in siblings if row[:2] not in copies]
    siblings = pd.DataFrame(siblings, columns=["first", "second", "likeness"]).assign(kind=SIBLING)
    siblings = siblings.sort_values("likeness", ascending=False, kind="stable")
    control = {"known": known, "tried": len(tried), "passed": sum(tried), "rate": None, "at_most": None}
    if tried:
        control["rate"] = sum(tried) / len(tried)
        control["at_most"] = float(binomtest(sum(tried), len(tried)).proportion_ci().high)
    kinds = [part for part in (near, siblings) if len(part)] or [near]
    return pd.concat(kinds, ignore_index=True), {"pairs": len(siblings), "control": control}


def describe_siblings(siblings: dict | None) -> list[str]:
    """Return what the search for siblings found, and how often it errs, as a line for the screen."""
    if siblings is None:
        return []
    control, found = siblings["control"], f"siblings: {say_count(siblings['pairs'], 'pair')} of pictures"
    if not control["tried"]:
        return [f"{found}; how often different patches pass for siblings isn't known, as no groups or classes are"]
    unit = "groups" if control["known"] == "groups" else "classes (neighbours that overlap among them)"
    return [
        f"{found}; of {say_count(control['tried'], 'pair')} from different {unit}, the likest, {control['passed']:,} "
        f"passed for siblings ({control['rate']:.2%}, at most {control['at_most']:.2%})"
    ]


def _search_once(table: pd.DataFrame, identities: np.ndarray) -> dict:
    """Return `siblings` (two positions, correlation) and `controls` (two positions, whether they pass), from the cache
    if they are there.
    """
    digest = hashlib.sha256(f"{SIBLINGS_VERSION}\n".encode())
    for pixels, identity in zip(table["pixel_sha256"], identities, strict=True):
        digest.update(f"{pixels} {identity}\n".encode())
    path = cache_folder() / "siblings" / f"{digest.hexdigest()}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.info("looking for siblings among %s", say_count(len(table), "picture"))
    pairs, alike, controls, passed = find_siblings(table[REFERENCE].to_dict("records"), identities, path.parent)
    found = {
        "siblings": [[*pair, value] for pair, value in zip(pairs.tolist(), alike.tolist(), strict=True)],
        "controls": [[*pair, value] for pair, value in zip(controls.tolist(), passed.tolist(), strict=True)],
    }
    write_text(path, json.dumps(found))
    return found
