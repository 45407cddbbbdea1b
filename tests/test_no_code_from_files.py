"""No file that a run reads can make it run code: not by its content, and not through the source of this project."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from steady_runs import ROOT, build_trainer, write_inputs

from histolab_sft.models.adapter_checks import AdapterError
from histolab_sft.models.load import load_adapter
from histolab_sft.training.checkpoints import MANIFEST, CheckpointError, write_manifest

FOLDERS = ("histolab_sft", "recipes", "benchmarks")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "torch.load", "torch.hub.load", "yaml.load", "yaml.full_load"),
    *("yaml.unsafe_load", "joblib.load", "pandas.read_pickle", "pd.read_pickle", "os.system", "os.popen"),
}
METHODS = {"extractall", "to_pickle"}
# Arguments, and the one value that they may have.
ARGUMENTS = {
    "trust_remote_code": False,
    "weights_only": True,
    "allow_pickle": False,
    "shell": False,
    "use_safetensors": True,
    "safe_serialization": True,
}


def find_forbidden(source):
    """Return what in the source could run code that came with a file, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            found += [f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name.split(".")[-1] in METHODS:
                found.append(f"{node.lineno}: {name}")
            for keyword in node.keywords:
                allowed = ARGUMENTS.get(keyword.arg)
                if allowed is not None and ast.unparse(keyword.value) != str(allowed):
                    found.append(f"{node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}")
    return found


@pytest.mark.slow
def test_the_source_holds_no_call_that_runs_what_is_read():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    found = [f"{path.relative_to(ROOT)}:{place}" for path in files for place in find_forbidden(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "joblib.load(path)",
        "import a, dill.session",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "f(weights_only=False)",
        "yaml.load(file, Loader=yaml.SafeLoader)",
        "eval('1')",
        "exec(code)",
        "x = compile(s, 'f', 'exec')",
        "tar.extractall(target, filter='data')",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=args.trust)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "pd.read_pickle(path)",
        "model.save_pretrained(folder, safe_serialization=False)",
    ],
)
def test_the_search_finds(source):
    assert find_forbidden(source)


@pytest.mark.parametrize(
    "source", ["re.compile(s)", "model.eval()", "f(trust_remote_code=False)", "yaml.safe_load(f)"]
)
def test_the_search_lets_pass(source):
    assert not find_forbidden(source)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def trace(tmp_path):
    """Where code from a file would leave its trace; it works, and left none."""
    bomb, trace = Bomb(tmp_path / "proof"), tmp_path / "executed"
    pickle.loads(pickle.dumps(bomb))
    assert (tmp_path / "proof").is_dir()
    yield trace
    assert not trace.exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Inputs, and `run` with the checkpoints of two steps and the final adapter."""
    folder = tmp_path_factory.mktemp("malicious")
    write_inputs(folder)
    trainer = build_trainer(folder, folder / "run", max_steps=2)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.mark.model
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_state_with_code_in_it_stops_the_resume_even_where_the_manifest_agrees(folder, tmp_path, trace, name):
    output_dir = shutil.copytree(folder / "run", tmp_path / "run")
    checkpoint = output_dir / "checkpoint-1"
    run = json.loads((checkpoint / MANIFEST).read_text())["run"]
    torch.save({"cpu": Bomb(trace), "state": Bomb(trace)}, checkpoint / name)
    write_manifest(checkpoint, run)
    trainer = build_trainer(folder, output_dir, max_steps=2)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        trainer.train(str(checkpoint))


@pytest.mark.model
@pytest.mark.parametrize(
    "name", ["training_args.bin", "pytorch_model.bin", "adapter_model.bin", "evil/adapter_model.bin"]
)
def test_a_file_that_was_not_saved_disqualifies_a_checkpoint(folder, tmp_path, trace, name):
    output_dir = shutil.copytree(folder / "run", tmp_path / "run")
    path = output_dir / "checkpoint-2" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Bomb(trace)))
    trainer = build_trainer(folder, output_dir, max_steps=2)
    with pytest.raises(CheckpointError, match="holds beside what was saved"):
        trainer.train(str(output_dir / "checkpoint-2"))
    trainer.train("auto")
    assert trainer.state.global_step == 2


@pytest.mark.model
def test_pickled_weights_and_arguments_beside_an_adapter_are_not_looked_at(folder, tmp_path, trace):
    adapter = shutil.copytree(folder / "run", tmp_path / "run")
    for name in ("adapter_model.bin", "training_args.bin", "pytorch_model.bin"):
        (adapter / name).write_bytes(pickle.dumps(Bomb(trace)))
    trainer = build_trainer(folder, tmp_path / "other", max_steps=1)
    load_adapter(trainer.model.unload(), adapter)


@pytest.mark.model
def test_pickled_weights_in_place_of_an_adapter_are_refused(folder, tmp_path, trace):
    adapter = shutil.copytree(folder / "run", tmp_path / "run")
    base_model = build_trainer(folder, tmp_path / "other", max_steps=1).model.unload()
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    torch.save(Bomb(trace), adapter / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="no adapter_model.safetensors"):
        load_adapter(base_model, adapter)
    (adapter / "adapter_model.bin").rename(adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="can't be read as safetensors"):
        load_adapter(base_model, adapter)


LOADERS = """
import sys
from histolab_sft.config.base_model import ModelConfig
from histolab_sft.models.load import build_meta_model, load_base_model, load_processor
for name in sys.argv[1:]:
    args = ModelConfig(model_name_or_path=name, dtype="float32")
    for load in (lambda: load_processor(name), lambda: build_meta_model(args), lambda: load_base_model(args)):
        try:
            load()
        except ValueError as error:
            print("refused" if "custom code" in str(error) else error)
        else:
            print("loaded")
"""


@pytest.mark.model
def test_code_beside_a_base_model_is_not_run_even_where_somebody_answers_yes(folder, tmp_path):
    models = []
    for kind in ("known", "unknown"):
        models.append(shutil.copytree(folder / "model", tmp_path / kind))
        (models[-1] / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
        classes = {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M", "AutoProcessor": "evil.P"}
        classes |= {"AutoTokenizer": ["evil.T", None], "AutoImageProcessor": "evil.I"}
        for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
            config = json.loads((models[-1] / name).read_text()) | {"auto_map": classes}
            if kind == "unknown":
                # Nothing that transformers has a class of its own for.
                config |= {
                    "model_type": "evil",
                    "processor_class": "EvilProcessor",
                    "tokenizer_class": "EvilTokenizer",
                }
            (models[-1] / name).write_text(json.dumps(config))
    command = [sys.executable, "-c", LOADERS, *map(str, models)]
    result = subprocess.run(command, input="y\n" * 50, capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.split() == ["loaded"] * 3 + ["refused"] * 3, result
    assert not (tmp_path / "executed").exists()
