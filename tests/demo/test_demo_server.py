"""Requests that nobody should send, against the demo as it runs: nothing foreign comes out, and it still answers."""

import base64
import concurrent.futures
import io
import json
import os
import re
import signal
import stat
import struct
import sys
import time
import zipfile
import zlib

import numpy as np
import psutil
import pytest
from demo_run import APP, app_command, call, file_data, find_function, request, running, send_upload, write_run
from fault_server import FaultServer
from PIL import Image

from histolab_sft.demo import server as server_module
from histolab_sft.demo.server import PREFIX, own_folder
from histolab_sft.files import remove_abandoned

pytestmark = pytest.mark.model

CANARY = "CANARY-5f1c2d"
FOREIGN = (CANARY.encode(), b"root:x:", b"OMP_NUM_THREADS", b"Traceback")
SVG = f'<svg xmlns="http://www.w3.org/2000/svg"><script>alert("{CANARY}")</script></svg>'.encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "secret.txt").write_text(CANARY)
    (folder / ".env").write_text(f"HF_TOKEN={CANARY}")
    return folder


@pytest.fixture(scope="module")
def server(place, untrained_model):
    recipe = write_run(place, untrained_model)
    with running(app_command(recipe), place) as (process, port):
        [own] = (place / "tmp").glob("histolab-demo-*")
        (own / ".env").write_text(CANARY)
        (own / "secret.txt").write_text(CANARY)
        yield process, port, own


@pytest.fixture
def canary_server():
    server = FaultServer()
    server.files["secret.png"] = CANARY.encode()
    yield server
    server.shutdown()
    server.server_close()


def png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def noise(mode="RGB"):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).convert(mode)


def write_bomb(side=30_000):
    """Write a PNG of a few hundred kilobytes that unpacks to side x side pixels of one bit."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def write_zip(members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for info, content in members:
            archive.writestr(info, content)
    return data.getvalue()


def link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


def ask(port, path):
    return call(port, find_function(port, "ask"), [gallery(path), "pcam", 0, "", "", False, None, None])


def gallery(path):
    return [{"image": file_data(path), "caption": None}]


def upload(port, name, data):
    """Upload a file as the page does and let the page's own function open it; return what is said about it."""
    status, path = send_upload(port, name, data)
    assert status == 200
    return call(port, find_function(port, "show_uploads"), [gallery(path), "pcam", None])


def is_refused(said):
    """Return whether the page gets a refusal, or an error without a word about it."""
    return "hs-refused" in said or '"success":false' in said


def assert_answers(server):
    """The server answers an honest request, as it did before."""
    process, port, _ = server
    status, path = send_upload(port, "honest.png", png(noise()))
    said = ask(port, path)
    assert status == 200 and process.poll() is None
    assert said.count("data-probability") >= 4 and '"success":true' in said.replace(" ", "")


def assert_nothing_foreign(answer, place):
    answer = answer.encode() if isinstance(answer, str) else answer
    assert not [foreign for foreign in FOREIGN if foreign in answer]
    assert str(place).encode() not in answer


