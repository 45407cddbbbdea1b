"""Check before an upload: an evaluation of this adapter, finite numbers, no secret and no identifier of a person."""

import getpass
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from huggingface_hub import get_token
from safetensors import SafetensorError, safe_open

from histolab_sft import secrets
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.hub_access import name_different_commits
from histolab_sft.models.adapter_checks import RESOLUTION_KEYS
from histolab_sft.models.load import EMBEDDED
from histolab_sft.provenance import compute_sha256

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
TEXT_SUFFIXES = {".json", ".md"}
SYSTEMS = ("baseline", "finetuned")

# Keys that the card describes and that read the same in a YAML file and after parsing.
DESCRIBED = ("model_name_or_path model_revision load_in_4bit load_in_8bit lora_r lora_alpha prompt_style seed").split()

# Account names that identify nobody, and that occur in many texts.
SHARED_ACCOUNTS = {"root", "user", "admin", "ubuntu", "debian", "guest", "test", "runner", "jovyan", "docker", "app"}

LEAKS = {
    "token": secrets.TOKEN,
    "private key": secrets.PRIVATE_KEY,
    "password in a URL": secrets.PASSWORD,
    "e-mail address": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "path of this machine": r"(?<![\w.:])(?:~[\w-]*|/(?:home|Users|root|mnt|media|scratch|gpfs|lustre|nfs|data|tmp|var"
    r"|opt|srv|private|work|workspace|storage|Volumes|cluster|projects?))/[\w.-]|\b[A-Za-z]:\\+[A-Za-z]",
    "TCGA, CPTAC or GTEx barcode": r"\bTCGA-\w{2}-\w{4}|\bC3[LN]-\d{5}|\bGTEX-\w{4,5}\b",
    "patient or case number": r"(?i)\b(?:mrn|pid|nhs|patient|case|accession)[ _-]*(?:id|no|nr|num|number)?\.?"
    r"[\"']?\s*[:=#_-]?\s*[\"']?[a-z]{0,3}-?\d{4,}",
    "accession number": r"\b[A-Z]{1,3}\d{2}-\d{4,7}\b",
    "DICOM identifier": r"\b[0-2]\.\d+(?:\.\d+){5,}",
    "social security number": r"\b\d{3}-\d{2}-\d{4}\b",
    "date of birth": r"(?i)\b(?:dob|birth ?date|date of birth|born)\b[^\w\n]{0,4}\d",
}


class PublishError(RuntimeError):
    """Nothing was published, and the message says what to do about it."""


def check_evaluation(output_dir: Path, dataset_names: list[str]) -> dict:
    """Return the content of `evaluation/results.json` if it is of the adapter in `output_dir`, and still true.

    Raises:
        PublishError: The adapter or its evaluation is missing; the evaluation is older than the adapter, of another
            adapter or of other data sets; a score isn't finite.
    """
    adapter, path = output_dir / ADAPTER, output_dir / "evaluation" / "results.json"
    for file, remedy in (
        (adapter, "train first, or correct output_dir"),
        (output_dir / ADAPTER_CONFIG, "train first, or correct output_dir"),
        (path, "score the adapter first (recipes/evaluate.py)"),
    ):
        if file.is_symlink() or not file.is_file():
            raise PublishError(f"{file} is missing or not a file of its own; {remedy}")
    results = read_json(path)
    again = "score the adapter again (recipes/evaluate.py)"
    found, expected = results.get("provenance", {}).get("adapter_sha256"), compute_sha256(adapter)
    if found != expected:
        raise PublishError(f"{path} is of the adapter with SHA-256 {found}, expected {expected}; {again}")
    if path.stat().st_mtime < adapter.stat().st_mtime:
        raise PublishError(f"{path} is older than {adapter}, expected newer; {again}")
    found, expected = sorted(results.get("datasets", {})), sorted(dataset_names)
    if found != expected:
        raise PublishError(f"{path} is of the data sets {found}, expected {expected}; {again}")
    for name, entry in results["datasets"].items():
        missing = [system for system in SYSTEMS if not entry.get(system)]
        if missing:
            raise PublishError(f"{path} lacks the scores of {missing} on {name}, expected {list(SYSTEMS)}; {again}")
    for name, value in walk(results):
        if isinstance(value, float) and not math.isfinite(value):
            raise PublishError(f"{name} in {path} is {value}, expected a finite number; {again}")
    return results


def check_fingerprints(run: dict, results: dict) -> None:
    """Raise `PublishError` unless the scores are of the data that the run was given, of which the card tells.

    Args:
        run, results: Of `run.json` and `results.json`.
    """
    trained, scored = run.get("data_fingerprint"), results["provenance"].get("data_fingerprint")
    if trained is not None and scored != trained:
        raise PublishError(
            f"results.json is of data with the fingerprint {scored}, expected {trained} as in run.json: data, splits "
            "or wording have changed since training; undo the change, or score the split of training by "
            "changed_split: frozen"
        )


def check_recipe(recorded: dict, values: dict, source: str) -> None:
    """Raise `PublishError` if the card would describe another recipe than the one that ran.

    Args:
        recorded: The recipe's own keys as they ran, from `run.json` or `results.json`; empty if there is no record.
        values: What each key has now, defaults included.
        source: Name of that file, for the message.
    """
    changed = [key for key in DESCRIBED if key in recorded and recorded[key] != values[key]]
    if changed:
        found, expected = ({key: keys[key] for key in changed} for keys in (values, recorded))
        raise PublishError(
            f"the recipe has {found}, expected {expected} as in {source}; correct the recipe, or run again"
        )


