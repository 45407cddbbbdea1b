"""Kept answers are believed only whole, unchanged and to the same question; else they are asked again."""

import shutil

import pandas as pd
import pytest

from histolab_sft.evaluation import answer_cache
from histolab_sft.evaluation.answer_cache import ask_in_parts, read_part


@pytest.fixture(autouse=True)
def small_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(answer_cache, "CHUNK", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ask_counting(asked, factor=10):
    def ask(parts):
        for rows in parts:
            asked.append(rows)
            yield {"answer": [factor * row for row in rows]}

    return ask


def list_parts(tmp_path):
    return sorted((tmp_path / "cache").rglob("part-*.answers"))


def test_what_was_answered_is_not_asked_again(tmp_path):
    asked = []
    for _ in range(2):
        assert ask_in_parts("toy", {"question": 1}, 10, ask_counting(asked))["answer"].tolist() == list(
            range(0, 100, 10)
        )
    assert asked == [range(0, 4), range(4, 8), range(8, 10)]
    assert len(list_parts(tmp_path)) == 3


def edit(path):
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)


def replace_table(path):
    """Keep the checksum and put an honest table of other answers behind it."""
    checksum = path.read_bytes().partition(b"\n")[0]
    path.write_bytes(checksum + b"\n" + pd.DataFrame({"answer": [1, 2, 3, 4]}).to_parquet(index=False))


DAMAGES = {
    "edited": edit,
    "of other answers": replace_table,
    "of zero bytes": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "of another kind": lambda path: path.write_text("no answers"),
    "of other rows": lambda path: shutil.copy(path.with_name("part-00000000.answers"), path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_that_cannot_be_believed_is_asked_again_and_only_that_one(tmp_path, damage, caplog):
    whole = ask_in_parts("toy", {"question": 1}, 8, ask_counting([]))
    DAMAGES[damage](list_parts(tmp_path)[1])
    asked = []
    assert ask_in_parts("toy", {"question": 1}, 8, ask_counting(asked)).equals(whole)
    assert asked == [range(4, 8)]
    assert "asked again" in caplog.text


def test_a_part_of_another_question_is_not_believed(tmp_path):
    ask_in_parts("toy", {"question": 1}, 4, ask_counting([]))
    [other] = list_parts(tmp_path)
    ask_in_parts("toy", {"question": 2}, 4, ask_counting([], factor=20))
    [own] = set(list_parts(tmp_path)) - {other}
    shutil.copy(other, own)
    assert read_part(own.parent, range(4)) is None
    assert ask_in_parts("toy", {"question": 2}, 4, ask_counting([], factor=20))["answer"].tolist() == [0, 20, 40, 60]


def test_a_cache_that_cannot_be_written_costs_speed_alone(tmp_path, caplog):
    tmp_path.joinpath("cache").write_text("a file where the folder should be")
    asked = []
    assert len(ask_in_parts("toy", {"question": 1}, 8, ask_counting(asked))) == 8
    assert len(asked) == 2 and "can't be kept" in caplog.text
