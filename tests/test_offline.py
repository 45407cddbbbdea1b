"""Without a network everything works; with a bad one the base model comes all the same, or one sentence tells why."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from steady_runs import start_recipe, write_inputs, write_recipe

from histolab_sft.config.base_model import ModelConfig
from histolab_sft.hub_access import HubAccessError, explain_hub_errors, fetch_base_model
from histolab_sft.models.load import build_meta_model, load_base_model, load_processor

pytestmark = pytest.mark.model

MODEL = "lab/tiny"
COMMIT = "a1" * 20
ROUTES = (f"/api/models/{MODEL}/tree/{COMMIT}", f"/api/models/{MODEL}/revision/main", f"/{MODEL}/resolve/")
HEADERS = {403: {"X-Error-Code": "GatedRepo"}, 401: {"X-Error-Code": "RepoNotFound"}}


class ModelServer(ThreadingHTTPServer):
    """The Hub's calls for reading one model; the next answers are those in `faults`: a status, or `hang`."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), ModelHandler)
        self.folder = folder
        self.faults = []
        self.calls = 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # a client that has given up


class ModelHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client to say that its head has come

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        self.server.calls += 1
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "hang":
            self.server.released.wait(20)
            self.close_connection = True
            return
        if fault is not None:
            self.send(fault, b"", **HEADERS.get(fault, {}))
            return
        path = self.path.split("?")[0]
        names = [file.name for file in self.server.folder.iterdir()]
        if path == f"/api/models/{MODEL}/revision/main":
            body = {"id": MODEL, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            body = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
        else:
            file = self.server.folder / path.rsplit("/", 1)[-1]
            if not file.is_file():
                self.send(404, b"", **{"X-Error-Code": "EntryNotFound"})
                return
            body = file.read_bytes()
        self.send(200, body if isinstance(body, bytes) else json.dumps(body).encode(), with_body)

    def send(self, status, body, with_body=True, **headers):
        self.send_response(status)
        headers |= {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        for name, value in {**headers, "Content-Length": len(body), "Content-Type": "application/json"}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Patches and a base model."""
    folder = tmp_path_factory.mktemp("offline")
    write_inputs(folder)
    return folder


@pytest.fixture
def server(folder, tmp_path, monkeypatch):
    server = ModelServer(folder / "model")
    server.released = threading.Event()
    url = f"http://127.0.0.1:{server.server_port}"
    # Read by huggingface_hub when it is imported, which other tests have already done.
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, 1)
    server.pauses = []
    monkeypatch.setattr(time, "sleep", server.pauses.append)
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def load(server):
    """Bring the model, then load what can be loaded with the server gone."""
    fetch_base_model(MODEL)
    server.faults = [500] * 1000
    cached = huggingface_hub.snapshot_download(MODEL, local_files_only=True)
    return load_processor(cached), build_meta_model(ModelConfig(model_name_or_path=cached))[0]


@pytest.mark.parametrize("faults", [[429] * 3, [500] * 3, [503, 429, 500], ["hang"]])
def test_a_model_comes_after_the_hub_was_busy_or_silent(server, faults, caplog):
    server.faults = list(faults)
    processor, model = load(server)
    assert type(processor).__name__ == "Gemma3Processor" and type(model).__name__.startswith("Gemma3")
    # After a first try without a word, each further one is told.
    assert len(server.pauses) == caplog.text.count("Retrying in") in range(min(1, len(faults) - 1), len(faults))


def test_faults_between_the_files_are_got_over_too(server, monkeypatch):
    fetch_base_model(MODEL)
    whole = server.calls
    huggingface_hub.constants.HF_HUB_CACHE += "-2"
    server.faults = [None if call % 3 else 503 for call in range(1, 200)]
    fetch_base_model(MODEL)
    assert server.calls > whole
    server.faults = [500] * 1000
    assert huggingface_hub.snapshot_download(MODEL, local_files_only=True)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (429, "the Hub answered 429 for lab/tiny, again and again: wait"),
        (500, "the Hub answered 500 for lab/tiny, again and again: wait"),
        (403, "lab/tiny is gated, and this login may not read it: open http.*/lab/tiny, accept its terms"),
        (401, "/lab/tiny isn't there, or this login can't see it"),
    ],
)
def test_a_model_that_cannot_be_had_is_told_in_one_sentence_after_a_bounded_wait(server, fault, sentence):
    server.faults = [fault] * 1000
    with pytest.raises(HubAccessError, match=sentence) as error:
        fetch_base_model(MODEL)
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__
    assert server.calls <= 7 and sum(server.pauses) <= 60


def test_a_hub_that_is_not_there_is_told(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(HubAccessError, match="no connection to http.*check the network"):
        fetch_base_model(MODEL)


def test_a_model_in_the_cache_needs_no_hub(server, monkeypatch):
    fetch_base_model(MODEL)
    calls = server.calls
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fetch_base_model(MODEL)
    assert server.calls == calls


def test_weights_and_processor_load_by_their_name_from_the_cache_alone(server, monkeypatch):
    fetch_base_model(MODEL)
    calls = server.calls
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model_args = ModelConfig(MODEL, load_in_4bit=True)
    model, processor = load_base_model(model_args), load_processor(MODEL)
    assert type(processor).__name__ == "Gemma3Processor" and model.is_loaded_in_4bit
    assert server.calls == calls


def test_a_missing_model_offline_tells_how_to_fetch_it(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubAccessError, match="HF_HUB_OFFLINE is set: fetch it once with `hf download lab/tiny`"):
        fetch_base_model(MODEL)
    # Scoring, merging and the demo load the model by one function, the look ahead only the processor.
    for load_it in (lambda: load_base_model(ModelConfig(MODEL)), lambda: load_processor(MODEL)):
        with pytest.raises(HubAccessError, match="fetch it once with `hf download lab/tiny`"):
            load_it()


def test_a_folder_is_left_alone(server, folder):
    fetch_base_model(str(folder / "model"))
    assert server.calls == 0


def test_an_error_that_is_not_the_hubs_passes_through():
    with pytest.raises(FileNotFoundError, match="patches"), explain_hub_errors(MODEL):
        raise FileNotFoundError("no patches")


def test_training_and_scoring_open_no_socket(folder, tmp_path):
    recipe = write_recipe(folder, tmp_path / "run", max_steps=2)
    for script in ("recipes/sft.py", "recipes/evaluate.py"):
        process = start_recipe(recipe, tmp_path / "log", script=script, sockets=False)
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "log").read_text()[-4000:]
    assert (tmp_path / "run" / "evaluation" / "results.json").is_file()
