"""The memory plan against what PyTorch's allocator hands out, and for MedGemma-4B."""

import gc
import itertools
import json
import re
import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import yaml
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Linear8bitLt
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from tiny_models import build_idefics3, build_llava
from torch.profiler import ProfilerActivity, profile
from transformers import BitsAndBytesConfig, Gemma3Config, Gemma3ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from histolab_sft.config.arguments import HistoArguments, parse_recipe_elsewhere
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.hardware import BATCH as BATCH_KEYS
from histolab_sft.config.hardware import CUDA_CONTEXT, GIB, PROFILES, USABLE_GIB
from histolab_sft.config.phase import PARTS
from histolab_sft.memory import activations
from histolab_sft.memory.activations import Precision, trace_language
from histolab_sft.memory.fit import fit_to_memory, measure_lengths
from histolab_sft.memory.peak import (
    SCORING,
    TRAINING,
    Setup,
    compute_peak,
    find_largest_micro_batch,
    plan_memory,
)
from histolab_sft.memory.plan import (
    CAPABILITIES,
    build_planned_model,
    build_resized,
    build_setup,
    format_profiles,
    plan_for_recipe,
    suggest_changes,
)
from histolab_sft.models.generate import unwrap_adapter
from histolab_sft.models.geometry import MEDGEMMA_4B_SIZED, write_medgemma_4b_config
from histolab_sft.models.load import build_lora_config, keep_quantized_layers_trainable, load_processor
from histolab_sft.models.precision import count_4bit
from histolab_sft.models.trainable import train_parts
from histolab_sft.models.vision_tower import freeze_vision_tower

LANGUAGE = r".*language_model\.layers\.\d+\.self_attn\.[qkvo]_proj"
EVERYWHERE = r".*\.layers\.\d+\.self_attn\.[qkv]_proj"
BATCH, TOKENS, IMAGE_TOKENS, LABELLED = 2, 310, 64, 8
LENGTHS = {"tokens": TOKENS, "labelled": LABELLED, "pictures": 1, "options": None}
MEASURED_TOKENS = 192
MEASURED = pytest.mark.parametrize(
    "path", sorted(Path("benchmarks/results").glob("gpu-*.json")), ids=lambda path: path.stem
)
WEIGHTS = {"vision tower", "embedding and head", "language layers", "language norms", "projector", "trained weights"}


def build_config():
    """Give a Gemma 3 of 33 million parameters with MedGemma's proportions of width, heads and feed-forward layers."""
    return Gemma3Config(
        text_config={
            "vocab_size": 8192,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "sliding_window": 512,
        },
        vision_config={
            "image_size": 224,
            "patch_size": 14,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vision_use_head": False,
        },
        mm_tokens_per_image=IMAGE_TOKENS,
        image_token_index=8000,
        boi_token_index=8001,
        eoi_token_index=8002,
    )


