import gzip
import hashlib
import io
import json
import logging
import zipfile

import fault_server as faults
import h5py
import numpy as np
import pytest

from histolab_sft.data.pictures.archives import UnsafeArchiveError
from histolab_sft.data.public import download as download_module
from histolab_sft.data.public import fetch as fetch_module
from histolab_sft.data.public.benchmarks import Benchmark, RemoteFile
from histolab_sft.data.public.download import download
from recipes import download as command

COUNTS = {"ADI": 3, "TUM": 2}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch_module, "FIRST_DELAY", 0.0)
    server = faults.FaultServer()
    server.files["toy.zip"] = toy_zip()
    server.files["toy_y.h5.gz"] = gzip.compress(toy_hdf5())
    yield server
    server.shutdown()
    server.server_close()


def toy_zip(extra: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, count in COUNTS.items():
            for index in range(count):
                archive.writestr(f"TOY/{name}/{name}-{index}.tif", np.random.default_rng(index).bytes(2000))
        archive.writestr("TOY/ADI/._ADI-0.tif", "left by another system")
        archive.writestr("SLIDES/huge.svs", "not asked for")
        if extra:
            archive.writestr(extra, "outside")
    return buffer.getvalue()


def toy_hdf5() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as opened:
        opened["y"] = np.array([0, 1, 1], dtype=np.uint8).reshape(3, 1, 1, 1)
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return "md5:" + hashlib.md5(content).hexdigest()


def toy(server, **changes) -> Benchmark:
    packed, hdf5_gz = server.files["toy.zip"], server.files["toy_y.h5.gz"]
    unpacked = md5(gzip.decompress(hdf5_gz))
    facts = {
        "name": "toy",
        "title": "Toy patches",
        "source": "https://example.org/toy",
        "licence": "CC BY 4.0",
        "protocol": "none",
        "class_names": {"ADI": "adipose", "TUM": "tumor"},
        "files": (
            RemoteFile(server.url("toy.zip"), md5(packed), len(packed), "TOY", 100_000),
            RemoteFile(server.url("toy_y.h5.gz"), md5(hdf5_gz), len(hdf5_gz), "toy_y.h5", 100_000, unpacked),
        ),
        "counts": {"TOY": COUNTS},
        "rows": {"toy_y.h5": {"y": 3}},
    }
    return Benchmark(**facts | changes)


def test_the_whole_road_leaves_the_patches_and_nothing_else(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    download(toy(server), tmp_path / "toy")
    visible = sorted(path.name for path in (tmp_path / "toy").iterdir() if not path.name.startswith("."))
    assert visible == ["TOY", "toy_y.h5"]
    assert len(list((tmp_path / "toy" / "TOY").rglob("[!.]*.tif"))) == 5
    assert (tmp_path / "toy" / "toy_y.h5").read_bytes() == gzip.decompress(server.files["toy_y.h5.gz"])
    assert "licence: CC BY 4.0" in caplog.text and "source: https://example.org/toy" in caplog.text


def test_a_second_call_makes_no_request_and_says_that_nothing_was_to_do(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    download(toy(server), tmp_path / "toy")
    asked = len(server.requests)
    download(toy(server), tmp_path / "toy")
    assert len(server.requests) == asked == 2
    assert "already here, nothing to download, sizes and counts are as published" in caplog.text


def test_a_patch_that_shrank_after_the_check_is_told(server, tmp_path):
    download(toy(server), tmp_path / "toy")
    (tmp_path / "toy" / "TOY" / "ADI" / "ADI-0.tif").write_bytes(b"")
    with pytest.raises(ValueError, match="changed since it was verified"):
        download(toy(server), tmp_path / "toy")


def test_only_what_is_missing_is_fetched_again(server, tmp_path):
    download(toy(server), tmp_path / "toy")
    (tmp_path / "toy" / "toy_y.h5").unlink()
    server.requests.clear()
    download(toy(server), tmp_path / "toy")
    assert [request["path"] for request in server.requests] == ["/toy_y.h5.gz"]


def test_counts_that_differ_from_the_published_ones_are_refused(server, tmp_path):
    with pytest.raises(ValueError, match=r"TOY/TUM: found 2 images, expected 9"):
        download(toy(server, counts={"TOY": {"ADI": 3, "TUM": 9}}), tmp_path / "toy")


def test_a_disk_too_small_is_refused_before_any_request(server, tmp_path):
    huge = RemoteFile(server.url("toy.zip"), None, 10**15, "TOY", 10**16)
    with pytest.raises(OSError, match=r"bytes free, expected 11,000,000,000,000,000") as error:
        download(toy(server, files=(huge,)), tmp_path / "toy")
    assert str(tmp_path / "toy") in str(error.value)
    assert server.requests == []


def test_a_hostile_archive_with_the_right_checksum_leaves_nothing_outside(server, tmp_path):
    server.files["toy.zip"] = toy_zip(extra="../outside.tif")
    with pytest.raises(UnsafeArchiveError, match="parent folder"):
        download(toy(server), tmp_path / "deep" / "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["toy"]
    assert not (tmp_path / "deep" / "toy" / "TOY").exists()


def test_an_unpacked_file_with_another_checksum_is_not_kept(server, tmp_path):
    good = toy(server)
    wrong = RemoteFile(good.files[1].url, good.files[1].checksum, None, "toy_y.h5", 100_000, md5(b"other"))
    with pytest.raises(ValueError, match="found md5"):
        download(toy(server, files=(wrong,), counts={}), tmp_path / "toy")
    assert not (tmp_path / "toy" / "toy_y.h5").exists()


def test_a_kill_while_unpacking_is_tidied_up_without_a_new_download(server, tmp_path):
    folder = tmp_path / "toy"
    (folder / ".extract-dead" / "TOY").mkdir(parents=True)
    (folder / "toy.zip").write_bytes(server.files["toy.zip"])
    download(toy(server), folder)
    assert [request["path"] for request in server.requests] == ["/toy_y.h5.gz"]
    assert not (folder / ".extract-dead").exists() and not (folder / "toy.zip").exists()


def test_patches_placed_by_hand_are_taken_and_called_unverified(server, tmp_path, caplog):
    folder = tmp_path / "toy"
    download(toy(server), folder)
    (folder / download_module.MARKER).unlink()
    server.requests.clear()
    download(toy(server), folder)
    assert server.requests == []
    assert "UNVERIFIED, not unpacked by this command" in caplog.text
    assert set(json.loads((folder / download_module.MARKER).read_text())) == {"toy.zip", "toy_y.h5.gz"}


def test_two_downloads_into_one_folder_do_not_mix(server, tmp_path):
    with (
        download_module._locked(tmp_path),
        pytest.raises(OSError, match="another download at work"),
    ):
        download(toy(server), tmp_path)
    assert server.requests == []


def test_the_command_tries_every_data_set_and_returns_one_if_any_failed(server, tmp_path, monkeypatch, caplog):
    broken = toy(server, name="broken", files=(RemoteFile(server.url("gone.zip"), None, None, "GONE", 10),))
    monkeypatch.setattr(command, "BENCHMARKS", {"toy": toy(server), "broken": broken})
    assert command.main(["broken", "toy", "--folder", str(tmp_path)]) == 1
    assert "1 of 2 data sets failed: broken" in caplog.text
    assert command.main(["toy", "--folder", str(tmp_path)]) == 0


def test_a_data_set_to_be_placed_by_hand_tells_where_from_and_what(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert command.main(["mhist", "--folder", str(tmp_path)]) == 1
    assert "https://bmirds.github.io/MHIST" in caplog.text and "annotations.csv" in caplog.text
    (tmp_path / "breakhis").mkdir()
    assert command.main(["breakhis", "--folder", str(tmp_path)]) == 1
    assert "malignant: found 0 images, expected 5429" in caplog.text
