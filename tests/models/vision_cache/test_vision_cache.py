import copy
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import (
    LANGUAGE_LORA,
    QUESTIONS,
    build_llava,
    build_trainer,
    compute_gradients,
    load_tiny,
    paint_patches,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from histolab_sft.models.generate import generate_answers
from histolab_sft.models.likelihood import label_log_likelihoods
from histolab_sft.models.vision_cache import features
from histolab_sft.models.vision_cache.choice import cache_worthwhile, predict_cache_size
from histolab_sft.models.vision_cache.features import build_vision_cache, image_key, open_vision_cache
from histolab_sft.models.vision_cache.store import FeatureStore

pytestmark = pytest.mark.model
PROJECTOR = "multi_modal_projector"
ADAPTERS = {
    "frozen_projector": {},
    "trained_projector": {"modules_to_save": [PROJECTOR]},
    "adapted_projector": {"target_parameters": [f"{PROJECTOR}.mm_input_projection_weight"]},
}


@pytest.fixture
def tiny(tmp_path):
    model, processor = load_tiny(tmp_path / "base")
    model.requires_grad_(False)
    return model, processor


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of pictures that went through the tower, one a batch."""
    batches, encode = [], features._encode
    monkeypatch.setattr(
        features,
        "_encode",
        lambda gemma, pixels, pooled: batches.append(len(pixels)) or encode(gemma, pixels, pooled),
    )
    return batches


def name_patches(patches):
    return [(image_key(patch), patch) for patch in patches]


def encode_directly(model, processor, patches):
    pixels = processor(images=[[patch] for patch in patches], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return torch.cat([model.get_image_features(pixel[None]).pooler_output for pixel in pixels])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_loss_and_every_gradient_are_those_of_pixels_to_the_last_bit(tmp_path, adapter):
    model, processor = load_tiny(tmp_path / "base")
    lora = LoraConfig(target_modules=LANGUAGE_LORA, init_lora_weights=False, **ADAPTERS[adapter])
    trainer = build_trainer(model, processor, tmp_path / "out", lora)
    loss, gradients = compute_gradients(trainer)
    towers = []
    trainer.model.get_encoder(modality="image").register_forward_hook(lambda *_: towers.append(1))
    patches = name_patches([image for [image] in trainer.train_dataset["images"]])
    cache = build_vision_cache(trainer.model, processor, patches, tmp_path / "cache", batch_size=4)
    assert cache.pooled == (adapter != "frozen_projector") and len(towers) == 2
    trainer.data_collator.processor = cache.processor(processor)
    cache.attach(trainer.model)
    cached_loss, cached_gradients = compute_gradients(trainer)
    assert len(towers) == 2
    assert torch.equal(loss, cached_loss)
    assert gradients.keys() == cached_gradients.keys()
    assert any(PROJECTOR in name for name in gradients) == cache.pooled
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0 and torch.equal(gradient, cached_gradients[name]), name
    trainer.train()
    assert len(towers) == 2
    cache.detach(trainer.model)
    trainer.data_collator.processor = processor
    trainer.train()
    assert len(towers) == 3


def test_features_given_as_mm_encoder_outputs_are_those_of_pixels(tiny, tmp_path):
    model, processor = tiny
    patches = paint_patches(3)
    cache = build_vision_cache(model, processor, name_patches(patches), tmp_path / "cache", batch_size=3)
    inputs = processor(
        images=[[patch] for patch in patches], text=[processor.boi_token] * 3, return_tensors="pt", padding=True
    )
    expected = model(**inputs).logits
    del inputs["pixel_values"]
    features = cache.features([image_key(patch) for patch in patches])
    outputs = BaseModelOutputWithPooling(pooler_output=features)
    assert torch.equal(model(**inputs, mm_encoder_outputs={"image": outputs}).logits, expected)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_scores_and_answers_are_those_of_pixels(tiny, tmp_path, adapter):
    model, processor = tiny
    lora = LoraConfig(target_modules=LANGUAGE_LORA, init_lora_weights=False, **ADAPTERS[adapter])
    # As an adapter that is only scored: nothing requires a gradient, yet it can be switched off.
    model = get_peft_model(model, lora).requires_grad_(False)
    patches, questions, names = paint_patches(3), QUESTIONS, ["Yes", "Tumor stroma"]
    cache = build_vision_cache(model, processor, name_patches(patches), tmp_path / "cache", batch_size=3)

    def score(processor):
        scores, _ = label_log_likelihoods(model, processor, patches, questions, names)
        return [scores.tolist(), generate_answers(model, processor, patches, questions, 6)]

    with model.disable_adapter():
        baseline = score(processor)
    finetuned = score(processor)
    assert baseline != finetuned
    cache.attach(model)
    assert score(cache.processor(processor)) == finetuned
    with model.disable_adapter():
        assert score(cache.processor(processor)) == baseline


def test_a_picture_is_encoded_once_however_often_it_comes(tiny, tmp_path, encoded):
    patches = paint_patches(5)
    opened = []
    sources = [(key, lambda patch=patch: opened.append(1) or patch) for key, patch in name_patches(patches + patches)]
    cache = build_vision_cache(*tiny, sources, tmp_path / "cache", batch_size=2, shard_images=3)
    assert sorted(encoded) == [1, 2, 2] and len(opened) == 5 and len(cache) == 5
    again = build_vision_cache(*tiny, sources, tmp_path / "cache")
    assert len(encoded) == 3 and len(opened) == 5
    keys = [key for key, _ in sources]
    assert torch.equal(again.features(keys), encode_directly(*tiny, patches + patches))


def test_more_pictures_are_added_to_those_already_there(tiny, tmp_path, encoded):
    patches = name_patches(paint_patches(7))
    build_vision_cache(*tiny, patches[:4], tmp_path / "cache", shard_images=2)
    cache = build_vision_cache(*tiny, patches, tmp_path / "cache", shard_images=2)
    assert sum(encoded) == 7 and all(key in cache for key, _ in patches)


def test_whatever_the_features_depend_on_makes_another_cache(tiny, tmp_path, monkeypatch):
    model, processor = tiny
    patches, folder = name_patches(paint_patches(2)), tmp_path / "cache"
    build_vision_cache(model, processor, patches, folder)

    def count():
        return len(open_vision_cache(model, processor, folder))

    assert count() == 2
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        weight = next(part.parameters())
        original = weight.detach().clone()
        weight.flatten()[-1] += 1e-6
        assert count() == 0
        weight.copy_(original)
        assert count() == 2
    monkeypatch.setattr(processor.image_processor, "image_mean", [0.5, 0.5, 0.4])
    assert count() == 0
    monkeypatch.undo()
    monkeypatch.setattr(processor.image_processor, "resample", Image.Resampling.NEAREST)
    assert count() == 0
    monkeypatch.undo()
    monkeypatch.setattr(features.transformers, "__version__", "6.0.0")
    assert count() == 0
    monkeypatch.undo()
    with torch.autocast("cpu", torch.bfloat16):
        assert count() == 0
    model.model.multi_modal_projector.requires_grad_(True)
    assert count() == 0
    model.model.multi_modal_projector.requires_grad_(False)
    assert count() == 2
    model.to(torch.bfloat16)
    assert count() == 0


def test_a_picture_that_has_changed_is_another_picture(tiny, tmp_path):
    patch = paint_patches(1)[0]
    cache = build_vision_cache(*tiny, name_patches([patch]), tmp_path / "cache")
    changed = patch.copy()
    changed.putpixel((7, 7), tuple(255 - value for value in patch.getpixel((7, 7))))
    wide = Image.frombytes("RGB", (96, 24), patch.tobytes())
    for other in (changed, wide):
        with pytest.raises(KeyError, match="no features of 1 of 1 pictures"):
            cache.processor(tiny[1])(images=[[other]], return_tensors="pt")
        with pytest.raises(ValueError, match="was given as"):
            build_vision_cache(*tiny, [(image_key(patch), patch), (image_key(changed), wide)], tmp_path / "cache")
    assert image_key(patch.convert("RGBA")) == image_key(patch)


def truncate(path, other):
    os.truncate(path, path.stat().st_size - 1000)


def truncate_header(path, other):
    os.truncate(path, 20)


def empty(path, other):
    path.write_bytes(b"")


def flip_a_bit_of_a_feature(path, other):
    content = bytearray(path.read_bytes())
    content[-2000] ^= 4
    path.write_bytes(content)


def flip_a_bit_of_a_key(path, other):
    content = bytearray(path.read_bytes())
    with safe_open(path, framework="pt") as shard:
        place = content.index(next(iter(shard.keys())).encode())
    content[place] ^= 1
    path.write_bytes(content)


def swap_features(path, other):
    with safe_open(path, framework="pt") as shard:
        metadata = shard.metadata()
    features = load_file(path)
    save_file(dict(zip(features, reversed(features.values()), strict=True)), path, metadata)


def swap_features_and_checksums(path, other):
    with safe_open(path, framework="pt") as shard:
        metadata = shard.metadata()
    features = load_file(path)
    swapped = dict(zip(features, reversed(features), strict=True))
    save_file(
        {swapped[key]: feature for key, feature in features.items()},
        path,
        {swapped[key]: checksum for key, checksum in metadata.items()},
    )


def take_the_shard_of_another_model(path, other):
    shutil.copy(other / path.name, path)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        truncate_header,
        empty,
        flip_a_bit_of_a_feature,
        flip_a_bit_of_a_key,
        swap_features,
        swap_features_and_checksums,
        take_the_shard_of_another_model,
    ],
)
def test_a_damaged_or_foreign_shard_is_not_served_and_is_made_again(tiny, tmp_path, encoded, damage):
    model, processor = tiny
    patches, folder = paint_patches(4), tmp_path / "cache"
    with torch.autocast("cpu", torch.bfloat16):
        other = build_vision_cache(model, processor, name_patches(patches), folder, shard_images=2)
    before = build_vision_cache(model, processor, name_patches(patches), folder, shard_images=2)
    keys = [image_key(patch) for patch in patches]
    damage(before._shards[keys[0]], other.folder)
    del encoded[:]
    with pytest.raises(RuntimeError, match="run again"):
        before.features(keys[:2])
    opened = open_vision_cache(model, processor, folder)
    kept = [key for key in keys if key in opened]
    assert kept[-2:] == keys[2:] and len(kept) < 4
    cache = build_vision_cache(model, processor, name_patches(patches), folder, shard_images=2)
    assert sum(encoded) == 4 - len(kept)
    assert torch.equal(
        cache.features([image_key(patch) for patch in patches]), encode_directly(model, processor, patches)
    )


def fork(function, *args):
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def build_slowly(tiny, patches, folder, log):
    torch.set_num_threads(1)
    encode = features._encode

    def encode_slowly(gemma, pixels, pooled):
        time.sleep(0.05)
        features = encode(gemma, pixels, pooled)
        with open(log, "a") as file:
            file.write("x" * len(pixels))
        return features

    features._encode = encode_slowly
    build_vision_cache(*tiny, name_patches(patches), folder, batch_size=2, shard_images=4)


def test_four_processes_at_once_divide_the_work_and_collide_nowhere(tiny, tmp_path):
    patches, log = paint_patches(48), tmp_path / "log"
    processes = [fork(build_slowly, tiny, patches, tmp_path / "cache", log) for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(log.read_text()) == 48
    cache = open_vision_cache(*tiny, tmp_path / "cache")
    keys = [image_key(patch) for patch in patches]
    assert torch.equal(cache.features(keys), encode_directly(*tiny, patches))
    assert not list(cache.folder.glob("*.tmp"))


def test_features_get_their_checksum_once_when_they_are_written(tmp_path, monkeypatch):
    store, other, summed, checksum = FeatureStore(tmp_path), FeatureStore(tmp_path), [], FeatureStore._checksum
    monkeypatch.setattr(
        FeatureStore, "_checksum", lambda store, key, feature: [summed.append(key), checksum(store, key, feature)][1]
    )
    features = {name: torch.full((2,), number) for number, name in enumerate("abc")}
    store.write(features, "lock")
    store.refresh()
    assert summed == ["a", "b", "c"]
    other.refresh()
    assert summed == ["a", "b", "c"] * 2 and torch.equal(other.features("abc"), store.features("abc"))


def test_a_shard_that_another_thread_is_reading_is_not_taken_for_read(tmp_path, monkeypatch):
    store, reading, go_on = FeatureStore(tmp_path), threading.Event(), threading.Event()
    FeatureStore(tmp_path).write({"picture": torch.ones(2)}, "lock")
    checksum = store._checksum

    def wait_once(*feature):
        monkeypatch.setattr(store, "_checksum", checksum)
        reading.set()
        assert go_on.wait(60)
        return checksum(*feature)

    monkeypatch.setattr(store, "_checksum", wait_once)
    other = threading.Thread(target=store.refresh)
    other.start()
    assert reading.wait(60)
    store.refresh()
    found = "picture" in store
    go_on.set()
    other.join()
    assert found


@pytest.mark.kill
def test_a_build_killed_again_and_again_goes_on_where_it_stood(tiny, tmp_path):
    patches, log, folder = paint_patches(80), tmp_path / "log", tmp_path / "cache"
    log.touch()
    keys, expected = [image_key(patch) for patch in patches], encode_directly(*tiny, patches)
    rng = random.Random(0)
    for kill in range(10):
        before = len(log.read_text())
        process = fork(build_slowly, tiny, patches, folder, log)
        while len(log.read_text()) == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        cache = open_vision_cache(*tiny, folder)
        served = [i for i, key in enumerate(keys) if key in cache]
        # Of all that was ever encoded, each kill lost one shard at most.
        assert len(log.read_text()) - 4 * (kill + 1) <= len(served) < len(keys)
        if served:
            assert torch.equal(cache.features([keys[i] for i in served]), expected[served])
    encoded = len(log.read_text())
    process = fork(build_slowly, tiny, patches, folder, log)
    process.join()
    assert process.exitcode == 0
    assert len(log.read_text()) - encoded == len(keys) - len(served)
    assert torch.equal(open_vision_cache(*tiny, folder).features(keys), expected)


@pytest.mark.kill
def test_a_shard_killed_before_it_has_its_name_is_never_read(tiny, tmp_path):
    def build_and_die():
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        build_slowly(tiny, patches, tmp_path / "cache", tmp_path / "log")

    patches = paint_patches(4)
    process = fork(build_and_die)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    cache = open_vision_cache(*tiny, tmp_path / "cache")
    assert len(list(cache.folder.glob("*.tmp"))) == 1 and len(cache) == 0
    assert len(build_vision_cache(*tiny, name_patches(patches), tmp_path / "cache", shard_images=4)) == 4
    assert not list(cache.folder.glob("*.tmp"))


def test_a_cache_can_be_sent_to_the_workers_of_a_data_loader(tiny, tmp_path):
    patches = paint_patches(4)
    cache = build_vision_cache(*tiny, name_patches(patches), tmp_path / "cache")
    keys = [image_key(patch) for patch in patches]
    assert torch.equal(copy.deepcopy(cache).features(keys), cache.features(keys))
    loader = torch.utils.data.DataLoader(keys, batch_size=2, num_workers=2, collate_fn=cache.features)
    assert torch.equal(torch.cat(list(loader)), cache.features(keys))


def test_pixels_and_trained_towers_are_refused_while_features_are_expected(tiny, tmp_path):
    model, processor = tiny
    patch = paint_patches(1)[0]
    cache = build_vision_cache(model, processor, name_patches([patch]), tmp_path / "cache")
    tower = model.model.vision_tower
    cache.attach(model)
    with pytest.raises(ValueError, match="expected cached features"):
        generate_answers(model, processor, [patch], QUESTIONS[:1], 2)
    features = cache.features([image_key(patch)])
    model.get_image_features(features)
    tower.requires_grad_(True)
    with pytest.raises(ValueError, match="found a trained vision tower"):
        model.get_image_features(features)
    cache.detach(model)
    generate_answers(model, processor, [patch], QUESTIONS[:1], 2)


def test_an_adapter_in_the_tower_and_another_architecture_are_refused(tiny, tmp_path):
    model, processor = tiny
    model = get_peft_model(model, LoraConfig(target_modules=r".*vision_tower.*q_proj"))
    with pytest.raises(ValueError, match="adapter in the vision tower"):
        open_vision_cache(model, processor, tmp_path)
    assert not cache_worthwhile(1, 9, tmp_path, model)[0]
    with pytest.raises(ValueError, match="expected a Gemma 3"):
        open_vision_cache(*build_llava(), tmp_path)


def test_the_predicted_size_is_what_the_features_take(tiny, tmp_path):
    model, processor = tiny
    cache = build_vision_cache(model, processor, name_patches(paint_patches(8)), tmp_path / "cache")
    stored = sum(path.stat().st_size for path in cache.folder.glob("*.safetensors"))
    assert predict_cache_size(8, model) <= stored < 1.1 * predict_cache_size(8, model)
    assert predict_cache_size(8, model.to(torch.bfloat16)) == predict_cache_size(4, model.float())


def test_auto_declines_a_single_pass_a_small_disk_and_a_trained_tower(tiny, tmp_path, monkeypatch):
    model, _ = tiny
    folder = tmp_path / "not" / "yet" / "there"
    assert cache_worthwhile(100, 2, folder, model)[0]
    assert cache_worthwhile(100, 1, folder, model) == (
        False,
        "each picture is needed once, so keeping its features saves nothing",
    )
    assert cache_worthwhile(100, 1, folder, model, n_cached=100)[0]
    need = predict_cache_size(100, model)
    disk = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(10 * need, 9 * need, need))
    worthwhile, reason = cache_worthwhile(100, 3, folder, model)
    assert not worthwhile and "GB free" in reason
    assert cache_worthwhile(100, 3, folder, model, n_cached=50)[0]
    model.model.vision_tower.requires_grad_(True)
    assert not cache_worthwhile(10, 3, folder, model)[0]


ENCODE_PARQUET = """
import sys, torch
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from transformers import AutoModelForImageTextToText, AutoProcessor
from histolab_sft.data.pictures.decoding import open_patch
from histolab_sft.models.vision_cache import features

folder, source, cache, expected = sys.argv[1:]
features.ThreadPoolExecutor = partial(ThreadPoolExecutor, 8)
torch.set_num_threads(1)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
keys = torch.load(expected)
pictures = [(key, partial(open_patch, source, row)) for row, key in enumerate(keys["keys"])]
built = features.build_vision_cache(model, AutoProcessor.from_pretrained(folder), pictures, cache, 8)
assert torch.equal(built.features(keys["keys"]), keys["features"])
"""


@pytest.mark.longest
@pytest.mark.thorough
def test_twenty_fresh_processes_encode_parquet_row_groups_with_eight_threads(tiny, tmp_path):
    model, processor = tiny
    patches = paint_patches(72)
    features = Features({"image": ImageFeature()})
    Dataset.from_dict({"image": patches}, features=features).to_parquet(tmp_path / "train.parquet", batch_size=4)
    assert pq.ParquetFile(tmp_path / "train.parquet").num_row_groups == 18
    built = build_vision_cache(model, processor, name_patches(patches), tmp_path / "expected", batch_size=8)
    keys = [image_key(patch) for patch in patches]
    torch.save({"keys": keys, "features": built.features(keys)}, tmp_path / "expected.pt")
    model.save_pretrained(tmp_path / "sharp")
    processor.save_pretrained(tmp_path / "sharp")
    wrong = []
    for number in range(20):
        places = [tmp_path / name for name in ("sharp", "train.parquet", f"cache{number}", "expected.pt")]
        command = [sys.executable, "-c", ENCODE_PARQUET, *map(str, places)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3])
        wrong += [run.stderr[-500:]] if run.returncode else []
    assert wrong == []