def attach(model, targets=LANGUAGE, dropout=0.0, **options):
    config = LoraConfig(r=16, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(model, config, **options)


def build_on_meta(config=None):
    with torch.device("meta"):
        return Gemma3ForConditionalGeneration._from_config(config or build_config(), dtype=torch.float32)


@cache
def build_planned(targets, dropout):
    """Give one model for all plans of its kind, which then trace it once."""
    return attach(build_on_meta(), targets, dropout, low_cpu_mem_usage=True)


def measure_step(model, cached, checkpointing, autocast):
    """Give the bytes of the weights, and the most that two training steps allocate beside them."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    freeze_vision_tower(keep_quantized_layers_trainable(model))
    add_fused_lm_head(unwrap_adapter(model), outputs=("log_probs", "entropy", "is_top1"))
    ids = torch.randint(10, 1000, (BATCH, MEASURED_TOKENS))
    ids[:, :IMAGE_TOKENS] = model.config.image_token_id
    labels = torch.where(torch.arange(MEASURED_TOKENS) < MEASURED_TOKENS - LABELLED, -100, ids)
    size, width = model.config.vision_config.image_size, model.config.text_config.hidden_size
    features = torch.zeros(BATCH, IMAGE_TOKENS, width)
    trained = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    # What an earlier measurement has left in cycles would be freed, and counted, during this one.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimiser = torch.optim.AdamW(trained, fused=True)
        for _ in range(2):
            if cached:
                picture = {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}
            else:
                picture = {"pixel_values": torch.rand(BATCH, 3, size, size)}
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                outputs = model(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    token_type_ids=(ids == model.config.image_token_id).long(),
                    labels=labels,
                    fused_lm_head=True,
                    **picture,
                )
            outputs.loss.backward()
            del outputs
            optimiser.step()
            optimiser.zero_grad()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return sum_storages(model, with_tower=not cached), max(itertools.accumulate(event.nbytes() for event in events))


def sum_storages(model, with_tower):
    tensors = list(model.parameters())
    for module in model.modules():
        state = module.weight.quant_state if type(module).__name__ == "Linear4bit" else None
        if state is not None:
            nested = [state.offset, state.state2.absmax, state.state2.code]
            tensors += [state.absmax, state.code] + (nested if state.nested else [])
        if isinstance(module, Linear8bitLt):
            tensors += [module.state.CB, module.state.SCB]
    if not with_tower:
        tower = set(model.get_encoder(modality="image").parameters())
        tensors = [tensor for tensor in tensors if tensor not in tower]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.model
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "dtype, autocast, cached, targets, dropout",
    [
        (torch.float32, False, False, LANGUAGE, 0.0),
        (torch.float32, False, False, LANGUAGE, 0.05),
        (torch.float32, False, True, LANGUAGE, 0.0),
        (torch.float32, False, True, LANGUAGE, 0.05),
        (torch.float32, False, False, EVERYWHERE, 0.05),
        (torch.bfloat16, True, True, LANGUAGE, 0.05),
    ],
    ids=["float32", "dropout", "cached", "cached with dropout", "trained tower", "bfloat16"],
)
def test_the_plan_is_within_a_tenth_of_the_allocators_peak(dtype, autocast, cached, targets, dropout, checkpointing):
    model = Gemma3ForConditionalGeneration._from_config(build_config(), dtype=dtype, attn_implementation="sdpa")
    compare(attach(model, targets, dropout), dtype, autocast, cached, checkpointing, targets, dropout)


@pytest.mark.model
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.thorough)])
def test_the_plan_is_within_a_tenth_of_the_allocators_peak_with_quantised_weights(tmp_path, checkpointing, bits):
    Gemma3ForConditionalGeneration(build_config()).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=[".*vision_tower", ".*multi_modal_projector", "lm_head"],
    )
    model = Gemma3ForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=quantization, dtype=torch.float32
    )
    compare(attach(model, dropout=0.05), torch.float32, False, True, checkpointing, LANGUAGE, 0.05, bits=bits)


@pytest.mark.model
@pytest.mark.parametrize("use_peft", [True, False])
@pytest.mark.parametrize("parts", [PARTS[:1], PARTS[:2], PARTS], ids="+".join)
def test_what_trains_whole_is_in_the_plan(tmp_path, parts, use_peft):
    model = Gemma3ForConditionalGeneration._from_config(build_config(), dtype=torch.float32)
    model.config.save_pretrained(tmp_path)
    model_args = ModelConfig(model_name_or_path=str(tmp_path), **LORA | {"use_peft": use_peft})
    lora = build_lora_config(model_args, "language", parts)
    model = model if lora is None else get_peft_model(model, lora)
    train_parts(model, parts)
    planned, _ = build_planned_model(model_args, "language", parts)
    compare(model, torch.float32, False, False, False, planned=planned)


def compare(model, dtype, autocast, cached, checkpointing, targets=LANGUAGE, dropout=0.0, bits=32, planned=None):
    setup = Setup(
        precision=Precision(dtype, dtype, torch.bfloat16 if autocast else None),
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        double_quantized=bits == 4,
        batch_size=BATCH,
        tokens=MEASURED_TOKENS,
        labelled=LABELLED,
        checkpointing=checkpointing,
        cached=cached,
        on_gpu=False,
    )
    rows = plan_memory(planned or build_planned(targets, dropout), setup)
    planned_weights = sum(row.bytes for row in rows if row.part in WEIGHTS)
    planned_beside = compute_peak(rows, TRAINING) - planned_weights
    weights, beside = measure_step(model, cached, checkpointing, autocast)
    assert planned_weights == pytest.approx(weights, rel=0.01)
    assert planned_beside == pytest.approx(beside, rel=0.1)


@pytest.mark.parametrize("double_quantized", [False, True])
@pytest.mark.parametrize("shape", [(64, 64), (128, 320), (1000, 640)])
def test_4_bit_weights_take_what_bitsandbytes_stores(shape, double_quantized):
    packed, state = quantize_4bit(torch.randn(shape), quant_type="nf4", compress_statistics=double_quantized)
    stored = [packed, state.absmax, state.code]
    stored += [state.offset, state.state2.absmax, state.state2.code] if double_quantized else []
    assert count_4bit(shape[0] * shape[1], double_quantized) == sum(tensor.nbytes for tensor in stored)


@pytest.mark.model
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_line_through_two_depths_meets_the_trace_of_all_layers(monkeypatch, checkpointing):
    model, precision = attach(build_on_meta(), low_cpu_mem_usage=True), Precision(torch.bfloat16, torch.bfloat16)
    line = trace_language(model, precision, TOKENS, checkpointing)
    monkeypatch.setattr(activations, "DEPTHS", (6, 6))
    whole = trace_language.__wrapped__(model, precision, TOKENS, checkpointing)
    # A mask and rotary angles, made once for all layers of a kind, are missed where the first layers lack the kind.
    assert line.kept + line.above == pytest.approx(whole.kept + whole.above, rel=0.02)


@pytest.fixture(scope="module")
def medgemma():
    """MedGemma-4B on the meta device with the adapter of HistoLab's recipe."""
    model_args = read_histolab()[2]
    with tempfile.TemporaryDirectory() as folder:
        model_args = replace(model_args, model_name_or_path=str(write_medgemma_4b_config(folder)))
        return build_planned_model(model_args, "language")[0]


def read_histolab(*flags, recipe="recipes/histolab_5k.yaml"):
    return parse_recipe_elsewhere(["--config", str(recipe), *flags])[0]


def list_keys(histo_args, training_args, model_args):
    keys = vars(model_args) | vars(training_args) | vars(histo_args)
    return keys | LENGTHS


def build_profile_setup(model, name):
    keys = list_keys(*read_histolab()) | {key: value for key, (value, _) in PROFILES[name].items()}
    return build_setup(model, keys, name != "cpu", CAPABILITIES.get(name))


@pytest.mark.model
def test_every_parameter_of_medgemma_is_weighed_once(medgemma):
    rows = plan_memory(medgemma, Setup(Precision(torch.bfloat16, torch.bfloat16)))
    frozen = sum(row.bytes for row in rows if row.part in WEIGHTS - {"trained weights"}) / 2
    assert frozen == sum(parameter.numel() for parameter in medgemma.parameters() if not parameter.requires_grad)
    assert frozen == pytest.approx(4.300e9, rel=1e-4)


@pytest.mark.model
@pytest.mark.parametrize("name", USABLE_GIB)
def test_the_values_of_each_profile_fit_its_card(medgemma, name):
    setup = build_profile_setup(medgemma, name)
    assert compute_peak(plan_memory(medgemma, setup)) <= USABLE_GIB[name] * GIB
    assert suggest_changes(medgemma, setup, round(USABLE_GIB[name] * GIB), 1) == "fits"


@pytest.mark.model
def test_the_4_gb_recipe_stays_below_4_gb_with_its_cuda_context(medgemma):
    setup = build_profile_setup(medgemma, "gpu_4gb")
    rows = plan_memory(medgemma, setup)
    assert compute_peak(rows) < 4e9 and compute_peak(rows) < USABLE_GIB["gpu_4gb"] * GIB
    parts = {row.part: row.bytes / GIB for row in rows}
    assert "vision tower" not in parts and parts["CUDA context"] == 0.5
    assert parts["language layers"] + parts["embedding and head"] == pytest.approx(2.8, abs=0.05)


@pytest.mark.model
def test_the_table_of_the_hardware_page_is_the_plans_own(medgemma):
    histo_args, training_args, model_args = read_histolab()
    table = format_profiles(
        medgemma, list_keys(histo_args, training_args, model_args), partial(build_resized, histo_args, model_args)
    )
    assert table in Path("docs/hardware.md").read_text(encoding="utf-8")


@MEASURED
@pytest.mark.model
def test_the_plan_of_each_profile_is_at_most_a_fifth_above_the_peak_that_a_card_measured(medgemma, path):
    for name, arm in json.loads(path.read_text())["arms"].items():
        if not isinstance(arm.get("training"), dict):
            continue
        keys = {key: arm[key] for key in ("batch", "accumulation", "checkpointing", "tokens")}
        keys["batch_size"] = keys.pop("batch")
        setup = replace(build_profile_setup(medgemma, arm["profile"]), labelled=9, options=9, **keys)
        rows = plan_memory(medgemma, setup)
        for moment, moments in {"training": TRAINING, "scoring": SCORING}.items():
            share = arm[moment]["peak_allocated_gib"] * GIB / (compute_peak(rows, moments) - CUDA_CONTEXT)
            assert 0.85 <= share <= 1, (name, moment, share)


@MEASURED
@pytest.mark.model
def test_what_one_more_row_takes_on_a_card_is_what_the_trace_counts(medgemma, path):
    arms = json.loads(path.read_text())["arms"]
    few, many = (arms[f"cached, bfloat16, eager, batch {batch}"] for batch in (8, 32))
    if not {"peak_allocated_gib"} <= few.keys() & many.keys():
        pytest.skip(f"{path.name} has no peaks of both eager arms")
    measured = (many["peak_allocated_gib"] - few["peak_allocated_gib"]) / (many["batch"] - few["batch"])
    precision = build_profile_setup(medgemma, "gpu_80gb").precision
    assert trace_language(medgemma, precision, many["tokens"], False).kept / GIB == pytest.approx(measured, rel=0.01)


def fit(model, free, *flags, **recipe):
    _, training_args, _ = parsed = read_histolab(*flags, **recipe)
    outcome = fit_to_memory(model, *parsed, round(free * GIB), (8, 0), LENGTHS)
    batch = training_args.per_device_train_batch_size, training_args.gradient_accumulation_steps
    assert training_args.activation_checkpointing == training_args.gradient_checkpointing
    return training_args.activation_checkpointing, *batch, outcome


@pytest.mark.model
def test_checkpointing_is_on_only_where_the_activations_do_not_fit(medgemma):
    assert fit(medgemma, 14.5)[:3] == (False, 1, 4)
    assert fit(medgemma, 5.5)[:3] == (True, 1, 4)
    *_, outcome = fit(medgemma, 3)
    assert outcome.startswith("activation_checkpointing: true") and "over 97% of it" in outcome


@pytest.mark.model
def test_checkpointing_that_the_recipe_writes_stays_as_it_is(medgemma):
    assert fit(medgemma, 76, "--activation_checkpointing", "true")[0] is True
    assert fit(medgemma, 4, "--gradient_checkpointing", "false")[0] is False


@pytest.mark.model
def test_the_lengths_of_the_rows_are_what_the_collator_makes_of_them(untrained_model):
    processor = load_processor(str(untrained_model))
    asked = ["What is this?", "What is this, in one word, of all that it could be?"]
    rows = Dataset.from_list(
        [
            {
                "images": [Image.new("RGB", (32, 32))],
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": "Tumor"}],
                "dataset": "cases",
                "label": None,
            }
            for question in asked
        ]
    )
    batch = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(list(rows))
    tokens = (batch["attention_mask"] == 1).sum(dim=1).max().item()
    labelled = (batch["labels"] != -100).sum(dim=1).max().item()
    planned = measure_lengths(rows, processor)
    assert tokens <= planned["tokens"] <= tokens + 8 and planned["labelled"] == labelled
    assert (planned["pictures"], planned["options"]) == (1, None)
    several = rows.map(lambda row: {"images": row["images"] * 3})
    more = measure_lengths(several, processor)
    assert more["pictures"] == 3 and more["tokens"] >= planned["tokens"] + 2 * processor.image_seq_length


@pytest.mark.model
def test_without_a_profile_the_batch_is_never_cut(medgemma):
    batch = ("--per_device_train_batch_size", "64", "--gradient_accumulation_steps", "1")
    assert fit(medgemma, 6, *batch)[:3] == (True, 64, 1)


@pytest.mark.model
def test_with_a_profile_a_step_keeps_its_rows_and_the_recipes_batch_is_cut_last(medgemma):
    batch = ("--per_device_train_batch_size", "12", "--gradient_accumulation_steps", "2")
    assert fit(medgemma, 76, "--hardware", "gpu_24gb", *batch)[:3] == (False, 12, 2)
    assert fit(medgemma, 12, "--hardware", "gpu_24gb", *batch)[:3] == (True, 12, 2)
    on, size, accumulation, _ = fit(medgemma, 5.5, "--hardware", "gpu_24gb", *batch)
    assert on and size < 12 and size * accumulation == 24


@pytest.mark.model
def test_the_batch_of_a_profile_is_cut_before_activations_are_checkpointed(tmp_path, medgemma):
    # The recipe without its batch, so that the step's 16 rows are the profile's to cut.
    recipe = yaml.safe_load(Path("recipes/histolab_5k.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if key not in BATCH_KEYS}))
    assert fit(medgemma, 22, "--hardware", "gpu_24gb", recipe=path)[:3] == (False, 8, 2)
    assert fit(medgemma, 14.5, "--hardware", "gpu_24gb", recipe=path)[:3] == (False, 4, 4)


@pytest.mark.model
def test_the_reasons_in_the_profiles_give_the_plans_own_numbers(medgemma):
    """0.7 GiB a patch without checkpointing, 2 GiB for attention without a fused kernel, 0.14 GiB of scales."""
    setup = build_profile_setup(medgemma, "gpu_4gb")
    trace = trace_language(medgemma, setup.precision, TOKENS - 256 + PROFILES["gpu_4gb"]["image_tokens"][0], False)
    assert trace.kept / GIB == pytest.approx(0.7, abs=0.05)
    slow = Precision(torch.bfloat16, torch.bfloat16, fused_bfloat16=False)
    tower = activations.trace_tower(medgemma, slow, 896, False, False)
    assert tower.above / GIB == pytest.approx(2.1, abs=0.1)
    layers = [1 << 20] * 3060
    assert (sum(count_4bit(n, False) - count_4bit(n, True) for n in layers)) / GIB == pytest.approx(0.14, abs=0.01)


@pytest.mark.model
def test_the_largest_micro_batch_fits_and_the_next_one_does_not(medgemma):
    setup = build_profile_setup(medgemma, "gpu_16gb")
    available = round(USABLE_GIB["gpu_16gb"] * GIB)
    largest = find_largest_micro_batch(medgemma, setup, available)

    def peak(batch):
        return compute_peak(plan_memory(medgemma, Setup(**{**vars(setup), "batch_size": batch})), TRAINING)

    assert peak(largest) <= available < peak(largest + 1)
    assert find_largest_micro_batch(medgemma, setup, GIB) == 0


@pytest.mark.model
def test_a_recipe_too_large_for_the_card_is_told_what_to_change(medgemma):
    setup = build_profile_setup(medgemma, "gpu_24gb")
    advice = suggest_changes(medgemma, setup, round(USABLE_GIB["gpu_16gb"] * GIB), setup.accumulation)
    batch, accumulation = map(int, re.findall(r"(?:batch_size|accumulation_steps): (\d+)", advice))
    assert batch * accumulation >= 16 > batch * (accumulation - 1)
    advice = suggest_changes(medgemma, setup, round(USABLE_GIB["gpu_4gb"] * GIB), 2)
    assert "candidate_batch_size: 1" in advice and "activation_checkpointing: true" in advice
    assert suggest_changes(medgemma, setup, 2 * GIB, 2).startswith("does not fit")


@pytest.mark.model
@pytest.mark.parametrize("build", [build_llava, build_idefics3])
def test_the_plan_knows_no_architecture(build):
    model, _ = build()
    with torch.device("meta"):
        model = type(model)(model.config)
    targets = r".*(language_model|text_model)\.layers\.\d+\.self_attn\.(q|v)_proj"
    rows = plan_memory(attach(model, targets, low_cpu_mem_usage=True), Setup(Precision(torch.float32, torch.float32)))
    parts = {row.part for row in rows}
    assert {"vision tower", "projector", "language, kept", "tower, passing", "keys and values"} <= parts


def test_an_optimiser_without_a_known_state_is_refused():
    with pytest.raises(ValueError, match="lion_8bit.*adamw_torch_fused"):
        plan_memory(None, Setup(Precision(torch.float32, torch.float32), optimiser="lion_8bit"))


DATASETS = [{"name": "crc", "source": "nowhere", "class_names": {"A": "Adipose", "B": "Tumor"}}]
LORA = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"]}


@pytest.mark.model
def test_the_plan_of_a_recipe_has_its_parts_and_every_profile(untrained_model):
    training_args = SFTConfig(use_cpu=True, bf16=False, activation_checkpointing=False)
    text = plan_for_recipe(
        HistoArguments(datasets=DATASETS, vision_cache="off"),
        training_args,
        ModelConfig(model_name_or_path=str(untrained_model), **LORA),
    )
    assert all(name in text for name in PROFILES)
    assert all(part in text for part in ("vision tower", "optimiser state", "keys and values"))
    assert "This machine (cpu" in text or torch.cuda.is_available()


@pytest.mark.model
@pytest.mark.parametrize("name", MEDGEMMA_4B_SIZED)
def test_without_the_gated_download_medgemma_is_planned_from_the_built_in_shape(name):
    _, note = build_planned_model(ModelConfig(model_name_or_path=name, **LORA), "language")
    assert note.startswith(f"The configuration of {name} is out of reach")


@pytest.mark.model
def test_more_pictures_and_more_micro_batches_never_take_less(medgemma):
    setup = build_profile_setup(medgemma, "gpu_16gb")

    def peak(**changes):
        return compute_peak(plan_memory(medgemma, replace(setup, **changes)), TRAINING) / GIB

    # A row of 126 pictures is 32,000 tokens, and the tower looks at all its pictures.
    assert peak(pictures=126, tokens=126 * 256 + 54, batch_size=1) > 60
    pixels = 3 * 896**2 * 4 / GIB
    rows = plan_memory(medgemma, replace(setup, pictures=3, batch_size=2, accumulation=8))
    assert next(row for row in rows if row.part == "pictures").bytes / GIB == pytest.approx(48 * pixels)
    tower = [
        next(row for row in plan_memory(medgemma, replace(setup, pictures=n)) if row.part == "tower, passing")
        for n in (1, 5)
    ]
    assert tower[1].bytes == 5 * tower[0].bytes


@pytest.mark.model
def test_a_layer_that_multiplies_in_another_dtype_is_unpacked_twice(medgemma):
    largest = 10240 * 2560

    def weigh(name):
        rows = plan_memory(medgemma, build_profile_setup(medgemma, name))
        return {row.moments: row.bytes for row in rows if row.part == "unpacked layer"}

    assert weigh("gpu_16gb") == {("loss", "backward"): 2 * largest, ("scoring",): 2 * largest}
    assert weigh("gpu_4gb") == {("loss", "backward"): 4 * largest, ("scoring",): 2 * largest}
    assert weigh("gpu_24gb") == {}
    with pytest.raises(OSError, match="couldn't find them"):
        build_planned_model(ModelConfig(model_name_or_path="nobody/nothing", **LORA), "language")
