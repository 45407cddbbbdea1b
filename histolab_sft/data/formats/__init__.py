"""One reader for each way that data lie on disk; `format` in a recipe names one.

A reader takes `source` and the data set's `config` and gives one row a question, in sorted order: `images` (paths, or
`{"path", "row", "column"}` where a picture is one of several in a file), `split` (the data's own word), `group`
(patient or None), `id`, `task`, `ask` (what the task needs to word the question) and `answer` (None where hidden), and
`inverted` where the stored grey values run from white to black. `attrs["not_read"]`, where a reader fills it, counts
by kind the files below the source that no row comes from.
"""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from histolab_sft.config.dataset import CLASS_FOLDERS
from histolab_sft.data.formats.biomarkers import read_biomarkers
from histolab_sft.data.formats.captions import read_captions
from histolab_sft.data.formats.chestxray14 import read_chestxray14
from histolab_sft.data.formats.chexpert import read_chexpert
from histolab_sft.data.formats.coco import read_coco
from histolab_sft.data.formats.flare import read_flare
from histolab_sft.data.formats.indiana import read_indiana
from histolab_sft.data.formats.llava import read_llava
from histolab_sft.data.formats.mimic_cxr import read_mimic_cxr
from histolab_sft.data.formats.padchest import read_padchest
from histolab_sft.data.formats.padchest_gr import read_padchest_gr
from histolab_sft.data.formats.questions import read_questions
from histolab_sft.data.formats.sources import read_patches
from histolab_sft.data.formats.yolo_seg import read_yolo_seg


class Format(NamedTuple):
    """How one format is read.

    Args:
        read: The reader.
        keys: Keys of a data set that it alone takes, as keywords.
        on_hub: Whether `source` may also be the id of a data set on the Hub.
    """

    read: Callable[..., pd.DataFrame]
    keys: frozenset[str] = frozenset()
    on_hub: bool = False


FORMATS = {
    CLASS_FOLDERS: Format(read_patches, on_hub=True),
    "biomarkers": Format(read_biomarkers, frozenset({"style"})),
    "captions": Format(read_captions),
    "chestxray14": Format(read_chestxray14),
    "chexpert": Format(read_chexpert, frozenset({"uncertain", "views"})),
    "coco": Format(read_coco),
    "flare": Format(read_flare, frozenset({"subset"})),
    "indiana": Format(read_indiana),
    "llava": Format(read_llava, frozenset({"image_folder"})),
    "mimic_cxr": Format(read_mimic_cxr, frozenset({"sections", "uncertain", "views"})),
    "padchest": Format(read_padchest),
    "padchest_gr": Format(read_padchest_gr),
    "questions": Format(read_questions),
    "yolo_seg": Format(read_yolo_seg),
}