def check_classes(config: DatasetConfig, entry: dict) -> None:
    """Raise `PublishError` unless a data set was scored on the classes, in the order, that its prompt lists.

    One with a format brings its own questions; there the task must be the one that was scored.
    """
    if not config.options:
        if "task" not in entry or config.task not in (None, entry["task"]):
            raise PublishError(
                f"data set {config.name!r} has format: {config.format} and task: {config.task}, expected "
                f"{entry.get('task', 'class folders')} as in results.json; correct the recipe, or score again"
            )
        return
    found, expected = config.options, entry.get("classes")
    if found != expected:
        raise PublishError(
            f"data set {config.name!r} has the classes {found}, expected {expected} as in results.json; correct the "
            "recipe, or score the adapter again"
        )


def check_adapter(path: Path) -> None:
    """Raise `PublishError` unless `path` is a whole safetensors file, has tensors, and all are finite."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            broken = [name for name in names if not file.get_tensor(name).isfinite().all()]
    except SafetensorError as error:
        raise PublishError(
            f"{path} can't be read as safetensors ({error}), expected an adapter; train again"
        ) from error
    if not names:
        raise PublishError(f"{path} holds no tensor, expected an adapter; train again")
    if broken:
        raise PublishError(
            f"{len(broken)} of {len(names)} tensors of {path} such as {broken[0]} aren't finite; train again, with a "
            "lower learning rate"
        )


def check_base_model(path: Path, model_args: ModelConfig) -> None:
    """Raise `PublishError` unless the adapter's configuration names the recipe's base model, one that others can load.

    The resolution of pictures must be the recipe's too, and so must the commit, as far as this machine knows both.

    Args:
        path: `adapter_config.json`.
        model_args (`ModelConfig`): Its `model_name_or_path` is `embedded`, or a name on the Hub.
    """
    config, name, revision = read_json(path), model_args.model_name_or_path, model_args.model_revision
    found, asked = ([source.get(key) for key in RESOLUTION_KEYS] for source in (config, vars(model_args)))
    # The key that a recipe leaves out is the base model's own.
    if any(wish is not None and wish != own for wish, own in zip(asked, found, strict=True)) or (
        not model_args.names_resolution and found != [None, None]
    ):
        raise PublishError(
            f"{path} has image_side {found[0]} and image_tokens {found[1]}, and the recipe {asked[0]} and {asked[1]}, "
            "expected the same resolution of pictures; correct the recipe"
        )
    found = config.get("base_model_name_or_path")
    if found != name:
        raise PublishError(
            f"{path} names the base model {found}, expected {name} as in the recipe; correct the recipe"
        )
    if commits := name_different_commits(name, config.get("revision") or revision, revision):
        raise PublishError(
            f"{path} names the base model {name} at {commits[0]}, expected {commits[1]} as in the recipe; set "
            f"model_revision: {commits[0]}"
        )
    if name != EMBEDDED and (not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists()):
        raise PublishError(
            f"the base model {name} is a folder of this machine, expected a name on the Hub that others can load; set "
            f"model_name_or_path and base_model_name_or_path in {path.name} to it"
        )


def check_leaks(folder: Path, files: Iterable[str], repo_id: str) -> None:
    """Raise `PublishError` if a text among `files`, or the metadata of a safetensors file, tells what it must not.

    Looked for are secrets, paths and the user of this machine, and numbers that stand for a patient or a case.

    Args:
        files: Paths relative to `folder`.
        repo_id: Where it goes; the name that stands in its own address is no leak.
    """
    findings = []
    for name in files:
        path = folder / name
        if path.suffix in TEXT_SUFFIXES:
            findings += [f"{name}, {finding}" for finding in find_leaks(path.read_text(encoding="utf-8"), repo_id)]
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                text = "\n".join([*map(str, (file.metadata() or {}).items()), *file.keys()])
            findings += [f"metadata of {name}, {finding}" for finding in find_leaks(text, repo_id)]
    if findings:
        shown = "; ".join(findings[:10]) + (" and more" if len(findings) > 10 else "")
        raise PublishError(
            f"found {shown}; expected no secret, path or identifier in what goes up; take it out of the recipe or the "
            "data's names, then train or score again"
        )


def find_leaks(text: str, repo_id: str = "") -> list[str]:
    """Return one line for each leak: the line of the text, the kind, and the first characters of what was found."""
    if repo_id:
        text = text.replace(repo_id, "")
    patterns = LEAKS | {f"own {kind}": re.escape(value) for kind, value in _describe_user()}
    return [
        f"line {number}: {kind} ({match[0][:4]}...)"
        for number, line in enumerate(text.splitlines(), 1)
        for kind, pattern in patterns.items()
        if (match := re.search(rf"(?<!\w)(?:{pattern})(?!\w)" if kind == "own user name" else pattern, line))
    ]


def walk(value, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield `(name, leaf)` for every leaf of nested dictionaries and lists, with names such as `datasets.crc.n`."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from walk(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def read_json(path: Path) -> dict:
    """Return the object in a JSON file; raise `PublishError` if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PublishError(f"{path} isn't whole JSON ({error}); write it again") from error
    if not isinstance(content, dict):
        raise PublishError(f"{path} holds {type(content).__name__}, expected an object; write it again")
    return content


def _describe_user() -> list[tuple[str, str]]:
    user, token = getpass.getuser(), get_token()
    described = [("home folder", str(Path.home()))] if len(Path.home().parts) > 2 else []
    if len(user) >= 3 and user.casefold() not in SHARED_ACCOUNTS:
        described.append(("user name", user))
    return [*described, ("token", token)] if token else described
