"""The command `histolab_sft`: one line a command, and a help that fits a screen."""

import re
from pathlib import Path

import pytest

from histolab_sft.commands import cli


def test_the_help_fits_a_screen_of_24_lines_and_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli.build_parser().format_help().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert all(re.search(rf"^ +{command} ", "\n".join(lines), re.MULTILINE) for command in cli.SCRIPTS)


@pytest.mark.parametrize("command", cli.SCRIPTS)
def test_each_command_of_a_recipe_explains_its_script_on_one_screen(command, capsys):
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    taken = "RUN" if command in cli.RUNS else "RECIPE"
    assert f"usage: histolab_sft {command} {taken}" in text and len(text.splitlines()) <= 24


def test_a_command_without_its_script_says_that_it_needs_the_whole_repository(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["check", "recipes/demo.yaml"])
    assert end.value.code == 2 and "get the whole repository" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["check", "recipes/none.yaml"], ["check", "--config", "recipes/none.yaml"]])
def test_a_recipe_may_stand_alone_or_behind_config(args, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["histolab_sft"])
    assert cli.main(args) == 2
    assert "recipes/none.yaml is no file" in capsys.readouterr().err


def test_an_unknown_command_is_named_with_those_that_exist(capsys):
    with pytest.raises(SystemExit):
        cli.main(["practise"])
    said = capsys.readouterr().err
    assert "practise" in said and "evaluate" in said


def test_the_shell_completes_commands(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--print-completion", "bash"])
    assert end.value.code == 0 and "evaluate" in capsys.readouterr().out


def test_setup_installs_the_command():
    [target] = re.findall(r'"histolab_sft=([\w.]+:\w+)"', Path("setup.py").read_text(encoding="utf-8"))
    assert target == f"{cli.main.__module__}:{cli.main.__name__}"
