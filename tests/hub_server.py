"""The Hub's HTTP calls on 127.0.0.1: create, validate, preupload, LFS, commit, and reading data sets; with faults.

Only the calls that publishing and data sets make are there, with the Hub's own rules: a commit is taken whole or not
at all, names LFS files that have arrived whole, and must stand on the head of the repository. Files of data sets are
read whole or by range, and the bytes that went out are counted.
"""

import base64
import hashlib
import json
import re
import socket
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import unquote

import yaml

TOKEN = "hf_" + "testing" * 5
ROUTES = (
    ("create", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("info", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/main)?"),
    ("preupload", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/main"),
    ("batch", "POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    ("upload", "PUT", r"/storage/(?P<oid>[0-9a-f]{64})"),
    ("verify", "POST", r"/storage/verify"),
    ("commit", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/main"),
    ("dataset", "GET", r"/api/datasets/(?P<repo>[^/]+/[^/]+)(/revision/[^/]+)?"),
    ("tree", "GET", r"/api/datasets/(?P<repo>[^/]+/[^/]+)/tree/[^/]+(/(?P<folder>.+))?"),
    ("resolve", "(GET|HEAD)", r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)"),
)


def start_hub() -> "Hub":
    """Start a server on a free port; `close()` ends it."""
    hub = Hub(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{hub.server_address[1]}"
    Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return hub


class Hub(ThreadingHTTPServer):
    """Holds repositories, stored files, calls, what was cut (`(call, bytes taken)`) and the faults still to come.

    `datasets` holds the files of data sets (repository -> path -> bytes), `served` the bytes sent of each file.

    A fault is a status with an error text and headers, or `cut`: half of the body is read, then the line is dropped.
    """

    daemon_threads = True

    def __init__(self, *args):
        super().__init__(*args)
        self.repos, self.storage, self.calls, self.cut = {}, {}, [], []
        self.datasets, self.served = {}, defaultdict(int)
        self.faults = defaultdict(list)
        self.lock = Lock()

    def handle_error(self, request, client_address):
        pass  # a client that goes away is part of the tests

    def add_repo(self, repo: str, private: bool = True) -> None:
        self.repos[repo] = {"private": private, "files": {}, "commits": [], "head": _oid(repo)}

    def fail(self, call: str, status: int | str, error: str = "", times: int = 1, **headers: str) -> None:
        """Order a fault for the next `times` calls; `status` is a number or `cut`."""
        self.faults[call] += [(status, error, headers)] * times

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client to say that its head has come

    def do_POST(self):
        self._serve("POST")

    def do_GET(self):
        self._serve("GET")

    def do_HEAD(self):
        self._serve("HEAD")

    def do_PUT(self):
        self._serve("PUT")

    def log_message(self, format, *args):
        pass

    def _serve(self, method: str) -> None:
        path = unquote(self.path.split("?")[0])
        found = [(call, re.fullmatch(pattern, path)) for call, verb, pattern in ROUTES if re.fullmatch(verb, method)]
        found = [(call, match) for call, match in found if match]
        if not found:
            return self._answer(404, {"error": f"no such call: {method} {self.path}"})
        call, match = found[0]
        with self.server.lock:
            self.server.calls.append(call)
            fault = self.server.faults[call].pop(0) if self.server.faults[call] else None
        if fault and fault[0] == "cut":
            taken = self.rfile.read(int(self.headers.get("Content-Length", "0")) // 2)
            self.server.cut.append((call, len(taken)))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        body = self._read_body()
        if fault:
            status, error, headers = fault
            return self._answer(status, {"error": error}, {key.replace("_", "-"): v for key, v in headers.items()})
        if call != "upload" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        with self.server.lock:
            if call == "resolve":
                return self._send_file(**match.groupdict())
            return self._answer(*HANDLERS[call](self.server, body, **match.groupdict()))

    def _send_file(self, repo: str, file: str) -> None:
        content = self.server.datasets.get(repo, {}).get(file)
        if content is None:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_git_oid(content)}"', "X-Repo-Commit": _oid(repo), "Accept-Ranges": "bytes"}
        status, size = 200, len(content)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.send_response(status)
        for key, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.server.served[file] += len(content)
            self.wfile.write(content)
        return None

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _answer(self, status: int, content: dict, headers: dict | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def create(hub: Hub, body: bytes) -> tuple[int, dict]:
    asked = json.loads(body)
    repo = f"{asked['organization']}/{asked['name']}"
    if repo in hub.repos:
        return 409, {"error": "You already created this model repo", "url": f"{hub.url}/{repo}"}
    hub.add_repo(repo, private=asked.get("visibility") == "private")
    return 200, {"url": f"{hub.url}/{repo}", "name": repo}


def validate(hub: Hub, body: bytes) -> tuple[int, dict]:
    content = json.loads(body)["content"]
    data = yaml.safe_load(content.split("---\n")[1]) if content.startswith("---\n") else {}
    errors = []
    if "base_model" in data and not re.fullmatch(r"[\w.-]+/[\w.-]+", data["base_model"]):
        errors.append({"message": '"base_model" must be a model of the Hub'})
    if data.get("license") == "other" and not {"license_name", "license_link"} <= set(data):
        errors.append({"message": '"license_name" and "license_link" are required'})
    for result in data.get("model-index", [{"results": []}])[0]["results"]:
        complete = result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
        if not complete or not all(metric["type"] and "value" in metric for metric in result["metrics"]):
            errors.append({"message": '"model-index" is incomplete'})
    return (400 if errors else 200), {"errors": errors, "warnings": []}


def info(hub: Hub, body: bytes, repo: str) -> tuple[int, dict]:
    if repo not in hub.repos:
        return 404, {"error": "Repository not found"}
    entry = hub.repos[repo]
    return 200, {"id": repo, "private": entry["private"], "sha": entry["head"], "siblings": [], "tags": []}


def preupload(hub: Hub, body: bytes, repo: str) -> tuple[int, dict]:
    files = hub.repos[repo]["files"]
    answer = []
    for file in json.loads(body)["files"]:
        mode = "lfs" if file["path"].endswith((".safetensors", ".png", ".bin")) else "regular"
        known = files.get(file["path"])
        oid = known and (hashlib.sha256(known).hexdigest() if mode == "lfs" else _git_oid(known))
        answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return 200, {"files": answer}


def batch(hub: Hub, body: bytes, repo: str) -> tuple[int, dict]:
    objects = []
    for file in json.loads(body)["objects"]:
        if file["oid"] not in hub.storage:
            file["actions"] = {
                "upload": {"href": f"{hub.url}/storage/{file['oid']}?X-Amz-Signature=secret"},
                "verify": {"href": f"{hub.url}/storage/verify"},
            }
        objects.append(file)
    return 200, {"transfer": "basic", "objects": objects}


def upload(hub: Hub, body: bytes, oid: str) -> tuple[int, dict]:
    if hashlib.sha256(body).hexdigest() != oid:
        return 400, {"error": "checksum mismatch"}
    hub.storage[oid] = body
    return 200, {}


def verify(hub: Hub, body: bytes) -> tuple[int, dict]:
    asked = json.loads(body)
    arrived = len(hub.storage.get(asked["oid"], b"")) == asked["size"]
    return (200, {}) if arrived else (404, {"error": "object not found"})


def commit(hub: Hub, body: bytes, repo: str) -> tuple[int, dict]:
    header, *operations = [json.loads(line) for line in body.splitlines()]
    entry = hub.repos[repo]
    if header["value"].get("parentCommit", entry["head"]) != entry["head"]:
        return 412, {"error": "A commit has happened since. Please refresh and try again."}
    files = {}
    for operation in operations:
        value = operation["value"]
        if operation["key"] == "lfsFile" and value["oid"] not in hub.storage:
            return 400, {"error": f"LFS pointer pointed to a file that does not exist: {value['path']}"}
        is_lfs = operation["key"] == "lfsFile"
        files[value["path"]] = hub.storage[value["oid"]] if is_lfs else base64.b64decode(value["content"])
    entry["files"].update(files)
    entry["commits"].append(sorted(files))
    entry["head"] = _oid(entry["head"])
    return 200, {"commitUrl": f"{hub.url}/{repo}/commit/{entry['head']}", "commitOid": entry["head"]}


def dataset(hub: Hub, body: bytes, repo: str) -> tuple[int, dict, dict]:
    if repo not in hub.datasets:
        return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
    siblings = [{"rfilename": name} for name in hub.datasets[repo]]
    return 200, {"id": repo, "sha": _oid(repo), "siblings": siblings, "tags": []}, {}


def tree(hub: Hub, body: bytes, repo: str, folder: str | None) -> tuple[int, list]:
    prefix = f"{folder}/" if folder else ""
    below = {name: content for name, content in hub.datasets[repo].items() if name.startswith(prefix)}
    folders = {name.removeprefix(prefix).split("/")[0] for name in below if "/" in name.removeprefix(prefix)}
    entries = [{"type": "directory", "path": prefix + name, "oid": _oid(name), "size": 0} for name in sorted(folders)]
    for name, content in below.items():
        entries.append({"type": "file", "path": name, "oid": _git_oid(content), "size": len(content)})
    return 200, entries


HANDLERS = {
    "create": create,
    "validate": validate,
    "info": info,
    "preupload": preupload,
    "batch": batch,
    "upload": upload,
    "verify": verify,
    "commit": commit,
    "dataset": dataset,
    "tree": tree,
}


def _oid(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
