"""Files made to be misread: each is refused by name, soon and without the memory that it asks for."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from histolab_sft import patterns
from histolab_sft.data.containers import read_patch
from histolab_sft.models import turns
from histolab_sft.models.tiny_tokenizer import build_processor
from histolab_sft.patterns import search
from histolab_sft.recipe_file import read_recipe

PIXELS = np.zeros((2, 4, 4, 3), dtype=np.uint8)


def write_external_storage(path: Path) -> None:
    path.with_name("secret").write_bytes(bytes(1000))
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (2, 4, 4, 3), "u1", external=[(str(path.with_name("secret")), 0, 96)])


def write_external_link(path: Path) -> None:
    with h5py.File(path.with_name("other.h5"), "w") as file:
        file["x"] = PIXELS
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink("other.h5", "x")


def write_link_to_a_linked_group(path: Path) -> None:
    with h5py.File(path.with_name("other.h5"), "w") as file:
        file["group/x"] = PIXELS
    with h5py.File(path, "w") as file:
        file["hidden"] = h5py.ExternalLink("other.h5", "group")
        file["x"] = h5py.SoftLink("/hidden/x")


def write_virtual(path: Path) -> None:
    with h5py.File(path.with_name("other.h5"), "w") as file:
        file["x"] = PIXELS
    layout = h5py.VirtualLayout(shape=PIXELS.shape, dtype="u1")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=PIXELS.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)


def write_huge_rows(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (20, 60000, 60000, 3), "u1", chunks=(1, 8, 8, 3))


def write_huge_chunks(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (200_000, 64, 64, 3), "u1", chunks=(200_000, 64, 64, 1), compression="gzip")


def write_group(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("x")


def write_other_key(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["y"] = PIXELS


def write_text(path: Path) -> None:
    path.write_text("this is no HDF5 file")


HDF5 = {
    write_external_storage: "stores its values in another file",
    write_external_link: "is a link to the file 'other.h5'",
    write_link_to_a_linked_group: "stores its values in another file",
    write_virtual: "stores its values in another file",
    write_huge_rows: "a row takes 10,800,000,000 bytes",
    write_huge_chunks: "a chunk takes 819,200,000 bytes",
    write_group: "is no array",
    write_other_key: "expected 'x'",
    write_text: "can't be read as HDF5",
}


@pytest.mark.parametrize("write", HDF5, ids=lambda write: write.__name__)
def test_an_hdf5_array_that_is_not_what_it_seems_is_refused(tmp_path, write):
    write(tmp_path / "x.h5")
    with pytest.raises(ValueError, match="x.h5") as error:
        read_patch(str(tmp_path / "x.h5"), 1, "x")
    assert HDF5[write] in str(error.value)


def test_an_honest_hdf5_array_is_read(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = PIXELS + 7
    assert np.array_equal(read_patch(str(tmp_path / "x.h5"), 1, "x"), PIXELS[1] + 7)


UNPACK = """
import resource, sys
from histolab_sft.data.containers import ImageRefused, read_patch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_patch(sys.argv[1], 0)
except ImageRefused as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, "MiB")
"""


def test_a_small_parquet_file_that_unpacks_to_gigabytes_is_refused_on_the_way(tmp_path):
    path = tmp_path / "x.parquet"
    cell = bytes(2**20)
    pq.write_table(pa.table({"image": [cell] * 4000}), path, compression="zstd", use_dictionary=True)
    assert path.stat().st_size < 2**20
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", UNPACK, str(path)], capture_output=True, text=True, check=True)
    said, grown = ended.stdout.splitlines()
    assert "row group 0 unpacks to more than" in said and str(path) in said
    assert int(grown.split()[0]) < 1024
    assert time.monotonic() - start < 60  # a machine that is busy; alone it takes two seconds


LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
RECIPES = {
    "aliases that unfold": (LAUGHS, "unfolds to more than 100,000 values"),
    "an alias for itself": ("a: &a [1, *a]", "stands for itself"),
    "a key twice": ("seed: 1\nlearning_rate: 0.1\nseed: 2", "the key 'seed' stands twice in the mapping of line 1"),
    "a key twice in a data set": ("datasets:\n  - name: a\n    source: b\n    name: c", "the key 'name' stands twice"),
    "a class twice": ("datasets:\n  - class_names: {a: b, a: c}", "twice"),
    "ten thousand brackets": ("a: " + "[" * 10_000, "nested deeper"),
    "a Python object": ("a: !!python/object/apply:os.system ['true']", "can't be read as YAML"),
    "a NUL": ("a: \x00", "can't be read as YAML"),
    "a tab": ("a:\n\tb: 1", "can't be read as YAML"),
    "two documents": ("a: 1\n---\na: 2", "can't be read as YAML"),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_made_to_be_misread_is_refused_by_its_name(tmp_path, kind):
    text, said = RECIPES[kind]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as error:
        read_recipe(str(path))
    assert said in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    assert time.monotonic() - start < 20


def test_a_pattern_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"takes more than 0.2 s on 'aaa"):
        search(r"(a|aa)+$", "a" * 60 + "!")


def test_a_pattern_finds_what_it_means():
    assert search(r"(P\d+)_", "study/P07_0003.png")[1] == "P07"
    assert search(r"(P\d+)_", "none.png") is None
    with pytest.raises(ValueError, match="is no regular expression"):
        search("(", "a")


def test_a_chat_template_that_loops_is_stopped_and_refused_with_its_models_name(monkeypatch):
    monkeypatch.setattr(turns, "SECONDS", 0.3)
    processor = build_processor(56, 4)
    processor.tokenizer.name_or_path = "somebody/looping"
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    processor.chat_template = loops + processor.chat_template
    with pytest.raises(ValueError, match="chat template of somebody/looping takes more than 0.3 s .* from those who"):
        turns.complete_turns(processor)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
