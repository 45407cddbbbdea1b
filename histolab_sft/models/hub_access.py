"""Bring the base model from the Hub before anything else is done."""

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

from histolab_sft.hub_access import HubAccessError, explain_hub_errors

__all__ = ["HubAccessError", "explain_hub_errors", "fetch_base_model"]

FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"]


def fetch_base_model(name: str, revision: str = "main") -> None:
    """Bring weights and processor of a base model on the Hub into its cache, so that loading needs no network.

    Trying again is left to huggingface_hub: at 429, 5xx and time-outs, up to five times with growing pauses, each told
    in its log. A model that is there already needs no answer from the Hub.

    Args:
        name (`str`): Id on the Hub, or a folder, with which nothing is done.
        revision (`str`): Branch, tag or commit.

    Raises:
        HubAccessError: It can't be had.
    """
    if Path(name).is_dir():
        return
    with explain_hub_errors(name):
        # One small file first: who may not read the model, or finds the Hub busy, is told at once.
        hf_hub_download(name, "config.json", revision=revision)
        snapshot_download(name, revision=revision, allow_patterns=FILES)
