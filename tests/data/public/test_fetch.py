import hashlib
import json
import random
import subprocess
import sys
import time

import fault_server as faults
import httpx2
import pytest

from histolab_sft.data.public import fetch as fetch_module
from histolab_sft.data.public.benchmarks import RemoteFile
from histolab_sft.data.public.fetch import fetch

BODY = random.Random(0).randbytes(300_000)
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()
HALF = 150_000


@pytest.fixture
def server():
    server = faults.FaultServer()
    server.files["toy.bin"] = BODY
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(fetch_module, "FIRST_DELAY", 0.0)
    monkeypatch.setattr(fetch_module, "LONGEST_DELAY", 0.05)


def remote(server, checksum=MD5, size=300_000) -> RemoteFile:
    return RemoteFile(server.url("toy.bin"), checksum, size, "toy.bin", 1_000_000)


def run(file, folder, timeout=5.0):
    with httpx2.Client(trust_env=False, timeout=timeout) as client:
        fetch(client, file, folder / file.name)


def assert_only_the_good_file(folder):
    assert [path.name for path in folder.iterdir()] == ["toy.bin"]
    assert (folder / "toy.bin").read_bytes() == BODY


def test_a_good_server_gives_the_file_in_one_request(server, tmp_path):
    run(remote(server), tmp_path)
    assert_only_the_good_file(tmp_path)
    assert [r["range"] for r in server.requests] == [None]


