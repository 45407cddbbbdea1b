import random
import re
from collections import Counter

import pytest

from histolab_sft.data.public.benchmarks import (
    BACH,
    BENCHMARKS,
    CRC,
    CRC_NONORM,
    KATHER2016,
    PCAM,
    bach_official_split,
    bach_official_splits,
)

BACH_FILES = [
    f"Photos/{folder}/{prefix}{number:03d}.tif"
    for folder, prefix in (("Benign", "b"), ("InSitu", "is"), ("Invasive", "iv"), ("Normal", "n"))
    for number in range(1, 101)
]


def test_the_bach_split_is_268_train_and_132_test_with_the_published_classes():
    splits = [bach_official_split(index) for index in range(400)]
    assert Counter(splits) == {"train": 268, "test": 132}
    test_classes = Counter(BACH_FILES[index].split("/")[1] for index in range(400) if splits[index] == "test")
    assert test_classes == {"Benign": 48, "InSitu": 30, "Invasive": 31, "Normal": 23}


@pytest.mark.parametrize("index", [-1, 400])
def test_an_index_outside_bach_is_refused(index):
    with pytest.raises(ValueError, match="expected 0 to 399"):
        bach_official_split(index)


def test_the_bach_split_of_a_photo_does_not_depend_on_the_order_of_the_list():
    in_order = dict(zip(BACH_FILES, bach_official_splits(BACH_FILES), strict=True))
    shuffled = random.Random(0).sample(BACH_FILES, 400)
    assert dict(zip(shuffled, bach_official_splits(shuffled), strict=True)) == in_order
    assert [in_order[f"Photos/Benign/b{number:03d}.tif"] for number in (41, 42, 59, 60, 61)] == [
        "train",
        "test",
        "test",
        "train",
        "test",
    ]


@pytest.mark.parametrize(
    "paths", [BACH_FILES[:-1], BACH_FILES[:-1] + BACH_FILES[:1], BACH_FILES[:-1] + BACH_FILES[300:301]]
)
def test_a_part_of_bach_has_no_official_split(paths):
    with pytest.raises(ValueError, match="split before any cap or filter"):
        bach_official_splits(paths)


def test_the_counts_add_up_to_the_published_sizes():
    assert sum(CRC.counts["NCT-CRC-HE-100K"].values()) == 100_000
    assert sum(CRC.counts["CRC-VAL-HE-7K"].values()) == 7_180
    assert sum(sum(classes.values()) for classes in BACH.counts.values()) == 400
    assert sum(sum(classes.values()) for classes in KATHER2016.counts.values()) == 5_000
    assert PCAM.rows["camelyonpatch_level_2_split_train_x.h5"] == {"x": 262_144}
    for table in BENCHMARKS["mhist"].tables.values():
        assert {sum(column.values()) for column in table.values()} == {3_152}


def test_the_normalised_and_the_raw_archive_keep_their_own_md5():
    assert CRC.files[0].name == "NCT-CRC-HE-100K.zip"
    assert CRC.files[0].checksum == "md5:6fd702d11df6292bc054397ae038a464"
    assert CRC_NONORM.files[0].name == "NCT-CRC-HE-100K-NONORM.zip"
    assert CRC_NONORM.files[0].checksum == "md5:035777cf327776a71a05c95da6d6325f"


def test_every_file_has_an_https_address_and_a_well_formed_checksum_or_none():
    lengths = {"md5": 32, "sha384": 96}
    for benchmark in BENCHMARKS.values():
        assert bool(benchmark.files) != bool(benchmark.manual)
        for file in benchmark.files:
            assert file.url.startswith("https://zenodo.org/records/")
            assert file.bytes is None or file.bytes <= file.unpacked_limit
            for checksum in filter(None, (file.checksum, file.unpacked_checksum)):
                algorithm, _, digest = checksum.partition(":")
                assert re.fullmatch(f"[0-9a-f]{{{lengths[algorithm]}}}", digest)


def test_no_checksum_stands_for_two_files():
    files = {file.url: file for benchmark in BENCHMARKS.values() for file in benchmark.files}
    checksums = [c for file in files.values() for c in (file.checksum, file.unpacked_checksum) if c]
    assert len(checksums) == len(set(checksums))


def test_official_splits_name_folders_and_files_that_are_downloaded():
    for benchmark in BENCHMARKS.values():
        unpacked = {file.unpacks_to for file in benchmark.files}
        for split, places in benchmark.splits.items():
            assert split in ("train", "validation", "test")
            assert {places} <= unpacked if isinstance(places, str) else set(places) <= unpacked


def test_labels_and_class_names_agree():
    for benchmark in (CRC, CRC_NONORM, BACH, KATHER2016, BENCHMARKS["breakhis"]):
        for classes in benchmark.counts.values():
            assert list(classes) == list(benchmark.class_names)


def test_bach_forbids_redistribution_in_its_licence_line():
    assert "CC BY-NC-ND" in BACH.licence and "never redistribute" in BACH.licence
