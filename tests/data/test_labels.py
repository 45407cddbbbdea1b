"""Labels, splits and patients of tables: what is meant is read, what isn't there is counted, the rest is refused."""

import json
from collections import Counter
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from layout_cases import encode

from histolab_sft.config.arguments import HistoArguments, parse_recipe
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.audit.audit import format_audit
from histolab_sft.data.data_sets import load_source
from histolab_sft.data.formats.words import leave_out, suggest_block
from histolab_sft.data.rows import audit_recipe, list_patches
from histolab_sft.tasks.classification import format_prompt, format_target
from histolab_sft.tasks.parsing.answers import parse_answer

SHARED = Path(__file__).parents[3] / "shared" / "cases"
NORMAL_TUMOR = {"Normal": "Normal", "Tumor": "Tumor"}
POSITIONS = {"0": "Normal", "1": "Tumor"}
NOTHING = ["", " ", "nan", "NaN", "None", "null", "NA", "N/A", "<NA>", "-1"]
FORMATS = [".csv", ".jsonl", ".json", ".parquet"]


def config(source, **keys):
    return DatasetConfig(**{"name": "d", "source": str(source), "class_names": NORMAL_TUMOR} | keys)


def write_table(folder, suffix, **columns):
    """Write `t.csv` and the like over pictures in files of their own; None is what the format has for nothing."""
    count = len(next(iter(columns.values())))
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encode(number))
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(count)]} | columns, dtype=object)
    path = folder / f"t{suffix}"
    if suffix == ".csv":
        table.to_csv(path, index=False)
    elif suffix == ".parquet":
        table.to_parquet(path)
    else:
        rows = table.to_dict("records")
        path.write_text("\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("nothing", [None, *NOTHING])
def test_a_row_without_a_label_is_none_in_every_format(tmp_path, suffix, nothing):
    path = write_table(tmp_path, suffix, label=["Normal", nothing, "Tumor", "Tumor"])
    patches = load_source(config(path))
    assert patches["label"].tolist() == ["Normal", None, "Tumor", "Tumor"]


@pytest.mark.parametrize("word", ["NA", "None", "nan", "-1"])
def test_a_word_for_nothing_that_is_a_class_is_that_class(tmp_path, word):
    path = write_table(tmp_path, ".csv", label=[word, "Tumor"])
    assert load_source(config(path, class_names={word: "Absent", "Tumor": "Tumor"}))["label"].tolist() == [
        word,
        "Tumor",
    ]


@pytest.mark.parametrize("values", [[0, 1, None, 1], [0.0, 1.0, np.nan, 1.0], [0, 1, -1, 1]])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_whole_numbers_are_labels_whatever_a_gap_has_made_of_them(tmp_path, values, suffix):
    values = [None if value != value else value for value in values]
    if suffix == ".parquet":
        values = pd.Series(values, dtype=float).tolist()
        frame = pd.DataFrame({"image": [{"bytes": encode(), "path": None}] * 4, "label": values})
        frame.to_parquet(path := tmp_path / "t.parquet")
    else:
        path = write_table(tmp_path, suffix, label=values)
    labels = load_source(config(path, class_names=POSITIONS))["label"].tolist()
    if suffix == ".csv" and isinstance(values[0], float):  # text, which stands there as it is
        assert labels == ["0.0", "1.0", None, "1.0"]
    else:
        assert labels == ["0", "1", None, "1"]


@pytest.mark.parametrize("positions", [[0, 1, -1], [0, 1, None]])
def test_an_unlabelled_row_of_datasets_is_not_its_last_class(tmp_path, positions):
    features = Features({"path": Value("string"), "label": ClassLabel(names=["Normal", "Tumor"])})
    paths = [f"{i}.png" for i in range(3)]
    write_table(tmp_path, ".csv", label=["x"] * 3)
    Dataset.from_dict({"path": paths, "label": positions}, features=features).to_parquet(tmp_path / "t.parquet")
    assert load_source(config(tmp_path / "t.parquet"))["label"].tolist() == ["Normal", "Tumor", None]


@pytest.mark.parametrize(
    ("splits", "labels", "told"),
    [
        ([""] * 4, ["Normal", None, "Tumor", None], "2 rows have no label"),
        (["train", "train", "test", "test"], ["Normal", "Tumor", None, None], "2 rows of test have no label"),
        (["train", "train", "test", "test"], ["Normal", None, "Tumor", None], "1 row of train, 1 row of test have"),
        (["train", "train", "test", "test"], ["Normal", None, "Tumor", "Normal"], "1 row of train has no label"),
    ],
)
def test_unlabelled_rows_are_refused_by_split_or_left_out_and_counted(splits, labels, told):
    patches = pd.DataFrame({"split": splits, "label": labels})
    with pytest.raises(ValueError, match=f"{told}.*unlabelled: drop"):
        leave_out(patches, config("x"), "stop")
    kept, entries = leave_out(patches, config("x"), "drop")
    assert kept["label"].notna().all() and len(kept) + sum(entry["rows"] for entry in entries) == 4
    assert {entry["key"] for entry in entries} == {"unlabelled: drop"}


def test_a_data_set_without_any_label_is_refused_either_way():
    with pytest.raises(ValueError, match="2 rows have no label"):
        leave_out(pd.DataFrame({"split": ["", ""], "label": [None, None]}), config("x"), "drop")


BLOCKS = [
    (["0", "1"], "{train: 0, test: 1}"),
    (["0", "1", "2"], "{train: 0, validation: 1, test: 2}"),
    (["0", "1", "2", "3", "4"], "{train: [0, 1, 2], validation: 3, test: 4}"),
    (["fold2", "fold10", "fold1"], "{train: fold1, validation: fold2, test: fold10}"),
    (["True", "False"], "{train: False, test: True}"),
    (["train", "hold-out"], "{train: train, test: hold-out}"),
    (["train", "test", "external"], "{train: train, validation: external, test: test}"),
    (["learn it", "a,b"], "{train: 'a,b', test: 'learn it'}"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "block"), BLOCKS)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_split_that_is_not_understood_is_refused_with_the_block_that_maps_it(tmp_path, words, block, suffix):
    path = write_table(tmp_path, suffix, label=["Normal", "Tumor"] * len(words), split=words * 2)
    with pytest.raises(ValueError) as refused:
        load_source(config(path))
    assert f"splits: {block}" in str(refused.value) and "(2 patches)" in str(refused.value)
    assert set(load_source(config(path), anew=True)["split"]) == {""}
    # As it is advised it is read, and nothing is lost.
    (tmp_path / "r.yaml").write_text(
        f"output_dir: out\nuse_cpu: true\nbf16: false\nuse_peft: false\ndatasets: [{{name: d, source: '{path}', "
        f"class_names: {{Normal: Normal, Tumor: Tumor}}, splits: {block}}}]\n"
    )
    histo_args, _, _ = parse_recipe(["--config", str(tmp_path / "r.yaml")])
    patches = load_source(histo_args.datasets[0])
    assert len(patches) == 2 * len(words) and set(patches["split"]) <= {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("values", "found"),
    [([0, 1, 0, 1], "'0' .2 patches., '1' .2 patches."), ([True, False, True, False], "'False' .2 patches., 'True'")],
)
def test_numbers_and_truth_values_of_a_split_are_no_invitation_to_deal_anew(tmp_path, values, found):
    with pytest.raises(ValueError, match=found):
        load_source(config(write_table(tmp_path, ".jsonl", label=["Normal", "Tumor"] * 2, split=values)))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("fold", [0, 1, 2, 3]),
        ("partition", ["a", "b"] * 2),
        ("kind", ["train", "test"] * 2),
        ("Split", ["x", "y"] * 2),
    ],
)
def test_a_column_that_looks_like_a_split_is_one(tmp_path, column, values):
    path = write_table(tmp_path, ".csv", label=["Normal", "Tumor"] * 2, **{column: values})
    if column == "kind":
        assert Counter(load_source(config(path))["split"]) == {"train": 2, "test": 2}
    else:
        with pytest.raises(ValueError, match="could not be understood"):
            load_source(config(path))
    # The file's own name says more.
    path.rename(tmp_path / "train.csv")
    assert set(load_source(config(tmp_path))["split"]) == {"train"}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"split_column": "fould"}, "split_column is 'fould', expected one of.*fold"),
        (
            {"split_column": "fold", "splits": {"train": "0", "test": "9"}},
            "splits names '9', which the data don't have",
        ),
        ({"label_column": "grade"}, "expected .'grade'. too"),
    ],
)
def test_a_key_that_names_what_is_not_there_is_refused_with_what_is(tmp_path, keys, told):
    path = write_table(tmp_path, ".csv", label=["Normal", "Tumor"] * 2, fold=[0, 1, 2, 3])
    with pytest.raises(ValueError, match=told):
        load_source(config(path, **keys))


