"""A checkpoint is whole or doesn't count, and what is taken in its place is the newest that is."""

import errno
import json
import os
import shutil

import pytest
from written_checkpoints import FILES, RUN, write_checkpoint

from histolab_sft.training.checkpoints import (
    MANIFEST,
    MIB,
    CheckpointError,
    check_disk,
    choose_checkpoint,
    explain_failed_write,
    list_checkpoints,
    rotate_checkpoints,
    verify_checkpoint,
    write_manifest,
)

RUN |= {"processes": 1, "compiled_layers": False, "id": "one", "changes": [], "keys": {"learning_rate": 0.01}}


@pytest.fixture
def output_dir(tmp_path):
    """Checkpoints of the steps 2 and 4, both whole."""
    for step in (2, 4):
        write_checkpoint(tmp_path, step)
    return tmp_path


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def cut(name, size):
    return lambda folder: os.truncate(folder / name, size)


def flip_a_bit(folder):
    content = bytearray(folder.joinpath("optimizer.pt").read_bytes())
    content[57] ^= 4
    folder.joinpath("optimizer.pt").write_bytes(content)


def pass_off_another_step(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("checkpoint-2"), folder)


def remove(name):
    return lambda folder: (folder / name).unlink()


def add_sentinel(folder):
    folder.joinpath("checkpoint-is-incomplete.txt").write_text("in progress")


def replace_by_link(folder):
    folder.joinpath("optimizer.pt").unlink()
    folder.joinpath("optimizer.pt").symlink_to("/dev/zero")


