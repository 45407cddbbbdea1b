"""One step in the precision of the run: what overflows or vanishes is refused, the recipe for Turing cards goes on."""

import pytest
import torch
from conftest import PCAM_CLASSES, write_class_folders
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.config.hardware import apply_profile
from histolab_sft.data.rows import load_patches
from histolab_sft.models.load import (
    build_lora_config,
    build_model_init_kwargs,
    build_quantization_config,
    load_processor,
)
from histolab_sft.training.canary import CanaryError, run_canary
from histolab_sft.training.picture_inputs import prepare_pictures
from histolab_sft.training.trainer import PatchTrainer

pytestmark = pytest.mark.model

TURING, _ = apply_profile("gpu_16gb_turing", set())
# What Gemma 3's norms behind attention and feed-forward layers multiply by: the residual stream grows past 65504.
GAIN = 3e4


def make_trainer(folder, base_model, dtype, compute=None, tower=None, gain=GAIN, **keys):
    write_class_folders(folder / "pcam", PCAM_CLASSES, per_class=8, slides=8)
    histo_args = HistoArguments(
        datasets=[{"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES}],
        data_dir=str(folder),
        vision_cache="off",
        vision_tower_dtype=tower,
    )
    model_args = ModelConfig(
        model_name_or_path=str(base_model),
        dtype=dtype,
        load_in_4bit=True,
        use_peft=True,
        lora_target_modules=["q_proj", "v_proj", "down_proj"],
    )
    defaults = {"per_device_train_batch_size": 2, "max_steps": 2, "logging_steps": 1, "report_to": "none"}
    training_args = SFTConfig(
        **{"output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "max_length": None} | defaults | keys
    )
    training_args.model_init_kwargs = build_model_init_kwargs(model_args)
    patches = load_patches(histo_args)
    trainer = PatchTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=patches["train"],
        processing_class=load_processor(str(base_model)),
        quantization_config=build_quantization_config(model_args, compute),
        peft_config=build_lora_config(model_args, "language"),
    )
    for layer in trainer.model.get_decoder().layers:
        layer.post_attention_layernorm.weight.data.fill_(gain)
        layer.post_feedforward_layernorm.weight.data.fill_(gain)
    prepare_pictures(trainer, patches, histo_args)
    return trainer


def make_turing_trainer(folder, base_model, **keys):
    dtypes = (TURING["dtype"], TURING["bnb_4bit_compute_dtype"], TURING["vision_tower_dtype"])
    assert dtypes == ("bfloat16", "float16", "float16") and not TURING["bf16"] and not TURING["fp16"]
    return make_trainer(folder, base_model, *dtypes, **keys)


def compute_loss(trainer):
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    with torch.no_grad():
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        return trainer.model.eval()(**tensors, fused_lm_head=True).loss.item()


def test_float16_storage_overflows_and_is_refused_with_the_module_and_the_value(tmp_path, untrained_model):
    trainer = make_trainer(tmp_path, untrained_model, "float16", "float16")
    with pytest.raises(CanaryError, match=r"layers\.0\.post_attention_layernorm.*gives -?inf in torch.float16.*65504"):
        run_canary(trainer)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_the_mixture_for_turing_cards_stays_finite_where_float16_overflows(tmp_path, untrained_model, caplog):
    caplog.set_level("INFO")
    trainer = make_turing_trainer(tmp_path, untrained_model)
    decoder, stream = trainer.model.get_decoder(), []
    decoder.layers[-1].register_forward_hook(lambda module, args, output: stream.append(output.abs().max().item()))
    run_canary(trainer)
    assert max(stream) > 65504
    assert "canary step: all is finite" in caplog.text
    assert {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad} == {torch.float32}
    loss = compute_loss(trainer)
    reference = make_trainer(tmp_path / "reference", untrained_model, "float32")
    reference.train_dataset = trainer.train_dataset
    assert loss == pytest.approx(compute_loss(reference), rel=0.02)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(loss < 20 for loss in losses)


def test_gradients_too_small_for_float16_are_refused(tmp_path, untrained_model):
    trainer = make_turing_trainer(tmp_path, untrained_model, gain=0.0)
    norm = trainer.model.get_decoder().norm
    # Scales what goes into the head, and the gradients that come out of it.
    norm.weight.data = torch.full_like(norm.weight.data, -1 + 1e-6, dtype=torch.float32)
    with pytest.raises(CanaryError, match=r"gradients lose more than half.*most in .*lora_B"):
        run_canary(trainer)


def test_a_model_without_gradients_is_refused(tmp_path, untrained_model):
    trainer = make_turing_trainer(tmp_path, untrained_model, gain=0.0)
    norm = trainer.model.get_decoder().norm
    norm.weight.data.fill_(-1)
    with pytest.raises(CanaryError, match="found no gradient"):
        run_canary(trainer)


def test_the_canary_leaves_no_trace_in_the_run(tmp_path, untrained_model):
    runs = []
    for canary in (False, True):
        trainer = make_turing_trainer(tmp_path / str(int(canary)), untrained_model, gain=0.0)
        before = torch.get_rng_state()
        if canary:
            run_canary(trainer)
        assert torch.equal(torch.get_rng_state(), before)
        trainer.train()
        runs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert runs[0] == runs[1]
