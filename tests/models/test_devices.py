"""Tower and language model take turns on the device; `meta` stands for the GPU where nothing has to be computed."""

import pytest
import torch
from accelerate import PartialState
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText
from trl import SFTConfig

from histolab_sft.config.base_model import ModelConfig
from histolab_sft.models import devices
from histolab_sft.models.devices import choose_device_map, list_devices, move_tower, scoring_with_cache
from histolab_sft.models.load import load_base_model, load_processor
from histolab_sft.models.vision_cache.features import image_key
from histolab_sft.models.vision_tower import find_vision_tower


def test_only_a_folder_of_features_keeps_the_model_on_the_cpu_at_first(monkeypatch):
    assert choose_device_map("outputs/vision_cache") == {"": "cpu"}
    monkeypatch.setattr(PartialState(), "device", torch.device("cuda", 1))
    assert choose_device_map("outputs/vision_cache") == {"": "cpu"}
    assert choose_device_map("auto") == choose_device_map("off") == choose_device_map() == {"": "cuda:1"}


def load(base_model, in_4bit=True, vision_cache="off"):
    model_args = ModelConfig(model_name_or_path=str(base_model), load_in_4bit=in_4bit)
    return load_base_model(model_args, vision_cache=vision_cache), load_processor(str(base_model))


def places(module):
    return {parameter.device.type for parameter in module.parameters()}


class Elsewhere:
    """Training arguments whose device is `meta`."""

    per_device_eval_batch_size = 2
    device = torch.device("meta")


@pytest.mark.model
def test_the_tower_goes_alone_and_the_language_model_stays(untrained_model):
    model, _ = load(untrained_model)
    move_tower(model, "meta")
    assert places(model.model.vision_tower) == places(model.model.multi_modal_projector) == {"meta"}
    assert places(model.get_decoder()) == places(model.get_output_embeddings()) == {"cpu"}


@pytest.mark.model
def test_pictures_are_encoded_before_the_language_model_takes_the_towers_place(tmp_path, untrained_model, monkeypatch):
    # 4-bit weights can't go to `meta`.
    model, processor = load(untrained_model, in_4bit=False, vision_cache=str(tmp_path))
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    rows = Dataset.from_list([{"images": [image], "pixel_sha256": [image_key(image)]} for image in images])
    tower, decoder, order = find_vision_tower(model), model.get_decoder(), []
    tower.register_forward_hook(lambda *_: order.append(("encoding", places(tower), places(decoder))))
    # Weights on `meta` can't encode, so the tower's turn on the device is only noted.
    monkeypatch.setattr(devices, "move_tower", lambda model, device: order.append(("tower to", str(device))))
    # Nor can they come back from there when it ends.
    with pytest.raises(NotImplementedError, match="meta tensor"):
        with scoring_with_cache(str(tmp_path), model, processor, [(rows, 2)], Elsewhere) as reader:
            order.append(("scoring", places(tower), places(decoder) | places(model.get_output_embeddings())))
            where = model.device.type
    assert order == [("tower to", "meta"), ("encoding", {"cpu"}, {"cpu"}), ("scoring", {"cpu"}, {"meta"})]
    assert where == "meta" and reader is not processor


@pytest.mark.model
def test_after_the_turns_all_of_the_model_is_where_it_was_and_reads_pixels(tmp_path, untrained_model):
    model, processor = load(untrained_model, vision_cache=str(tmp_path))
    images = [Image.new("RGB", (32, 32), "red")]
    rows = Dataset.from_list([{"images": [image], "pixel_sha256": [image_key(image)]} for image in images])
    arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    names = set(model.state_dict())
    with scoring_with_cache(str(tmp_path), model, processor, [(rows, 2)], arguments):
        assert not any("vision_tower" in name for name, _ in model.named_parameters())
        # What is saved meanwhile has its tower.
        assert set(model.state_dict()) == names
    assert set(model.state_dict()) == names and places(model) == {"cpu"}


@pytest.mark.model
@pytest.mark.parametrize("visible", [1, 2])
def test_one_process_keeps_a_model_on_one_device_whatever_is_visible(untrained_model, monkeypatch, visible):
    asked, real = [], AutoModelForImageTextToText.from_pretrained

    def load_noting(*args, device_map, **kwargs):
        asked.append(device_map)
        return real(*args, device_map={"": "cpu"}, **kwargs)

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", load_noting)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(PartialState(), "device", torch.device("cuda", 0))
    model = load_base_model(ModelConfig(str(untrained_model), dtype="float32"))
    assert asked == [{"": "cuda:0"}] and list_devices(model) == {"cpu"}


@pytest.mark.model
def test_a_model_that_hooks_spread_shows_both_devices(untrained_model):
    model, _ = load(untrained_model, in_4bit=False)
    add_hook_to_module(model.get_decoder(), AlignDevicesHook(execution_device="meta"))
    assert list_devices(model) == {"cpu", "meta"}
