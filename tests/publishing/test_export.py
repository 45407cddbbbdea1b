"""A model that is taken home answers there as the adapter that was scored, or isn't written."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import jinja2
import numpy as np
import pytest
from fixtures.published_run import REPO, write_run
from fixtures.tiny_models import paint_patches
from PIL import Image
from sentencepiece import SentencePieceProcessor

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.embedded.pretext import QUESTIONS
from histolab_sft.embedded.tokenizer import build_processor
from histolab_sft.models.generate import generate_answers, render_prompt
from histolab_sft.models.likelihood import label_log_likelihoods
from histolab_sft.models.load import load_processor, locate_base_model
from histolab_sft.publishing import gguf
from histolab_sft.publishing.engine_parity import MAX_MEAN_GAP, compare_answers, read_answer
from histolab_sft.publishing.engines import ask, check_llama, find_engine, serve_gguf
from histolab_sft.publishing.export import ExportArguments, write_modelfile
from histolab_sft.publishing.gguf import build_sentencepiece, find_tools, write_gguf
from histolab_sft.publishing.hub import collect_evidence, write_evidence
from histolab_sft.publishing.merge import load_merged
from histolab_sft.publishing.publish_merged import build_merged_folder
from histolab_sft.publishing.push_gate import PublishError

ALIKE = np.full(64, 0.1)


def answers(different):
    """Give 64 answers of two systems, of which so many aren't the same."""
    return ["Tumor"] * 64, ["Stroma"] * different + ["Tumor"] * (64 - different)


@pytest.mark.parametrize(
    ("different", "gaps", "passed"),
    [
        (0, ALIKE, True),
        (3, ALIKE, True),
        (4, ALIKE, False),
        (0, np.full(64, MAX_MEAN_GAP + 0.01), False),
        (0, np.full(64, -MAX_MEAN_GAP - 0.01), False),
        (0, np.full(64, np.nan), True),
        (4, np.full(64, np.nan), False),
        (0, np.where(np.arange(64) < 60, np.nan, 0.1), True),
        (0, np.where(np.arange(64) < 60, np.nan, 9.0), False),
        (0, np.full(64, np.inf), False),
    ],
)
def test_the_gate_looks_at_answers_and_at_probabilities_where_there_are_any(different, gaps, passed):
    parity = compare_answers(["crc"] * 64, *answers(different), gaps)
    assert parity["passed"] is passed
    assert parity["all"]["agreement"] == 1 - different / 64
    assert parity["all"]["n_probabilities"] == int((~np.isnan(gaps)).sum())


def test_each_data_set_is_compared_by_itself():
    names = ["crc"] * 60 + ["pcam"] * 4
    parity = compare_answers(names, *answers(60), np.arange(64.0))
    assert list(parity["datasets"]) == ["crc", "pcam"]
    assert parity["datasets"]["pcam"] == {
        **{"n_patches": 4, "agreement": 1.0, "n_probabilities": 4},
        **{"mean_gap": 61.5, "largest_gap": 63.0},
    }


def test_answers_that_name_no_class_are_the_same_only_word_for_word():
    options = ["Tumor", "Stroma"]
    assert read_answer("The answer is: Tumor", options) == read_answer("tumor.", options) == "Tumor"
    assert read_answer("I see nothing", options) != read_answer("I see something", options)


@pytest.mark.parametrize(
    ("chosen", "quant"), [("gguf", "q8_0"), ("ollama", "q8_0"), ("vllm", "bf16"), ("merged", "bf16")]
)
def test_a_format_has_its_own_precision_unless_one_is_asked_for(chosen, quant):
    assert ExportArguments(format=chosen).quant == quant


def test_weights_for_transformers_are_bfloat16_alone():
    with pytest.raises(ValueError, match="quant is q8_0 with format: vllm, expected bf16; take format: gguf"):
        ExportArguments(format="vllm", quant="q8_0")


