"""`histolab_sft new` writes a recipe that the readers take, and asks what the data don't tell."""

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import PCAM_CLASSES, write_class_folders

from histolab_sft.commands.group_patterns import find_group_pattern
from histolab_sft.commands.new_recipe import write_recipe
from histolab_sft.config.arguments import parse_recipe
from histolab_sft.data.data_sets import load_source


@pytest.fixture
def new(tmp_path, monkeypatch):
    """Write a recipe for `data` in an empty folder; return its data set, its table and its text."""
    monkeypatch.chdir(tmp_path)

    def new(source="data"):
        path, _ = write_recipe("mine", source)
        [config] = parse_recipe(["--config", str(path), "--use_cpu", "true"])[0].datasets
        return config, load_source(config), path.read_text(encoding="utf-8")

    return new


def test_class_folders_become_classes_and_patients_in_names_are_offered_and_not_believed(new, tmp_path):
    write_class_folders(tmp_path / "data", PCAM_CLASSES, per_class=24, slides=8)
    config, patches, text = new()
    assert config.class_names == PCAM_CLASSES and len(patches) == 48
    assert config.group_by is None and patches["group"].isna().all()
    [offer] = [line for line in text.splitlines() if "# group_by:" in line]
    active = text.replace(offer, offer.replace("# group_by", "group_by"))
    (tmp_path / "recipes" / "mine.yaml").write_text(active, encoding="utf-8")
    [config] = parse_recipe(["--config", "recipes/mine.yaml", "--use_cpu", "true"])[0].datasets
    assert load_source(config)["group"].nunique() == 8
    assert "Is letters with a number inside of a name the patient or slide?" in " ".join(text.split("\n#    "))


def test_names_that_tell_no_patient_leave_a_question(new, tmp_path):
    write_class_folders(tmp_path / "data", PCAM_CLASSES, slides=1)
    config, _, text = new()
    assert "No patient or slide was found" in text and "group_by:" not in text


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["{split}/{label}", "{label}/{split}"])
def test_folders_of_splits_are_kept(new, tmp_path, layout):
    for split, count in (("train", 4), ("valid", 2), ("test", 3)):
        write_class_folders(tmp_path / "made" / split, PCAM_CLASSES, per_class=count)
        for label in PCAM_CLASSES:
            place = tmp_path / "data" / layout.format(split=split, label=label)
            place.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "made" / split / label).rename(place)
    config, patches, text = new()
    assert patches["split"].value_counts().to_dict() == {"train": 8, "test": 6, "validation": 4}
    assert set(config.class_names) == set(PCAM_CLASSES) and "train 8, validation 4, test 6" in text


def test_folders_above_the_classes_are_asked_about(new, tmp_path):
    for site in ("NCT-CRC-HE-100K", "CRC-VAL-HE-7K"):
        write_class_folders(tmp_path / "data" / site, PCAM_CLASSES)
    config, patches, text = new()
    assert patches["label"].value_counts().to_dict() == dict.fromkeys(PCAM_CLASSES, 16)
    assert "CRC-VAL-HE-7K" in text and "splits?" in text


def test_a_split_that_nothing_names_is_asked_about_in_the_readers_words(new, tmp_path, monkeypatch):
    for split in ("train", "test", "hold-out"):
        write_class_folders(tmp_path / "data" / split, PCAM_CLASSES)
    monkeypatch.chdir(tmp_path)
    path, questions = write_recipe("mine", "data")
    assert any("name every split" in question and "hold-out" in question for question in questions)
    assert set(parse_recipe(["--config", str(path), "--use_cpu", "true"])[0].datasets[0].class_names) == {
        *PCAM_CLASSES
    }


def test_a_manifest_with_other_column_names_is_read(new, tmp_path):
    write_class_folders(tmp_path / "pictures", PCAM_CLASSES, per_class=6)
    paths = sorted(path.relative_to(tmp_path) for path in (tmp_path / "pictures").rglob("*.png"))
    rows = [
        {"filename": str(path), "diagnosis": path.parent.name, "fold": ("train", "test")[i % 2], "patient_id": i // 2}
        for i, path in enumerate(paths)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    config, patches, text = new("table.csv")
    assert (config.label_column, config.image_column) == ("diagnosis", "filename")
    assert patches["split"].value_counts().to_dict() == {"train": 6, "test": 6}
    assert patches["group"].nunique() == 6 and "6 patients or slides" in text


def test_pcams_pairs_have_two_classes_whose_words_are_asked_for(new, tmp_path):
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        with h5py.File(tmp_path / "data" / f"pcam_{split}_x.h5", "w") as file:
            file["x"] = rng.integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
        with h5py.File(tmp_path / "data" / f"pcam_{split}_y.h5", "w") as file:
            file["y"] = np.arange(8).reshape(8, 1, 1, 1) % 2
    config, patches, text = new()
    assert config.class_names == {"0": "0", "1": "1"} and len(patches) == 24
    assert "What do the labels 0, 1 stand for?" in text


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["TCGA-A1-B{p:03d}/x{i}.png"], 8),
        (["Tumor/P{p:02d}_{i}.png"], 8),
        (["Tumor/{p}_idx5_x{i}_y1_class0.png"], 8),
        (["Tumor/patient{p}/{i}.png"], 8),
        (["Tumor/TUM-AB{p}x-{i}.png"], 8),
        (["Tumor/{p}{i}.png"], None),
        (["Tumor/img_{p}{i}.png"], None),
        (["Tumor/TUM-{p}{i}.png"], None),
        (["TUM-P{p}/{i}.png", "loose.png"], None),
    ],
)
def test_a_pattern_gives_every_patch_a_group_of_several_or_there_is_none(names, groups):
    first, *others = names
    places = [first.format(p=p, i=i) for p in range(8) for i in range(5)] + others
    found = find_group_pattern(places, ["Tumor"] * len(places))
    assert (found and len(found.sizes)) == groups


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("a/b", "data", "letters, digits"),
        ("mine", "nowhere", "isn't there"),
        ("mine", "data", "no classes found"),
    ],
)
def test_what_no_recipe_can_be_written_for_is_said(tmp_path, monkeypatch, name, source, message):
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "data", ["only"])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write_recipe(name, source)
    assert not (tmp_path / "recipes").exists()


def test_a_recipe_is_never_overwritten(new, tmp_path):
    write_class_folders(tmp_path / "data", PCAM_CLASSES)
    new()
    with pytest.raises(FileExistsError, match="already"):
        new()
