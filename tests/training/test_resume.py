"""A run that is cut off anywhere and goes on ends up bit-equal to the one that nobody disturbed."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from steady_runs import (
    SendSignals,
    build_trainer,
    compare,
    hash_adapter,
    hash_trained,
    logged,
    write_inputs,
    write_recipe,
)
from transformers import TrainerCallback

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.evaluation import run
from histolab_sft.signals import SIGNALS
from histolab_sft.training.checkpoints import CheckpointError, find_whole_checkpoint, verify_checkpoint

pytestmark = pytest.mark.model

STEPS = 16


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Patches and a base model."""
    folder = tmp_path_factory.mktemp("resumed")
    write_inputs(folder)
    return folder


@pytest.mark.parametrize(
    ("accumulation", "augmentation"),
    [(2, "all"), *(pytest.param(count, "none", marks=pytest.mark.thorough) for count in (1, 4))],
)
def test_a_run_that_is_stopped_after_every_step_is_bit_equal(folder, tmp_path, accumulation, augmentation):
    # 16 patches in batches of 2: epochs of 8, 4 and 2 steps; evaluation where epochs end, a log every third step.
    keys = {"gradient_accumulation_steps": accumulation, "max_steps": STEPS, "eval_strategy": "epoch"}
    keys |= {"augmentation": augmentation, "lora_dropout": 0.1}
    undisturbed = build_trainer(folder, tmp_path / "undisturbed", save_strategy="no", **keys)
    undisturbed.train()
    assert len({entry["loss"] for entry in logged(undisturbed) if "loss" in entry}) == STEPS // 3

    for step in range(1, STEPS + 1):
        resumed = build_trainer(folder, tmp_path / "resumed", save_total_limit=2, **keys)
        resumed.add_callback(SendSignals(accumulation, [SIGNALS[step % 3]]))
        resumed.train("auto")
        assert resumed.state.global_step == step
        assert resumed.interrupted == (SIGNALS[step % 3] if step < STEPS else None)
    compare(resumed, undisturbed)


@pytest.mark.parametrize("step", [3, 4, 9, 16])
def test_a_run_that_goes_on_from_any_of_its_periodic_checkpoints_is_bit_equal(folder, tmp_path, step):
    keys = {"gradient_accumulation_steps": 2, "max_steps": STEPS, "eval_strategy": "epoch", "logging_steps": 5}
    undisturbed = build_trainer(folder, tmp_path / "run", **keys)
    undisturbed.train()
    resumed = build_trainer(folder, tmp_path / "run", **keys)
    resumed.train(str(tmp_path / "run" / f"checkpoint-{step}"))
    compare(resumed, undisturbed)