def test_a_tool_that_is_not_installed_is_named_with_the_command_that_brings_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PublishError, match=r"needs llama.cpp's llama-quantize.*brew install llama.cpp.*quant: q8_0"):
        find_tools("q4_k_m", None)
    with pytest.raises(PublishError, match="has no convert_hf_to_gguf.py, expected a clone of llama.cpp"):
        find_tools("q8_0", str(tmp_path))
    monkeypatch.setattr(gguf, "SOURCE", ("no_such_package", "llama.cpp"))
    with pytest.raises(PublishError, match=r'pip install -c constraints.txt -e ".\[export\]"'):
        find_tools("q8_0", None)
    monkeypatch.setattr("histolab_sft.publishing.engines.find_spec", lambda name: None)
    with pytest.raises(PublishError, match=r'pip install -c constraints.txt -e ".\[export\]"'):
        check_llama()


def test_the_quantiser_of_a_clone_is_found_where_it_is_built(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "convert_hf_to_gguf.py").touch()
    program = tmp_path / "build" / "bin" / "llama-quantize"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    assert find_tools("q4_k_m", str(tmp_path)).quantiser == str(program)


@pytest.fixture(scope="module")
def processor():
    return build_processor(64, 16)


def test_the_written_tokenizer_cuts_text_as_the_trained_one(processor):
    own = processor.tokenizer
    written = SentencePieceProcessor(model_proto=build_sentencepiece(json.loads(own.backend_tokenizer.to_str())))
    texts = [question for question, _ in QUESTIONS.values()]
    texts += ["The answer is: Tumor", "two  spaces\nand a line", "µm² and größe, 漢字", "InSitu/Invasive (G3)", " x"]
    for text in texts:
        assert written.encode(text) == own(text, add_special_tokens=False)["input_ids"], text
    assert [written.id_to_piece(number) for number in range(len(own))] == own.convert_ids_to_tokens(range(len(own)))
    assert written.is_control(own.convert_tokens_to_ids("<end_of_turn>"))


def test_ollama_asks_as_training_did(processor, tmp_path):
    files = tmp_path / "model-q8_0.gguf", tmp_path / "mmproj.gguf"
    text = write_modelfile(tmp_path, *files, render_prompt(processor, "{question}")).read_text()
    assert text.startswith("FROM ./model-q8_0.gguf\nFROM ./mmproj.gguf\n")
    assert "PARAMETER stop <end_of_turn>\n" in text
    # Go's template in Jinja's words: both take away the white space on the side of a dash.
    template = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)[1]
    for go, jinja in (
        ("{{- range $i, $_ := .Messages }}", "{%- for message in messages %}"),
        ("{{- $last := eq (len (slice $.Messages $i)) 1 }}", "{%- set last = loop.last %}"),
        ('{{- if eq .Role "assistant" }}', '{%- if message.role == "assistant" %}'),
        ("{{ else }}", "{% else %}"),
        ("{{ if $last }}", "{% if last %}"),
        ("{{ end }}", "{% endif %}"),
        ("{{- end }}\n{{- end }}", "{%- endif %}\n{%- endfor %}"),
        ("{{ .Content }}", "{{ message.content }}"),
    ):
        assert go in template
        template = template.replace(go, jinja)
    asked = [{"role": "user", "content": "Which?"}]
    for messages in (asked, [*asked, {"role": "assistant", "content": "Tumor"}, {"role": "user", "content": "Why?"}]):
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in messages]
        expected = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        rendered = jinja2.Environment(keep_trailing_newline=True).from_string(template).render(messages=messages)
        assert "<bos>" + rendered == expected


def test_a_model_with_other_turns_gets_no_modelfile(tmp_path):
    with pytest.raises(PublishError, match="expected Gemma 3's turns"):
        write_modelfile(tmp_path, tmp_path / "m", tmp_path / "p", "USER: {question} ASSISTANT:")


