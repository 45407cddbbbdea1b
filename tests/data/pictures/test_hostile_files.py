"""Files made to be misread: each is refused by name, soon and without the memory that it asks for."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from histolab_sft.config import patterns
from histolab_sft.config.patterns import search
from histolab_sft.config.recipe_file import read_recipe
from histolab_sft.data.pictures.containers import read_patch
from histolab_sft.embedded.tokenizer import build_processor
from histolab_sft.models import chat_templates

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


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[{}], [1]], dtype=object), "expected rows of plain numbers"),
        (np.zeros((30, 512, 512, 3), dtype=np.uint8), "expected what its shape takes"),
    ],
    ids=["pickled", "bomb"],
)
def test_an_npz_array_that_is_not_what_it_seems_is_refused(tmp_path, array, message):
    np.savez_compressed(tmp_path / "x.npz", train_images=array)
    with pytest.raises(ValueError, match=message):
        read_patch(str(tmp_path / "x.npz"), 1)


def test_a_damaged_npz_file_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="can't be read as .npz"):
        read_patch(str(tmp_path / "x.npz"), 0)


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


@pytest.mark.slow
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


def write_parquet_bomb(path: Path) -> None:
    pq.write_table(pa.table({"image": [bytes(2**20)] * 600}), path, compression="zstd", use_dictionary=True)
    assert path.stat().st_size < 2**20


def write_cut_parquet(path: Path) -> None:
    pq.write_table(pa.table({"image": [bytes(1000)] * 10}), path)
    path.write_bytes(path.read_bytes()[:-20])


def write_other_column(path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"]}), path)


def write_huge_tiff(path: Path) -> None:
    """One strip of nothing that declares 60,000 x 60,000 colour pixels."""
    entries = [(256, 4, 60_000), (257, 4, 60_000), (258, 3, 8), (259, 3, 1), (262, 3, 2), (273, 4, 8), (277, 3, 3)]
    entries += [(278, 4, 60_000), (279, 4, 8)]
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + packed + bytes(4))


def write_tiff_with_itself_as_the_next(path: Path) -> None:
    write_huge_tiff(path)
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<I", 8))


def write_huge_png(path: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)))


def write_huge_jpeg(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "JPEG")
    data = path.read_bytes()
    at = data.index(b"\xff\xc0") + 5
    path.write_bytes(data[:at] + struct.pack(">HH", 65_500, 65_500) + data[at + 4 :])


def write_deep_json(path: Path) -> None:
    path.write_text("[" * 100_000)


def write_deep_line(path: Path) -> None:
    path.write_text('{"image": "a.png"}\n' + "[" * 100_000)


def write_film(path: Path) -> None:
    frames = [Image.new("L", (8, 8), shade) for shade in range(200)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def write_svg(path: Path) -> None:
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')


def write_nothing(path: Path) -> None:
    path.write_bytes(b"")


PICTURES = {
    "bomb.parquet": write_parquet_bomb,
    "cut.parquet": write_cut_parquet,
    "other column.parquet": write_other_column,
    "text.parquet": write_text,
    "huge.tif": write_huge_tiff,
    "itself.tif": write_tiff_with_itself_as_the_next,
    "huge.png": write_huge_png,
    "huge.jpg": write_huge_jpeg,
    "film.gif": write_film,
    "picture.svg.png": write_svg,
    "nothing.png": write_nothing,
    "deep.json": write_deep_json,
    "deep.jsonl": write_deep_line,
    # Its name is no UTF-8.
    os.fsdecode(b"caf\xe9.png"): write_text,
} | {f"{write.__name__}.h5": write for write in HDF5}
ADAPTERS = {
    **{
        f"alpha {alpha}": {"lora_alpha": alpha}
        for alpha in ("NaN", "Infinity", "0", "-32", "1e308", '"32"', "1" * 5000)
    },
    **{"rank": {"r": "1000000000"}, "code": {"megatron_core": '"evil"'}, "nested": {"r": "[" * 100_000}},
}
READ = """
import json, os, resource, sys, time
from pathlib import Path
from histolab_sft.data.pictures.inspection import describe_patch
from histolab_sft.data.formats.tables import read_json
from histolab_sft.models.adapter_checks import read_adapter_config
from histolab_sft.config.recipe_file import read_recipe

def read(path):
    name = path.name
    if path.is_dir():
        read_adapter_config(path)
    elif name.endswith(".yaml"):
        read_recipe(str(path))
    elif name.endswith((".json", ".jsonl")):
        read_json(path)
    else:
        column = "x" if name.endswith(".h5") else "image"
        found = describe_patch(str(path), 1 if name.endswith((".h5", ".parquet")) else -1, column)
        if found["verdict"] == "refused":
            raise ValueError(f"{path}: {found['reason']}")

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        read(path)
        said = None
    except ValueError as error:
        said = str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps([path.name, said, time.process_time() - start, grown]))
"""


@pytest.mark.thorough
def test_forty_files_are_refused_by_name_each_in_seconds_and_all_in_less_than_a_gigabyte(tmp_path):
    folder, beside = tmp_path / "hostile", tmp_path / "beside"
    for place in (folder, beside):
        place.mkdir()
    for name, write in PICTURES.items():
        write(folder / name)
    for name in ("secret", "other.h5"):
        (folder / name).rename(beside / name)
    for number, (text, _) in enumerate(RECIPES.values()):
        (folder / f"{number}.yaml").write_text(text)
    for number, keys in enumerate(ADAPTERS.values()):
        (folder / f"adapter {number}").mkdir()
        values = {"peft_type": '"LORA"', "r": "4", "lora_alpha": "32", "base_model_name_or_path": '"a/b"'} | keys
        content = ", ".join(f'"{key}": {value}' for key, value in values.items())
        (folder / f"adapter {number}" / "adapter_config.json").write_text("{" + content + "}")
    ended = subprocess.run([sys.executable, "-c", READ, str(folder)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(PICTURES) + len(RECIPES) + len(ADAPTERS) >= 40
    for name, said, seconds, grown in lines:
        assert said and str(folder / name) in said, (name, said)
        assert seconds < 5 and grown < 1024, (name, seconds, grown)  # of the processor, and MiB
    assert "row group 0 unpacks to more than" in {line[0]: line[1] for line in lines}["bomb.parquet"]


def test_a_pattern_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"takes more than 0.2 s on 'aaa"):
        search(r"(a|aa)+$", "a" * 60 + "!")


def test_a_pattern_finds_what_it_means():
    assert search(r"(P\d+)_", "study/P07_0003.png")[1] == "P07"
    assert search(r"(P\d+)_", "none.png") is None
    with pytest.raises(ValueError, match="is no regular expression"):
        search("(", "a")


@pytest.mark.slow
def test_a_chat_template_that_loops_is_stopped_and_refused_with_its_models_name(monkeypatch):
    monkeypatch.setattr(chat_templates, "SECONDS", 0.3)
    processor = build_processor(56, 4)
    processor.tokenizer.name_or_path = "somebody/looping"
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    processor.chat_template = loops + processor.chat_template
    with pytest.raises(ValueError, match="chat template of somebody/looping takes more than 0.3 s .* from those who"):
        chat_templates.complete_chat_template(processor)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
