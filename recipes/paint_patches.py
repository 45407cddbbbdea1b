"""
Paint the demo's three data sets, in seconds and offline:

    python recipes/paint_patches.py data/synthetic
"""

import logging
import sys

from histolab_sft.embedded.synthetic import DEMO_PATCHES, write_synthetic_patches
from histolab_sft.errors import plain_errors

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with plain_errors():
        write_synthetic_patches(sys.argv[1], DEMO_PATCHES)
