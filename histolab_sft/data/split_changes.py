"""What differs between the rows that a run was trained on and those that are about to be scored."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histolab_sft.config.dataset import SPLITS
from histolab_sft.data.audit.near_copies import THUMBNAIL_SIDE, find_near_duplicates
from histolab_sft.errors import say_count

# Rows that an adapter had learnt before the run that went on from it.
EARLIER = "earlier"
TRAINED = ("train", EARLIER)
COLUMNS = ["dataset", "cohort", "split", "id", "group", "answer", "pixels", "pictures", "thumbnails"]


@dataclass
class SplitChanges:
    """What `compare_splits` found.

    Attributes:
        trained_on: For each row whether it is scored (validation or test) and shows a picture that was trained on, a
            near copy of one, or a patient or slide that was.
        leaks: A sentence with the counts for each data set and split that has such rows.
        sentences: A sentence for each other change.
    """

    trained_on: pd.Series
    leaks: list[str]
    sentences: list[str]


def describe_rows(patches: pd.DataFrame, inspected: pd.DataFrame) -> pd.DataFrame:
    """Return what must be known of each row to find it again, in the order of `patches` and with its index.

    Names, patients and answers are told apart by a hash, so that the table can be kept beside the weights.

    Args:
        patches: From `audit_recipe`.
        inspected: From `audit_recipe`.

    Returns:
        `dataset`, `cohort`, `split`; `id`, `group` (None if unknown) and `answer` as hashes; `pixels`, one hash of all
        pictures of the row; `pictures`, the list of their `pixel_sha256` without those of one even colour, which show
        no tissue and so give nothing away; `thumbnails` of these, as in `inspected`.
    """
    shown = inspected[inspected["contrast"] > 0].drop_duplicates("pixel_sha256")
    thumbnails = dict(zip(shown["pixel_sha256"], shown["thumbnail"], strict=True))
    hashes = patches["pixel_sha256"]
    return pd.DataFrame(
        {
            "dataset": patches["dataset"].astype(str),
            "cohort": patches["cohort"].astype(str),
            "split": patches["split"].astype(str),
            "id": patches["id"].map(_hash),
            "group": [None if pd.isna(group) else _hash(group) for group in patches["group"]],
            "answer": patches["answer"].map(_hash),
            "pixels": hashes.map(_hash),
            "pictures": hashes.map(lambda found: [name for name in found if name in thumbnails]),
            "thumbnails": hashes.map(lambda found: [thumbnails[name] for name in found if name in thumbnails]),
        },
        index=patches.index,
        columns=COLUMNS,
    )


def compare_splits(frozen: pd.DataFrame, rows: pd.DataFrame, sources: Mapping[str, set[str]]) -> SplitChanges:
    """Return what has changed since training; `frozen` and `rows` are tables of `describe_rows`.

    A patient or slide is the same where its name and its cohort are. Cohorts are the same that have one name, a
    source or a picture in common, so that another recipe of the same folder doesn't hide it; and whatever a patient is
    called now, one of whose pictures was trained on is one that was trained on. Near copies count among the pictures
    that weren't there in training; of the others, training's audit has told.

    Args:
        sources: Cohort -> where its data sets lie, of training and of now.
    """
    by_picture, by_copy, by_patient = (marks for _, marks in mark_trained(frozen, rows, sources).items())
    scored = ~rows["split"].isin(TRAINED)
    leaks = []
    for (dataset, split), part in rows[scored].groupby(["dataset", "split"], sort=False):
        pictures, copies, patients = (marks[part.index].sum() for marks in (by_picture, by_copy, by_patient))
        if pictures or copies or patients:
            leaks.append(
                f"{dataset}: of {len(part)} {split} rows, {pictures} show a picture that was trained on, {copies} "
                f"more a near copy of one, and {patients} more a patient or slide that was"
            )
    return SplitChanges(scored & (by_picture | by_copy | by_patient), leaks, _describe_changes(frozen, rows))


def find_test_rows(frozen: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    """Return for each of `rows`, from `data_sets.list_rows`, whether `frozen` has one of its name in the test split.

    No picture is looked at: what lies under the name may have changed since.
    """
    known = frozen[frozen["split"] == "test"]
    names = set(zip(known["dataset"], known["id"], strict=True))
    return pd.Series(
        [pair in names for pair in zip(rows["dataset"], rows["id"].map(_hash), strict=True)], rows.index, dtype=bool
    )


def mark_trained(frozen: pd.DataFrame, rows: pd.DataFrame, sources: Mapping[str, set[str]]) -> pd.DataFrame:
    """Return why each row shows what was trained on: `picture`, `near_copy`, `patient`, at most one of them true.

    Args:
        frozen, rows, sources: As in `compare_splits`, whose rules these are.
    """
    by_picture = _mark_pictures(frozen, rows)
    by_copy = _mark_near_copies(frozen, rows) & ~by_picture
    by_patient = _mark_patients(frozen, rows, by_picture | by_copy, sources) & ~by_picture & ~by_copy
    return pd.DataFrame({"picture": by_picture, "near_copy": by_copy, "patient": by_patient})


def match_rows(frozen: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    """Return for each row the position of the same one in `frozen`, -1 for none: by name and pixels, else by pixels.

    Where several rows have the same pixels and other names, they are matched in their order.
    """
    found = pd.Series(-1, index=rows.index)
    left = frozen.assign(position=range(len(frozen)))
    for keys in (["dataset", "id", "pixels"], ["dataset", "pixels"], ["pixels"]):
        open_rows = rows[found < 0]
        repeats = open_rows.groupby(keys).cumcount(), left.groupby(keys).cumcount()
        pairs = (
            open_rows.assign(repeat=repeats[0])
            .reset_index()
            .merge(left.assign(repeat=repeats[1]), on=[*keys, "repeat"])
        )
        found[pairs["index"]] = pairs["position"].to_numpy()
        left = left[~left["position"].isin(pairs["position"])]
    return found


def _mark_pictures(frozen: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    trained = set(frozen.loc[frozen["split"].isin(TRAINED), "pictures"].explode().dropna())
    return rows["pictures"].map(lambda pictures: not trained.isdisjoint(pictures)).astype(bool)


def _mark_near_copies(frozen: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    """Return whether each row is scored and shows a near copy of a picture trained on, which training didn't know."""
    known, trained = _list_thumbnails(frozen), _list_thumbnails(frozen[frozen["split"].isin(TRAINED)])
    scored = _list_thumbnails(rows[~rows["split"].isin(TRAINED)])
    new = {picture: thumbnail for picture, thumbnail in scored.items() if picture not in known}
    copies = set()
    if new:
        pixels = np.frombuffer(b"".join([*trained.values(), *new.values()]), np.uint8)
        pairs, _ = find_near_duplicates(pixels.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        across = (pairs[:, 0] < len(trained)) & (pairs[:, 1] >= len(trained))
        names = list(new)
        copies = {names[position - len(trained)] for position in pairs[across, 1]}
    return rows["pictures"].map(lambda pictures: not copies.isdisjoint(pictures)).astype(bool)


def _list_thumbnails(table: pd.DataFrame) -> dict[str, bytes]:
    pairs = zip(table["pictures"], table["thumbnails"], strict=True)
    return {name: thumbnail for names, thumbnails in pairs for name, thumbnail in zip(names, thumbnails, strict=True)}


def _mark_patients(
    frozen: pd.DataFrame, rows: pd.DataFrame, by_picture: pd.Series, sources: Mapping[str, set[str]]
) -> pd.Series:
    """Return whether each row is of a patient or slide that was trained on."""
    cohorts = {cohort: _list_pictures(frozen, cohort) for cohort in frozen["cohort"].unique()}
    known = frozen[frozen["split"].isin(TRAINED) & frozen["group"].notna()]
    trained = set(zip(rows["cohort"][by_picture], rows["group"][by_picture], strict=True))
    for now in rows["cohort"].unique():
        shown = _list_pictures(rows, now)
        for then, pictures in cohorts.items():
            common = sources.get(now, set()) & sources.get(then, set())
            if now == then or common or not shown.isdisjoint(pictures):
                trained |= {(now, group) for group in known["group"][known["cohort"] == then]}
    pairs = zip(rows["cohort"], rows["group"], strict=True)
    return pd.Series([pd.notna(group) and (cohort, group) in trained for cohort, group in pairs], index=rows.index)


def _list_pictures(table: pd.DataFrame, cohort: str) -> set[str]:
    return set(table.loc[table["cohort"] == cohort, "pictures"].explode().dropna())


def _describe_changes(frozen: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    frozen = frozen[frozen["split"].isin(SPLITS)].reset_index(drop=True)
    positions = match_rows(frozen, rows)
    same = rows[positions >= 0]
    before = frozen.iloc[positions[positions >= 0]].set_axis(same.index)
    added, gone = rows[positions < 0], frozen.drop(index=positions[positions >= 0])
    rewritten = added[_share_names(added, gone)]
    added, gone = added.drop(index=rewritten.index), gone[~_share_names(gone, rewritten)]

    sentences = []
    for dataset in sorted({*frozen["dataset"], *rows["dataset"]}):
        own, then = same[same["dataset"] == dataset], before[same["dataset"] == dataset]
        moves = (then["split"] + " to " + own["split"])[then["split"] != own["split"]].value_counts()
        listed = ", ".join(f"{move}: {count}" for move, count in moves.items())
        counts = {
            "new since training": (added["dataset"] == dataset).sum(),
            "gone since training": (gone["dataset"] == dataset).sum(),
            "other pixels under the same name": (rewritten["dataset"] == dataset).sum(),
            "another name": ((then["id"] != own["id"]) & (then["dataset"] == own["dataset"])).sum(),
            "from another data set": (then["dataset"] != own["dataset"]).sum(),
            "another label or answer": (then["answer"] != own["answer"]).sum(),
            "another patient or slide": (then["group"].fillna("") != own["group"].fillna("")).sum(),
            f"another split than in training ({listed})": moves.sum(),
        }
        sentences += [f"{dataset}, {what}: {say_count(int(count), 'row')}" for what, count in counts.items() if count]
    return sentences


def _share_names(rows: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """Return whether each row has the data set and the name of one of the others."""
    names = set(zip(others["dataset"], others["id"], strict=True))
    pairs = zip(rows["dataset"], rows["id"], strict=True)
    return pd.Series([pair in names for pair in pairs], index=rows.index, dtype=bool)


def _hash(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
