"""Readers of data sets whose rows bring their own questions and answers; `format` in a recipe names one.

A reader takes `source` and the data set's `config` and gives one row a question, in sorted order: `images` (paths),
`split` (the data's own word), `group` (patient or None), `id`, `task`, `ask` and `answer` (None where hidden), and
`inverted` where the stored grey values run from white to black.
"""

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
from histolab_sft.data.formats.yolo_seg import read_yolo_seg

READERS = {
    "biomarkers": read_biomarkers,
    "captions": read_captions,
    "chestxray14": read_chestxray14,
    "chexpert": read_chexpert,
    "coco": read_coco,
    "flare": read_flare,
    "indiana": read_indiana,
    "llava": read_llava,
    "mimic_cxr": read_mimic_cxr,
    "padchest": read_padchest,
    "padchest_gr": read_padchest_gr,
    "questions": read_questions,
    "yolo_seg": read_yolo_seg,
}
# Format -> keys of a data set that its reader alone takes, as keyword arguments.
READER_KEYS = {
    "biomarkers": {"style"},
    "chexpert": {"uncertain", "views"},
    "flare": {"subset"},
    "llava": {"image_folder"},
    "mimic_cxr": {"sections", "uncertain", "views"},
}