def test_folds_are_mapped_by_lists_and_what_is_not_named_is_left_out_and_counted(tmp_path):
    path = write_table(tmp_path, ".csv", label=["Normal", "Tumor"] * 6, fold=[i // 2 for i in range(12)])
    splits = {"train": ["0", "1", "2"], "validation": "3", "test": ["4"]}
    patches = load_source(config(path, split_column="fold", splits=splits))
    kept, entries = leave_out(patches, config(path, splits=splits), "stop")
    assert Counter(kept["split"]) == {"train": 6, "validation": 2, "test": 2}
    assert [(entry["key"], entry["rows"]) for entry in entries] == [("splits", 2)]


def test_files_of_folds_are_mapped_by_the_same_block_and_refused_without_it(tmp_path):
    for fold in range(3):
        path = write_table(tmp_path, ".csv", label=["Normal", "Tumor"])
        path.rename(tmp_path / f"fold{fold}.csv")
    with pytest.raises(ValueError, match="splits: {train: fold0, validation: fold1, test: fold2}"):
        load_source(config(tmp_path))
    patches = load_source(config(tmp_path, splits={"train": ["fold0", "fold1"], "test": "fold2"}))
    assert Counter(patches["split"]) == {"train": 4, "test": 2}


def test_a_table_of_pictures_beside_those_of_splits_stops_the_run_until_it_is_mapped_or_left_out(tmp_path):
    for name in ("train", "test", "hold-out"):
        write_table(tmp_path, ".csv", label=["Normal", "Tumor"]).rename(tmp_path / f"{name}.csv")
    (tmp_path / "stains.csv").write_text("slide,stain\na,b\n")
    with pytest.raises(ValueError, match="hold-out.csv beside .*train.csv.*`splits`"):
        load_source(config(tmp_path))
    every = {"train": "train", "validation": "hold-out", "test": "test"}
    assert len(load_source(config(tmp_path, splits=every))) == 6


@pytest.mark.parametrize(
    "splits",
    [{"train": 0}, {"train": []}, {"train": [True]}, {"train": "a", "test": ["a"]}, {"train": ""}, {"train": None}],
)
def test_splits_that_say_nothing_or_one_thing_twice_are_refused(splits):
    with pytest.raises(ValueError, match="splits"):
        config("x", splits=splits)


def test_the_suggested_block_gives_every_word_one_split():
    words = [f"site {i}" for i in range(7)]
    block = suggest_block(words, config("x"))
    assert all(block.count(f"'{word}'") == 1 for word in words)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("nobody", [None, "", "nan", "unknown"])
def test_an_unknown_patient_is_none_in_every_format(tmp_path, suffix, nobody):
    groups = ["P1", nobody, "P2", nobody, "P1", nobody]
    path = write_table(tmp_path, suffix, label=["Normal", "Tumor"] * 3, patient_id=groups)
    assert load_source(config(path))["group"].tolist() == ["P1", None, "P2", None, "P1", None]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"group_by": "kind"}, "group_by 'kind' gives the class of each patch"),
        ({"group_by": "label"}, "gives the class"),
        ({"group_by": "site"}, "gives one patient or slide, 'A', for all 6 patches"),
    ],
)
def test_a_group_that_is_no_patient_is_questioned(tmp_path, keys, told):
    columns = {"label": ["Normal", "Tumor"] * 3, "kind": ["normal", "TUMOR"] * 3, "site": ["A"] * 6}
    path = write_table(tmp_path, ".csv", **columns)
    with pytest.raises(ValueError, match=told):
        load_source(config(path, **keys))