DAMAGE = {
    "empty folder": (empty, "is empty"),
    "weights missing": (remove("adapter_model.safetensors"), "lacks: adapter_model.safetensors"),
    "optimiser missing": (remove("optimizer.pt"), "lacks: optimizer.pt"),
    "scheduler missing": (remove("scheduler.pt"), "lacks: scheduler.pt"),
    "random numbers missing": (remove("rng_state.pth"), "lacks: rng_state.pth"),
    "state missing": (remove("trainer_state.json"), "lacks: trainer_state.json"),
    "manifest missing": (remove(MANIFEST), "its save was cut off"),
    "manifest cut": (cut(MANIFEST, 100), "can't be read"),
    "cut": (cut("adapter_model.safetensors", 100), "has 100 bytes, expected"),
    "emptied": (cut("optimizer.pt", 0), "has 0 bytes, expected"),
    "bit flipped": (flip_a_bit, "its bytes were changed"),
    "file too many": (add_sentinel, "holds beside what was saved: checkpoint-is-incomplete.txt"),
    "of another step": (pass_off_another_step, "is of step 2"),
    "link in place of a file": (replace_by_link, "has"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(output_dir, caplog, kind):
    damage, reason = DAMAGE[kind]
    damage(output_dir / "checkpoint-4")
    assert choose_checkpoint("auto", output_dir, RUN)[0] == str(output_dir / "checkpoint-2")
    assert len(caplog.records) == 1
    assert "checkpoint-4" in caplog.text and reason in caplog.text


def test_the_newest_whole_checkpoint_is_taken_by_its_step_not_by_its_age(output_dir):
    write_checkpoint(output_dir, 10)
    os.utime(output_dir / "checkpoint-10", (0, 0))
    assert choose_checkpoint("auto", output_dir, RUN)[0] == str(output_dir / "checkpoint-10")


def test_auto_starts_afresh_where_nothing_is_whole(tmp_path):
    assert choose_checkpoint("auto", tmp_path / "nothing", RUN)[0] is None
    write_checkpoint(tmp_path, 2, whole=False)
    assert choose_checkpoint("auto", tmp_path, RUN)[0] is None


def test_a_fresh_start_among_old_checkpoints_is_refused(output_dir):
    with pytest.raises(CheckpointError, match="checkpoint-4 of an earlier run.*resume_from_checkpoint: auto"):
        choose_checkpoint(None, output_dir, RUN)


def test_a_checkpoint_asked_for_by_path_must_be_whole(output_dir):
    assert choose_checkpoint(str(output_dir / "checkpoint-2"), output_dir, RUN)[0] == str(output_dir / "checkpoint-2")
    remove("optimizer.pt")(output_dir / "checkpoint-2")
    with pytest.raises(CheckpointError, match="lacks: optimizer.pt"):
        choose_checkpoint(str(output_dir / "checkpoint-2"), output_dir, RUN)


@pytest.mark.parametrize(
    "change",
    [{"data_fingerprint": "beef"}, {"base_model": "other"}, {"seed": 7}, {"effective_batch": 8}]
    + [{"compiled_layers": True}],
)
def test_another_run_does_not_go_on_from_it(output_dir, change):
    with pytest.raises(CheckpointError, match=f"with {next(iter(change))} .*expected"):
        choose_checkpoint("auto", output_dir, RUN | change)


def test_another_number_of_processes_is_told_and_refused_for_shards(output_dir, caplog):
    assert choose_checkpoint("auto", output_dir, RUN | {"processes": 2})[0] == str(output_dir / "checkpoint-4")
    assert "random numbers of dropout" in caplog.text
    folder = write_checkpoint(output_dir, 6, whole=False)
    folder.joinpath("latest").write_text("global_step6")
    write_manifest(folder, RUN)
    with pytest.raises(CheckpointError, match="DeepSpeed"):
        choose_checkpoint("auto", output_dir, RUN | {"processes": 2})


def test_rotation_keeps_the_newest_whole_ones_and_the_best(output_dir):
    for step in (6, 8, 10):
        write_checkpoint(output_dir, step)
    rotate_checkpoints(output_dir, 2, {str(output_dir / "checkpoint-10"), "elsewhere/checkpoint-4"}, "one")
    assert [path.name for path in list_checkpoints(output_dir)] == ["checkpoint-4", "checkpoint-10"]


def test_rotation_counts_no_torn_checkpoint_as_one_to_keep(output_dir):
    write_checkpoint(output_dir, 6, whole=False)
    write_checkpoint(output_dir, 8)
    rotate_checkpoints(output_dir, 2, {str(output_dir / "checkpoint-8")}, "one")
    assert [path.name for path in list_checkpoints(output_dir)] == ["checkpoint-4", "checkpoint-8"]


def test_rotation_with_a_limit_of_one_keeps_the_new_one_even_beside_a_later_step(output_dir):
    rotate_checkpoints(output_dir, 1, {str(output_dir / "checkpoint-2")}, "one")
    assert [path.name for path in list_checkpoints(output_dir)] == ["checkpoint-2"]


def test_no_limit_removes_no_whole_checkpoint(output_dir):
    rotate_checkpoints(output_dir, None, set(), "one")
    assert len(list_checkpoints(output_dir)) == 2


def test_the_manifest_names_every_file_below_the_folder(tmp_path):
    folder = write_checkpoint(tmp_path, 2, whole=False)
    (folder / "global_step2").mkdir()
    folder.joinpath("global_step2", "shard.pt").write_bytes(b"shard")
    write_manifest(folder, RUN)
    assert set(json.loads(folder.joinpath(MANIFEST).read_text())["files"]) == {
        *FILES,
        "begun.json",
        "global_step2/shard.pt",
    }
    folder.joinpath("global_step2", "shard.pt").write_bytes(b"shar!")
    with pytest.raises(CheckpointError, match="global_step2/shard.pt"):
        verify_checkpoint(folder)


def test_too_small_a_disk_is_refused_with_path_and_numbers(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(CheckpointError, match=rf"{tmp_path} has \d+ MiB free, expected at least \d+ MiB") as error:
        check_disk(tmp_path, free + 100 * MIB)
    assert "make room" in str(error.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_names_path_and_bytes_and_leaves_the_others(output_dir, number):
    folder = output_dir / "checkpoint-6"
    with pytest.raises(CheckpointError) as error, explain_failed_write(folder):
        folder.mkdir()
        folder.joinpath("optimizer.pt").write_bytes(b"x" * 1000)
        raise OSError(number, os.strerror(number), str(folder / "optimizer.pt"))
    for words in (
        str(folder),
        "after 1000 bytes",
        os.strerror(number),
        "bytes are free",
        "checkpoint-2, checkpoint-4",
    ):
        assert words in str(error.value)
    assert choose_checkpoint("auto", output_dir, RUN)[0] == str(output_dir / "checkpoint-4")
    assert not folder.exists()


def test_an_error_that_is_not_the_disks_passes_through(tmp_path):
    with pytest.raises(RuntimeError, match="CUDA error"), explain_failed_write(tmp_path / "checkpoint-2"):
        raise RuntimeError("CUDA error: device-side assert")
