"""Publish an adapter: write a folder of allowed files, check it, and upload it in one commit to the Hub."""

import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from PIL import Image, UnidentifiedImageError
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.files import unfinished_folder
from histolab_sft.provenance import compute_sha256
from histolab_sft.publishing.card import format_card
from histolab_sft.publishing.push_gate import (
    ADAPTER,
    ADAPTER_CONFIG,
    PublishError,
    check_adapter,
    check_base_model,
    check_classes,
    check_evaluation,
    check_fingerprints,
    check_leaks,
    check_recipe,
    read_json,
)
from histolab_sft.secrets import mask_secrets

logger = logging.getLogger(__name__)

# What talking to the Hub can raise: answers with an error status and broken lines (httpx2), no network or a file that
# can't be read (OSError), a card that the Hub refuses or an answer that isn't JSON (ValueError), and a failed upload,
# which huggingface_hub wraps (RuntimeError).
HUB_FAILURES = (httpx2.HTTPError, OSError, ValueError, RuntimeError)

REMEDIES = {
    401: "no valid token; run `hf auth login`, or set HF_TOKEN to a token that may write",
    402: "the account's plan doesn't allow it; look at its settings",
    403: "no right to write there; ask for access, or use a token and a hub_model_id of your own",
    404: "there is no such repository, or the token can't see it; correct hub_model_id or the token",
    409: "something else is changing the repository; wait a moment",
    412: "the repository has changed meanwhile; look at it",
    429: "too many requests; wait some minutes",
}


@dataclass
class PublishArguments:
    """Keys of `push_adapter.py` and `push_merged.py` beside those of a recipe."""

    dry_run: bool = field(default=False, metadata={"help": "Write the folder that would go up, and stop."})


def build_publish_folder(histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig) -> Path:
    """Write `output_dir/publish` with exactly what may go up, and return it.

    In it are the adapter and its configuration, `results.json` without the recipe (that holds paths), the figures of
    the evaluation as bare pixels, and the card. A folder that fails a check is removed.

    Raises:
        PublishError: The evaluation isn't of this adapter, a number isn't finite, or something leaks.
    """
    output_dir = Path(training_args.output_dir)
    target = output_dir / "publish"
    if target.is_symlink():
        raise PublishError(f"{target} is a link, expected a folder to write to; remove it")
    shutil.rmtree(target, ignore_errors=True)
    evidence = collect_evidence(histo_args, training_args, model_args)

    with unfinished_folder(output_dir, ".publish-") as temporary:
        folder = Path(temporary, "publish")
        folder.mkdir()
        for name in (ADAPTER, ADAPTER_CONFIG):
            shutil.copyfile(output_dir / name, folder / name)
        check_unchanged(folder / ADAPTER, evidence)
        check_adapter(folder / ADAPTER)
        check_base_model(folder / ADAPTER_CONFIG, model_args)
        repo_id = training_args.hub_model_id or output_dir.resolve().name
        write_evidence(folder, evidence, repo_id, histo_args, training_args, model_args)
        check_leaks(folder, list_files(folder), repo_id)
        folder.rename(target)
    return target


def collect_evidence(histo_args: HistoArguments, training_args: SFTConfig, model_args: ModelConfig) -> dict[str, dict]:
    """Return `results`, `run` and `audit` of `output_dir`, checked to be of its adapter and of this recipe.

    Raises:
        PublishError: They are of another adapter or recipe, or a number isn't finite.
    """
    output_dir = Path(training_args.output_dir)
    results = check_evaluation(output_dir, [config.name for config in histo_args.datasets])
    files = (output_dir / "run.json", output_dir / "audit.json")
    run, audit = (read_json(path) if path.is_file() else {} for path in files)
    values = vars(histo_args) | vars(training_args) | vars(model_args)
    check_fingerprints(run, results)
    check_recipe(run.get("recipe", {}), values, "run.json")
    check_recipe(results.pop("recipe", {}), values, "results.json")
    for config in histo_args.datasets:
        check_classes(config, results["datasets"][config.name])
    return {"results": results, "run": run, "audit": audit}


def check_unchanged(adapter: Path, evidence: dict) -> None:
    """Raise `PublishError` if an adapter isn't the one that was scored any more."""
    if compute_sha256(adapter) != evidence["results"]["provenance"]["adapter_sha256"]:
        raise PublishError(f"{adapter} changed while it was read; wait until training has ended")


