"""Profiles: which card gets which, what the recipe keeps, what is refused."""

from dataclasses import fields

import pytest
import torch
import yaml
from recipe_args import PCAM
from trl import SFTConfig, TrlParser

from histolab_sft.config.arguments import HistoArguments, parse_recipe, parse_recipe_elsewhere
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.contradictions import check_consistency
from histolab_sft.config.hardware import (
    BATCH,
    GIB,
    PROFILES,
    USABLE_GIB,
    apply_profile,
    check_precision,
    choose_profile,
    detect_profile,
)


@pytest.mark.parametrize(
    "card, capability, free, expected",
    [
        ("GTX 1650", (7, 5), 3.8, "gpu_4gb"),
        ("RTX 3050 laptop", (8, 6), 3.9, "gpu_4gb"),
        ("RTX 3060", (8, 6), 11.7, "gpu_4gb"),
        ("T4", (7, 5), 14.6, "gpu_16gb_turing"),
        ("V100 of 32 GB", (7, 0), 31.5, "gpu_16gb_turing"),
        ("RTX 4060 Ti", (8, 9), 15.5, "gpu_16gb"),
        ("RTX 4080 with a display on it", (8, 9), 14.9, "gpu_16gb"),
        ("RTX 4090", (8, 9), 23.2, "gpu_24gb"),
        ("A100 of 40 GB", (8, 0), 39.2, "gpu_24gb"),
        ("A100 of 80 GB", (8, 0), 79.0, "gpu_80gb"),
        ("H100", (9, 0), 78.5, "gpu_80gb"),
        ("A100 that somebody else is using", (8, 0), 17.0, "gpu_16gb"),
    ],
)
def test_each_card_gets_the_largest_profile_that_fits(card, capability, free, expected):
    assert choose_profile(capability, round(free * GIB)) == expected


def test_a_card_that_is_too_full_is_refused_with_its_free_memory():
    with pytest.raises(ValueError, match=r"2\.00 GiB .* expected at least 3\.75"):
        choose_profile((8, 6), 2 * GIB)


def test_a_t4_is_recognised_although_pytorch_says_it_knows_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (round(14.2 * GIB), round(14.6 * GIB)))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)
    assert detect_profile() == "gpu_16gb_turing"
    # A cap on what this process may take counts as a smaller card.
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 0.25)
    assert detect_profile() == "gpu_4gb"
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)
    values, _ = apply_profile("auto", set())
    assert values["bf16"] is False and values["fp16"] is False and values["dtype"] == "bfloat16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_gets_the_profile_cpu():
    assert detect_profile() == "cpu"
    assert apply_profile("auto", set())[0]["use_cpu"] is True


@pytest.mark.parametrize("name", PROFILES)
def test_every_value_of_a_profile_is_a_key_of_the_recipe_with_a_reason(name):
    known = {entry.name for kind in (HistoArguments, SFTConfig, ModelConfig) for entry in fields(kind)}
    assert set(PROFILES[name]) <= known
    assert all(reason for _, reason in PROFILES[name].values())
    batch, accumulation = (PROFILES[name][key][0] for key in BATCH)
    assert batch * accumulation == 16


def test_no_profile_uses_float16_autocast_or_another_attention_than_sdpa():
    for profile in PROFILES.values():
        assert profile["fp16"][0] is False
        assert profile["attn_implementation"][0] == "sdpa"


def test_the_sizes_of_the_profiles_grow_and_leave_something_to_the_driver():
    assert list(USABLE_GIB) == [name for name in PROFILES if name != "cpu"]
    nominal = {"gpu_4gb": 4, "gpu_16gb_turing": 16, "gpu_16gb": 16, "gpu_24gb": 24, "gpu_80gb": 80}
    assert list(USABLE_GIB.values()) == sorted(USABLE_GIB.values())
    assert all(usable <= 0.96 * nominal[name] for name, usable in USABLE_GIB.items())


def test_what_the_recipe_writes_wins_and_is_named():
    values, notes = apply_profile("gpu_16gb_turing", {"bf16", "max_length"})
    assert "bf16" not in values and "max_length" not in values
    assert values["activation_checkpointing"] is False
    assert len(notes) == 2 and notes[0].startswith(
        "bf16: the recipe's own value stands; gpu_16gb_turing would take False"
    )
    assert notes[1].startswith("image_side: 448 comes from gpu_16gb_turing")
    values, notes = apply_profile("gpu_16gb_turing", {"image_side"})
    assert "image_side" not in values and notes[0].startswith("image_side: the recipe's own value stands")


@pytest.mark.parametrize("key", BATCH)
def test_the_batch_is_the_recipes_as_soon_as_one_half_of_it_is_written(key):
    values, notes = apply_profile("gpu_24gb", {key})
    assert not set(values) & set(BATCH)
    assert len(notes) == 2


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'t4'.*gpu_16gb_turing"):
        apply_profile("t4", set())


def test_a_profile_gives_the_parser_defaults_that_the_command_line_overrides():
    parser = TrlParser((SFTConfig, ModelConfig))
    values, _ = apply_profile("cpu", {"per_device_train_batch_size"})
    own = {entry.name for entry in fields(HistoArguments)}
    parser.set_defaults(**{key: value for key, value in values.items() if key not in own})
    training_args, model_args = parser.parse_args_and_config(["--per_device_train_batch_size", "3"])
    assert (training_args.use_cpu, training_args.bf16, training_args.per_device_train_batch_size) == (True, False, 3)
    assert model_args.dtype == "float32"


def configure(**keys):
    training = SFTConfig(use_cpu=True, bf16=keys.pop("bf16", False), fp16=keys.pop("fp16", False))
    return training, ModelConfig(**{"dtype": "bfloat16", **keys})


