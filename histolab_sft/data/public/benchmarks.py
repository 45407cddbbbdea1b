"""Facts of the public data sets: their files, contents, licences and official protocols.

Checksums and sizes are literal and published; `None` means that none was found, never that none is needed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

# Patient-safe ranges (0-based, half-open) over the 400 BACH photos sorted by class folder, then file name.
# Source: kaiko-ai/eva, BACH dataset class, where this test part is called validation.
BACH_TRAIN_RANGES = ((0, 41), (59, 60), (90, 139), (169, 240), (258, 260), (273, 345), (368, 400))
BACH_TEST_RANGES = ((41, 59), (60, 90), (139, 169), (240, 258), (260, 273), (345, 368))


def bach_official_split(index: int) -> str:
    """Split ("train" or "test") of the photo at `index` (0 to 399) of BACH sorted by class folder, then file name.

    Class order: Benign, InSitu, Invasive, Normal. 268 photos train, 132 test (48, 30, 31 and 23 a class); no known
    patient is on both sides. Raises ValueError outside 0..399.
    """
    for split, ranges in (("train", BACH_TRAIN_RANGES), ("test", BACH_TEST_RANGES)):
        if any(start <= index < stop for start, stop in ranges):
            return split
    raise ValueError(f"Found BACH index {index}, expected 0 to 399: sort all 400 photos before asking for a split")


def bach_official_splits(paths: Sequence[str | Path]) -> list[str]:
    """Splits of all 400 BACH photos, in the order of `paths` (each ending in CLASS/NAME.tif).

    The ranges count positions in the whole set, so anything but 100 photos a class raises ValueError.
    """
    keys = [(Path(path).parent.name, Path(path).name) for path in paths]
    found, expected = Counter(folder for folder, _ in keys), BACH.counts[BACH_PHOTOS]
    if found != expected or len(set(keys)) != len(keys):
        raise ValueError(
            f"Found {dict(sorted(found.items()))} BACH photos ({len(set(keys))} distinct), expected {dict(expected)}: "
            "the official split counts positions in the whole sorted set, so split before any cap or filter"
        )
    split_of = {key: bach_official_split(index) for index, key in enumerate(sorted(keys))}
    return [split_of[key] for key in keys]


@dataclass(frozen=True)
class RemoteFile:
    """One published file. `unpacks_to` is what it becomes below the benchmark folder (its own name: stays as it is).

    `checksum` is "algorithm:hex" of the file as served, `unpacked_checksum` of what a .gz holds. `unpacked_limit`
    (bytes) is the most it may take unpacked: the disk check asks for it and unpacking stops there.
    """

    url: str
    checksum: str | None
    bytes: int | None
    unpacks_to: str
    unpacked_limit: int
    unpacked_checksum: str | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Benchmark:
    """One public data set; every path is relative to its own folder (data/datasets/NAME)."""

    name: str
    title: str
    source: str
    licence: str
    protocol: str
    class_names: Mapping[str, str] = field(default_factory=dict)  # label in the data -> words; none: rows have several
    files: tuple[RemoteFile, ...] = ()  # none: placed by hand, as `manual` says
    manual: str = ""
    splits: Mapping[str, str | tuple[str, str]] = field(default_factory=dict)  # folder, or (images, labels) pair
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # folder -> class folder -> images
    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # .h5 or .npz -> array -> rows
    tables: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)  # .csv -> column -> value -> n
    labels: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # .csv -> (column, .h5 whose y it repeats)


ZENODO = "https://zenodo.org/records"

CRC_CLASS_NAMES = {
    "ADI": "adipose",
    "BACK": "background",
    "DEB": "debris",
    "LYM": "lymphocytes",
    "MUC": "mucus",
    "MUS": "smooth muscle",
    "NORM": "normal colon mucosa",
    "STR": "cancer-associated stroma",
    "TUM": "colorectal adenocarcinoma epithelium",
}
CRC_COUNTS = dict(zip(CRC_CLASS_NAMES, (10407, 10566, 11512, 11557, 8896, 13536, 8763, 10446, 14317), strict=True))
CRC_7K_COUNTS = dict(zip(CRC_CLASS_NAMES, (1338, 847, 339, 634, 1035, 592, 741, 421, 1233), strict=True))

# The MD5 of the two 100K archives is often attached to the wrong one: 6fd702 is the normalised, 035777 the other.
CRC_100K_FILE, CRC_NONORM_FILE, CRC_7K_FILE = (
    RemoteFile(f"{ZENODO}/1214456/files/{folder}.zip", f"md5:{checksum}", size, folder, limit)
    for folder, checksum, size, limit in (
        ("NCT-CRC-HE-100K", "6fd702d11df6292bc054397ae038a464", 11_690_284_003, 17_000_000_000),
        ("NCT-CRC-HE-100K-NONORM", "035777cf327776a71a05c95da6d6325f", None, 17_000_000_000),
        ("CRC-VAL-HE-7K", "2fd1651b4f94ebd818ebf90ad2b6ce06", 800_276_929, 1_200_000_000),
    )
)

CRC = Benchmark(
    name="crc",
    title="NCT-CRC-HE-100K and CRC-VAL-HE-7K",
    source="https://zenodo.org/records/1214456 (Kather et al., doi 10.5281/zenodo.1214456)",
    licence="CC BY 4.0",
    protocol="train on NCT-CRC-HE-100K (86 slides, Macenko-normalised), test on CRC-VAL-HE-7K (50 other patients); "
    "file names carry no patient, so no patient-safe split inside the 100K exists",
    class_names=CRC_CLASS_NAMES,
    files=(CRC_100K_FILE, CRC_7K_FILE),
    splits={"train": "NCT-CRC-HE-100K", "test": "CRC-VAL-HE-7K"},
    counts={"NCT-CRC-HE-100K": CRC_COUNTS, "CRC-VAL-HE-7K": CRC_7K_COUNTS},
)

CRC_NONORM = replace(
    CRC,
    name="crc_nonorm",
    title="NCT-CRC-HE-100K-NONORM and CRC-VAL-HE-7K",
    protocol="as crc, with the training patches before colour normalisation",
    files=(CRC_NONORM_FILE, CRC_7K_FILE),
    splits={"train": "NCT-CRC-HE-100K-NONORM", "test": "CRC-VAL-HE-7K"},
    counts={"NCT-CRC-HE-100K-NONORM": CRC_COUNTS, "CRC-VAL-HE-7K": CRC_7K_COUNTS},
)

PCAM_NAME = "camelyonpatch_level_2_split_"
PCAM_ROWS = {"train": 262_144, "valid": 32_768, "test": 32_768}
PCAM_HDF5 = (  # part, bytes of the .gz, MD5 of the .gz, MD5 unpacked, limit unpacked
    ("train_x", 6_421_353_462, "1571f514728f59376b705fc836ff4b63", "01844da899645b4d6f84946d417ba453", 7_500_000_000),
    ("train_y", 21_378, "35c2d7259d906cfc8143347bb8e05be7", "0781386bf6c2fb62d58ff18891466aca", 1_000_000),
    ("valid_x", 805_965_320, "d8c2d60d490dbd479f8199bdfa0cf6ec", "81cf9680f1724c40673f10dc88e909b1", 950_000_000),
    ("valid_y", 3_038, "60a7035772fbdb7f34eb86d4420cf66a", "94d8aacc249253159ce2a2e78a86e658", 1_000_000),
    ("test_x", 800_875_929, "d5b63470df7cfa627aeec8b9dc0c066e", "2614b2e6717d6356be141d9d6dbfcb7e", 950_000_000),
    ("test_y", 3_040, "2b85f58b927af9964a4c15b8f7e8f179", "11ed647efe9fe457a4eb45df1dba19ba", 1_000_000),
)
# Two public lists swap the checksums of the last two: their labels are compared with the HDF5 files instead.
PCAM_META = (("train", "md5:5a3dd671e465cfd74b5b822125e65b0a"), ("valid", None), ("test", None))
PCAM_FILES = tuple(
    RemoteFile(f"{ZENODO}/2546921/files/{PCAM_NAME}{name}", *facts)
    for name, *facts in (
        *((f"{p}.h5.gz", f"md5:{gz}", n, f"{PCAM_NAME}{p}.h5", most, f"md5:{h5}") for p, n, gz, h5, most in PCAM_HDF5),
        *((f"{p}_meta.csv", checksum, None, f"{PCAM_NAME}{p}_meta.csv", 50_000_000) for p, checksum in PCAM_META),
    )
)

PCAM = Benchmark(
    name="pcam",
    title="PatchCamelyon",
    source="https://github.com/basveeling/pcam, https://zenodo.org/records/2546921",
    licence="CC0 1.0",
    protocol="the published train, valid and test files; no slide is in two of them",
    class_names={"0": "normal", "1": "tumor"},  # 1: at least one tumour pixel in the central 32x32
    files=PCAM_FILES,
    splits={
        split: (f"{PCAM_NAME}{part}_x.h5", f"{PCAM_NAME}{part}_y.h5")
        for split, part in (("train", "train"), ("validation", "valid"), ("test", "test"))
    },
    rows={f"{PCAM_NAME}{split}_{key}.h5": {key: n} for split, n in PCAM_ROWS.items() for key in "xy"},
    labels={f"{PCAM_NAME}{s}_meta.csv": ("center_tumor_patch", f"{PCAM_NAME}{s}_y.h5") for s in PCAM_ROWS},
)

BACH_PHOTOS = "ICIAR2018_BACH_Challenge/Photos"  # the whole-slide images beside it are left in the archive
BACH_URL = f"{ZENODO}/3632035/files/ICIAR2018_BACH_Challenge.zip"
BACH_FILE = RemoteFile(BACH_URL, "md5:8ae1801334aa943c44627c1eef3631b2", None, BACH_PHOTOS, 11_000_000_000)

BACH = Benchmark(
    name="bach",
    title="BACH (ICIAR 2018), microscopy photos",
    source="https://zenodo.org/records/3632035",
    licence="CC BY-NC-ND 4.0: non-commercial; never redistribute the photos or anything derived, crops included",
    protocol="bach_official_split: patient-safe 268 train / 132 test (the challenge's own test labels are hidden)",
    class_names={"Benign": "benign", "InSitu": "in situ", "Invasive": "invasive", "Normal": "normal"},
    files=(BACH_FILE,),
    counts={BACH_PHOTOS: {"Benign": 100, "InSitu": 100, "Invasive": 100, "Normal": 100}},
)

# Checksums as MedMNIST's own package has them (medmnist/info.py, 3.0). The limit is what the arrays take unpacked.
PATHMNIST_FILE, PATHMNIST_64_FILE = (
    RemoteFile(f"{ZENODO}/10519652/files/{name}", f"md5:{checksum}", None, name, limit)
    for name, checksum, limit in (
        ("pathmnist_224.npz", "2c51a510bcdc9cf8ddb2af93af1eadec", 17_000_000_000),
        ("pathmnist_64.npz", "55aa9c1e0525abe5a6b9d8343a507616", 1_400_000_000),
    )
)

PATHMNIST = Benchmark(
    name="pathmnist",
    title="PathMNIST, 224 px",
    source="https://zenodo.org/records/10519652 (made from NCT-CRC-HE: never mix with crc)",
    licence="CC BY 4.0",
    protocol="arrays train_*, val_* (both from the 100K: shared patients) and test_* (CRC-VAL-HE-7K)",
    class_names={str(index): words for index, words in enumerate(CRC_CLASS_NAMES.values())},
    files=(PATHMNIST_FILE,),
    rows={PATHMNIST_FILE.name: {"train_labels": 89_996, "val_labels": 10_004, "test_labels": 7_180}},
)
PATHMNIST_64 = replace(
    PATHMNIST,
    name="pathmnist_64",
    title="PathMNIST, 64 px",
    files=(PATHMNIST_64_FILE,),
    rows={PATHMNIST_64_FILE.name: PATHMNIST.rows[PATHMNIST_FILE.name]},
)

KATHER2016_LABELS = "01_TUMOR 02_STROMA 03_COMPLEX 04_LYMPHO 05_DEBRIS 06_MUCOSA 07_ADIPOSE 08_EMPTY".split()
KATHER2016_WORDS = (
    "tumor epithelium, simple stroma, complex stroma, immune cells, debris, normal mucosal glands, adipose, background"
).split(", ")
KATHER2016_FOLDER = "Kather_texture_2016_image_tiles_5000"
KATHER2016_SHA384 = (
    "sha384:7d86abe1d04e68b77c055820c2a4c582a1d25d2983e38ab724eac75affce8b7cb2cbf5ba68848dcfd9d84005d87d6790"
)
KATHER2016_URL = f"{ZENODO}/53169/files/{KATHER2016_FOLDER}.zip"
KATHER2016_FILE = RemoteFile(KATHER2016_URL, KATHER2016_SHA384, 258_098_431, KATHER2016_FOLDER, 600_000_000)

KATHER2016 = Benchmark(
    name="kather2016",
    title="Kather texture 2016",
    source="https://zenodo.org/records/53169",
    licence="CC BY 4.0",
    protocol="no official split, and no patient in the file names",
    class_names=dict(zip(KATHER2016_LABELS, KATHER2016_WORDS, strict=True)),
    files=(KATHER2016_FILE,),
    counts={KATHER2016_FOLDER: dict.fromkeys(KATHER2016_LABELS, 625)},
)

MHIST = Benchmark(
    name="mhist",
    title="MHIST",
    source="https://bmirds.github.io/MHIST",
    licence="research-use agreement: no redistribution",
    protocol="column Partition of annotations.csv: 2,175 train / 977 test, label = majority of seven pathologists",
    class_names={"HP": "hyperplastic polyp", "SSA": "sessile serrated adenoma"},
    manual="fill in the form on that page, check the files against the MD5SUMs.txt that comes by mail, and place "
    "annotations.csv and the unpacked folder images/",
    counts={"": {"images": 3_152}},
    tables={
        "annotations.csv": {
            "Majority Vote Label": {"HP": 2_162, "SSA": 990},
            "Partition": {"train": 2_175, "test": 977},
        }
    },
)

BREAKHIS = Benchmark(
    name="breakhis",
    title="BreakHis",
    source="https://web.inf.ufpr.br/vri/databases-software/breast-cancer-histopathological-database-breakhis",
    licence="sources disagree (CC BY 4.0, or non-commercial research only): follow the stricter",
    protocol="no official split; 82 patients, each field at four magnifications: group by patient, the third "
    "'-' field of the file name",
    class_names={"benign": "benign", "malignant": "malignant"},
    manual="unpack BreaKHis_v1.tar.gz from that page, which gives the folder BreaKHis_v1/",
    counts={"BreaKHis_v1/histology_slides/breast": {"benign": 2_480, "malignant": 5_429}},
)

MIMIC_CXR = Benchmark(
    name="mimic_cxr",
    title="MIMIC-CXR-JPG with the reports of MIMIC-CXR",
    source="https://physionet.org/content/mimic-cxr-jpg and https://physionet.org/content/mimic-cxr",
    licence="PhysioNet Credentialed Health Data License 1.5.0: for credentialed users who have signed the agreement, "
    "each for themselves; never share or redistribute, and send nothing to services of others",
    protocol="mimic-cxr-2.0.0-split.csv.gz: 368,960 pictures train, 2,991 validate, 5,159 test, by patient",
    manual="become a credentialed user (training in research with human data included), sign the agreement of both "
    "pages, and place the three .csv.gz tables (split, metadata, chexpert), files/ with the pictures, and "
    "mimic-cxr-reports/ unpacked from mimic-cxr-reports.zip",
    counts={"": {"files": 377_110}},
)

CHEXPERT = Benchmark(
    name="chexpert",
    title="CheXpert, the small version",
    source="https://stanfordmlgroup.github.io/competitions/chexpert (Irvin et al. 2019)",
    licence="Stanford University Dataset Research Use Agreement: non-commercial research only; no redistribution",
    protocol="train.csv (labels by a labeller of reports, some uncertain) and valid.csv (200 studies labelled by "
    "three radiologists), often taken as the test split",
    manual="register there, accept the agreement, and place the unpacked folder CheXpert-v1.0-small/",
    counts={"CheXpert-v1.0-small": {"train": 223_414, "valid": 234}},
)

CHESTXRAY14 = Benchmark(
    name="chestxray14",
    title="NIH ChestX-ray14",
    source="https://nihcc.app.box.com/v/ChestXray-NIHCC (Wang et al. 2017)",
    licence="no restriction on use; the NIH asks for a link to its page, a citation of the paper, and an "
    "acknowledgement of the NIH Clinical Center as the provider",
    protocol="train_val_list.txt (86,524 pictures) and test_list.txt (25,596), by patient; labels by a "
    "labeller of reports",
    manual="download from that page and place Data_Entry_2017.csv (or its version of 2020), train_val_list.txt, "
    "test_list.txt and the twelve unpacked archives of pictures",
    counts={"": {"": 112_120}},
)

BENCHMARKS = {
    b.name: b
    for b in (
        *(CRC, CRC_NONORM, PCAM, BACH, PATHMNIST, PATHMNIST_64, KATHER2016, MHIST, BREAKHIS),
        *(MIMIC_CXR, CHEXPERT, CHESTXRAY14),
    )
}