PATHS = [
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=//etc/passwd",
    "/gradio_api/file=../../../../../../../etc/passwd",
    "/gradio_api/file=%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/gradio_api/file=/{own}/files/../.env",
    "/gradio_api/file=/{own}/files/..%2f..%2f..%2fsecret.txt",
    "/gradio_api/file=/{place}/secret.txt",
    "/gradio_api/file=/{place}/.env",
    "/gradio_api/file=/{own}/.env",
    "/gradio_api/file=/{own}/secret.txt",
    "/gradio_api/file=.env",
    "/gradio_api/file=/proc/self/environ",
    "/gradio_api/file=/dev/zero",
    "/gradio_api/file=file:///etc/passwd",
    "/gradio_api/file=http://127.0.0.1:{canary}/secret.png",
    "/gradio_api/file=http://169.254.169.254/latest/meta-data/",
    "/gradio_api/proxy=http://127.0.0.1:{canary}/secret.png",
    "/gradio_api/file//{place}/secret.txt",
    "/gradio_api/file=/{own}/files/%00",
    "/static/../../../../../../../../etc/passwd",
    "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/gradio_api/custom_component/x/client/component/../../../../etc/passwd",
    "/gradio_api/deep_link?session_hash=x",
    "/gradio_api/runs",
    "/gradio_api/openapi.json",
    "/docs",
    "/monitoring",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_to_a_file_of_the_machine(server, place, canary_server, path):
    _, port, own = server
    path = path.format(own=str(own)[1:], place=str(place)[1:], canary=canary_server.server_port)
    for method in ("GET", "HEAD", "POST"):
        status, _, body = request(port, method, path, b"{}" if method == "POST" else None)
        assert status >= 400, method
        assert not [foreign for foreign in FOREIGN if foreign in body]
    assert not canary_server.requests
    assert request(port, "GET", "/")[0] == 200


@pytest.mark.parametrize("route", ["run/ask", "api/ask", "call/ask", "call/v2/ask"])
def test_functions_answer_the_page_alone(server, place, route):
    body = json.dumps({"data": [gallery(str(place / "secret.txt")), "pcam", 0, "", "", False, None, None]})
    status, _, answer = request(server[1], "POST", f"/gradio_api/{route}", body, {"Content-Type": "application/json"})
    assert status == 404
    assert_nothing_foreign(answer, place)
    assert json.loads(request(server[1], "GET", "/gradio_api/info")[2]) == {
        "named_endpoints": {},
        "unnamed_endpoints": {},
    }


def test_a_page_elsewhere_cannot_reach_the_server_under_its_own_name(server):
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example"):
        assert request(server[1], "GET", "/", headers={"Host": host})[0] == 400


@pytest.mark.parametrize("function", ["show_uploads", "ask", "ask_all"])
def test_a_message_cannot_name_a_file_that_was_not_uploaded(server, place, canary_server, function):
    _, port, own = server
    address = canary_server.url("secret.png")
    names = [str(place / "secret.txt"), "/etc/passwd", str(own / "secret.txt"), "../secret.txt", address]
    named = [file_data(name) for name in names]
    named += [file_data(names[0], url=address), file_data(names[0], url="file:///etc/passwd"), {"path": names[0]}]
    named += [file_data(address, url=address), file_data("http://169.254.169.254/latest/meta-data/x.png")]
    number = find_function(port, function)
    for entry in named:
        shown, asked = [{"image": entry, "caption": None}], ["pcam", 0, "", ""]
        data = {
            "show_uploads": [shown, "pcam", None],
            "ask": [shown, *asked, False, None, None],
            "ask_all": [[entry], *asked],
        }
        said = call(port, number, data[function])
        assert "data-probability" not in said and "process_completed" in said and is_refused(said)
        # The message may be quoted back, but neither what the file holds nor where the server works.
        assert not [foreign for foreign in FOREIGN if foreign in said.encode()]
        assert str(own) not in said.replace(names[2], "")
    assert not canary_server.requests


def test_a_message_of_the_wrong_shape_is_an_error_without_details(server, place):
    port = server[1]
    number = find_function(port, "ask")
    wrong = [
        [],
        [1, 2, 3],
        [None, "pcam", 0, "", "", False, None, None],
        [None, "no such data set", 0, "", "", False, None, None],
    ]
    wrong += [["x" * 5000, {}, []], [{}] * 9, [None, "pcam", 99, "", "", False, None, None]]
    for data in wrong:
        said = call(port, number, data)
        assert is_refused(said) or "detail" in said
        assert_nothing_foreign(said, place)
    for number in (-1, 99, "0; import os"):
        assert_nothing_foreign(call(port, number, []), place)
    assert_answers(server)


def test_an_upload_beyond_ten_megabytes_is_turned_away(server):
    _, port, own = server
    before = {path for path in own.rglob("*") if path.is_file()}
    assert send_upload(port, "large.png", bytes(11 * 10**6))[0] == 413
    left = [path for path in own.rglob("*") if path.is_file() and path not in before]
    assert sum(path.stat().st_size for path in left) < 11 * 10**6
    assert_answers(server)


def test_a_large_message_is_turned_away_unread(server):
    port = server[1]
    headers = {"Content-Type": "application/json"}
    assert request(port, "POST", "/gradio_api/queue/join", b"x" * 2_000_000, headers)[0] == 413
    chunked = headers | {"Transfer-Encoding": "chunked"}
    assert request(port, "POST", "/gradio_api/queue/join", b"2\r\n{}\r\n0\r\n\r\n", chunked)[0] == 413


def test_the_name_of_an_upload_cannot_leave_its_folder(server):
    _, port, own = server
    for name in ("../../evil.png", "/etc/evil.png", "..\\..\\evil.png", "%2e%2e%2fevil.png"):
        status, path = send_upload(port, name, png(noise()))
        assert status == 200 and path.startswith("/files") and "/../" not in path
    # Below the server's own folder, wherever in the machine's temporary files one looks.
    found = list(own.parents[1].rglob("*evil.png"))
    assert found and all(own / "files" in path.parents for path in found)


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("picture.svg", SVG, "one of these formats"),
        ("picture.png", SVG, "a picture of a known format"),
        ("picture.png", b"<html><body>not found</body></html>", "a picture of a known format"),
        ("picture.png", png(noise())[:500], "complete picture"),
        ("picture.png", write_bomb(), "at most 25000000"),
        ("picture.png", b"", "zero bytes"),
    ],
    ids=["svg", "svg as png", "html as png", "cut off", "bomb", "empty"],
)
def test_what_is_no_patch_is_refused_with_the_reason(server, place, name, data, reason):
    said = upload(server[1], name, data)
    assert is_refused(said) and reason in said
    assert_nothing_foreign(said, place)
    _, path = send_upload(server[1], name, data)
    said = ask(server[1], path)
    assert is_refused(said) and "data-probability" not in said
    assert_nothing_foreign(said, place)


