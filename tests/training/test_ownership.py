"""A run removes what it wrote itself, and goes on from nothing else."""

import json
import os
import shutil

import pytest
from written_checkpoints import RUN, write_checkpoint

from histolab_sft.training.checkpoints import (
    CheckpointError,
    begin_checkpoint,
    choose_checkpoint,
    list_checkpoints,
    rotate_checkpoints,
)

OTHER = RUN | {"id": "another", "data_fingerprint": "beef"}


def write_plain(output_dir, step):
    """Write a checkpoint as a plain Trainer leaves it."""
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    folder.joinpath("trainer_state.json").write_text(json.dumps({"global_step": step}))
    folder.joinpath("optimizer.pt").write_bytes(b"state")
    return folder


def write_link(output_dir, step, run):
    """Write a checkpoint on another disk, as it were, and a link to it."""
    target = write_checkpoint(output_dir.with_name("disk"), step, run=run)
    output_dir.joinpath(f"checkpoint-{step}").symlink_to(target, target_is_directory=True)
    return target


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def output_dir(tmp_path):
    """Checkpoints of others at the steps 1 to 4, of this run at 10, 12 and 14."""
    folder = tmp_path / "out"
    write_plain(folder, 1)
    write_checkpoint(folder, 2, run=OTHER)
    write_checkpoint(folder, 3, whole=False, run=OTHER)
    write_link(folder, 4, OTHER)
    for step in (10, 12, 14):
        write_checkpoint(folder, step)
    return folder


def test_rotation_leaves_the_checkpoints_of_others(output_dir):
    others = [output_dir / f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    before = [snapshot(folder) for folder in others]
    assert choose_checkpoint("auto", output_dir, RUN)[0] == str(output_dir / "checkpoint-14")
    rotate_checkpoints(output_dir, 1, {str(output_dir / "checkpoint-14")}, "one")
    assert [snapshot(folder) for folder in others] == before
    assert (output_dir / "checkpoint-4").is_symlink()
    own = [path.name for path in list_checkpoints(output_dir) if path not in others]
    assert own == ["checkpoint-14"]


def test_a_link_to_a_checkpoint_of_this_run_is_taken_away_and_what_it_leads_to_stays(output_dir):
    target = write_link(output_dir, 6, RUN)
    before = snapshot(target)
    rotate_checkpoints(output_dir, 1, {str(output_dir / "checkpoint-14")}, "one")
    assert not (output_dir / "checkpoint-6").is_symlink()
    assert snapshot(target) == before


def test_a_read_only_checkpoint_stays_and_is_told(output_dir, caplog):
    os.chmod(output_dir / "checkpoint-10", 0o555)
    rotate_checkpoints(output_dir, 1, {str(output_dir / "checkpoint-14")}, "one")
    assert (output_dir / "checkpoint-10" / "manifest.json").is_file()
    assert not (output_dir / "checkpoint-12").exists()
    assert "checkpoint-10 is read-only and stays" in caplog.text


def test_auto_that_can_use_none_stops_and_says_why_for_each(output_dir):
    for step in (10, 12, 14):
        shutil.rmtree(output_dir / f"checkpoint-{step}")
    os.truncate(output_dir / "checkpoint-2" / "optimizer.pt", 3)
    os.truncate(output_dir / "checkpoint-4" / "optimizer.pt", 3)
    before = snapshot(output_dir)
    with pytest.raises(CheckpointError, match="none that this run can go on from") as error:
        choose_checkpoint("auto", output_dir, RUN)
    for words in (
        *("checkpoint-1 has no manifest.json", "checkpoint-2/optimizer.pt has 3 bytes", "checkpoint-3 has no"),
        *("checkpoint-4/optimizer.pt has 3 bytes", "move them away"),
    ):
        assert words in str(error.value)
    assert snapshot(output_dir) == before


def test_auto_starts_afresh_where_all_that_is_there_are_its_own_saves_that_were_cut_off(tmp_path):
    write_checkpoint(tmp_path, 2, whole=False, run=RUN | {"id": "before the kill"})
    (tmp_path / "checkpoint-4").mkdir()
    assert choose_checkpoint("auto", tmp_path, RUN) == (None, [])
    assert not (tmp_path / "checkpoint-2").exists()


def test_a_name_that_the_run_will_need_and_another_has_is_refused_at_the_start(output_dir):
    write_plain(output_dir, 16)
    with pytest.raises(CheckpointError, match="checkpoint-16 isn't of the run that goes on from checkpoint-14"):
        choose_checkpoint("auto", output_dir, RUN)


def test_a_save_takes_the_place_of_nothing_that_another_run_wrote(output_dir):
    before = snapshot(output_dir)
    for step in (1, 2, 3, 4):
        with pytest.raises(CheckpointError, match=f"checkpoint-{step} isn't of this run"):
            begin_checkpoint(output_dir / f"checkpoint-{step}", RUN)
    assert snapshot(output_dir) == before


def test_a_fresh_start_advises_auto_only_where_auto_can_go_on(output_dir, tmp_path):
    with pytest.raises(CheckpointError, match="resume_from_checkpoint: auto"):
        choose_checkpoint(None, output_dir, RUN)
    write_plain(tmp_path / "plain", 3)
    with pytest.raises(CheckpointError, match="holds checkpoint-3 of an earlier run") as error:
        choose_checkpoint(None, tmp_path / "plain", RUN)
    assert "auto" not in str(error.value)
