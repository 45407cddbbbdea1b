"""Train patches change each epoch: another way up, other stain, drawn by seed, epoch and pixels alone."""

import numpy as np
import pytest
import torch
from conftest import PCAM_CLASSES, write_class_folders
from PIL import Image

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.data.augmentation import SYMMETRIES, PatchAugmentation, augment, turn
from histolab_sft.data.rows import load_patches


@pytest.fixture
def patches(tmp_path):
    write_class_folders(tmp_path / "pcam", PCAM_CLASSES, per_class=20)
    return load_patches(
        HistoArguments(
            datasets=[{"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES}], data_dir=str(tmp_path)
        )
    )


def draw(train, augmentation, seed=0, epoch=0):
    rows, state = augment(train, augmentation, seed)
    state.epoch.fill_(epoch)
    return [np.asarray(image) for [image] in rows["images"]]


def same(some, others):
    return [np.array_equal(one, other) for one, other in zip(some, others, strict=True)]


@pytest.mark.slow
def test_each_epoch_and_seed_draws_anew_and_the_same_ones_draw_the_same(patches):
    first = draw(patches["train"], "all")
    assert all(same(first, draw(patches["train"], "all")))
    assert not any(same(first, draw(patches["train"], "all", epoch=1)))
    assert not any(same(first, draw(patches["train"], "all", seed=1)))


@pytest.mark.slow
def test_the_draw_hangs_on_no_order_of_the_rows(patches):
    train = patches["train"]
    backwards = train.select(range(len(train) - 1, -1, -1))
    assert all(same(draw(train, "all"), draw(backwards, "all")[::-1]))


@pytest.mark.slow
def test_symmetries_show_all_eight_views_and_change_no_value(patches):
    originals, seen = [np.asarray(image) for [image] in patches["train"]["images"]], set()
    for epoch in range(12):
        for original, shown in zip(originals, draw(patches["train"], "symmetries", epoch=epoch), strict=True):
            assert np.array_equal(np.sort(original, axis=None), np.sort(shown, axis=None))
            seen.add(next(i for i in range(8) if np.array_equal(shown, view(original, i))))
    assert len(SYMMETRIES) == 8 and seen == set(range(8))


def view(pixels, number):
    pixels = np.rot90(pixels, number % 4)
    return pixels[::-1] if number >= 4 else pixels


@pytest.mark.slow
def test_the_eight_views_of_a_patch_are_eight_pictures(patches):
    [image] = patches["train"][0]["images"]
    assert len({turn(image, symmetry).tobytes() for symmetry in SYMMETRIES}) == 8


def test_stain_jitter_changes_colours_a_little_and_keeps_the_patch_upright():
    ramp = np.linspace(0, 1, 64)[:, None, None]
    original = (ramp * [230, 190, 215] + (1 - ramp) * [110, 60, 130]).repeat(64, axis=1).astype(np.uint8)
    jitter = PatchAugmentation(None, "stain", seed=0)
    differences = []
    for epoch in range(20):
        jitter.epoch.fill_(epoch)
        shown = np.asarray(jitter.change(Image.fromarray(original)))
        differences.append(np.abs(shown.astype(float) - original).mean())
        assert (np.diff(shown.astype(int), axis=0) >= 0).all()
    assert 0 < min(differences) and max(differences) < 40


@pytest.mark.slow
def test_other_columns_and_splits_stay_as_they_are(patches):
    rows, _ = augment(patches["train"], "all", seed=0)
    assert rows.with_format(None).to_dict() == patches["train"].with_format(None).to_dict()
    assert rows.select_columns(["prompt"])[0] == patches["train"].select_columns(["prompt"])[0]
    assert all(same(patches["test"]["images"], patches["test"]["images"]))


@pytest.mark.model
@pytest.mark.parametrize("persistent", [False, True])
def test_worker_processes_draw_the_same_in_every_epoch(patches, persistent):
    rows, state = augment(patches["train"], "all", seed=3)

    def collate(examples):
        return [torch.from_numpy(np.array(example["images"][0])) for example in examples]

    loader = torch.utils.data.DataLoader(
        rows, batch_size=5, num_workers=2, collate_fn=collate, persistent_workers=persistent
    )
    for epoch in range(3):
        state.epoch.fill_(epoch)
        loaded = [image.numpy() for batch in loader for image in batch]
        assert all(same(loaded, draw(patches["train"], "all", seed=3, epoch=epoch)))
