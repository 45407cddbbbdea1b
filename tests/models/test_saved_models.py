"""What is trained is what is saved, loaded and scored: in every way to train, with every cache, in both precisions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from steady_runs import begin_recipe, write_inputs, write_recipe

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.config.phase import list_trained_parts
from histolab_sft.data.rows import load_audited_patches
from histolab_sft.models.load import load_base_model, load_finetuned, load_processor
from histolab_sft.models.precision import read_precision
from histolab_sft.models.weight_checks import WeightsError

pytestmark = pytest.mark.model

WAYS = {
    "adapter": {},
    "whole": {"use_peft": False, "lora_target_modules": None},
    "projector": {"train_projector": True},
    "tower": {"lora_scope": "language_and_vision"},
}
CACHES = ("off", "auto", "folder")
PRECISIONS = {"float32": {"dtype": "float32", "bf16": False}, "bfloat16": {"dtype": "bfloat16", "bf16": True}}
# A folder of features is refused where the tower is trained.
TABLE = [
    (way, cache, precision)
    for way in WAYS
    for cache in CACHES
    for precision in PRECISIONS
    if (way, cache) != ("tower", "folder")
]
FEW = [("whole", "auto", "float32"), ("projector", "folder", "bfloat16")]


def write_case(folder, output_dir, way, cache, precision):
    cache = str(output_dir / "features") if cache == "folder" else cache
    keys = {"max_steps": 2, "save_strategy": "no", "lora_dropout": 0.0, "vision_cache": cache, "leaks": "allow"}
    # Two looks at each picture, so that a cache pays.
    keys |= {"resume_from_checkpoint": None, "per_device_train_batch_size": 16}
    return write_recipe(folder, output_dir, **keys | WAYS[way] | PRECISIONS[precision])


def collate(rows, processor):
    """The fixed batch: pictures, questions and answers of the train split."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    return collator([rows[row] for row in range(len(rows))])


def compute_loss(model, batch):
    """The mean over the answers' tokens, from one plain forward pass."""
    labels = batch["labels"]
    with torch.no_grad():
        logits = model.eval()(**{name: value for name, value in batch.items() if name != "labels"}).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()


def train_case(recipe):
    """Train, save, and return the loss of the trainer's own model on the fixed batch, features and all."""
    trainer, _, patches = begin_recipe(recipe)
    cached = any(getattr(module, "parked", None) for module in trainer.model.modules())
    trainer.train()
    trainer.save_model()
    return compute_loss(trainer.model, collate(patches["train"], trainer.data_collator.processor)), cached


def load_case(recipe):
    """Load what was saved, as scoring does, and return its loss on the fixed batch."""
    histo_args, training_args, model_args = parse_recipe(["--config", str(recipe)])
    precision = read_precision(histo_args, training_args)
    base = load_base_model(model_args, precision)
    parts = list_trained_parts(histo_args)
    model = load_finetuned(base, model_args, training_args.output_dir, parts, precision)
    patches = load_audited_patches(histo_args, training_args.output_dir)
    return compute_loss(model, collate(patches["train"], load_processor(model_args.model_name_or_path)))


def check_cases(tmp_path, monkeypatch, cases):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_inputs(tmp_path)
    trained = {}
    for way, cache, precision in cases:
        recipe = write_case(tmp_path, tmp_path / f"{way}-{cache}-{precision}", way, cache, precision)
        trained[str(recipe)], cached = train_case(recipe)
        assert cached == (cache != "off" and way != "tower"), (way, cache)
    # One fresh process for all: each recipe is loaded from its own files.
    command = [sys.executable, str(Path(__file__)), *trained]
    # It finds the fixtures where this one has.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert output.returncode == 0, output.stderr[-3000:]
    loaded = json.loads(output.stdout.splitlines()[-1])
    for recipe, loss in trained.items():
        assert loaded[recipe] == pytest.approx(loss, abs=1e-6 if "float32" in recipe else 1e-3), recipe
    return trained


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_a_saved_model_gives_the_trainers_own_loss_in_another_process(tmp_path, monkeypatch, case):
    check_cases(tmp_path, monkeypatch, [case])


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_is_saved_whole_with_every_cache_in_both_precisions(tmp_path, monkeypatch, way):
    cases = [case for case in TABLE if case[0] == way]
    losses = check_cases(tmp_path, monkeypatch, cases)
    # The cache changes nothing but the time.
    for precision in PRECISIONS:
        alike = [loss for recipe, loss in losses.items() if precision in recipe]
        assert max(alike) - min(alike) < (1e-5 if precision == "float32" else 2e-2)


def test_a_file_that_lacks_a_weight_or_holds_another_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_inputs(tmp_path)
    recipe = write_recipe(tmp_path, tmp_path / "run")
    _, _, model_args = parse_recipe(["--config", str(recipe)])
    [path] = folder.glob("*.safetensors")
    whole = load_file(path)
    tower = next(name for name in whole if "vision_tower" in name and "encoder" in name)
    for weights, message in [
        ({name: tensor for name, tensor in whole.items() if name != tower}, f"lacks 1 weights, .*{tower[-20:]}"),
        (whole | {"model.extra": torch.zeros(1)}, "has no place for 1 weights"),
    ]:
        save_file(weights, path, {"format": "pt"})
        with pytest.raises(WeightsError, match=message):
            load_base_model(model_args)


def test_a_whole_model_goes_on_from_the_weights_of_its_checkpoint(tmp_path):
    write_inputs(tmp_path)
    keys = WAYS["whole"] | {"leaks": "allow", "lora_dropout": 0.0, "vision_cache": str(tmp_path / "features")}
    keys["resume_changes"] = ["max_steps"]
    ended = []
    for name, stops in [("undisturbed", [4]), ("resumed", [2, 4])]:
        for stop in stops:
            recipe = write_recipe(
                tmp_path, tmp_path / name, max_steps=stop, lr_scheduler_type="constant", save_steps=1, **keys
            )
            trainer, _, _ = begin_recipe(recipe)
            trainer.train("auto")
        trainer.save_model()
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            ended.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    assert set(ended[0]) == set(ended[1]) and any("vision_tower" in key for key in ended[0])
    assert all(torch.equal(tensor, ended[1][key]) for key, tensor in ended[0].items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps({recipe: load_case(recipe) for recipe in sys.argv[1:]}))
