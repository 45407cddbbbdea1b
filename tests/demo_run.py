"""A trained and scored run of the tiny model, and the demo's server on it, for the tests of the demo."""

import contextlib
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import uuid

import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

DATASETS = [
    {"name": "crc", "source": "crc", "class_names": {"ADI": "Adipose", "STR": "Stroma", "TUM": "Tumor"}},
    {"name": "pcam", "source": "pcam", "class_names": {"Normal": "Normal", "Tumor": "Tumor"}},
]
TARGETS = r".*language_model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"


def write_run(folder, base, adapter=True, **keys):
    """Write a recipe of the model in `base`, an adapter that changes its answers, and their evaluation.

    Of crc, every answer of the fine-tuned model is to be withheld and none of the base model; of pcam, the other way.
    """
    output_dir = folder / "out"
    recipe = {
        "model_name_or_path": str(base),
        "datasets": DATASETS,
        "output_dir": str(output_dir),
        "use_peft": True,
        "lora_target_modules": ["q_proj", "v_proj"],
        "use_cpu": True,
        "bf16": False,
        "max_new_tokens": 8,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | keys))
    if adapter:
        model = AutoModelForImageTextToText.from_pretrained(base)
        config = LoraConfig(r=4, lora_alpha=64, init_lora_weights=False, target_modules=TARGETS)
        get_peft_model(model, config).save_pretrained(output_dir)
        write_evaluation(output_dir)
    return path


def write_evaluation(output_dir, **curves):
    """Write `results.json` of the adapter in `output_dir`, with the abstention curves on validation."""
    sure = {"threshold": [0.0], "coverage": [1.0], "accuracy": [0.95]}
    never = {"threshold": [0.6], "coverage": [1.0], "accuracy": [0.4]}
    kept = {"crc": {"baseline": sure, "finetuned": never}, "pcam": {"baseline": never, "finetuned": sure}} | curves
    sha256 = hashlib.sha256((output_dir / "adapter_model.safetensors").read_bytes()).hexdigest()
    results = {"provenance": {"adapter_sha256": sha256}, "datasets": {}}
    for entry in DATASETS:
        systems = {system: {"abstention_validation": curve} for system, curve in kept[entry["name"]].items()}
        # The same for every class: what the page shows is as without it.
        log_prior = dict.fromkeys(entry["class_names"].values(), -1.0)
        systems["zero_shot"] = {"headline": "corrected", "log_prior": log_prior}
        results["datasets"][entry["name"]] = {"classes": list(entry["class_names"].values()), **systems}
    (output_dir / "evaluation").mkdir(exist_ok=True)
    (output_dir / "evaluation" / "results.json").write_text(json.dumps(results))


@contextlib.contextmanager
def running(command, folder, **environment):
    """Start a demo in `folder`, with its temporary files in `folder/tmp`; yield process and port once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    environment["GRADIO_SERVER_PORT"] = str(port)
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        while not _answers(port):
            if process.poll() is not None:
                raise RuntimeError(f"the demo ended with {process.returncode}: {(folder / 'log.txt').read_text()}")
            time.sleep(0.5)
        yield process, port
    finally:
        process.terminate()
        process.wait(30)


def app_command(recipe, *flags):
    return [sys.executable, "-m", "histolab_sft.demo.app", "--config", str(recipe), *flags]


def request(port, method, path, body=None, headers=None):
    """Send one request as it stands, nothing normalised; return status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def send_upload(port, name, data):
    """Upload one file as the page does; return the status and, if it was taken, where the server put it."""
    boundary = "boundary-of-the-test"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
    body = (
        head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + data + f"\r\n--{boundary}--\r\n".encode()
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    status, _, answer = request(port, "POST", "/gradio_api/upload", body, headers)
    return status, json.loads(answer)[0] if status == 200 else answer.decode()


def find_function(port, name):
    """Return the number by which the page calls a function."""
    config = json.loads(request(port, "GET", "/config")[2])
    return next(entry["id"] for entry in config["dependencies"] if entry["api_name"] == name)


def call(port, function, data):
    """Call a function through the queue, as the page does; return all that the server says about it."""
    session = uuid.uuid4().hex
    message = json.dumps({"data": data, "fn_index": function, "session_hash": session})
    status, _, answer = request(port, "POST", "/gradio_api/queue/join", message, {"Content-Type": "application/json"})
    if status != 200:
        return answer.decode()
    return request(port, "GET", f"/gradio_api/queue/data?session_hash={session}")[2].decode()


def file_data(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def _answers(port):
    try:
        return request(port, "GET", "/")[0] == 200
    except OSError:
        return False