PASSING_FAULTS = {
    "500": [faults.status(500)],
    "429 with Retry-After": [faults.status(429, Retry_After=1)],
    "502, 503, 504": [faults.status(502), faults.status(503), faults.status(504)],
    "truncated body": [faults.cut_after(HALF)],
    "hangs up before a byte": [faults.cut_after(0)],
    "body ends early without a length": [faults.no_length(keep=HALF)],
    "three cuts": [faults.cut_after(50_000)] * 3,
    "range answered from the start": [faults.cut_after(HALF), faults.wrong_range],
    "range not satisfiable": [faults.cut_after(HALF), faults.status(416, Content_Range="bytes */10")],
    "range ignored": [faults.cut_after(HALF), faults.ignore_range],
    "other file of the same size on resume": [faults.cut_after(HALF), faults.range_of_other_file(bytes(len(BODY)))],
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_a_passing_fault_ends_in_the_good_file(server, tmp_path, fault):
    server.faults = list(PASSING_FAULTS[fault])
    run(remote(server), tmp_path)
    assert_only_the_good_file(tmp_path)
    assert server.faults == []


def test_a_server_that_stalls_is_asked_again_for_the_rest(server, tmp_path):
    server.faults = [faults.stall_after(HALF, seconds=0.5)]
    run(remote(server), tmp_path, timeout=0.2)
    assert_only_the_good_file(tmp_path)
    assert server.requests[-1]["range"] == f"bytes={HALF}-"


LASTING_FAULTS = {
    "other bytes": (faults.other_bytes, ValueError, "md5"),
    "Content-Length too small": (faults.wrong_length(1000), ValueError, "1,000 bytes offered"),
    "Content-Length too large": (faults.wrong_length(len(BODY) + 7), ValueError, "300,007 bytes offered"),
    "more bytes than published": (faults.no_length(extra=b"more"), ValueError, "more than 300,000 bytes"),
    "redirect to file://": (faults.redirect("file:///etc/hostname"), ValueError, "found file://"),
    "redirect to ftp://": (faults.redirect("ftp://127.0.0.1/toy.bin"), ValueError, "found ftp://"),
    "redirect to http elsewhere": (faults.redirect("http://example.org/toy.bin"), ValueError, "found http://"),
    "redirect to itself": (faults.redirect("/toy.bin"), ValueError, "more than 5 redirects"),
    "404": (faults.status(404), OSError, "HTTP 404"),
    "500 for ever": (faults.status(500), OSError, "after 6 attempts"),
    "nothing but cuts": (faults.cut_after(10), OSError, "after 6 attempts"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", LASTING_FAULTS)
def test_a_lasting_fault_is_named_and_no_bad_file_is_kept(server, tmp_path, fault):
    answer, error, message = LASTING_FAULTS[fault]
    server.faults = [answer] * 10
    with pytest.raises(error, match=message):
        run(remote(server), tmp_path)
    assert not (tmp_path / "toy.bin").exists()
    server.faults = []
    run(remote(server), tmp_path)
    assert_only_the_good_file(tmp_path)


def test_the_next_call_asks_only_for_what_is_missing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "ATTEMPTS", 1)
    server.faults = [faults.cut_after(HALF)]
    with pytest.raises(OSError, match="goes on from there"):
        run(remote(server), tmp_path)
    kept = (tmp_path / "toy.bin.part").stat().st_size
    assert 0 < kept <= HALF
    run(remote(server), tmp_path)
    assert_only_the_good_file(tmp_path)
    assert server.requests[-1]["range"] == f"bytes={kept}-"
    assert server.requests[-1]["sent"] == len(BODY) - kept < len(BODY)


@pytest.mark.model
def test_a_download_killed_half_way_goes_on_in_the_next_call(server, tmp_path):
    server.faults = [faults.stall_after(HALF, seconds=30)]
    file = remote(server)
    program = (
        "import sys, httpx2; from pathlib import Path; from histolab_sft.data.public.benchmarks import RemoteFile\n"
        "from histolab_sft.data.public.fetch import fetch\n"
        "file = RemoteFile(sys.argv[1], sys.argv[2], 300_000, 'toy.bin', 1_000_000)\n"
        "fetch(httpx2.Client(trust_env=False), file, Path(sys.argv[3], 'toy.bin'))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, file.url, file.checksum, str(tmp_path)])
    part = tmp_path / "toy.bin.part"
    while not (part.exists() and part.stat().st_size > HALF // 2):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = part.stat().st_size
    run(file, tmp_path)
    assert_only_the_good_file(tmp_path)
    assert server.requests[-1]["range"] == f"bytes={kept}-"
    assert server.requests[-1]["sent"] == len(BODY) - kept


def test_a_file_that_changed_between_two_calls_is_fetched_from_the_start(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "ATTEMPTS", 1)
    server.faults = [faults.cut_after(HALF)]
    with pytest.raises(OSError):
        run(remote(server, checksum=None, size=None), tmp_path)
    server.files["toy.bin"] = changed = bytes(200_000)
    run(remote(server, checksum=None, size=None), tmp_path)
    assert (tmp_path / "toy.bin").read_bytes() == changed


def test_halves_that_nothing_ties_together_are_not_joined(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "ATTEMPTS", 1)
    server.faults = [faults.no_length(keep=HALF)]
    file = remote(server, checksum=None)
    with pytest.raises(OSError):
        run(file, tmp_path)
    run(file, tmp_path)
    assert server.requests[-1]["range"] is None
    assert_only_the_good_file(tmp_path)


def test_a_download_killed_just_before_its_rename_needs_no_request(server, tmp_path):
    (tmp_path / "toy.bin.part").write_bytes(BODY)
    notes = {"url": server.url("toy.bin"), "validator": faults.etag_of(BODY), "total": len(BODY)}
    (tmp_path / "toy.bin.part.json").write_text(json.dumps(notes))
    run(remote(server), tmp_path)
    assert_only_the_good_file(tmp_path)
    assert server.requests == []


def test_bytes_left_by_someone_else_are_not_resumed(server, tmp_path):
    (tmp_path / "toy.bin.part").write_bytes(b"not ours")
    run(remote(server), tmp_path)
    assert_only_the_good_file(tmp_path)
    assert server.requests[0]["range"] is None


@pytest.mark.parametrize(
    "url", ["http://example.org/a", "file:///etc/hostname", "ftp://127.0.0.1/a", "http://127.0.0.1.x/a"]
)
def test_an_address_that_is_not_https_is_refused_by_name(url, tmp_path):
    with pytest.raises(ValueError, match="expected https://"):
        run(RemoteFile(url, None, None, "a", 10), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_from_https_to_http_is_refused_even_to_the_loopback(tmp_path):
    answer = httpx2.Response(302, headers={"location": "http://127.0.0.1:9/a"})
    file = RemoteFile("https://zenodo.org/a", None, None, "a", 10)
    with (
        httpx2.Client(transport=httpx2.MockTransport(lambda request: answer)) as client,
        pytest.raises(ValueError, match="from https to http"),
    ):
        fetch(client, file, tmp_path / "a")


def test_a_file_without_published_checksum_is_called_unverified(server, tmp_path, caplog):
    run(remote(server, checksum=None), tmp_path)
    assert "UNVERIFIED, no published checksum" in caplog.text


def test_a_wrong_file_that_already_stands_there_is_refused_not_replaced(server, tmp_path):
    (tmp_path / "toy.bin").write_bytes(b"mine")
    with pytest.raises(ValueError, match="found 4 bytes, expected 300,000"):
        run(remote(server), tmp_path)
    assert (tmp_path / "toy.bin").read_bytes() == b"mine"
    assert server.requests == []
