"""The key `vision_cache`: when features are used, and that scoring with them is scoring with pixels."""

import logging
import os
import resource

import pytest
import torch
from conftest import PCAM_CLASSES, write_class_folders
from tiny_models import build_llava, load_tiny

from histolab_sft.config.arguments import HistoArguments, parse_recipe
from histolab_sft.data.rows import load_audited_patches, select_datasets
from histolab_sft.evaluation import linear_probe, predictions
from histolab_sft.models.vision_cache.choice import attached_cache, list_pictures, prepare_vision_cache
from histolab_sft.models.vision_cache.features import image_key, open_vision_cache
from histolab_sft.models.vision_cache.store import StoreWriteError, hash_parts


@pytest.fixture
def histo_args(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_class_folders(tmp_path / "pcam", PCAM_CLASSES, per_class=20)
    return HistoArguments(
        datasets=[{"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES}],
        data_dir=str(tmp_path),
        max_new_tokens=4,
    )


@pytest.fixture
def patches(histo_args, tmp_path):
    return load_audited_patches(histo_args, tmp_path)


@pytest.mark.slow
def test_the_audit_names_a_picture_as_the_cache_does(patches):
    hashes = patches["train"].with_format(None)["pixel_sha256"]
    assert list(hashes) == [[image_key(image)] for [image] in patches["train"]["images"]]


@pytest.mark.slow
def test_pictures_are_counted_once_and_opened_by_nobody(patches):
    train, test = patches["train"], patches["test"]
    pictures, passes = list_pictures([(train, 3), (train.select(range(4)), 2), (test, 1)])
    assert len(pictures) == len(train) + len(test)
    assert passes == pytest.approx((3 * len(train) + 8 + len(test)) / len(pictures))
    assert all(image_key(picture()) == key for key, picture in pictures.items())


@pytest.mark.parametrize(("value", "expected"), [("off", "off"), ("auto", "auto"), ("/some/folder", "/some/folder")])
def test_a_recipe_may_write_off_auto_or_a_folder(tmp_path, value, expected):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"vision_cache: {value}\ndatasets: [{{name: a, source: b, class_names: {{x: X, y: Y}}}}]\n")
    assert parse_recipe(["--config", str(recipe), "--use_cpu", "true"])[0].vision_cache == expected
    recipe.write_text("datasets: [{name: a, source: b, class_names: {x: X, y: Y}}]\n")
    arguments = ["--config", str(recipe), "--use_cpu", "true", "--vision_cache", value]
    assert parse_recipe(arguments)[0].vision_cache == expected


def test_a_folder_and_stain_jitter_contradict_each_other(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "vision_cache: features\naugmentation: all\ndatasets: [{name: a, source: b, class_names: {x: X, y: Y}}]\n"
    )
    with pytest.raises(ValueError, match="stain jitter changes"):
        parse_recipe(["--config", str(recipe), "--use_cpu", "true"])


@pytest.fixture
def tiny(tmp_path):
    model, processor = load_tiny(tmp_path / "base")
    return model.requires_grad_(False), processor


@pytest.mark.model
def test_predictions_and_probe_features_are_the_same_and_found_under_the_same_name(
    histo_args, patches, tiny, tmp_path, monkeypatch
):
    model, processor = tiny
    config, rows = histo_args.datasets[0], select_datasets(patches["test"], "pcam")
    weights = predictions.hash_weights(model)

    def score(folder, processor):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        system = predictions.System("baseline", model, processor, weights, histo_args, len(rows))
        table = predictions.predict(rows, system, config)
        features = linear_probe.encode_pictures(rows, system)
        names = {path.relative_to(tmp_path / folder) for path in (tmp_path / folder).rglob("*") if path.is_file()}
        return table, features, names

    plain = score("pixels", processor)
    with attached_cache(str(tmp_path / "vision"), model, processor, [(rows, 1)], len(rows)) as reader:
        assert len([*model.model.vision_tower.parameters()]) == 0
        cached = score("features", reader)
    assert plain[0].equals(cached[0]) and (plain[1] == cached[1]).all() and plain[2] == cached[2]
    assert predictions.hash_weights(model) == weights


@pytest.mark.model
def test_auto_says_what_it_does_and_goes_on_without_where_it_does_not_pay(patches, tiny, caplog):
    caplog.set_level(logging.INFO)

    def prepare(choice, model, processor, passes):
        caplog.clear()
        return prepare_vision_cache(choice, model, processor, list_pictures([(patches["test"], 1)])[0], passes, 4)

    n = len(patches["test"])
    assert prepare("off", *tiny, 9) is None
    assert prepare("auto", *tiny, 1) is None and "not used, each picture is needed once" in caplog.text
    assert len(prepare("auto", *tiny, 3)) == n and f"{n} of {n} pictures are encoded first" in caplog.text
    assert prepare("auto", *tiny, 1) is not None and f"0 of {n} pictures are encoded first" in caplog.text
    assert prepare("auto", *build_llava(), 3) is None and "Gemma 3 and not Llava" in caplog.text
    tiny[0].model.vision_tower.requires_grad_(True)
    assert prepare("auto", *tiny, 3) is None and "the vision tower is trained" in caplog.text


@pytest.mark.model
def test_a_folder_that_is_asked_for_is_used_or_refused_never_left_out(patches, tiny, tmp_path):
    pictures, _ = list_pictures([(patches["test"], 1)])
    cache = prepare_vision_cache(str(tmp_path / "asked"), *tiny, pictures, 1, 4)
    assert cache.folder.parent == tmp_path / "asked"
    assert cache.features(list(pictures)).dtype == torch.float32
    tiny[0].model.vision_tower.requires_grad_(True)
    with pytest.raises(ValueError, match="the vision tower is trained .* vision_cache: off"):
        prepare_vision_cache(str(tmp_path / "asked"), *tiny, pictures, 1, 4)


def block_shards(folder, pictures):
    """Let no file grow beyond 8 KiB: the first shard is begun and can't be finished, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def growing_files():
    """Let files grow again after the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def block_locks(folder, pictures):
    """A folder stands where the lock of the first shard is taken."""
    folder.joinpath(f"{hash_parts(*(key.encode() for key in list(pictures)[:64]))}.lock").mkdir()


def block_folder(folder, pictures):
    """A file stands where the folder of the features is made."""
    os.rmdir(folder)
    folder.touch()


@pytest.mark.model
@pytest.mark.parametrize("block", [block_shards, block_locks, block_folder])
def test_a_cache_that_cannot_be_written_costs_auto_its_speed_and_an_asked_folder_one_error(
    patches, tiny, tmp_path, caplog, growing_files, block
):
    pictures, _ = list_pictures([(patches["test"], 1)])

    def prepare(choice, folder):
        block(open_vision_cache(*tiny, folder).folder, pictures)
        return prepare_vision_cache(choice, *tiny, pictures, 9, 4)

    assert prepare("auto", tmp_path / "cache" / "histolab_sft" / "vision") is None
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "not used" in warnings[0] and "can't be written to" in warnings[0]
    with pytest.raises(StoreWriteError, match="can't be written to .*; make room, name another folder, or set"):
        prepare(str(tmp_path / "asked"), tmp_path / "asked")


@pytest.mark.model
def test_a_whole_cache_is_read_from_a_folder_that_cannot_be_written(patches, tiny, tmp_path):
    pictures, _ = list_pictures([(patches["test"], 1)])
    cache = prepare_vision_cache(str(tmp_path / "asked"), *tiny, pictures, 1, 4)
    for path in cache.folder.glob("*.lock"):
        path.unlink()
    block_locks(cache.folder, pictures)
    assert prepare_vision_cache(str(tmp_path / "asked"), *tiny, pictures, 1, 4) is not None