def write_evidence(
    folder: Path,
    evidence: dict[str, dict],
    repo_id: str,
    histo_args: HistoArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
    parity: dict | None = None,
    exported: dict | None = None,
) -> None:
    """Write scores, figures and the card to `folder`; `parity` and `exported` as in `format_card`."""
    results = evidence["results"]
    figures = _copy_figures(Path(training_args.output_dir, "evaluation", "figures"), folder / "figures")
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    arguments = (repo_id, histo_args, training_args, model_args, parity, exported)
    card = format_card(results, evidence["run"], evidence["audit"], figures, *arguments)
    (folder / "README.md").write_text(card, encoding="utf-8")


def list_files(folder: Path) -> list[str]:
    """Return the files below `folder` as sorted relative POSIX paths."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def format_listing(folder: Path) -> str:
    """Return what goes up, one line a file with its size in bytes, and the sum."""
    sizes = {name: (folder / name).stat().st_size for name in list_files(folder)}
    lines = [f"{size:>14,}  {name}" for name, size in sizes.items()]
    return "\n".join([*lines, f"{sum(sizes.values()):>14,}  bytes in {len(sizes)} files"])


def push_folder(folder: Path, repo_id: str | None, private: bool = True, api: HfApi | None = None) -> str:
    """Upload all files of `folder` in one commit, and return the URL of that commit.

    Files that are already there unchanged are not sent again. Whatever goes wrong, the repository has either all of
    the files or what it had before; the same call then finishes.

    Args:
        repo_id (`str`): `account/name`; made if it doesn't exist.
        private (`bool`): Whether the repository must be private.
        api (`HfApi`, *optional*): Client, for another endpoint than `HF_ENDPOINT`. The token is the one that
            huggingface_hub finds: `HF_TOKEN` or what `hf auth login` saved.

    Raises:
        PublishError: No repository or token to go to, a public repository for a private adapter, or whatever the Hub
            answers, in one sentence.
    """
    if repo_id is None or repo_id.count("/") != 1:
        raise PublishError(f"hub_model_id is {repo_id!r}, expected account/name; add it to the recipe")
    api = api or HfApi()
    if (api.token or get_token()) is None:
        raise PublishError(f"found no token for {api.endpoint}; run `hf auth login`, or set HF_TOKEN")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        before = api.repo_info(repo_id)
        # The Hub ignores `private` when the repository exists.
        if private and not before.private:
            raise PublishError(
                f"{repo_id} is public, expected private; change that in its settings, or set hub_private_repo: false"
            )
        commit = api.create_commit(
            repo_id,
            operations=[CommitOperationAdd(name, folder / name) for name in list_files(folder)],
            commit_message="Publish weights, evaluation and card",
            parent_commit=before.sha,
        )
    except PublishError:
        raise
    except HUB_FAILURES as error:
        # The chain would show signed upload addresses in a traceback.
        raise PublishError(f"{_explain(error, repo_id)}; nothing was published, run the same command again") from None
    return commit.commit_url


def _copy_figures(source: Path, target: Path) -> list[str]:
    """Copy the pixels of the PNG files, nothing of their metadata, and return their names."""
    names = []
    for path in sorted(source.glob("*.png")):
        if path.name.startswith(".") or path.is_symlink() or not path.is_file():
            logger.warning("%s isn't a file of its own and stays here", path)
            continue
        try:
            with Image.open(path, formats=["PNG"]) as image:
                pixels = image.convert("RGBA")
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise PublishError(f"{path} isn't a whole PNG picture; remove it, or score the adapter again") from error
        target.mkdir(exist_ok=True)
        bare = Image.new("RGBA", pixels.size)
        bare.paste(pixels)
        bare.save(target / path.name, optimize=True)
        names.append(path.name)
    return names


def _explain(error: Exception, repo_id: str) -> str:
    """Return one sentence about what went wrong, without addresses or secrets."""
    if type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, expected a connection; unset it"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        remedy = REMEDIES.get(status, "the Hub has trouble; wait some minutes" if status >= 500 else "see its answer")
        said = _mask(" ".join((error.server_message or "").split()))
        return f"the Hub answered {status} for {repo_id}{f' ({said})' if said else ''}: {remedy}"
    if isinstance(error, httpx2.TransportError):
        return f"the connection broke ({type(error).__name__}); check the network and the proxy"
    return _mask(f"the upload to {repo_id} failed ({type(error).__name__}: {' '.join(str(error).split())[:300]})")


def _mask(text: str) -> str:
    """Return `text` without secrets; the login's own token is one, whatever it looks like."""
    token = get_token()
    return mask_secrets(text.replace(token, "<secret>") if token else text)