class ChatServer(BaseHTTPRequestHandler):
    """Speaks as `vllm serve` does; answers the same words to everything, and keeps what it was asked."""

    asked = []
    choice = {}

    def do_GET(self):
        self.answer({"data": [{"id": "merged", "owned_by": "vllm"}]})

    def do_POST(self):
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer({"choices": [{"message": {"content": "The answer is: Tumor"}, **self.choice}]})

    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def serving(choice):
    server = HTTPServer(("127.0.0.1", 0), type("Server", (ChatServer,), {"choice": choice}))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


TOKENS = {"content": [{"logprob": -0.25}, {"logprob": -0.5}]}


@pytest.mark.parametrize(
    ("choice", "probability"),
    [
        ({"finish_reason": "stop", "logprobs": TOKENS}, -0.75),
        ({"finish_reason": "length", "logprobs": TOKENS}, None),  # without its end of turn
        ({"finish_reason": "stop", "logprobs": None}, None),
        ({"finish_reason": "stop"}, None),
    ],
)
def test_a_server_is_asked_about_the_picture_before_the_question(choice, probability):
    with serving(choice) as url:
        engine = find_engine(url, None)
        assert (engine.name, engine.model) == ("vllm", "merged")
        found = ask(engine, [Image.new("RGB", (4, 4))], "Which?", max_new_tokens=5)
    assert found == ("The answer is: Tumor", probability)
    asked = ChatServer.asked[-1]
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("merged", 0, 5)
    assert [part["type"] for part in asked["messages"][0]["content"]] == ["image_url", "text"]


def test_a_server_that_is_not_there_or_has_another_model_is_refused():
    with serving({}) as url, pytest.raises(PublishError, match=r"serves \['merged'\], expected other"):
        find_engine(url, "other")
    with pytest.raises(PublishError, match="expected a server; start it, or correct engine_url"):
        find_engine(url, None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "commands"),
    [
        ("gguf", ["llama-mtmd-cli -m model-q8_0.gguf --mmproj mmproj.gguf", "llama-server -m model-q8_0.gguf"]),
        ("ollama", ["ollama create medgemma-crc -f Modelfile", "llama-server -m model-q8_0.gguf"]),
        ("vllm", ["vllm serve "]),
    ],
)
def test_the_card_has_the_comparison_and_the_commands_of_its_format(run, tmp_path, chosen, commands):
    pair = {"agreement": 1.0, "largest_gap": 0.1}
    names = ("training_precision/bfloat16", "training_precision/merged", "bfloat16/merged")
    proof = {"n_patches": 64, "pairs": dict.fromkeys(names, pair)}
    found = {"format": chosen, "quant": "q8_0", "engine": "the engine"}
    found |= compare_answers(["crc"] * 60 + ["ward"] * 4, *answers(2), np.where(np.arange(64) < 60, 0.25, np.nan))
    write_evidence(tmp_path, collect_evidence(*run), REPO, *run, proof, found)
    card = (tmp_path / "README.md").read_text()
    assert "| crc | 60 | 96.7% | 0.250 | 0.250 |" in card
    assert "| ward | 4 | 100.0% | - | - |" in card
    assert "the engine was asked about 64 patches" in card and "0.5 nats at most on average" in card
    code = re.search(r"```bash\n(.*?)```", card, re.DOTALL)[1]
    assert [command for command in commands if command not in code] == []
    assert "```python" not in card


