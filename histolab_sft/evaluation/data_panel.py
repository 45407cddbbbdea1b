"""From `audit.json` to what a report says of its data before any score: found, held back, left out, used."""

import json
from pathlib import Path

from histolab_sft.config.dataset import SPLITS

NO_CLASS = "(no class)"  # how the audit calls rows of tasks without classes


def add_data_panel(results: dict, output_dir: str | Path) -> None:
    """Add the entry `data` to `results`, from the audit in `output_dir`, and what it means for each data set's scores.

    An entry of a data set whose official test split was scored in part alone gets `n_available` and a warning.
    """
    audit = json.loads(Path(output_dir, "audit.json").read_text(encoding="utf-8"))
    results["data"] = describe_data(audit)
    for name, entry in results["datasets"].items():
        found = audit["flow"][name]["found"].get("test", 0)
        scored = entry["n"] + entry.get("n_hidden", 0)
        if entry["split_protocol"] == "official" and found > scored:
            entry["n_available"] = found
            entry["warnings"].append(
                f"{scored:,} of {found:,} test {'questions' if 'task' in entry else 'patches'} were scored: a part of "
                "the official test split, whose scores aren't those of the whole"
            )


def describe_data(audit: dict) -> dict:
    """Return the entry `data` of `results.json`.

    Returns:
        `dict`: `datasets`, for each `found` (rows in the source), `held_back` (by `max_samples` and
        `max_test_samples`), `left_out` (by key of the recipe: rows), `not_read` (files below the source by kind) and
        `splits`: for each `found` and `held_back` (None where the recipe deals the split), `left_out`, `used`,
        `groups` (patients or slides), `without_group` (rows of whom none is known) and `classes`; `findings` of the
        audit, each with `level` and `message`.
    """
    datasets = {}
    for name, flow in audit["flow"].items():
        dropped, rows = [part for part in audit["dropped"] if part["dataset"] == name], {}
        for split in SPLITS:
            classes = audit["counts"].get(name, {}).get(split, {})
            rows[split] = {
                "found": flow["found"].get(split),
                "left_out": sum(part["rows"] for part in dropped if part["split"] == split),
                "classes": classes if set(classes) != {NO_CLASS} else {},
                **flow["splits"].get(split, {"used": 0, "groups": 0, "without_group": 0}),
            }
            # Where the recipe deals a split out of train, what train lacks wasn't held back.
            settled = split == "test" or set(SPLITS) <= set(flow["found"])
            row = rows[split]
            known = settled and row["found"] is not None
            row["held_back"] = row["found"] - row["used"] - row["left_out"] if known else None
        by_key = {}
        for part in dropped:
            by_key[part["key"]] = by_key.get(part["key"], 0) + part["rows"]
        found = sum(flow["found"].values())
        kept = sum(row["used"] for row in rows.values()) + sum(part["rows"] for part in dropped)
        datasets[name] = {"found": found, "held_back": found - kept, "left_out": by_key, "splits": rows}
        datasets[name]["not_read"] = audit["not_read"][name]
    findings = [{"level": finding["level"], "message": finding["message"]} for finding in audit["findings"]]
    return {"datasets": datasets, "findings": findings}
