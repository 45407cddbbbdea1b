"""Layouts and tables as others leave them, made of small pictures, and what each should give."""

import io
import itertools
import json
import re
import tarfile
from dataclasses import dataclass, field

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import PCAM_CLASSES
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from histolab_sft.arguments import HistoArguments

GREY = np.zeros((8, 8, 3), np.uint8)
CLASSES = "{Normal,Tumor}"
ROWS = [{"path": f"img/{number}.png", "label": label} for number, label in enumerate(["Normal", "Tumor"] * 2)]
NAMED = [{"file_name": f"{number}.png", "label": row["label"]} for number, row in enumerate(ROWS)]
TABLE_PICTURES = "img/{0,1,2,3}.png"


@dataclass
class Case:
    """A folder: `pictures` (paths, `{a,b}` expanded), other `files` (content, or a function that writes them).

    `labels`, `splits` and `groups` are what is meant, `unread` the kinds that are counted, and `tables` how many files
    were read beside those that hold a picture; or `error` is the sentence that stops the run.
    """

    pictures: str = ""
    files: dict = field(default_factory=dict)
    source: str = ""
    keys: dict = field(default_factory=dict)
    labels: dict = field(default_factory=lambda: {"Normal": 2, "Tumor": 2})
    splits: dict = field(default_factory=dict)
    groups: int = 0
    tables: int = 0
    unread: dict = field(default_factory=dict)
    error: str | None = None


def expand(patterns):
    """Give every path of `a/{x,y}/{0,1}.png b.png`."""
    for pattern in patterns.split():
        parts = re.split(r"\{(.*?)\}", pattern)
        yield from map(
            "".join, itertools.product(*(part.split(",") if i % 2 else [part] for i, part in enumerate(parts)))
        )


def encode(seed=0):
    buffer = io.BytesIO()
    Image.fromarray(GREY + seed % 256).save(buffer, "PNG")
    return buffer.getvalue()


def csv(rows=ROWS, separator=",", end="\n"):
    return end.join([separator.join(rows[0]), *(separator.join(map(str, row.values())) for row in rows)]) + end


def lines(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(rows=4, **columns):
    labels = ["Normal", "Tumor"] * rows
    table = {"image": [{"bytes": encode(row), "path": None} for row in range(rows)], "label": labels[:rows]} | columns
    return lambda path: pq.write_table(pa.table({name: cells for name, cells in table.items() if cells}), path)


def hdf5(**arrays):
    def write(path):
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name.replace("__", "/")] = array

    return write


def shard(*names, compressed=False):
    """Write a tar of the members `names`: pictures, and what is given as (name, text)."""

    def write(path):
        with tarfile.open(path, "w:gz" if compressed else "w") as archive:
            for name in names:
                name, data = (name, encode()) if isinstance(name, str) else (name[0], name[1].encode())
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

    return write


def saved(as_dict):
    features = Features(
        {"image": ImageFeature(), "label": ClassLabel(names=["Normal", "Tumor"]), "box": [Value("int8")]}
    )
    rows = {"image": [Image.fromarray(GREY)] * 4, "label": [0, 1, 0, 1], "box": [[1]] * 4}

    def write(path):
        dataset = Dataset.from_dict(rows, features=features)
        (DatasetDict({"train": dataset, "test": dataset}) if as_dict else dataset).save_to_disk(path)

    return write


