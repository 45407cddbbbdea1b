"""External cohorts: rows that a finished adapter is scored on, and what of them it already knows from training."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from datasets import Dataset

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.external import ExternalConfig
from histolab_sft.data.audit.audit import audit_patches, explain_refusal
from histolab_sft.data.audit.related import find_related
from histolab_sft.data.data_sets import finish_rows, load_source
from histolab_sft.data.formats.words import leave_out
from histolab_sft.data.frozen_split import FrozenSplit
from histolab_sft.data.rows import (
    add_hashes,
    drop_refused,
    drop_rows,
    format_rows,
    inspect_pictures,
    list_pictures,
)
from histolab_sft.data.split_changes import describe_rows, mark_trained
from histolab_sft.data.splits import cap_patches
from histolab_sft.errors import AuditRefusal, say_count
from histolab_sft.provenance import fingerprint_data

logger = logging.getLogger(__name__)

PROTOCOL = "external"
REASONS = {
    "picture": "a picture of train or validation",
    "near_copy": "a near copy of one",
    "patient": "a patient or slide of train or validation",
}


@dataclass
class Cohort:
    """An external cohort that is ready to be scored.

    Attributes:
        config: Its entry of the recipe.
        rows (`Dataset`): As `format_patches` gives them, asked as those of the training data set.
        facts (`dict`): What a report says of it: `found` (rows in the source); `labels` (the cohort's -> class words
            or None; None without options); `left_out` (a list of `key`, `reason`, `label` and `rows`); `checked`
            (rows that were compared with the run's), `leaks` (what was done about shared ones), `shared` (reason ->
            rows) and `shared_rows` (their sum); `shared_with_test` (rows that also stand in the internal test split,
            so that the two scores aren't independent); `not_read` (files below the source by kind); `findings` (of
            the audit of the cohort by itself, each with `level` and `message`); and `data_fingerprint`.
    """

    config: ExternalConfig
    rows: Dataset
    facts: dict


def load_cohorts(histo_args: HistoArguments, trained: FrozenSplit, folder: str | Path) -> list[Cohort]:
    """Return the external cohorts of a recipe, each compared with what the run learnt from.

    Args:
        trained: Rows of train and validation of every data set of the run, which nothing here may show, and of test.
        folder: Where the audit of the run lies, for messages.

    Raises:
        AuditRefusal: Rows show what was trained on or chosen on, and `leaks` is `stop`; or a picture can't be used.
        FileNotFoundError, ValueError: The data aren't there, aren't as the recipe says, or none is left to score.
    """
    cohorts = [_load_cohort(config, histo_args, trained, folder) for config in histo_args.external]
    refused = [
        f"  {cohort.config.name}: of {say_count(cohort.facts['checked'], 'row')}, {_say_shared(cohort.facts)}"
        for cohort in cohorts
        if cohort.facts["shared_rows"] and cohort.facts["leaks"] == "stop"
    ]
    if refused:
        listed = "\n".join(refused)
        raise AuditRefusal(
            f"external cohorts show what the run was trained or chosen on:\n{listed}\nexpected no such row; leave "
            "them out by `leaks: drop` of the cohort, or score them all the same by `leaks: allow`"
        )
    return cohorts


def _list_cohort(config: ExternalConfig, histo_args: HistoArguments) -> tuple[pd.DataFrame, list[dict], dict]:
    """Return the rows of a cohort, all of them of test, in the words of the training data set.

    Returns:
        Columns as of `list_rows`; what was left out, as `leave_out` counts it; the files that weren't read, by kind.

    Raises:
        FileNotFoundError, HubAccessError, ValueError: As `list_rows`; a label that `class_names` doesn't name.
    """
    rows = load_source(config, histo_args.data_dir, anew=config.splits is None)
    not_read, found = rows.attrs["not_read"], len(rows)
    rows, left_out = leave_out(rows, config, histo_args.unlabelled)
    rows = rows.assign(
        split="test", dataset=config.name, cohort=config.cohort or config.name, found=found, given="test"
    )
    if config.options:
        rows, left_out = _map_labels(rows, config, left_out)
        rows["ask"] = [{"options": config.options, "style": histo_args.prompt_style}] * len(rows)
    elif strange := sorted(set(rows["task"]) - {config.trained.task or rows["task"].iloc[0]}):
        raise ValueError(
            f"external cohort {config.name!r} has rows of task {', '.join(strange)}, expected {config.trained.task}, "
            f"as {config.trained.name!r}; name it by `task`, or correct `external_of`"
        )
    if cap := config.max_samples or histo_args.max_test_samples:
        capped = cap_patches(rows.assign(label=rows["label"].fillna("")), cap, histo_args.split_seed).index
        held = pd.Series("beyond max_samples or max_test_samples", index=rows.index.difference(capped))
        rows, left_out = drop_rows(rows, held, "max_samples", left_out)
    rows = finish_rows(rows.assign(protocol=PROTOCOL, options=[config.options] * len(rows)), config)
    if rows.empty:
        raise ValueError(f"external cohort {config.name!r}: none of {say_count(found, 'row')} is left to score")
    return rows.reset_index(drop=True), left_out, not_read


def _map_labels(rows: pd.DataFrame, config: ExternalConfig, left_out: list[dict]) -> tuple[pd.DataFrame, list[dict]]:
    """Put the run's class words in place of the cohort's labels; leave out those that are mapped to null."""
    unknown = rows.loc[~rows["label"].isin(list(config.class_names)), "label"].value_counts()
    if len(unknown):
        listed = ", ".join(f"{label!r} ({say_count(int(count), 'row')})" for label, count in unknown.items())
        raise ValueError(
            f"external cohort {config.name!r} has labels that class_names doesn't name: {listed}; give each the class "
            f"words of {config.trained.name!r} that it stands for ({', '.join(config.options)}), or null to leave its "
            "rows out"
        )
    if absent := sorted(set(config.class_names) - set(rows["label"])):
        logger.info("external cohort %r has no row of %s", config.name, ", ".join(map(repr, absent)))
    words = rows["label"].map(config.class_names)
    unscored = rows.index[words.isna()]
    rows, left_out = drop_rows(rows, pd.Series("label mapped to null", index=unscored), "class_names", left_out)
    words = words.drop(unscored)
    return rows.assign(label=words, answer=words), left_out


def _load_cohort(
    config: ExternalConfig, histo_args: HistoArguments, trained: FrozenSplit, folder: str | Path
) -> Cohort:
    rows, left_out, not_read = _list_cohort(config, histo_args)
    found = int(rows["found"].iloc[0])
    pictures = list_pictures(rows)
    inspected = inspect_pictures(pictures)
    add_hashes(rows, inspected)
    if reason := explain_refusal({"refusals": 0}, inspected, histo_args, folder):
        raise AuditRefusal(f"external cohort {config.name!r}: {reason}")
    rows, left_out = drop_refused(rows, pictures, inspected, left_out)

    marks, with_test = _compare_with_run(rows, inspected, trained, config, histo_args)
    checked, leaks = len(rows), config.leaks or histo_args.leaks
    shared = {reason: int(marks[reason].sum()) for reason in REASONS}
    facts = {"checked": checked, "leaks": leaks, "shared": shared, "shared_rows": sum(shared.values())}
    if leaks == "drop":
        reasons = marks[marks.any(axis=1)].idxmax(axis=1).map(REASONS)
        rows, left_out = drop_rows(rows, reasons, "leaks: drop", left_out)
        with_test = with_test[rows.index]
        if rows.empty:
            raise ValueError(
                f"external cohort {config.name!r}: all {checked} rows show what the run was trained or chosen on, "
                "expected some that don't; take another cohort"
            )
    pictures = list_pictures(rows)
    near, _ = find_related(pictures, inspected[inspected["verdict"] != "refused"], histo_args.find_siblings)
    classes = {config.name: sorted(set(rows["label"].dropna()))}
    audit = audit_patches(pictures.drop_duplicates(["path", "row"]), inspected, near, classes)
    rows = rows.reset_index(drop=True)
    asked = format_rows(rows, config.trained)
    facts |= {
        "found": found,
        "labels": config.class_names if config.options else None,
        "left_out": [{key: part[key] for key in ("key", "reason", "label", "rows")} for part in left_out],
        "shared_with_test": int(with_test.sum()),
        "not_read": not_read,
        # A cohort has no train split to find empty.
        "findings": [
            {"level": finding["level"], "message": finding["message"]}
            for finding in audit["findings"]
            if finding["check"] != "empty_split"
        ],
        "data_fingerprint": fingerprint_data({"test": asked}),
    }
    logger.info(
        "external cohort %s, scored as %s: %d of %d rows, %s groups; %s",
        *(config.name, config.trained.name, len(rows), found, rows["group"].nunique() or "no"),
        _say_shared(facts),
    )
    for finding in facts["findings"]:
        logger.info("external cohort %s: %s", config.name, finding["message"])
    return Cohort(config, asked, facts)


def _compare_with_run(
    rows: pd.DataFrame,
    inspected: pd.DataFrame,
    trained: FrozenSplit,
    config: ExternalConfig,
    histo_args: HistoArguments,
) -> tuple[pd.DataFrame, pd.Series]:
    """Return why each row shows what the run learnt or chose by (`mark_trained`), and whether its test split has it.

    Args:
        rows: With `pixel_sha256`.
        inspected: What `check_images` says of their pictures.
    """
    described = describe_rows(rows, inspected)
    sources = {cohort: set(places) for cohort, places in trained.settings["sources"].items()}
    place = str(Path(histo_args.data_dir, config.source).resolve())
    sources.setdefault(config.cohort or config.name, set()).add(place)
    learnt = trained.rows["split"] != "test"
    parts = [trained.rows[part].assign(split="train") for part in (learnt, ~learnt)]
    marks, with_test = (mark_trained(part, described, sources) for part in parts)
    return marks, with_test.any(axis=1)


def _say_shared(facts: dict) -> str:
    if not facts["shared_rows"]:
        return "none shares a picture, near copy, patient or slide with train or validation"
    counts = ", ".join(f"{facts['shared'][reason]} show {words}" for reason, words in REASONS.items())
    return counts + {"drop": ", left out", "allow": ", scored all the same", "stop": ""}[facts["leaks"]]