def test_a_group_a_row_is_read_with_a_warning(tmp_path, caplog):
    path = write_table(tmp_path, ".csv", label=["Normal", "Tumor"] * 2, slide=["a", "b", "c", "d"])
    assert load_source(config(path, group_by="slide"))["group"].nunique() == 4
    assert "is it the patch's own name?" in caplog.text


shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of trial inputs isn't beside this checkout")


def arguments(source, class_names=NORMAL_TUMOR, **keys):
    own = {key: keys.pop(key) for key in ("splits", "group_by") if key in keys}
    return HistoArguments(datasets=[{"name": "d", "source": str(source), "class_names": class_names} | own], **keys)


@pytest.mark.slow
@shared
def test_a_test_split_without_labels_is_refused_or_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = SHARED / "01_unlabelled_test"
    names = {name: name for name in ("Benign", "Normal", "Tumor")}
    with pytest.raises(ValueError, match="9 rows of test have no label.*unlabelled: drop"):
        list_patches(arguments(source, names))
    patches, audit, _ = audit_recipe(arguments(source, names, unlabelled="drop"), tmp_path)
    assert len(patches) == 27 and (patches["split"] == "validation").sum() == 9
    [entry] = audit["dropped"]
    assert (entry["key"], entry["split"], entry["rows"]) == ("unlabelled: drop", "test", 9)
    assert "unlabelled: drop left out 9 rows of d's test split" in format_audit(audit)


