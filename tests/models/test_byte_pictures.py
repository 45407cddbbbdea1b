"""Bytes and a table give the numbers of the image processor, and no picture is opened whose features are there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_models import QUESTIONS, build_llava, load_tiny, paint_patches
from transformers import Gemma3ImageProcessorPil

from histolab_sft.data.pictures.decoding import hash_pixels
from histolab_sft.embedded.tokenizer import build_processor
from histolab_sft.models.byte_pictures import apply_table, build_table, send_bytes
from histolab_sft.models.likelihood import label_log_likelihoods
from histolab_sft.models.picture_loader import prepare_ahead
from histolab_sft.models.vision_cache.features import build_vision_cache, name_pictures, read_pictures

REAL = Path(__file__).parents[2] / "../shared/data"


def list_real_patches():
    return sorted(path for path in REAL.glob("**/*") if path.suffix in (".tif", ".tiff", ".png", ".jpg"))[:1000]


def assert_bit_equal(processor, pictures):
    table = build_table(processor, {})
    as_bytes = processor(pictures, return_tensors="pt", do_rescale=False, do_normalize=False)["pixel_values"]
    assert as_bytes.dtype == torch.uint8
    assert torch.equal(apply_table(table, as_bytes), processor(pictures, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.48, 0.46, 0.41)], ids=str)
def test_all_256_values_of_each_channel_are_those_of_the_processor(mean):
    processor = Gemma3ImageProcessorPil(size={"height": 16, "width": 16}, image_mean=mean)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert_bit_equal(processor, [Image.fromarray(np.stack([every, every.T, 255 - every], axis=2))])


@pytest.mark.slow
def test_painted_patches_of_any_size_are_bit_equal_at_the_size_of_the_tower():
    processor = build_processor(896, 256).image_processor
    assert_bit_equal(
        processor, [*paint_patches(2, size=224), *paint_patches(1, size=96), *paint_patches(1, size=1000)]
    )


@pytest.mark.thorough
@pytest.mark.skipif(len(list_real_patches()) < 1000, reason="../shared/data holds no 1,000 real patches")
def test_a_thousand_real_patches_are_bit_equal():
    processor = build_processor(112, 4).image_processor
    paths = list_real_patches()
    for start in range(0, len(paths), 100):
        assert_bit_equal(processor, [Image.open(path).convert("RGB") for path in paths[start : start + 100]])


def test_what_a_table_can_not_tell_stays_with_the_processor():
    several = Gemma3ImageProcessorPil(
        size={"height": 16, "width": 16},
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=8,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    assert build_table(several, {}) is not None
    unscaled = Gemma3ImageProcessorPil(size={"height": 16, "width": 16}, do_resize=False, do_rescale=False)
    assert build_table(unscaled, {}) is not None


@pytest.mark.model
def test_a_model_gives_for_bytes_what_it_gives_for_floats_to_the_last_bit(tmp_path):
    model, processor = load_tiny(tmp_path)
    sending = send_bytes(model, processor)
    assert send_bytes(model, processor).image_processor.to_json_string() == processor.image_processor.to_json_string()
    arguments = (paint_patches(3), QUESTIONS[:3], ["Tumor", "Stroma"])
    expected, _ = label_log_likelihoods(model, processor, *arguments)
    found, _ = label_log_likelihoods(model, sending, *arguments)
    assert torch.equal(found, expected)


@pytest.mark.model
def test_another_architecture_gets_floats():
    model, processor = build_llava()
    assert send_bytes(model, processor) is processor


@pytest.mark.model
def test_no_picture_is_opened_whose_features_are_in_the_cache(tmp_path):
    model, processor = load_tiny(tmp_path / "model")
    patches = paint_patches(3)
    keys = [hash_pixels(patch) for patch in patches]
    cache = build_vision_cache(model, processor, zip(keys, patches, strict=True), tmp_path / "cache")
    arguments = (QUESTIONS[:3], ["Tumor", "Stroma"])
    expected, _ = label_log_likelihoods(model, processor, patches, *arguments)

    def refuse(batch):
        raise AssertionError("a picture was opened")

    rows = Dataset.from_dict({"images": [["nowhere"]] * 3, "pixel_sha256": [[key] for key in keys]}).with_transform(
        refuse
    )
    reader = cache.processor(processor)
    cache.attach(model)
    for pictures in (read_pictures(rows, reader), [row["images"] for row in name_pictures(rows)]):
        found, _ = label_log_likelihoods(model, reader, pictures, *arguments)
        assert (found - expected).abs().max() < 1e-5
    several = Dataset.from_dict({"images": [["a", "b"]], "pixel_sha256": [keys[:2]]})
    assert [picture.key for picture in read_pictures(several, reader)[0]] == keys[:2]
    assert [picture.key for picture in name_pictures(several)[0]["images"]] == keys[:2]
    with pytest.raises(AssertionError, match="was opened"):
        list(read_pictures(rows, processor))


@pytest.mark.slow
def test_pictures_come_in_order_and_a_mistake_as_itself_whoever_prepares(monkeypatch):
    def prepare(item):
        if item < 0:
            raise ValueError("found a negative item")
        return torch.tensor([item])

    before = torch.get_rng_state()
    for count in (3, 1000):
        assert [made.item() for made in prepare_ahead(prepare, range(10), count)] == list(range(10))
        with pytest.raises(ValueError, match="^found a negative item$"):
            list(prepare_ahead(prepare, [1, -1, 2], count))
    # Training draws the same numbers, whatever was prepared in between.
    assert torch.equal(before, torch.get_rng_state())
