import gzip
import io
import random
import tarfile
from pathlib import Path

import pytest
from hostile_archives import GOOD, HOSTILE, LIMIT, make_tar, make_zip, tar_entry

from histolab_sft.data.pictures import archives
from histolab_sft.data.pictures.archives import UnsafeArchiveError, extract, gunzip


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_by_name_and_leaves_no_trace(case, tmp_path):
    name, content, member, reason = HOSTILE[case]
    target = tmp_path / "parent" / "target"
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("stays")
    archive = tmp_path / "parent" / name
    archive.write_bytes(content)
    before = listing(tmp_path)
    with pytest.raises(UnsafeArchiveError) as refusal:
        extract(archive, target, "TOY", LIMIT)
    assert listing(tmp_path) == before
    assert str(archive) in str(refusal.value) and reason in str(refusal.value)
    assert not member or f"member '{member}" in str(refusal.value)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_too_many_members_are_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    archive = tmp_path / f"a.{suffix}"
    archive.write_bytes(make_zip() if suffix == "zip" else make_tar())
    with pytest.raises(UnsafeArchiveError, match="member 'TOY/TUM/b.tif': the archive has more than 1 members"):
        extract(archive, tmp_path, "TOY", LIMIT)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_a_good_archive_gives_the_wanted_folder_only(name, tmp_path):
    more = ("OTHER/c.tif", b"not wanted"), ("TOY/ADI/deep/d.tif", b"deep")
    packed = make_zip(*more) if name == "a.zip" else make_tar(*more, mode="w:" if name == "a.tar" else "w:gz")
    (tmp_path / name).write_bytes(packed)
    target = tmp_path / "target"
    target.mkdir()
    extract(tmp_path / name, target, "TOY", LIMIT)
    files = {path: content for path, content in listing(target).items() if content is not None}
    assert files == GOOD | {"TOY/ADI/deep/d.tif": b"deep"}
    assert {path.name for path in target.iterdir()} == {"TOY"}


def test_what_is_not_wanted_takes_no_room(tmp_path):
    noise = random.Random(0).randbytes(50_000)
    (tmp_path / "a.zip").write_bytes(make_zip(("SLIDES/huge.svs", noise)))
    extract(tmp_path / "a.zip", tmp_path, "TOY", max_bytes=1_000)
    assert not (tmp_path / "SLIDES").exists()


def test_a_tar_made_of_the_current_folder_is_good(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("./", "./TOY/", "./TOY/ADI/"):
            archive.addfile(tar_entry(name, tarfile.DIRTYPE))
        archive.addfile(tar_entry("./TOY/ADI/empty.tif", tarfile.REGTYPE))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    extract(tmp_path / "a.tar", tmp_path, "TOY", LIMIT)
    assert (tmp_path / "TOY" / "ADI" / "empty.tif").read_bytes() == b""


def test_nothing_is_executable_or_owned_by_the_archive(tmp_path):
    info = tar_entry("TOY/run.tif", tarfile.REGTYPE)
    info.mode = 0o6777
    (tmp_path / "a.tar").write_bytes(make_tar((info, b"#!"), mode="w:"))
    extract(tmp_path / "a.tar", tmp_path, "TOY", LIMIT)
    assert (tmp_path / "TOY" / "run.tif").stat().st_mode & 0o7111 == 0


def test_an_existing_folder_is_never_written_into(tmp_path):
    (tmp_path / "a.zip").write_bytes(make_zip())
    (tmp_path / "TOY").mkdir()
    with pytest.raises(FileExistsError, match="expected nothing there"):
        extract(tmp_path / "a.zip", tmp_path, "TOY", LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_an_archive_cut_anywhere_or_with_bytes_changed_is_refused_or_unpacks_true(name, tmp_path):
    packed = make_zip() if name == "a.zip" else make_tar(mode="w:" if name == "a.tar" else "w:gz")
    rng = random.Random(0)
    damaged = [packed[: rng.randrange(len(packed))] for _ in range(40)]
    for _ in range(60):
        copy = bytearray(packed)
        copy[rng.randrange(min(len(packed), 2048))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(copy))
    refused = 0
    for index, content in enumerate(damaged):
        folder = tmp_path / str(index)
        (folder / "target").mkdir(parents=True)
        (folder / name).write_bytes(content)
        try:
            extract(folder / name, folder / "target", "TOY", LIMIT)
        except UnsafeArchiveError:
            refused += 1
            assert list((folder / "target").iterdir()) == []
        assert {path.name for path in folder.iterdir()} == {name, "target"}
    assert refused > 40


def test_a_gz_is_decompressed_in_a_stream_and_a_bomb_or_a_cut_leaves_no_target(tmp_path):
    content = random.Random(0).randbytes(3_000_000)
    good, cut, bomb, fat = (tmp_path / f"{name}.gz" for name in ("good", "cut", "bomb", "fat"))
    good.write_bytes(gzip.compress(content, 1))
    cut.write_bytes(good.read_bytes()[:-9])
    bomb.write_bytes(gzip.compress(bytes(50_000_000), 1))
    gunzip(good, tmp_path / "good.h5", 3_000_000)
    assert (tmp_path / "good.h5").read_bytes() == content
    for archive, limit, reason in (
        (cut, LIMIT, "truncated"),
        (bomb, 10**9, "bomb"),
        (good, 2_999_999, "2,999,999 bytes"),
    ):
        with pytest.raises(UnsafeArchiveError, match=reason):
            gunzip(archive, tmp_path / "bad.h5", limit)
        assert not (tmp_path / "bad.h5").exists()