def test_the_handlers_from_before_are_back_after_training(folder, tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    trainer = build_trainer(folder, tmp_path / "run", max_steps=1)
    trainer.train()
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("every", [1, 3])
def test_early_stopping_decides_the_same_after_resumes(folder, tmp_path, every):
    rule = {"mode": "threshold", "metric": "loss", "threshold": 6.2, "patience": 4, "decay": 0.5}
    keys = {"max_steps": 40, "logging_steps": every, "save_total_limit": 2}
    undisturbed = build_trainer(folder, tmp_path / "undisturbed", rule, **keys)
    undisturbed.train()
    assert 4 < undisturbed.state.global_step < 40

    for moment in (2, 3, 100):
        resumed = build_trainer(folder, tmp_path / "resumed", rule, **keys | {"save_steps": 10})
        resumed.add_callback(SendSignals(moment))
        resumed.train("auto")
    compare(resumed, undisturbed)


@pytest.mark.parametrize("save_steps", [1, 100])
def test_an_early_stopped_run_stays_stopped(folder, tmp_path, save_steps):
    rule = {"mode": "threshold", "metric": "loss", "threshold": 6.2, "patience": 4, "decay": 0.5}
    first = build_trainer(folder, tmp_path / "run", rule, max_steps=40, logging_steps=1, save_steps=save_steps)
    first.train()
    again = build_trainer(folder, tmp_path / "run", rule, max_steps=40, logging_steps=1, save_steps=save_steps)
    again.train("auto")
    assert again.state.global_step == first.state.global_step < 40
    assert hash_trained(again) == hash_trained(first)


def test_a_finished_run_that_is_resumed_makes_no_step(folder, tmp_path):
    # The run ends in the middle of an epoch.
    first = build_trainer(folder, tmp_path / "run", max_steps=5)
    first.train()
    again = build_trainer(folder, tmp_path / "run", max_steps=5)
    again.train("auto")
    assert again.state.global_step == 5 and again.interrupted is None
    assert hash_trained(again) == hash_trained(first)


@pytest.mark.thorough
def test_the_number_of_workers_changes_nothing_in_a_resumed_run_either(folder, tmp_path):
    hashes = set()
    for workers in (0, 1, 2):
        keys = {"max_steps": 6, "dataloader_num_workers": workers, "gradient_accumulation_steps": 2}
        trainer = build_trainer(folder, tmp_path / f"whole-{workers}", **keys)
        trainer.train()
        hashes.add(hash_trained(trainer))
        if workers:
            for moment in (3, 100):
                trainer = build_trainer(folder, tmp_path / f"cut-{workers}", **keys)
                trainer.add_callback(SendSignals(moment))
                trainer.train("auto")
            hashes.add(hash_trained(trainer))
    assert len(hashes) == 1


def test_a_seed_gives_one_adapter_and_another_seed_another(folder, tmp_path):
    hashes = []
    for name, seed in (("a", 42), ("b", 42), ("c", 43)):
        trainer = build_trainer(folder, tmp_path / name, seed=seed, max_steps=2)
        torch.rand(1)  # what was drawn before has no part in it
        trainer.train()
        hashes.append(hash_trained(trainer))
    assert hashes[0] == hashes[1] != hashes[2]


def test_rotation_never_leaves_a_run_without_a_whole_checkpoint(folder, tmp_path):
    class Watch(TrainerCallback):
        whole = []

        def on_save(self, args, state, control, **kwargs):
            # The new one isn't whole yet.
            self.whole.append([path.parent.name for path in Path(args.output_dir).glob("*/manifest.json")])

    trainer = build_trainer(folder, tmp_path / "run", max_steps=4, save_total_limit=1)
    trainer.add_callback(Watch())
    trainer.train()
    assert Watch.whole == [[], ["checkpoint-1"], ["checkpoint-2"], ["checkpoint-3"]]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_torn_newest_checkpoint_is_passed_over_and_made_anew(folder, tmp_path, caplog):
    keys = {"max_steps": 4}
    first = build_trainer(folder, tmp_path / "run", **keys)
    first.train()
    expected = hash_trained(first)
    os.truncate(tmp_path / "run" / "checkpoint-4" / "optimizer.pt", 100)
    again = build_trainer(folder, tmp_path / "run", **keys)
    again.train("auto")
    assert "checkpoint-4/optimizer.pt has 100 bytes" in caplog.text
    assert hash_trained(again) == expected
    verify_checkpoint(tmp_path / "run" / "checkpoint-4")


def test_a_disk_that_fills_up_at_eleven_points_of_a_save_leaves_the_older_checkpoint(folder, tmp_path):
    class Quota(TrainerCallback):
        """No file may grow beyond `limit` bytes once the second step is done."""

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    build_trainer(folder, tmp_path / "unlimited", max_steps=2, logging_steps=100).train()
    sizes = sorted(path.stat().st_size for path in (tmp_path / "unlimited" / "checkpoint-2").iterdir())
    assert len(sizes) == 10
    # No byte at all, and one too few for each of the files.
    for number, size in enumerate([1, *sizes]):
        output_dir = tmp_path / f"limited-{number}"
        trainer = build_trainer(folder, output_dir, max_steps=4, logging_steps=100)
        quota = Quota()
        quota.limit = size - 1
        trainer.add_callback(quota)
        try:
            with pytest.raises((CheckpointError, OSError)) as error:
                trainer.train()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(output_dir / "checkpoint-2") in str(error.value)
        assert find_whole_checkpoint(output_dir) == output_dir / "checkpoint-1"
        with safe_open(output_dir / "checkpoint-1" / "adapter_model.safetensors", "pt") as adapter:
            assert all(adapter.get_tensor(name).isfinite().all() for name in adapter.keys())  # noqa: SIM118
        if number == 10:
            resumed = build_trainer(folder, output_dir, max_steps=4, logging_steps=100)
            resumed.train("auto")
            assert resumed.state.global_step == 4


def test_too_small_a_disk_is_found_before_the_first_step(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    trainer = build_trainer(folder, tmp_path / "run")
    with pytest.raises(CheckpointError, match="MiB free, expected at least"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_checkpoints_hold_no_pickled_arguments_and_no_card(folder, tmp_path):
    trainer = build_trainer(folder, tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.save_model()
    names = {path.name for path in (tmp_path / "run").rglob("*")}
    assert not names & {"training_args.bin", "README.md", ".saving"}
    assert hash_adapter(tmp_path / "run") == hash_adapter(tmp_path / "run" / "checkpoint-1")


@pytest.fixture
def undecided(monkeypatch):
    """Whatever full determinism sets is as it was afterwards."""
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
    yield
    torch.use_deterministic_algorithms(False)


def test_full_determinism_has_training_take_operations_that_repeat_bit_by_bit(folder, tmp_path, undecided):
    asked = []

    class Ask(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            asked.append(torch.are_deterministic_algorithms_enabled())

    for value in (True, False):
        trainer = build_trainer(folder, tmp_path / str(value), max_steps=1, full_determinism=value)
        trainer.add_callback(Ask())
        trainer.train()
        torch.use_deterministic_algorithms(False)
    assert asked == [True, False]


def test_full_determinism_has_scoring_take_them_too(folder, tmp_path, monkeypatch, undecided):
    build_trainer(folder, tmp_path / "run").save_model()
    asked = []

    class Asked(Exception):
        """What scoring would go on with takes seconds and tells nothing more."""

    def ask(*args, **kwargs):
        asked.append(torch.are_deterministic_algorithms_enabled())
        raise Asked

    monkeypatch.setattr(run, "predict", ask)
    for value in (True, False):
        recipe = write_recipe(folder, tmp_path / "run", full_determinism=value, leaks="allow")
        with pytest.raises(Asked):
            run.evaluate(*parse_recipe(["--config", str(recipe)]), {})
        torch.use_deterministic_algorithms(False)
    assert asked == [True, False]