@pytest.mark.slow
def test_data_sets_whose_answers_are_no_classes_are_refused_before_anything_is_merged(run):
    records = HistoArguments(datasets=[{"name": "scans", "source": "x", "format": "captions"}])
    with pytest.raises(PublishError, match="scans has a format, expected data sets of classes"):
        build_merged_folder(None, records, *run[1:])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The embedded model as GGUF in 8 bits, in its folder."""
    folder = tmp_path_factory.mktemp("gguf")
    base = locate_base_model("embedded")
    shutil.copytree(base, folder / "merged")
    files = write_gguf(folder / "merged", base, "main", folder, "q8_0", find_tools("q8_0", None))
    return folder, files


def ask_both(exported, shown):
    """Compare the answers of llama.cpp about the pictures `shown` with those of the model itself about its own."""
    folder, files = exported
    images = paint_patches(len(QUESTIONS))
    questions = [
        f"{question} Options: [{', '.join(options)}]. Answer with only one word."
        for question, options in QUESTIONS.values()
    ]
    with serve_gguf(*files) as engine:
        found = [ask(engine, [shown(image)], question, 16) for image, question in zip(images, questions, strict=True)]
    texts, values = zip(*found, strict=True)
    model, processor = load_merged(folder / "merged"), load_processor(str(folder / "merged"))
    own = [text for text, _ in generate_answers(model, processor, images, questions, 16)]
    scores = label_log_likelihoods(model, processor, images, questions, [[text] for text in texts])[0][:, 0].numpy()
    return compare_answers(["pretext"] * len(own), own, list(texts), scores - np.array(values, dtype=float))


@pytest.mark.model
def test_llama_cpp_answers_as_the_model_that_was_converted(exported):
    assert [path.name for path in exported[1]] == ["model-q8_0.gguf", "mmproj.gguf"]
    parity = ask_both(exported, lambda image: image)
    assert parity["passed"] and parity["all"]["n_probabilities"] == len(QUESTIONS)
    assert parity["all"]["mean_gap"] < MAX_MEAN_GAP / 3


@pytest.mark.model
def test_an_engine_that_does_not_see_the_picture_is_beyond_the_tolerance(exported):
    parity = ask_both(exported, lambda image: Image.new("RGB", image.size))
    assert not parity["passed"], parity


def test_a_converter_that_fails_is_told_with_its_last_words(tmp_path, processor):
    processor.save_pretrained(tmp_path / "merged")
    converter = tmp_path / "convert.py"
    converter.write_text("import sys\nsys.exit(f'Model {sys.argv[1:][-4:]} is not supported')")
    tools = gguf.Tools(converter, None)
    with pytest.raises(PublishError, match=r"convert.py .*failed \(Model .*'q8_0'.* is not supported\)"):
        write_gguf(tmp_path / "merged", str(tmp_path), "main", tmp_path, "q8_0", tools)


@pytest.mark.longest
@pytest.mark.model
@pytest.mark.thorough
def test_the_demo_goes_home_with_its_comparison_in_the_card(tmp_path):
    flags = ["--config", "recipes/demo.yaml", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    for command in (
        [sys.executable, "recipes/paint_patches.py", str(tmp_path / "data" / "synthetic")],
        [*launch, "recipes/sft.py", *flags],
        [sys.executable, "recipes/evaluate.py", *flags, "--sensitivity", "none"],
        [sys.executable, "recipes/export.py", *flags, "--format", "ollama"],
    ):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-4000:]
    folder = tmp_path / "out" / "export" / "ollama-q8_0"
    assert {"Modelfile", "README.md", "engine_parity.json", "mmproj.gguf", "model-q8_0.gguf"} <= set(
        os.listdir(folder)
    )
    parity, card = json.loads((folder / "engine_parity.json").read_text()), (folder / "README.md").read_text()
    assert parity["passed"] and parity["all"]["n_probabilities"] == parity["all"]["n_patches"] == 64
    assert f"| all | 64 | {parity['all']['agreement']:.1%} | {parity['all']['mean_gap']:.3f} |" in card
    assert "ollama create " in card and "llama.cpp was asked about 64 patches" in card
    merged = json.loads((tmp_path / "out" / "merge_parity.json").read_text())
    assert parity["adapter_sha256"] == merged["adapter_sha256"]

    # An engine that isn't started here is asked for, once the weights are there for it.
    command = [sys.executable, "recipes/export.py", *flags, "--format", "vllm"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and "is merged and proven; start `vllm serve " in run.stderr
    assert "Traceback" not in run.stderr
