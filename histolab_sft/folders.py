"""Where things that outlast a run are kept on this machine."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/histolab_sft`, by default `~/.cache/histolab_sft`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "histolab_sft")
