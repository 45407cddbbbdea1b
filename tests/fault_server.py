"""A web server on 127.0.0.1 that misbehaves on request, for the tests of downloads."""

import contextlib
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultServer(ThreadingHTTPServer):
    """Serves `files`; the next requests are answered by the functions in `faults`, one each, as long as there are any.

    `requests` tells of every request its path, its Range header and the body bytes sent.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), FaultHandler)
        self.files: dict[str, bytes] = {}
        self.faults: list[Callable] = []
        self.requests: list[dict] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class FaultHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client to say that its head has come

    def do_GET(self):
        self.told = {"path": self.path, "range": self.headers.get("Range"), "sent": 0}
        self.server.requests.append(self.told)
        answer = self.server.faults.pop(0) if self.server.faults else serve
        answer(self, self.server.files.get(self.path.lstrip("/")))

    def log_message(self, *_):
        pass

    def start(self, status: int, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, body: bytes):
        self.wfile.write(body)
        self.wfile.flush()
        self.told["sent"] += len(body)

    def hang_up(self):
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client may have left first
            self.connection.shutdown(socket.SHUT_RDWR)


def etag_of(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def serve(handler: FaultHandler, body: bytes | None, etag: str | None = None) -> None:
    """What a good server does, ranges and If-Range included."""
    if body is None:
        handler.start(404, Content_Length=0)
        return
    etag = etag or etag_of(body)
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if not wanted or handler.headers.get("If-Range", etag) != etag:
        handler.start(200, Content_Length=len(body), ETag=etag)
        handler.send(body)
        return
    start = int(wanted[1])
    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
    handler.start(206, Content_Length=len(body) - start, Content_Range=span, ETag=etag)
    handler.send(body[start:])


def cut_after(n: int) -> Callable:
    """Announce the whole body, send `n` bytes of it (from the range asked for), hang up."""

    def answer(handler, body):
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        span = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if wanted else {}
        handler.start(206 if wanted else 200, Content_Length=len(body) - start, ETag=etag_of(body), **span)
        handler.send(body[start : start + n])
        handler.hang_up()

    return answer


def stall_after(n: int, seconds: float) -> Callable:
    """Send `n` bytes, then nothing, with the line open."""

    def answer(handler, body):
        handler.start(200, Content_Length=len(body), ETag=etag_of(body))
        handler.send(body[:n])
        time.sleep(seconds)
        handler.hang_up()

    return answer


def status(code: int, **headers) -> Callable:
    return lambda handler, body: handler.start(code, Content_Length=0, **headers)


def redirect(target: str) -> Callable:
    return status(302, Location=target)


def other_bytes(handler, body) -> None:
    """The right size, the wrong content."""
    serve(handler, bytes(len(body)))


def ignore_range(handler, body) -> None:
    handler.start(200, Content_Length=len(body), ETag=etag_of(body))
    handler.send(body)


def wrong_length(n: int) -> Callable:
    def answer(handler, body):
        handler.start(200, Content_Length=n, ETag=etag_of(body))
        handler.send(body[:n])
        handler.hang_up()

    return answer


def no_length(extra: bytes = b"", keep: int | None = None) -> Callable:
    """Say no length and end the body by closing: more or fewer bytes than there are, as told."""

    def answer(handler, body):
        handler.start(200, Connection="close")
        handler.send(body[:keep] + extra)
        handler.hang_up()

    return answer


def wrong_range(handler, body) -> None:
    """Answer a range with the bytes from the start, labelled as such."""
    handler.start(206, Content_Length=len(body), Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}")
    handler.send(body)


def range_of_other_file(body: bytes) -> Callable:
    """A server that ignores If-Range and sends the rest of another file of the same size."""

    def answer(handler, _):
        start = int(re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"])[1])
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.start(206, Content_Length=len(body) - start, Content_Range=span, ETag=etag_of(body))
        handler.send(body[start:])

    return answer
