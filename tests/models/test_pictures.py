"""Training with features in place of pixels is the same training, with the tower called by nobody."""

from collections import Counter

import pytest
import torch
from conftest import PCAM_CLASSES, write_class_folders
from transformers import TrainerCallback
from trl import SFTConfig

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.data.rows import load_audited_patches
from histolab_sft.models.load import build_lora_config, build_model_init_kwargs, load_processor
from histolab_sft.models.vision_tower import find_vision_tower
from histolab_sft.training.picture_inputs import prepare_pictures
from histolab_sft.training.trainer import PatchTrainer

pytestmark = pytest.mark.model


def make_trainer(folder, base_model, monkeypatch, augmentation="none", vision_cache="off", **keys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    if not (folder / "pcam").exists():
        write_class_folders(folder / "pcam", PCAM_CLASSES, per_class=12)
    histo_args = HistoArguments(
        datasets=[{"name": "pcam", "source": "pcam", "class_names": PCAM_CLASSES}],
        data_dir=str(folder),
        augmentation=augmentation,
        vision_cache=vision_cache,
    )
    model_args = ModelConfig(
        model_name_or_path=str(base_model), use_peft=True, lora_target_modules=["q_proj", "v_proj"]
    )
    defaults = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "num_train_epochs": 2}
    defaults |= {"logging_steps": 1, "learning_rate": 1e-2, "save_strategy": "no", "report_to": "none"}
    training_args = SFTConfig(
        **{"output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "max_length": None} | defaults | keys
    )
    training_args.model_init_kwargs = build_model_init_kwargs(model_args)
    patches = load_audited_patches(histo_args, folder)
    trainer = PatchTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=patches["train"],
        eval_dataset=patches["validation"],
        processing_class=load_processor(str(base_model)),
        peft_config=build_lora_config(model_args, "language"),
        resume_changes=["max_steps"],
    )
    tower = find_vision_tower(trainer.model)
    cache = prepare_pictures(trainer, patches, histo_args)
    calls = Counter()
    # Of a part inside a layer: checkpointing runs layers again without calling the tower.
    attention = tower.encoder.layers[0].self_attn
    attention.register_forward_hook(lambda *_: calls.update(["forward"]))
    attention.register_full_backward_hook(lambda *_: calls.update(["backward"]))
    return trainer, cache, calls


class KeepGradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_every_gradient_of_a_run_are_those_of_pixels_to_the_last_bit(
    tmp_path, untrained_model, monkeypatch, checkpointing
):
    runs = []
    for vision_cache in ("off", "auto"):
        trainer, cache, calls = make_trainer(
            tmp_path,
            untrained_model,
            monkeypatch,
            vision_cache=vision_cache,
            activation_checkpointing=checkpointing,
            eval_strategy="epoch",
        )
        assert (cache is None) == (vision_cache == "off")
        trainer.add_callback(kept := KeepGradients())
        trainer.train()
        # Each of two evaluations takes the loss of every batch, and its likelihoods.
        steps, evaluations = trainer.state.max_steps, 2 * 2 * len(trainer.get_eval_dataloader())
        assert calls == ({} if cache else {"forward": steps + evaluations})
        losses = [entry.get("loss", entry.get("eval_loss")) for entry in trainer.state.log_history]
        runs.append((losses, kept.steps))
    (losses, gradients), (cached_losses, cached_gradients) = runs
    assert losses == cached_losses and len(gradients) == len(cached_gradients) > 4
    for step, cached_step in zip(gradients, cached_gradients, strict=True):
        assert step.keys() == cached_step.keys() and len(step) == 16
        assert any(gradient.abs().max() > 0 for gradient in step.values())
        assert all(torch.equal(step[name], cached_step[name]) for name in step)


def test_auto_does_without_the_cache_for_one_epoch_and_under_stain_jitter(tmp_path, untrained_model, monkeypatch):
    assert make_trainer(tmp_path, untrained_model, monkeypatch, vision_cache="auto", num_train_epochs=1)[1] is None
    assert make_trainer(tmp_path, untrained_model, monkeypatch, "stain", "auto", num_train_epochs=9)[1] is None
    assert make_trainer(tmp_path, untrained_model, monkeypatch, "symmetries", "auto", num_train_epochs=9)[1] is None


def test_the_cache_holds_the_eight_views_of_a_run_with_symmetries(tmp_path, untrained_model, monkeypatch):
    folder = str(tmp_path / "features")
    trainer, cache, calls = make_trainer(tmp_path, untrained_model, monkeypatch, "symmetries", folder)
    assert len(cache) == 8 * len(trainer.train_dataset)
    trainer.train()
    assert calls == {}


def test_train_patches_change_with_the_epoch_also_after_a_resume_and_test_patches_never(
    tmp_path, untrained_model, monkeypatch
):
    def train(**keys):
        trainer, _, _ = make_trainer(tmp_path, untrained_model, monkeypatch, "all", **keys)
        seen, collate = [], trainer.data_collator.torch_call

        def watch(examples):
            seen.append([example["images"][0].tobytes() for example in examples])
            return collate(examples)

        trainer.data_collator.torch_call = watch
        trainer.train(resume_from_checkpoint=keys.get("resume_from_checkpoint"))
        return seen, len(trainer.get_train_dataloader())

    whole, steps = train()
    flat = [image for batch in whole for image in batch]
    assert len(set(flat)) == len(flat)
    stopped = steps + 1
    train(output_dir=str(tmp_path / "cut"), max_steps=stopped, save_strategy="steps", save_steps=stopped)
    checkpoint = str(tmp_path / "cut" / f"checkpoint-{stopped}")
    rest, _ = train(output_dir=str(tmp_path / "cut"), resume_from_checkpoint=checkpoint)
    assert rest == whole[stopped:]