def test_pictures_in_a_message_are_opened_by_the_same_rules(server, place):
    bomb = base64.b64encode(write_bomb(14_000)).decode()
    for url in [f"data:image/svg+xml;base64,{base64.b64encode(SVG).decode()}", f"data:image/png;base64,{bomb}"]:
        shown = [{"image": {"path": None, "url": url, "meta": {"_type": "gradio.FileData"}}, "caption": None}]
        said = call(server[1], find_function(server[1], "ask"), [shown, "pcam", 0, "", "", False, None, None])
        assert is_refused(said) or "Too large" in said
        assert_nothing_foreign(said, place)


def test_a_16_bit_picture_is_scaled_and_comes_back_as_bare_pixels(server):
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    said = upload(server[1], "deep.png", png(Image.fromarray(values)))
    assert "Converted: 16-bit grey scaled to 8-bit RGB" in said
    picture = json.loads(said.split("data: ")[-2 if "close_stream" in said else -1])["output"]["data"][0][0]["image"]
    status, headers, body = request(server[1], "GET", f"/gradio_api/file={picture['path']}")
    shown = Image.open(io.BytesIO(body))
    assert status == 200 and shown.mode == "RGB" and shown.format == "PNG"
    assert np.ptp(np.asarray(shown)) == 255


@pytest.mark.parametrize(
    "members, reason",
    [
        ([("../../evil.png", png(noise()))], "climbs to a parent folder"),
        ([link("a/evil.png", "/etc/passwd")], "symbolic link"),
        ([("a/big.png", bytes(9 * 2**20)), ("a/big2.png", bytes(9 * 2**20))], None),
    ],
    ids=["traversal", "link", "large"],
)
def test_an_unsafe_archive_is_refused_without_a_path(server, place, members, reason):
    status, path = send_upload(server[1], "patches.zip", write_zip(members))
    if reason is None:
        assert status == 413
        return
    said = call(server[1], find_function(server[1], "ask_all"), [[file_data(path)], "pcam", 0, "", ""])
    assert reason in said and is_refused(said)
    assert_nothing_foreign(said, place)


def test_fifty_at_once_are_answered_or_turned_away(server):
    process, port, _ = server
    _, path = send_upload(port, "honest.png", png(noise()))
    before = psutil.Process(process.pid).memory_info().rss
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        said = list(pool.map(lambda number: ask(port, path), range(50)))
    answered = [text for text in said if '"success":true' in text]
    assert len(answered) == 50
    assert len({text.split("data-probability")[1][:30] for text in answered}) == 1
    assert psutil.Process(process.pid).memory_info().rss - before < 2**30
    assert_answers(server)


def test_it_listens_on_this_machine_alone_and_cleans_up_when_it_ends(place, untrained_model, tmp_path):
    recipe = write_run(tmp_path, untrained_model)
    with running(app_command(recipe), tmp_path) as (process, port):
        sockets = [entry.laddr for entry in psutil.Process(process.pid).net_connections() if entry.status == "LISTEN"]
        assert [(entry.ip, entry.port) for entry in sockets] == [("127.0.0.1", port)]
        assert psutil.Process(process.pid).cwd().startswith(str(tmp_path / "tmp" / "histolab-demo-"))
        process.send_signal(2)
        process.wait(30)
    assert not list((tmp_path / "tmp").glob("histolab-demo-*"))