@shared
def test_yes_and_no_stand_in_the_question(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "output_dir: out\nuse_cpu: true\nbf16: false\nuse_peft: false\n"
        f"datasets: [{{name: d, source: '{SHARED / '02_yes_and_no'}', class_names: {{0: No, 1: Yes}}}}]\n"
    )
    histo_args, _, _ = parse_recipe(["--config", str(tmp_path / "r.yaml")])
    assert "No, Yes" in format_prompt("d", list(histo_args.datasets[0].class_names.values()))
    assert Counter(load_source(histo_args.datasets[0])["label"]) == {"0": 8, "1": 8}


@shared
def test_names_that_differ_in_a_sign_are_each_read_as_itself():
    names = {"neg": "HER2-", "pos": "HER2+"}
    assert Counter(load_source(config(SHARED / "03_signs_in_names", class_names=names))["label"]) == {
        "neg": 8,
        "pos": 8,
    }
    for name in names.values():
        assert parse_answer(format_target(name), list(names.values())) == name


@shared
@pytest.mark.parametrize("source", ["04_split_column_0_1", "04_split_column_0_1/metadata.csv"])
def test_a_split_of_zeros_and_ones_is_refused_and_mapped(source):
    with pytest.raises(ValueError, match="'0' .18 patches., '1' .6 patches..*splits: {train: 0, test: 1}"):
        load_source(config(SHARED / source))
    patches = load_source(config(SHARED / source, splits={"train": "0", "test": "1"}))
    assert Counter(patches["split"]) == {"train": 18, "test": 6}


@shared
def test_half_known_patients_stay_whole_alike_in_every_format(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with caplog.at_level("INFO"):
        tables = [list_patches(arguments(SHARED / f"05_patients_half_known/labels{s}")) for s in (".csv", ".jsonl")]
    assert tables[0]["split"].equals(tables[1]["split"]) and len(tables[0]) == 24
    assert tables[0].groupby("group")["split"].nunique().max() == 1
    assert tables[0]["group"].isna().sum() == 12 and "6 groups and 12 without one" in caplog.text


@shared
def test_a_name_typed_in_another_unicode_form_is_the_same():
    names = {"Gef\N{LATIN SMALL LETTER A WITH DIAERESIS}ß": "Gefäß", "Nerv": "Nerv"}
    assert len(load_source(config(SHARED / "13_nfd_names", class_names=names))) == 12


@pytest.mark.parametrize(("typed", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_source_and_pictures_named_in_another_unicode_form_are_found(tmp_path, typed, written):
    folder = tmp_path / normalize(written, "Gefäße")
    (folder / normalize(written, "ä")).mkdir(parents=True)
    places = [f"ä/é{number}.png" for number in range(4)]
    for place in places:
        (folder / normalize(written, place)).write_bytes(encode(0))
    table = pd.DataFrame({"path": [normalize(typed, place) for place in places], "label": ["a", "b"] * 2})
    table.to_csv(folder / "metadata.csv", index=False)
    for source in (normalize(typed, "Gefäße"), normalize(typed, "Gefäße") + "/metadata.csv"):
        found = load_source(config(tmp_path / source, class_names={"a": "A", "b": "B"}))
        assert [Path(images[0]["path"]).is_file() for images in found["images"]] == [True] * 4
