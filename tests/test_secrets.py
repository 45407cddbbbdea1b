"""A token in the environment, the Hub's cache, a recipe or a flag turns up in nothing that a run writes or says."""

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import traceback
import zipfile

import pytest
import yaml
from steady_runs import ROOT, start_recipe, write_inputs, write_recipe

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.data.rows import load_audited_patches
from histolab_sft.provenance import describe_result
from histolab_sft.secrets import check_secrets, mask_secrets

CANARY = "hf_" + "CanaryOfTheRun" * 2 + "abcdef"
CACHED = "hf_" + "CanaryOfTheCache" * 2 + "ab"
FLAGS = ["--report_to", "tensorboard", "--hub_model_id", "lab/canary", "--save_total_limit", "2"]


def find_canaries(content):
    """Return the canaries in some bytes, in whatever lies packed in them, plain or in base64."""
    found = []
    for canary in (CANARY, CACHED):
        plain = canary.encode()
        # Three ways in which its letters can fall into groups of three bytes; the ends mix with what is beside it.
        packed = [base64.b64encode(b"x" * shift + plain)[8:-8] for shift in range(3)]
        packed += [plain[::-1], plain.hex().encode(), canary.encode("utf-16-le")]
        found += [canary for form in (plain, *packed) if form in content]
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found += [canary for name in archive.namelist() for canary in find_canaries(archive.read(name))]
    return found


@pytest.mark.parametrize(
    "wrap", [str, lambda s: f"https://u:{s}@hub/x", lambda s: base64.b64encode(s.encode()).decode()]
)
def test_the_search_finds_a_canary(wrap):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", f"args: {wrap(CANARY)}".encode())
    assert find_canaries(packed.getvalue()) and find_canaries(wrap(CACHED).encode())
    assert not find_canaries(b"hf_")


@pytest.fixture(scope="module")
def sinks(tmp_path_factory):
    """Name -> bytes of everything that training, scoring and publishing leave and say, with canaries around."""
    folder = tmp_path_factory.mktemp("canaries")
    write_inputs(folder)
    home = folder / "hub"
    home.mkdir()
    (home / "token").write_text(CACHED)
    environment = {"HF_TOKEN": CANARY, "HUGGING_FACE_HUB_TOKEN": CANARY, "WANDB_API_KEY": CANARY, "CANARY": CANARY}
    output_dir = folder / "out"
    recipe = write_recipe(folder, output_dir, max_steps=4, sensitivity="none", per_device_eval_batch_size=4)

    # A process of its own, since the Hub's client reads where its cache lies when it is imported.
    command = [sys.executable, "recipes/sft.py", "--config", str(recipe), *FLAGS]
    trained = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        env=os.environ | environment | {"HF_HOME": str(home), "TENSORBOARD_LOGGING_DIR": str(output_dir / "tracker")},
    )
    assert trained.returncode == 0, trained.stderr.decode()[-4000:]
    said = {"training said": trained.stdout, "training complained": trained.stderr}
    for name, script, flags in (
        ("scoring said", "recipes/evaluate.py", FLAGS),
        ("publishing said", "recipes/push_adapter.py", [*FLAGS, "--dry_run", "true"]),
        ("refused training said", "recipes/sft.py", ["--model_name_or_path", f"lab/{CANARY}"]),
    ):
        if script == "recipes/push_adapter.py":
            path = output_dir / "evaluation" / "results.json"
            patches = load_audited_patches(parse_recipe(["--config", str(recipe)])[0], output_dir)
            results = json.loads(path.read_text()) | {"provenance": describe_result(output_dir, patches, 42)}
            path.write_text(json.dumps(results))
            # Only what was trained on a model of the Hub is published.
            for file in (path, recipe, output_dir / "run.json", output_dir / "adapter_config.json"):
                file.write_text(file.read_text().replace(str(folder / "model"), "google/medgemma-4b-it"))
        log = folder / f"{name}.log"
        process = start_recipe(recipe, log, *flags, script=script, environment=environment)
        process.join(120)
        assert process.exitcode == (2 if "refused" in name else 0), log.read_text()[-4000:]
        said[name] = log.read_bytes()

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(output_dir / "publish", "publish")
    written = {
        str(path.relative_to(output_dir)): path.read_bytes() for path in output_dir.rglob("*") if path.is_file()
    }
    return said | written | {"archive that would be pushed": archive.getvalue()}