@pytest.mark.thorough
def test_pictures_go_when_the_demo_is_ended_and_what_a_killed_one_left_goes_at_the_next_start(
    untrained_model, tmp_path, monkeypatch
):
    recipe = write_run(tmp_path, untrained_model)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        with running(app_command(recipe), tmp_path) as (process, port):
            assert send_upload(port, "honest.png", png(noise()))[0] == 200
            process.send_signal(number)
            assert process.wait(30) == code
        assert len(list((tmp_path / "tmp").glob("histolab-demo-*"))) == (number == signal.SIGKILL)
        place = (tmp_path / "tmp").rename(tmp_path / f"left by {number}")
    [left] = place.glob("histolab-demo-*")
    monkeypatch.setattr("tempfile.tempdir", str(place))
    with own_folder() as own:  # just made: it may be another demo's, not locked yet
        assert left.exists() and own.exists()
    os.utime(left, (0, 0))
    with own_folder() as own:
        os.utime(own, (0, 0))
        remove_abandoned(place, PREFIX)
        assert own.exists() and not left.exists()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)
def test_a_page_of_another_site_can_neither_upload_nor_ask(server, headers):
    _, port, own = server
    before = list_files(own)
    body = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\na\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    for path in ("/gradio_api/upload", "/gradio_api/queue/join"):
        status, _, _ = request(port, "POST", path, body, kind | headers)
        assert status == 403
    assert list_files(own) == before
    own_page = {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}
    assert request(port, "POST", "/gradio_api/upload", body, kind | own_page)[0] == 200


def test_no_path_of_this_machine_stands_in_the_page_and_its_files_are_still_served(server, place):
    _, port, own = server
    _, uploaded = send_upload(port, "honest.png", png(noise()))
    said = [request(port, "GET", path)[2] for path in ("/", "/config", "/gradio_api/info")]
    for answer in (*said, uploaded.encode(), ask(port, uploaded).encode()):
        assert str(place).encode() not in answer and own.name.encode() not in answer
    examples = re.findall(r'"url":"(http[^"]*/gradio_api/file=[^"]+)"', said[1].decode())
    for address in (*examples[:2], f"http://here/gradio_api/file={uploaded}"):
        status, _, picture = request(port, "GET", "/" + address.split("/", 3)[3])
        assert status == 200 and Image.open(io.BytesIO(picture)).size[0] > 0


def test_uploads_of_all_visitors_together_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "stored").write_bytes(bytes(1000))
    monkeypatch.setattr(server_module, "MAX_STORED", 1500)
    scope = {"path": "/gradio_api/upload", "method": "POST", "headers": [(b"content-length", b"400")]}
    assert server_module._refuse(scope) is None
    scope["headers"] = [(b"content-length", b"600")]
    assert server_module._refuse(scope).status_code == 507
    scope["headers"] = []
    assert server_module._refuse(scope).status_code == 411


@pytest.mark.thorough
def test_uploads_and_results_are_deleted_when_their_time_is_over(untrained_model, tmp_path):
    code = "from histolab_sft.demo import page; page.DELETE_CACHE = (1, 1)"
    code += f"; import runpy; runpy.run_path({APP!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, "--config", str(write_run(tmp_path, untrained_model))]
    with running(command, tmp_path) as (_, port):
        [own] = (tmp_path / "tmp").glob("histolab-demo-*")
        examples = list_files(own)
        _, path = send_upload(port, "honest.png", png(noise()))
        said = call(port, find_function(port, "ask_all"), [[file_data(path)], "pcam", 0, "", ""])
        assert ".csv" in said
        call(port, find_function(port, "show_uploads"), [gallery(path), "pcam", None])
        deadline = time.monotonic() + 60
        while list_files(own) != examples and time.monotonic() < deadline:
            time.sleep(1)
        assert list_files(own) == examples


def list_files(folder):
    """Return the files that hold anything: Gradio leaves an empty one for each file that it hands to a function."""
    return {path for path in folder.rglob("*") if path.is_file() and path.stat().st_size}
