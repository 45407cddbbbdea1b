"""What a killed process leaves unfinished goes at the next start; what a living one is at stays."""

import os
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock

from histolab_sft.files import UNFINISHED, unfinished_folder
from histolab_sft.models.vision_cache.store import FeatureStore
from histolab_sft.run_lock import SAVING, hold_folder

WORK = (
    "import sys, time; from histolab_sft.files import unfinished_folder\n"
    "with unfinished_folder(sys.argv[1]) as folder:\n"
    "    folder.joinpath('half').write_text('half'); print(folder, flush=True); time.sleep(600)"
)


def age(folder):
    os.utime(folder, (0, 0))


@pytest.fixture
def other(tmp_path):
    """A process that works in an unfinished folder below `tmp_path`, and the folder."""
    process = subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()


def test_the_folder_of_a_killed_process_goes_at_the_next_start_and_that_of_a_living_one_stays(tmp_path, other):
    process, folder = other
    for alive in (True, False):
        age(folder)
        with unfinished_folder(tmp_path) as own:
            assert own.is_dir() and os.path.exists(folder) == alive
        assert not own.exists()
        process.kill()
        process.wait()


def test_a_folder_that_was_just_made_stays_because_its_process_may_not_have_locked_it(tmp_path):
    just_made = tmp_path / f"{UNFINISHED}a"
    just_made.mkdir()
    assert time.time() - just_made.stat().st_mtime < 5
    with unfinished_folder(tmp_path):
        assert just_made.exists()
    age(just_made)
    with unfinished_folder(tmp_path):
        assert not just_made.exists()


def test_a_folder_of_somebody_who_gave_it_such_a_name_stays(tmp_path):
    theirs = tmp_path / f"{UNFINISHED}pictures"
    theirs.mkdir()
    (theirs / "slide.png").write_text("theirs")
    age(theirs)
    with unfinished_folder(tmp_path):
        pass
    assert (theirs / "slide.png").read_text() == "theirs"


def test_files_links_and_folders_of_other_names_stay(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    tmp_path.joinpath(f"{UNFINISHED}link").symlink_to(kept)
    tmp_path.joinpath(f"{UNFINISHED}file").touch()
    tmp_path.joinpath("tmpabcdefgh").mkdir()
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    before = sorted(tmp_path.iterdir())
    with unfinished_folder(tmp_path):
        pass
    assert sorted(tmp_path.iterdir()) == before and kept.is_dir()


def test_weights_that_a_killed_run_did_not_finish_go_when_the_next_one_holds_the_folder(tmp_path):
    tmp_path.joinpath(SAVING).mkdir()
    tmp_path.joinpath(SAVING, "adapter_model.safetensors").touch()
    with hold_folder(tmp_path):
        assert not tmp_path.joinpath(SAVING).exists()


def test_unfinished_shards_go_unless_a_process_is_at_them(tmp_path):
    store = FeatureStore(tmp_path)
    store.write({"key": torch.zeros(2)}, "whole")
    for name in ("dead", "alive"):
        tmp_path.joinpath(f"{name}.tmp").touch()
    with FileLock(tmp_path / "alive.lock"):
        store.remove_leftovers()
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["alive.tmp"]
    assert "key" in FeatureStore(tmp_path)
