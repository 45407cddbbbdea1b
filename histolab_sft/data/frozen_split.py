"""The split of a run, frozen when it is trained: what was trained on is never scored, and no change goes untold."""

import copy
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.scoring import SCORING_KEYS
from histolab_sft.data.rows import audit_or_stop, audit_recipe, format_patches
from histolab_sft.data.split_changes import (
    COLUMNS,
    EARLIER,
    TRAINED,
    SplitChanges,
    compare_splits,
    describe_rows,
    match_rows,
)
from histolab_sft.errors import AuditRefusal, say_count
from histolab_sft.files import replacing
from histolab_sft.provenance import fingerprint_data

logger = logging.getLogger(__name__)

FILE = "split.parquet"
# Keys that decide which rows there are, in which split, and what is asked about them.
KEYS = (
    *("split_protocol", "split_seed", "validation_fraction", "test_fraction", "max_samples", "max_test_samples"),
    *("leaks", "refused_images", "unlabelled", "prompt_style", "folds", "fold"),
)
METADATA = b"histolab_sft"


@dataclass
class FrozenSplit:
    """What `split.parquet` holds.

    Attributes:
        rows: As from `describe_rows`; rows of an adapter that the run went on from have the split `earlier`.
        fingerprint: `fingerprint_data` of the rows that the run was given.
        settings: Values of `KEYS`, `datasets` (name -> its keys) and `sources` (cohort -> places on disk).
    """

    rows: pd.DataFrame
    fingerprint: str
    settings: dict


class SplitError(AuditRefusal):
    """The splits aren't those that a run was trained on."""


def load_training_patches(histo_args: HistoArguments, output_dir: str | Path) -> DatasetDict:
    """Return what `load_audited_patches` does, and freeze its splits in `output_dir/split.parquet`.

    Where the run goes on from an adapter in a folder that has such a file, what that one was trained on counts too.

    Raises:
        SplitError: What is in the folder was trained on other rows, or a picture, patient or slide to be scored had
            been learnt by the adapter that the run goes on from.
    """
    frame, inspected = audit_or_stop(histo_args, output_dir)
    patches, split = format_patches(frame, histo_args), describe_split(frame, inspected, histo_args)
    split.fingerprint = fingerprint_data(patches)
    found = read_split(output_dir)
    if found is not None and _holds_results(Path(output_dir)):
        if found.fingerprint != split.fingerprint:
            changes = _list_changes(found, _compare(found, split), split)
            raise SplitError(
                f"{output_dir} holds what was trained on other rows:\n{_list(changes)}\nundo the change, or choose "
                "another output_dir"
            )
        return patches
    earlier = histo_args.adapter_name_or_path and read_split(histo_args.adapter_name_or_path)
    if earlier:
        changes = _compare(earlier, split)
        _refuse_leaks(
            changes.leaks, histo_args, f"the adapter in {histo_args.adapter_name_or_path}", "other test data"
        )
        learnt = earlier.rows[earlier.rows["split"].isin(TRAINED)]
        _add_rows(split, learnt.assign(split=EARLIER), earlier)
    write_split(split, output_dir)
    return patches


def load_scored_patches(histo_args: HistoArguments, output_dir: str | Path) -> tuple[DatasetDict, list[str]]:
    """Return the rows to score the adapter in `output_dir` on, audited, and a sentence for each change since training.

    What `changed_split` says is done about rows of validation and test that show what was trained on.

    Raises:
        SplitError: There are such rows, or none is left without them.
    """
    frozen = read_split(output_dir)
    if frozen is None:
        frame, _ = audit_or_stop(histo_args, output_dir)
        note = f"The run's folder has no {FILE}: whether what is scored was trained on isn't known."
        logger.warning("%s", note)
        return format_patches(frame, histo_args), [note]
    notes = []
    if histo_args.changed_split == "frozen":
        frame, inspected = audit_or_stop(
            _without_caps(histo_args), output_dir, lambda *found: _assign_frozen(*found, frozen, notes)
        )
    else:
        frame, inspected = audit_or_stop(histo_args, output_dir)
    now = describe_split(frame, inspected, histo_args)
    changes = _compare(frozen, now)
    sentences = list(changes.leaks)
    if histo_args.changed_split == "new":
        frame = frame[~changes.trained_on]
        sentences = [f"{sentence}; they are left out" for sentence in sentences]
        gone = {"validation", "test"} & set(now.rows["split"]) - set(frame["split"])
        if gone:
            raise SplitError(f"{_list(sentences)}\nwithout these nothing is left of {', '.join(sorted(gone))}")
    else:
        _refuse_leaks(
            changes.leaks,
            histo_args,
            str(output_dir),
            "the split of training by changed_split: frozen, or the new one without these rows by changed_split: new",
        )
    patches = format_patches(frame, histo_args)
    now.fingerprint = fingerprint_data(patches)
    sentences += notes + _list_changes(frozen, changes, now)
    if sentences:
        scored = "the split of training" if histo_args.changed_split == "frozen" else "the splits as they are now"
        logger.warning("since training, this has changed; scored are %s:\n%s", scored, _list(sentences))
    return patches, sentences


def list_trained(histo_args: HistoArguments, output_dir: str | Path) -> FrozenSplit:
    """Return the rows of train, validation and test with which nothing external may be confused.

    They are those of the frozen split; without one, or where others are scored by `changed_split: new`, those of the
    data as they are now (too).
    """
    frozen = read_split(output_dir)
    if frozen is not None and histo_args.changed_split != "new":
        return frozen
    frame, _, inspected = audit_recipe(histo_args, output_dir)
    now = describe_split(frame, inspected, histo_args)
    if frozen is not None:
        _add_rows(now, frozen.rows, frozen)
    return now