@pytest.mark.parametrize("keys", [{"fp16": True}, {"dtype": "float16"}])
def test_float16_is_refused_for_gemma_3_with_the_reason(keys):
    with pytest.raises(ValueError, match="gemma3.*exceeds 65504.*set fp16: false and dtype: bfloat16"):
        check_precision(*configure(**keys), "gemma3", (7, 5))
    assert check_precision(*configure(**keys), "llava", (7, 5)) == []


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn"])
def test_flash_attention_is_refused_where_it_drops_the_mask(name):
    with pytest.raises(ValueError, match="both ways.*set attn_implementation: sdpa"):
        check_precision(*configure(attn_implementation=name), "gemma3", (8, 0))
    assert check_precision(*configure(attn_implementation=name), "llava", (8, 0)) == []


def test_bfloat16_on_a_turing_card_and_8_bits_are_named_and_run():
    notes = check_precision(*configure(bf16=True, load_in_8bit=True), "gemma3", (7, 5))
    assert len(notes) == 2
    assert notes[0].startswith("bf16: true on a card of compute capability 7.5")
    assert notes[1].startswith("load_in_8bit")
    assert check_precision(*configure(bf16=True), "gemma3", (8, 0)) == []
    assert check_precision(*configure(bf16=True), "gemma3", None) == []


def parse(folder, *flags, **keys):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "outputs/x", "datasets": [PCAM]} | keys))
    return parse_recipe_elsewhere(["--config", str(path), *flags])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_profile_a_recipe_has_its_own_keys_and_the_libraries_defaults(tmp_path):
    (histo_args, training_args, model_args), on_gpu = parse(tmp_path, use_cpu=True, bf16=False)
    assert (histo_args.hardware, histo_args.profile_notes, on_gpu) == ("none", [], False)
    assert training_args.per_device_train_batch_size == SFTConfig.per_device_train_batch_size
    assert (model_args.dtype, model_args.load_in_4bit) == (ModelConfig.dtype, False)


def test_the_values_of_a_profile_stand_for_keys_that_the_recipe_leaves_out(tmp_path):
    lora = {"use_peft": True, "lora_target_modules": ["q_proj"]}
    (histo_args, training_args, model_args), on_gpu = parse(tmp_path, hardware="gpu_4gb", **lora)
    parsed = vars(histo_args) | vars(training_args) | vars(model_args)
    assert {key: parsed[key] for key in PROFILES["gpu_4gb"]} == apply_profile("gpu_4gb", set())[0]
    # Only what changes what the model sees is told.
    assert on_gpu and [note.split(" (")[0] for note in histo_args.profile_notes] == [
        "image_side: 448 comes from gpu_4gb",
        "image_tokens: 64 comes from gpu_4gb",
    ]


def test_the_pictures_of_a_profile_are_taken_back_by_null(tmp_path):
    lora = {"use_peft": True, "lora_target_modules": ["q_proj"]}
    own = {"image_side": None, "image_tokens": None}
    (histo_args, _, model_args), _ = parse(tmp_path, hardware="gpu_4gb", **own, **lora)
    assert (model_args.image_side, model_args.image_tokens) == (None, None)
    assert [note.split(":")[0] for note in histo_args.profile_notes] == ["image_side", "image_tokens"]


def test_recipe_and_command_line_win_over_the_profile_and_each_is_named(tmp_path):
    lora = {"use_peft": True, "lora_target_modules": ["q_proj"]}
    (histo_args, training_args, model_args), _ = parse(
        tmp_path,
        "--hardware=gpu_16gb",
        "--candidate_batch_size",
        "7",
        hardware="gpu_4gb",
        dtype="float32",
        gradient_checkpointing=True,
        **lora,
    )
    assert (histo_args.hardware, histo_args.candidate_batch_size, model_args.dtype) == ("gpu_16gb", 7, "float32")
    assert training_args.activation_checkpointing is True
    assert [note.split(":")[0] for note in histo_args.profile_notes] == ["dtype", "activation_checkpointing"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_auto_is_resolved_to_the_profile_of_this_machine(tmp_path):
    (histo_args, training_args, _), on_gpu = parse(tmp_path, hardware="auto")
    assert (histo_args.hardware, training_args.use_cpu, on_gpu) == ("cpu", True, False)


def test_an_unknown_profile_in_a_recipe_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="'t4'.*gpu_16gb_turing"):
        parse(tmp_path, hardware="t4")
    with pytest.raises(ValueError, match="'t4'.*gpu_16gb_turing"):
        parse(tmp_path, "--hardware", "t4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_recipe_for_a_gpu_can_be_looked_at_without_one():
    recipe = ["--config", "recipes/histolab_5k.yaml"]
    with pytest.raises(ValueError, match="use_cpu|bf16"):
        parse_recipe(recipe)
    (_, training_args, _), on_gpu = parse_recipe_elsewhere(recipe)
    assert on_gpu and training_args.bf16 and training_args.gradient_accumulation_steps == 4
    assert parse_recipe_elsewhere(["--config", "recipes/demo.yaml"])[1] is False


def test_changed_pictures_are_refused_where_the_tower_is_kept_off_the_gpu(tmp_path):
    training, model = SFTConfig(use_cpu=True, bf16=False), ModelConfig()
    histo_args = HistoArguments(datasets=[PCAM], sensitivity="all", vision_cache="features")
    check_consistency(histo_args, training, model)
    training.use_cpu = False
    with pytest.raises(ValueError, match="sensitivity: all.*set sensitivity: prompt.*or vision_cache: auto"):
        check_consistency(histo_args, training, model)
