"""A mistake in a recipe or in data ends a command with one message; a bug keeps its traceback."""

import errno
import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from broken_recipes import ROOT, write_recipe
from PIL import Image
from recipe_args import BASE

from histolab_sft.config.arguments import parse_recipe
from histolab_sft.errors import AuditRefusal, is_for_user, plain_errors, say_count
from histolab_sft.hub_access import HubAccessError
from histolab_sft.provenance import record_run
from histolab_sft.tasks import quantity


def catch(block, *args) -> Exception:
    with pytest.raises(Exception) as caught:
        block(*args)
    return caught.value


def divide_by_nothing():
    raise ZeroDivisionError("raised in a test, which is no part of the project")


@pytest.mark.parametrize(
    ("block", "args", "expected"),
    [
        (parse_recipe, ["--config"], True),
        (parse_recipe, [["--config", "nowhere.yaml"]], True),
        (open, ["/nowhere/at/all"], False),  # a path that nobody checked is a bug
        (int, ["seven"], False),
        (np.concatenate, [[]], False),
        (json.loads, ["{"], False),
        (divide_by_nothing, [], False),
        (quantity.format_prompt, ["too", "few"], False),
    ],
    ids=lambda value: getattr(value, "__name__", None) or repr(value)[:40],
)
def test_only_what_the_project_raises_itself_is_a_message_for_the_user(block, args, expected):
    assert is_for_user(catch(block, *args)) is expected


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (AuditRefusal("7 copies; mend the data"), 1, "error: 7 copies; mend the data"),
        (HubAccessError("gated; accept its terms"), 2, "error: gated; accept its terms"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            2,
            "/data/x: No space left on device",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root"),
            2,
            "choose a folder that you may read",
        ),
    ],
    ids=str,
)
def test_a_message_is_the_last_line_and_its_kind_the_exit_code(capsys, error, code, said):
    with pytest.raises(SystemExit) as end, plain_errors():
        raise error
    assert end.value.code == code
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_bug_passes_with_its_traceback():
    with pytest.raises(ZeroDivisionError), plain_errors():
        divide_by_nothing()


def test_a_token_in_a_message_is_masked(capsys):
    with pytest.raises(SystemExit), plain_errors():
        raise HubAccessError("the address was https://user:" + "secret-word@host/model")
    assert "secret-word" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [1\nb: 2", "line 2, column 2"),
        ("a: 'open", "can't be read as YAML"),
        ("a: &x [*x, \x07]", "can't be read as YAML"),
        ("- a\n- b", "expected a mapping"),
        ("", "expected a mapping"),
        (b"model: caf\xe9", "is not text in UTF-8"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named_with_the_place(tmp_path, content, said):
    path = tmp_path / "my recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = catch(parse_recipe, ["--config", str(path)])
    assert is_for_user(error) and said in str(error) and str(path) in str(error)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "expected --config RECIPE.yaml"),
        (["--config"], "expected the path of a recipe"),
        (["--config", "--seed", "3"], "expected the path of a recipe"),
        (["--config", str(ROOT)], "is no file, expected a recipe"),
        (["--config", "RECIPE", "--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--config", "RECIPE", "--learning_rate", "-1"], "at least 0"),
        (["--config", "RECIPE", "--lora_r=0"], "at least 1"),
        (["--config", "RECIPE", "--leaks", "dropp"], "--leaks"),
        (["--config", "RECIPE", "--resume_from_checkpoint", "true"], "expected auto"),
        (["--config", "RECIPE", "--hardware", "gpu_5gb"], "gpu_4gb"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_without_the_list_of_all_keys(tmp_path, capsys, flags, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    error = catch(parse_recipe, [str(path) if flag == "RECIPE" else flag for flag in flags])
    assert is_for_user(error) and said in str(error)
    assert capsys.readouterr().err == ""


def test_a_recipe_for_a_gpu_says_so_on_a_machine_without_one(monkeypatch):
    import torch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    error = catch(parse_recipe, ["--config", "recipes/histolab_5k.yaml"])
    assert is_for_user(error)
    assert "no GPU that PyTorch can use" in str(error) and "make check" in str(error)


def test_an_output_folder_that_cannot_be_written_is_named_before_anything_runs(tmp_path):
    tmp_path.joinpath("file").write_text("")

    def run():
        with record_run(tmp_path / "file" / "output" / "run.json", recipe={}, seed=1):
            raise AssertionError("the block ran")

    error = catch(run)
    assert is_for_user(error) and "can't be written to" in str(error)


def test_nouns_follow_their_number():
    assert [say_count(n, "patch") for n in (0, 1, 1039)] == ["0 patches", "1 patch", "1,039 patches"]
    assert say_count(2, "class") == "2 classes" and say_count(2, "reply", "replies") == "2 replies"


def run(*command) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.model
def test_preflight_ends_with_its_verdict_although_the_first_picture_is_damaged(tmp_path, untrained_model):
    recipe = write_recipe(tmp_path, model_name_or_path=str(untrained_model))
    first = sorted((tmp_path / "data" / "A").iterdir())[0]
    first.write_bytes(first.read_bytes()[:60])
    checked = run("recipes/preflight.py", "--config", recipe)
    assert checked.returncode == 1, checked.stderr
    assert first.name in checked.stdout
    assert "\nTraining would be refused: 1 picture can't be used" in checked.stdout
    assert "refused_images: quarantine" in checked.stdout.splitlines()[-1]


@pytest.mark.thorough
@pytest.mark.model
@pytest.mark.parametrize("script", ["sft", "evaluate", "preflight", "push_adapter", "push_merged", "write_submission"])
def test_every_command_tells_a_mistake_in_one_line_and_exits_with_2(tmp_path, script):
    recipe = write_recipe(tmp_path, learnig_rate=1e-4)
    ended = run(f"recipes/{script}.py", "--config", recipe)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "did you mean 'learning_rate'" in ended.stderr.splitlines()[-1]


@pytest.mark.thorough
@pytest.mark.model
def test_the_launcher_adds_no_traceback_to_the_message(tmp_path, untrained_model):
    recipe = write_recipe(tmp_path, model_name_or_path=str(untrained_model))
    Image.new("RGB", (32, 32)).save(tmp_path / "data" / "A" / "broken.png")
    tmp_path.joinpath("data", "A", "broken.png").write_bytes(b"no picture")
    launch = ["-m", "accelerate.commands.launch", "--quiet", "--config_file", "accelerate_configs/cpu.yaml"]
    ended = run(*launch, "recipes/sft.py", "--config", recipe)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert "refused_images: quarantine" in ended.stderr.splitlines()[-1]