def describe_split(frame: pd.DataFrame, inspected: pd.DataFrame, histo_args: HistoArguments) -> FrozenSplit:
    """Return the split of the rows of `audit_recipe`, without a fingerprint."""
    return FrozenSplit(describe_rows(frame, inspected), "", _describe_settings(histo_args))


def read_split(folder: str | Path) -> FrozenSplit | None:
    """Return the split that was frozen in a folder, None where there is none."""
    path = Path(folder, FILE)
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path).select(COLUMNS)
        content = json.loads(table.schema.metadata[METADATA])
        return FrozenSplit(table.to_pandas(), content["fingerprint"], content["settings"])
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise SplitError(
            f"{path} can't be read ({error!r}), expected the split of the run; bring it back, or train again"
        ) from error


def write_split(split: FrozenSplit, folder: str | Path) -> None:
    """Write `split.parquet` whole or not at all."""
    table = pa.Table.from_pandas(split.rows, preserve_index=False)
    content = {"fingerprint": split.fingerprint, "settings": split.settings}
    metadata = {**(table.schema.metadata or {}), METADATA: json.dumps(content, default=str)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    with replacing(Path(folder, FILE), synced=True) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)


def _add_rows(split: FrozenSplit, rows: pd.DataFrame, source: FrozenSplit) -> None:
    """Add rows of another split, and the places that its cohorts are from."""
    split.rows = pd.concat([split.rows, rows])
    for cohort, places in source.settings["sources"].items():
        known = split.settings["sources"].setdefault(cohort, [])
        known += [place for place in places if place not in known]


def _compare(frozen: FrozenSplit, now: FrozenSplit) -> SplitChanges:
    sources = {}
    for split in (frozen, now):
        for cohort, places in split.settings["sources"].items():
            sources.setdefault(cohort, set()).update(places)
    return compare_splits(frozen.rows, now.rows, sources)


def _refuse_leaks(leaks: list[str], histo_args: HistoArguments, trained: str, choice: str) -> None:
    """Raise a `SplitError` for rows to be scored that show what was trained on, unless `leaks: allow` takes them."""
    if leaks and histo_args.leaks != "allow":
        raise SplitError(
            f"{trained} was trained on what is to be scored:\n{_list(leaks)}\nexpected no such row; take {choice}"
        )


def _list_changes(frozen: FrozenSplit, changes: SplitChanges, now: FrozenSplit) -> list[str]:
    """Return a sentence for each change of the rows and of the keys that decide about them."""
    then, keys = dict(frozen.settings), dict(now.settings)
    pairs = {key: (then.get(key), keys[key]) for key in KEYS}
    for name in sorted(then["datasets"].keys() | keys["datasets"].keys()):
        own, before = keys["datasets"].get(name), then["datasets"].get(name)
        if own is None or before is None:
            pairs[f"data set {name}"] = ("absent" if before is None else "there", "absent" if own is None else "there")
        else:
            pairs |= {f"{key} of data set {name}": (before.get(key), own[key]) for key in own}
    sentences = [
        f"{key} is {own}, and was {before} in training" for key, (before, own) in pairs.items() if own != before
    ]
    sentences += changes.sentences
    if not sentences and frozen.fingerprint != now.fingerprint:
        sentences.append("the same rows are asked in another order or wording than in training")
    return sentences


def _assign_frozen(
    patches: pd.DataFrame, inspected: pd.DataFrame, frozen: FrozenSplit, notes: list[str]
) -> pd.DataFrame:
    """Give each row the split that it had in training, in the order of then; leave out the others and note it."""
    known = frozen.rows[frozen.rows["split"] != EARLIER].reset_index(drop=True)
    positions = match_rows(known, describe_rows(patches, inspected))
    positions = positions[positions >= 0].sort_values()
    if len(positions) < len(patches):
        notes.append(
            f"no part in the split of training: {say_count(len(patches) - len(positions), 'row')} of the data"
        )
    assigned = known["split"].iloc[positions].set_axis(positions.index)
    if gone := sorted(set(known["split"]) - set(assigned)):
        raise SplitError(
            f"nothing is left in the data of {', '.join(gone)} in the split of training; bring its pictures back"
        )
    return patches.loc[positions.index].assign(split=assigned)


def _without_caps(histo_args: HistoArguments) -> HistoArguments:
    """Return the recipe with every row in it, whichever of them the caps had drawn."""
    whole = copy.copy(histo_args)
    whole.max_samples = whole.max_test_samples = None
    whole.datasets = [copy.copy(config) for config in histo_args.datasets]
    for config in whole.datasets:
        config.max_samples = None
    return whole


def _describe_settings(histo_args: HistoArguments) -> dict:
    sources = {}
    for config in histo_args.datasets:
        place = str(Path(histo_args.data_dir, config.source).resolve())
        sources.setdefault(config.cohort or config.name, []).append(place)
    settings = {key: getattr(histo_args, key) for key in KEYS} | {"sources": sources}
    # As they are read back from JSON.
    datasets = {
        config.name: {key: value for key, value in asdict(config).items() if key not in SCORING_KEYS}
        for config in histo_args.datasets
    }
    return json.loads(json.dumps(settings | {"datasets": datasets}, default=str))


def _holds_results(folder: Path) -> bool:
    """Whether a folder has weights or checkpoints in it."""
    return any(folder.glob("*.safetensors")) or any(folder.glob("**/checkpoint-*/manifest.json"))


def _list(sentences: list[str]) -> str:
    return "\n".join(f"  {sentence}" for sentence in sentences)
