"""
Download, verify and unpack public data sets:

    python recipes/download.py crc pcam bach

A file counts only after its size and checksum are right; it then gets its name in one rename, is unpacked and noted
in .verified.json, so that a second call only looks and downloads nothing. A cut download resumes where it stopped.
"""

import argparse
import logging
import sys
from pathlib import Path

from histolab_sft.data.public.benchmarks import BENCHMARKS
from histolab_sft.data.public.download import download
from histolab_sft.errors import plain_errors

logger = logging.getLogger(__name__)


def main(arguments=None):
    """Download every data set named; return 1 if one of them failed, after trying all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--folder", type=Path, default=Path("data/datasets"), help="each data set gets FOLDER/NAME")
    options = parser.parse_args(arguments)
    failed = []
    for name in dict.fromkeys(options.names):
        try:
            download(BENCHMARKS[name], options.folder / name)
        except (OSError, ValueError) as error:
            logger.error("%s: FAILED: %s", name, error)
            failed.append(name)
    if failed:
        logger.error("%d of %d data sets failed: %s", len(failed), len(set(options.names)), ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    with plain_errors():
        sys.exit(main())