def old_parquet(path):
    """Write a file whose metadata name the features as early versions of `datasets` did, with lists in it."""
    kinds = {"label": {"num_classes": 2, "names": ["Normal", "Tumor"], "_type": "ClassLabel"}}
    kinds |= {"image": {"_type": "Image"}, "boxes": [{"dtype": "int64", "_type": "Value"}]}
    rows = {"image": [{"bytes": encode(), "path": None}] * 4, "label": [0, 1, 0, 1], "boxes": [[1], [], [2], [3]]}
    table = pa.table(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    pq.write_table(table, path)


def indexed_parquet(path):
    pd.DataFrame(ROWS).set_index("path").to_parquet(path)


CELLS = np.stack([GREY] * 4)
PAIR = {"a_train_x.h5": hdf5(x=CELLS), "a_train_y.h5": hdf5(y=np.array([0, 1, 0, 1]).reshape(-1, 1, 1, 1))}
MEMBERS = [(f"{i}.cls", label) for i, label in enumerate(["Normal", "Tumor"] * 2)]
NAMES = [f"{i}.png" for i in range(4)]
BOM = b"\xef\xbb\xbf"
TRAIN_4 = {"train": 4}
THIRD = "{train,test}/" + CLASSES + "/0.png hold-out/" + CLASSES + "/{0,1}.png"

CASES = {
    # Class folders
    "class folders": Case(f"{CLASSES}/{{0,1}}.png"),
    "any depth": Case("Normal/0.png Normal/p1/40X/1.png Tumor/p2/0.png Tumor/1.png"),
    "only deep": Case(f"{CLASSES}/p1/slides/{{0,1}}.png"),
    "upper case and other formats": Case("Normal/{0.PNG,1.JPEG} Tumor/{0.Tiff,1.WebP}"),
    "split folders": Case("{train,test}/" + CLASSES + "/0.png", splits={"train": 2, "test": 2}),
    "split folders, deep": Case("{train,val}/" + CLASSES + "/p/0.png", splits={"train": 2, "validation": 2}),
    "splits inside of classes": Case(CLASSES + "/{train,test}/0.png", splits={"train": 2, "test": 2}),
    "splits of some classes alone": Case(
        "Normal/{train,test}/0.png Tumor/{0,1}.png", error="has no split while others have"
    ),
    "a lone folder above": Case(f"BACH/Photos/{CLASSES}/{{0,1}}.png", {"readme.txt": "x"}, unread={".txt": 1}),
    "a lone folder above splits": Case("set/{train,test}/" + CLASSES + "/0.png", splits={"train": 2, "test": 2}),
    "a picture beside the lone folder": Case(
        f"patches/{CLASSES}/0.png overview.png", error="1 picture in no class folder of .*overview.png; move it"
    ),
    "pictures beside class folders": Case(
        f"{CLASSES}/0.png {{a,b}}.png", error="2 pictures in no class folder of .*such as a.png; move them"
    ),
    "a picture beside split folders": Case(
        "{train,test}/" + CLASSES + "/0.png x.png", error="1 picture beside the folders of splits.*x.png"
    ),
    "a picture beside the classes of a split": Case(
        "{train,test}/" + CLASSES + "/0.png train/x.png", error="1 picture in no class folder.*train/x.png"
    ),
    "a third folder": Case(
        THIRD, error=r"1 folder with 4 pictures beside .*: hold-out; .*\{train: train, .*validation: hold-out\}"
    ),
    "a third folder that is named": Case(
        THIRD,
        keys={"splits": {"train": "train", "test": "test", "validation": "hold-out"}},
        labels={"Normal": 4, "Tumor": 4},
        splits={"train": 2, "test": 2, "validation": 4},
    ),
    "a third folder that is left out": Case(
        THIRD,
        keys={"splits": {"train": "train", "test": "test"}},
        splits={"train": 2, "test": 2},
        unread={"pictures": 4},
    ),
    "a third folder without pictures": Case(
        "{train,test}/" + CLASSES + "/0.png",
        {"docs/readme.md": "x"},
        splits={"train": 2, "test": 2},
        unread={".md": 1},
    ),
    "side files": Case(
        f"{CLASSES}/{{0,1}}.png",
        {
            "Normal/._0.png": "x",
            "Tumor/Thumbs.db": "x",
            "Tumor/desktop.ini": "x",
            ".DS_Store": "x",
            "__MACOSX/Normal/._0.png": "x",
            "Tumor/.ipynb_checkpoints/0.png": "x",
            "Normal/@eaDir/0.png": "x",
        },
        unread={"hidden or of the system": 7},
    ),
    "side files and a lone folder": Case(
        f"patches/{CLASSES}/{{0,1}}.png",
        {"__MACOSX/patches/Normal/._0.png": "x"},
        unread={"hidden or of the system": 1},
    ),
    "other files": Case(
        f"{CLASSES}/{{0,1}}.png",
        {"Normal/0.xml": "x", "Normal/1.xml": "x", "Tumor/notes": "x", "licence.txt": "x"},
        unread={".xml": 2, "without a suffix": 1, ".txt": 1},
    ),
    "pictures that aren't read": Case(
        f"{CLASSES}/0.png",
        {"Tumor/1.gif": "x", "Tumor/2.svs": "x"},
        error="2 pictures in a format.*Tumor/1.gif.*convert",
    ),
    "a picture without a suffix": Case(
        f"{CLASSES}/0.png", {"Tumor/1": encode()}, error="1 picture .*Tumor/1;.*rename"
    ),
    "a DICOM file that ends in a number": Case(
        f"{CLASSES}/0.png", {"Tumor/1.2.840": bytes(128) + b"DICM"}, error="1 picture .*rename"
    ),
    "an empty class folder": Case("Normal/{0,1}.png", {"Tumor/x.txt": ""}, error="only in the recipe .*Tumor"),
    "a class that the recipe doesn't name": Case(f"{CLASSES}/0.png Other/0.png", error="only in the data .*Other"),
    "folders of no class": Case(
        "P0{0,1}/{normal,tumor}.png", error="no folder in .* has the name of a class: found P00, P01, .*label_by"
    ),
    "a composed name": Case(
        "Gefa\u0308ß/{0,1}.png Nerv/{0,1}.png",
        keys={"class_names": {"Gef\u00e4ß": "Gefäß", "Nerv": "Nerv"}},
        labels={"Gef\u00e4ß": 2, "Nerv": 2},
    ),
    "nothing": Case(error="no patch found in .*: it is empty"),
    "no picture": Case(
        files={"a/x.txt": "x", "b/y.txt": "x", "c.pdf": "x"},
        error=r"no patch found .*it holds 2 .txt, 1 .pdf \(in a, b\)",
    ),
    "a table that isn't named": Case(
        TABLE_PICTURES, {"labels.csv": csv()}, error="no folder .* found img, .* name a file by source: .*labels.csv"
    ),
    # Patterns on the path below the source
    "a class in the file name": Case(
        "P0{0,1}/{normal,tumor}_0.png",
        keys={
            "label_by": r"(\w+)_\d",
            "group_by": r"^(P\d+)/",
            "class_names": {"normal": "Normal", "tumor": "Tumor"},
        },
        labels={"normal": 2, "tumor": 2},
        groups=2,
    ),
    "a class below the patient": Case(
        "10{253,254}/{0,1}/x.png",
        keys={"label_by": r"([^/]+)/[^/]+$", "group_by": r"^\d+", "class_names": {"0": "Normal", "1": "Tumor"}},
        labels={"0": 2, "1": 2},
        groups=2,
    ),
    "a class in the name, below splits": Case(
        "{train,test}/{Normal,Tumor}_1.png", keys={"label_by": r"([A-Z]\w+)_"}, splits={"train": 2, "test": 2}
    ),
    "a pattern that doesn't match": Case(
        "P0/{Normal,Tumor,0}_1.png",
        keys={"label_by": r"([A-Z][a-z]+)_"},
        error="label_by .* doesn't match 1 of 3 paths .*P0/0_1",
    ),
    "a pattern that isn't one": Case(f"{CLASSES}/0.png", keys={"label_by": "("}, error="is no regular expression"),
    "a pattern and a column": Case(
        f"{CLASSES}/0.png", keys={"label_by": "x", "label_column": "y"}, error="label_by and label_column"
    ),
    "a pattern on pictures inside of a file": Case(
        files={"train.parquet": parquet()}, keys={"label_by": "(x)"}, error="label_by and pictures inside"
    ),
    "a pattern on a manifest": Case(
        f"img/{CLASSES}_{{0,1}}.png",
        {"m.csv": csv([{"path": f"img/{c}_{i}.png"} for c in PCAM_CLASSES for i in (0, 1)])},
        source="m.csv",
        keys={"label_by": r"([A-Z]\w+)_"},
    ),
    "a folder above the source that the pattern matches": Case(
        f"P99_study/{CLASSES}/P0{{1,2}}_x.png", source="P99_study", keys={"group_by": r"(P\d+)_"}, groups=2
    ),
    "a manifest whose pictures lie elsewhere": Case(
        "P99_img/P0{0,1,2,3}_x.png",
        {"tables/m.csv": csv([{"path": f"../P99_img/P0{i}_x.png", "label": ROWS[i]["label"]} for i in range(4)])},
        source="tables/m.csv",
        keys={"group_by": r"(P\d+)_"},
        groups=4,
    ),
    # Text tables
    "a manifest": Case(TABLE_PICTURES, {"m.csv": csv()}, "m.csv"),
    "semicolons in cp1252": Case(
        TABLE_PICTURES, {"m.csv": csv([row | {"note": "größer"} for row in ROWS], ";").encode("cp1252")}, "m.csv"
    ),
    "upper case, CR LF": Case(TABLE_PICTURES, {"m.CSV": csv(end="\r\n")}, "m.CSV"),
    "CR alone": Case(TABLE_PICTURES, {"m.csv": csv(end="\r")}, "m.csv"),
    "tabs": Case(TABLE_PICTURES, {"m.tsv": csv(separator="\t")}, "m.tsv"),
    "tabs in a .csv": Case(TABLE_PICTURES, {"m.csv": csv(separator="\t")}, "m.csv"),
    "UTF-8 with a mark": Case(TABLE_PICTURES, {"m.csv": BOM + csv().encode()}, "m.csv"),
    "UTF-16": Case(TABLE_PICTURES, {"m.csv": csv().encode("utf-16")}, "m.csv"),
    "UTF-16, the other way": Case(TABLE_PICTURES, {"m.csv": b"\xfe\xff" + csv().encode("utf-16-be")}, "m.csv"),
    "UTF-16 without a mark": Case(
        TABLE_PICTURES, {"m.csv": csv().encode("utf-16-le")}, "m.csv", error="m.csv holds zero bytes"
    ),
    "bytes of no encoding": Case(
        TABLE_PICTURES, {"m.csv": csv().encode() + b"\x81,x\n"}, "m.csv", error="m.csv, line 6, column 1: byte 0x81"
    ),
    "numbered rows and empty lines": Case(
        TABLE_PICTURES, {"m.csv": csv([{"": i} | row for i, row in enumerate(ROWS)]) + "\n,,\n"}, "m.csv"
    ),
    "separators at the end of lines": Case(TABLE_PICTURES, {"m.csv": csv().replace("Tumor\n", "Tumor,\n")}, "m.csv"),
    "a quoted line end": Case(TABLE_PICTURES, {"m.csv": csv([row | {"note": '"a\nb"'} for row in ROWS])}, "m.csv"),
    "a cut line": Case(TABLE_PICTURES, {"m.csv": csv()[:-8]}, "m.csv", error="m.csv, line 5: 1 cell, expected 2"),
    "an open quote": Case(TABLE_PICTURES, {"m.csv": csv() + '"img/'}, "m.csv", error="m.csv, line 6: unexpected end"),
    "a column twice": Case(
        TABLE_PICTURES, {"m.csv": csv().replace("path,label", "label,label")}, "m.csv", error="several columns .*label"
    ),
    "an empty table": Case(TABLE_PICTURES, {"m.csv": ""}, "m.csv", error="m.csv is empty"),
    "columns of other names": Case(
        TABLE_PICTURES, {"m.csv": csv().replace("path,", "file,")}, "m.csv", error="name yours with image_column"
    ),
    "a picture that isn't there": Case(
        "img/{0,1,2}.png", {"m.csv": csv()}, "m.csv", error="names 1 picture not there.*3.png"
    ),
    "a row without a picture": Case(
        TABLE_PICTURES, {"m.jsonl": lines([*ROWS, {"label": "Tumor"}])}, "m.jsonl", error="1 row without a picture"
    ),
    "JSON lines": Case(TABLE_PICTURES, {"m.jsonl": lines()}, "m.jsonl"),
    "JSON lines with a mark and U+2028": Case(
        TABLE_PICTURES,
        {"m.jsonl": BOM + lines([row | {"note": "a\u2028b"} for row in ROWS]).replace("\\u2028", "\u2028").encode()},
        "m.jsonl",
    ),
    "JSON lines under the name .json": Case(TABLE_PICTURES, {"m.json": lines()}, "m.json"),
    "JSON with a mark": Case(TABLE_PICTURES, {"m.json": BOM + json.dumps(ROWS).encode()}, "m.json"),
    "JSON by column": Case(TABLE_PICTURES, {"m.json": pd.DataFrame(ROWS).to_json()}, "m.json"),
    "a cut JSON line": Case(
        TABLE_PICTURES, {"m.jsonl": lines()[:-5]}, "m.jsonl", error="m.jsonl, line 4, column 32: Unterminated string"
    ),
    "cut JSON": Case(TABLE_PICTURES, {"m.json": json.dumps(ROWS)[:-3]}, "m.json", error="m.json, line 1, column 1.*:"),
    "JSON of another kind": Case(files={"m.json": '{"a": 1}'}, source="m.json", error="holds dict, expected a list"),
    "JSON in cp1252": Case(
        TABLE_PICTURES,
        {"m.json": '[{"path": "ö'.encode("cp1252")},
        "m.json",
        error="m.json, line 1, column 12: byte 0xf6",
    ),
    "whole numbers stay whole beside a gap": Case(
        TABLE_PICTURES,
        {"m.jsonl": lines([row | {"label": i % 2, "patient_id": 7} for i, row in enumerate(ROWS)])},
        "m.jsonl",
        {"class_names": {"0": "Normal", "1": "Tumor"}},
        {"0": 2, "1": 2},
        groups=1,
    ),
    "a file of another kind": Case(files={"m.zip": "PK"}, source="m.zip", error="is a .zip file, expected .*unpack"),
    # imagefolder
    "metadata.csv beside pictures": Case(
        "{train,test}/{0,1}.png",
        {
            f"{split}/metadata.csv": csv(
                [{"file_name": f"{i}.png", "label": ROWS[i]["label"]} for i in (0, 1)], end="\r\n"
            )
            for split in ("train", "test")
        },
        splits={"train": 2, "test": 2},
        tables=2,
    ),
    "metadata.jsonl above pictures": Case(
        TABLE_PICTURES,
        {"metadata.jsonl": lines([{"file_name": row["path"], "label": row["label"]} for row in ROWS])},
        tables=1,
    ),
    "metadata that names not all pictures": Case(
        "{0,1,2,3,4,5}.png",
        {"metadata.csv": csv(NAMED)},
        tables=1,
        unread={"pictures": 2},
    ),
    "metadata without labels, beside class folders": Case(
        f"{CLASSES}/{{0,1}}.png",
        {"metadata.csv": csv([{"file_name": "Normal/0.png", "age": 7}])},
        unread={".csv": 1},
    ),
    # Pictures inside of files
    "parquet named after splits": Case(
        files={"train.parquet": parquet(), "test-00000-of-00001.parquet": parquet()},
        labels={"Normal": 4, "Tumor": 4},
        splits={"train": 4, "test": 4},
    ),
    "parquet in folders of splits": Case(
        files={"train/0000.parquet": parquet(), "test/0000.parquet": parquet()},
        labels={"Normal": 4, "Tumor": 4},
        splits={"train": 4, "test": 4},
    ),
    "parquet in data/, as on the Hub": Case(
        files={"data/train-00000-of-00001.parquet": parquet(), "README.md": "x"}, splits=TRAIN_4, unread={".md": 1}
    ),
    "parquet of no split beside those of splits": Case(
        files={"train.parquet": parquet(), "external.parquet": parquet()},
        error="external.parquet beside train.parquet",
    ),
    "parquet with path and image": Case(
        files={
            "train.parquet": parquet(image=[encode(i) for i in range(4)], path=[f"/orig/{i}.png" for i in range(4)])
        },
        splits=TRAIN_4,
    ),
    "parquet of paths": Case(
        TABLE_PICTURES, {"m.parquet": parquet(image=[], path=[row["path"] for row in ROWS])}, "m.parquet"
    ),
    "parquet of paths with an index": Case(TABLE_PICTURES, {"m.parquet": indexed_parquet}, "m.parquet"),
    "parquet with a list in old metadata": Case(files={"train.parquet": old_parquet}, splits=TRAIN_4),
    "parquet that is none": Case(
        files={"train.parquet": "x" * 100}, error="train.parquet: .*expected a whole .parquet file"
    ),
    "a saved data set": Case(files={".": saved(False)}, tables=2),
    "saved splits": Case(
        files={".": saved(True)}, labels={"Normal": 4, "Tumor": 4}, splits={"train": 4, "test": 4}, tables=5
    ),
    "saved splits below": Case(
        files={"mine": saved(True)}, labels={"Normal": 4, "Tumor": 4}, splits={"train": 4, "test": 4}, tables=5
    ),
    "one HDF5 file": Case(
        files={"p.h5": hdf5(image=CELLS, label=[0, 1, 0, 1], patient_id=[7, 7, 8, 8])}, source="p.h5", groups=2
    ),
    "one HDF5 file, keys by name": Case(
        files={"p.hdf5": hdf5(data__img=CELLS, y=np.array([b"Normal", b"Tumor"] * 2, dtype=h5py.string_dtype()))},
        source="p.hdf5",
        keys={"image_column": "data/img", "label_column": "y"},
    ),
    "one HDF5 file, keys not named": Case(
        files={"p.h5": hdf5(images=CELLS, labels=[0, 1, 0, 1])},
        source="p.h5",
        error=r"holds images \(4, 8, 8, 3\), labels \(4,\), expected image, label; .*image_column and label_column",
    ),
    "HDF5 with fewer labels": Case(
        files={"p.h5": hdf5(image=CELLS, label=[0, 1])}, source="p.h5", error="expected pictures .N, height, width, 3"
    ),
    "HDF5 files named after splits": Case(files={"train.h5": hdf5(image=CELLS, label=[0, 1, 0, 1])}, splits=TRAIN_4),
    "PCam's pairs": Case(
        files=PAIR | {"._a_train_x.h5": "x"}, splits=TRAIN_4, tables=1, unread={"hidden or of the system": 1}
    ),
    "a shard": Case(files={"train-000.tar": shard(*NAMES, *MEMBERS)}, splits=TRAIN_4),
    "a shard, compressed": Case(files={"train-000.tar.gz": shard(*NAMES, *MEMBERS, compressed=True)}, splits=TRAIN_4),
    "a shard of numbers": Case(
        files={"train.tar": shard(*NAMES, *[(f"{i}.cls", str(i % 2)) for i in range(4)])}, splits=TRAIN_4
    ),
    "a shard with dots in its keys": Case(
        files={
            "train-0.tar": shard(
                *(f"1.2.{i}.png" for i in range(4)), *((f"1.2.{i}.cls", row["label"]) for i, row in enumerate(ROWS))
            )
        },
        splits=TRAIN_4,
    ),
    "a shard with parts of samples": Case(
        files={
            "train-0.tar": shard(
                *(f"s/{i}.image.png" for i in range(4)),
                *((f"s/{i}.class.cls", row["label"]) for i, row in enumerate(ROWS)),
                *((f"s/{i}.meta.json", json.dumps({"slide_id": i // 2})) for i in range(4)),
            )
        },
        splits=TRAIN_4,
        groups=2,
    ),
    "a shard whose short keys contradict": Case(
        files={"train.tar": shard("1.2.jpg.png", ("1.3.cls", "Normal"), ("1.4.cls", "Tumor"))},
        error="1.2.jpg.png in .*train.tar has no label",
    ),
    "a packed class folder": Case(
        files={"train.tar": shard("Normal/0.png")}, error="has no label, .*unpack it where its folders are the classes"
    ),
}


def build(case, folder):
    for number, name in enumerate(expand(case.pictures)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY + number).save(path)
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def recipe(case, folder):
    entry = {"name": "d", "source": str(folder / case.source), "class_names": PCAM_CLASSES}
    return HistoArguments(datasets=[entry | case.keys])


NORMAL_TUMOR = {"Normal": 6, "Tumor": 6}
LOWER = {"normal": "Normal", "tumor": "Tumor"}
SHARED_CASES = {
    "06_nested_class_folders": Case(labels={"Normal": 10, "Tumor": 12}),
    "07_side_files": Case(labels=NORMAL_TUMOR, unread={"hidden or of the system": 13}),
    "07_side_files/patches": Case(labels=NORMAL_TUMOR, unread={"hidden or of the system": 12}),
    **{
        f"08_tables/{name}": Case(labels=NORMAL_TUMOR)
        for name in ("cp1252.csv", "utf16.csv", "upper.CSV", "tab.tsv", "bom.json", "bom.jsonl")
    },
    "08_tables/cut.jsonl": Case(error="cut.jsonl, line 12, column 57"),
    "09_imagefolder": Case(labels={"Normal": 9, "Tumor": 9}, splits={"train": 12, "test": 6}),
    "10_class_in_the_name": Case(
        keys={"label_by": r"(\w+)_\d", "group_by": r"^(P\d+)/", "class_names": LOWER},
        labels={"normal": 12, "tumor": 12},
        groups=4,
    ),
    "11_one_h5/patches.h5": Case(keys={"image_column": "images", "label_column": "labels"}, labels=NORMAL_TUMOR),
    "12_parquet_path_and_image": Case(labels=NORMAL_TUMOR, splits={"train": 12}),
    "14_third_folder": Case(error="hold-out; .*validation: hold-out"),
    "15_twelve_bit_grey": Case(keys={"intensity_window": [0, 4095]}, labels=NORMAL_TUMOR),
    "16_row_groups": Case(labels={"Normal": 36, "Tumor": 36}, splits={"train": 48, "test": 12, "validation": 12}),
}