@pytest.mark.model
def test_no_canary_is_in_anything_that_is_written_or_said(sinks):
    expected = [
        *("training said", "training complained", "scoring said", "publishing said", "refused training said"),
        *("run.json", "audit.json", "adapter_config.json", "adapter_model.safetensors", "evaluation/results.json"),
        *("evaluation/predictions.parquet", "evaluation/report.html", "publish/README.md", "publish/results.json"),
        *("checkpoint-4/manifest.json", "checkpoint-4/trainer_state.json", "checkpoint-4/optimizer.pt"),
        *("checkpoint-4/rng_state.pth", "archive that would be pushed"),
    ]
    assert not set(expected) - set(sinks)
    assert any("events.out.tfevents" in name for name in sinks)
    assert not any("training_args" in name for name in sinks)
    hits = {name: found for name, content in sinks.items() if (found := find_canaries(content))}
    assert not hits


def refuse(recipe, flags, tmp_path, capsys):
    """Return everything that is said when a recipe is refused."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    try:
        parse_recipe(["--config", str(path), *flags])
    except (ValueError, SystemExit):
        said = capsys.readouterr()
        return traceback.format_exc() + said.out + said.err
    raise AssertionError("the recipe was accepted")


RECIPE = {
    "model_name_or_path": "embedded",
    "datasets": [{"name": "a", "source": "a", "class_names": {"N": "Normal", "T": "Tumor"}}],
    "output_dir": "out",
    "use_cpu": True,
    "bf16": False,
}


@pytest.mark.parametrize(
    ("keys", "flags"),
    [
        ({"hub_token": CANARY}, []),
        ({"run_name": f"run with {CANARY}"}, []),
        ({"output_dir": f"https://me:{CANARY}@hub/x"}, []),
        ({"datasets": [{"name": CANARY, "source": "a", "class_names": {"N": "Normal", "T": "Tumor"}}]}, []),
        ({"hf_token": CANARY}, []),
        ({CANARY: 1}, []),
        ({"learning_rate": CANARY}, []),
        ({}, ["--hub_token", CANARY]),
        ({}, [f"--hub_token={CANARY}"]),
        ({}, ["--learning_rate", CANARY]),
        ({}, ["--hf_token", CANARY]),
        ({}, [CANARY]),
    ],
)
def test_a_token_in_a_recipe_or_a_flag_is_refused_without_being_shown(tmp_path, capsys, keys, flags):
    said = refuse(RECIPE | keys, flags, tmp_path, capsys)
    assert not find_canaries(said.encode())
    assert "holds a token or password under" in said or "unknown key in the" in said


@pytest.mark.parametrize(
    "secret",
    [
        CANARY,
        "api_org_" + "a1" * 17,
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2_" * 8,
        "sk-" + "proj-a1B2" * 5,
        "AKIA" + "ABCD1234" * 2,
        "xoxb-123456789012-abc",
    ],
)
def test_secrets_are_masked_and_refused_by_their_shape(secret):
    assert mask_secrets(f"at {secret}, and again '{secret}'") == "at <secret>, and again '<secret>'"
    with pytest.raises(ValueError, match="the recipe holds a token or password under run_name") as error:
        check_secrets({"seed": 1, "run_name": secret}, "the recipe")
    assert secret not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["hf_cache", "google/medgemma-4b-it", "https://huggingface.co/x", "a1b2c3" * 11, "task-oriented-words-here"],
)
def test_ordinary_text_is_no_secret(text):
    assert mask_secrets(text) == text
    check_secrets({"key": text}, "the recipe")


def test_telemetry_of_the_libraries_is_off_unless_turned_on():
    script = "import os, histolab_sft; print(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_DISABLE_TELEMETRY"}
    for given, expected in ((environment, "1"), (environment | {"HF_HUB_DISABLE_TELEMETRY": "0"}, "0")):
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=given, cwd=ROOT)
        assert result.stdout.strip() == expected
