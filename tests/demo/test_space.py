import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import yaml
from demo_run import call, find_function, request, running, send_upload, write_run
from record_demo_run import ANSWERS, noise, write_record_run

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.demo.data_set import fill_ask
from histolab_sft.demo.hosted import load_space
from histolab_sft.demo.load import load_demo
from histolab_sft.demo.scored_rows import TEST
from histolab_sft.demo.space import ENTRY, PAINTED, build_space, describe_demo, format_readme
from histolab_sft.demo.space_code import find_imports, pin_requirements
from histolab_sft.demo.systems import answer_patches, write_answers
from histolab_sft.embedded import tiny_model
from histolab_sft.models.precision import Precision
from histolab_sft.publishing.push_gate import PublishError

TRAINING_STACK = {"trl", "deepspeed", "bitsandbytes", "datasets", "evaluate", "pytest"}
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


@pytest.fixture(scope="module")
def embedded(untrained_model):
    """Make the embedded model that with random weights: the trained one takes minutes to build and adds nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_model, "load_tiny_base_model", lambda: untrained_model)
        yield untrained_model


def write_embedded_run(folder, base, **keys):
    """Write a run as the demo recipe leaves it; return the arguments of its recipe."""
    recipe = write_run(folder, base, model_name_or_path="embedded", **keys)
    path = folder / "out" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "embedded"}))
    return parse_recipe(["--config", str(recipe)])


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, embedded):
    return write_embedded_run(tmp_path_factory.mktemp("run"), embedded, load_in_4bit=True)


@pytest.fixture(scope="module")
def space(arguments):
    return build_space(*arguments)


@pytest.mark.slow
def test_answering_imports_nothing_of_the_training_stack():
    files, distributions = find_imports(ENTRY)
    assert not TRAINING_STACK & set(distributions)
    assert {"torch", "transformers", "peft", "gradio", "pillow"} <= set(distributions)
    assert {"__init__.py", "demo/__init__.py", "demo/hosted.py", "models/likelihood.py"} <= set(files)
    assert not [name for name in files if name.startswith(("training/", "evaluation/", "publishing/"))]


@pytest.mark.slow
def test_requirements_are_pinned_to_the_tested_versions_with_all_that_they_require():
    pins = pin_requirements(["gradio", "torch"])
    assert {"gradio", "torch", "starlette", "huggingface-hub", "sympy"} <= set(pins)
    assert "+" not in pins["torch"]
    listed = dict(re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE))
    tested = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in listed.items()}
    assert {name: version for name, version in pins.items() if tested.get(name, version) != version} == {}


@pytest.mark.model
def test_the_folder_holds_what_a_space_needs_and_nothing_else(space):
    top = {path.name for path in space.iterdir()}
    files = {"app.py", "README.md", "requirements.txt", "settings.json"}
    assert top == files | {"adapter", "base_model", "examples", "histolab_sft"}
    assert {path.name for path in (space / "adapter").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    copied = {path.relative_to(space).as_posix() for path in (space / "histolab_sft").rglob("*") if path.is_file()}
    assert "histolab_sft/demo/style.css" in copied and "histolab_sft/config/arguments.py" not in copied
    assert not [path for path in space.rglob("*") if path.is_symlink() or path.name.endswith((".lock", ".pyc"))]
    assert not list(space.parent.glob(".space-*"))


@pytest.mark.model
def test_a_quantised_recipe_requires_bitsandbytes_and_nothing_else_of_training(space, tmp_path, embedded):
    def read(folder):
        return dict(line.split("==") for line in (folder / "requirements.txt").read_text().splitlines())

    assert set(read(space)) & TRAINING_STACK == {"bitsandbytes"}
    plain = build_space(*write_embedded_run(tmp_path, embedded))
    assert set(read(plain)) & TRAINING_STACK == set()


@pytest.mark.model
def test_the_space_answers_as_the_app_does(space, arguments):
    here, there = load_demo(*arguments), load_space(space)
    assert there.remarks == here.remarks[-1:] == [PAINTED] and there.data_sets == here.data_sets
    shown, expected = ([(entry.data_set, entry.caption) for entry in demo.examples] for demo in (there, here))
    assert shown == expected
    images = [entry.open_pictures()[0] for entry in here.examples[:2]]
    for system in ("baseline", "finetuned"):
        expected, found = (
            [answer.probabilities for answer in answer_patches(demo.systems, system, images, demo.data_sets[0])]
            for demo in (here, there)
        )
        # Where nothing is trained, bitsandbytes may use a kernel in bfloat16.
        np.testing.assert_allclose(np.log(found), np.log(expected), atol=0.02)


@pytest.mark.model
def test_a_space_reads_pictures_at_the_resolution_of_the_adapter(tmp_path, embedded):
    arguments = write_embedded_run(tmp_path, embedded, image_side=32, image_tokens=4)
    path = tmp_path / "out" / "adapter_config.json"
    with pytest.raises(PublishError, match="image_side None and image_tokens None, and the recipe 32 and 4"):
        build_space(*arguments)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_side": 32, "image_tokens": 4}))
    here, there = load_demo(*arguments).systems, load_space(build_space(*arguments)).systems
    for systems in (here, there):
        assert systems.processor.image_seq_length == systems.model.config.mm_tokens_per_image == 4
        assert systems.processor.image_processor.size["height"] == systems.model.config.vision_config.image_size == 32


@pytest.mark.model
def test_the_readme_configures_the_space(space, arguments, tmp_path):
    _, front, text = (space / "README.md").read_text().split("---\n", 2)
    keys = yaml.safe_load(front)
    assert keys["sdk"] == "gradio" and keys["app_file"] == "app.py" and keys["python_version"] == "3.11"
    assert f"gradio=={keys['sdk_version']}\n" in (space / "requirements.txt").read_text()
    assert len(keys["short_description"]) <= 60
    assert "For research only" in text and "needs no secret" in text and "Adipose, Stroma, Tumor" in text
    settings = json.loads((space / "settings.json").read_text()) | {"base_model": "google/medgemma-4b-it"}
    gated = format_readme(settings, "6.0")
    assert "HF_TOKEN" in gated and yaml.safe_load(gated.split("---\n")[1])["models"] == ["google/medgemma-4b-it"]


@pytest.mark.model
def test_a_space_of_records_carries_their_questions_and_no_row(tmp_path, embedded):
    write_embedded_run(tmp_path, embedded)
    recipe = write_record_run(tmp_path, embedded, taught=False, model_name_or_path="embedded")
    arguments = parse_recipe(["--config", str(recipe)])
    folder = build_space(*arguments)
    here, there = load_demo(*arguments), load_space(folder)
    assert there.data_sets == here.data_sets and there.remarks == there.examples == []
    assert here.remarks == [TEST] and {example.data_set for example in here.examples} == set(ANSWERS)
    for example in here.examples:
        assert example.truth is not None and example.open_pictures()[0].mode == "RGB" and example.caption
    settings = (folder / "settings.json").read_text()
    assert "Which apply?" in settings and "Heart is normal" not in settings and ".png" not in settings
    assert not (folder / "histolab_sft" / "arguments.py").exists()
    readme = (folder / "README.md").read_text()
    assert "- boxes: boxes\n" in readme and yaml.safe_load(readme.split("---")[1])
    entry = there.data_sets[0]
    ask = fill_ask(entry, entry.asks[0], entry.asks[0]["question"], "Benign\nMalignant", [noise()])
    for system in ("baseline", "finetuned"):
        answers = [write_answers(demo.systems, system, [[noise()]], entry, [ask], [None]) for demo in (here, there)]
        assert answers[0] == answers[1]


@pytest.mark.model
def test_what_must_not_be_published_is_refused_and_an_earlier_folder_stays(tmp_path, embedded):
    histo_args, training_args, model_args = write_embedded_run(tmp_path, embedded)
    earlier = build_space(histo_args, training_args, model_args)
    before = (earlier / "settings.json").read_text()
    histo_args.datasets[0].question = f"Use hf_{'a1' * 17} and say which: {{options}}"
    with pytest.raises(PublishError, match="token"):
        build_space(histo_args, training_args, model_args)
    histo_args.datasets[0].question = "Look at /home/somebody/patches: {options}"
    with pytest.raises(PublishError, match="path of this machine"):
        build_space(histo_args, training_args, model_args)
    histo_args.datasets[0].question = None
    model_args.model_name_or_path = str(embedded)
    with pytest.raises(PublishError, match="names the base model embedded"):
        build_space(histo_args, training_args, model_args)
    model_args.model_name_or_path = "embedded"
    assert (earlier / "settings.json").read_text() == before and not list(earlier.parent.glob(".space-*"))
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="train first"):
        build_space(histo_args, training_args, model_args)


@pytest.mark.model
def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path, embedded):
    arguments = write_embedded_run(tmp_path, embedded)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "space").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PublishError, match="is a link"):
        build_space(*arguments)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.model
def test_settings_name_no_folder_of_this_machine(arguments, tmp_path):
    histo_args, training_args, model_args = arguments
    settings = describe_demo(histo_args, model_args, Path(training_args.output_dir), Precision(), [])
    assert settings["base_model"] == "embedded" and settings["quantization"]["load_in_4bit"]
    assert str(Path(training_args.output_dir).parent) not in json.dumps(settings)


@pytest.mark.model
@pytest.mark.browser
def test_the_space_answers_a_request_with_its_own_requirements_alone(space, tmp_path):
    """Builds a virtual environment: a few hundred megabytes and some minutes."""
    folder = tmp_path / "place"
    shutil.copytree(space, folder)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-r", folder / "requirements.txt", "-c", CONSTRAINTS]
    subprocess.run(install, check=True, timeout=1500)
    listed = json.loads(subprocess.check_output([python, "-m", "pip", "list", "--format", "json"]))
    assert {entry["name"].lower() for entry in listed} & TRAINING_STACK == {"bitsandbytes"}
    with running([str(python), "app.py"], folder, PYTHONPATH="") as (_, port):
        picture = next(folder.glob("examples/pcam/Tumor/*.png")).read_bytes()
        _, path = send_upload(port, "patch.png", picture)
        uploaded = {"path": path, "meta": {"_type": "gradio.FileData"}}
        said = call(port, find_function(port, "ask"), [[{"image": uploaded}], "pcam", 0, "", "", False, None, None])
        assert b"Research use only" in request(port, "GET", "/config")[2]
    bars = [float(value) for value in re.findall(r'data-probability=\\"([^"\\]+)', said)]
    assert '"success":true' in said and len(bars) >= 4
    assert abs(sum(bars[-4:-2]) - 1) < 1e-9 and abs(sum(bars[-2:]) - 1) < 1e-9
    assert sys.prefix not in (folder / "log.txt").read_text()
