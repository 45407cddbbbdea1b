"""Intake of whole lists of pictures: verdicts on odd and hostile files, memory, cache."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoded_pictures import encode, encode_deep_tiff, encode_png, make_tissue
from PIL import Image

from histolab_sft.data.pictures import inspection
from histolab_sft.data.pictures.inspection import check_images, compute_background_fraction


def write_odd_files(folder: Path) -> dict[str, tuple[str, str]]:
    """Write the corpus; return path -> (expected verdict, a word of the reason or of the conversions)."""
    tissue = make_tissue(width=224, height=224)
    frames = {"save_all": True, "append_images": [make_tissue(1, 224, 224)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = np.random.default_rng(0).integers(0, 65536, (64, 64, 3))
    deep_rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    lzw = bytearray(encode(tissue, "TIFF", compression="tiff_lzw"))
    lzw[len(lzw) // 2 : len(lzw) // 2 + 400] = b"\xff" * 400
    clear = tissue.convert("RGBA")
    clear.putalpha(128)
    files = {
        "rgb.png": (encode(tissue, "PNG"), "ok", ""),
        "rgb.jpg": (encode(tissue, "JPEG"), "ok", ""),
        "progressive.jpg": (encode(tissue, "JPEG", progressive=True), "ok", ""),
        "packbits.tif": (encode(tissue, "TIFF", compression="packbits"), "ok", ""),
        "lzw.tif": (encode(tissue, "TIFF", compression="tiff_lzw"), "ok", ""),
        "rgb.bmp": (encode(tissue, "BMP"), "ok", ""),
        "rgb.webp": (encode(tissue, "WEBP"), "ok", ""),
        "a_jpeg.png": (encode(tissue, "JPEG"), "ok", ""),
        "one_pixel.png": (encode(Image.new("RGB", (1, 1)), "PNG"), "ok", ""),
        "Größe 病理.png": (encode(tissue, "PNG"), "ok", ""),
        "cut.png": (encode(tissue, "PNG")[:5000], "refused", "truncated"),
        "cut.jpg": (encode(tissue, "JPEG")[:5000], "refused", "truncated"),
        "cut.tif": (encode(tissue, "TIFF")[:5000], "refused", "truncated"),
        "cut_lzw.tif": (encode(tissue, "TIFF", compression="tiff_lzw")[:5000], "refused", "cut off"),
        "cut.webp": (encode(tissue, "WEBP")[:3000], "refused", ""),
        "damaged_lzw.tif": (bytes(lzw), "refused", "decoder error"),
        "empty.png": (b"", "refused", "zero bytes"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "refused", "web page"),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', "refused", "SVG"),
        "noise.tif": (np.random.default_rng(1).bytes(4000), "refused", "known format"),
        "document.jpg": (b"%PDF-1.7 and so on", "refused", "known format"),
        "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "refused", "known format"),
        "animation.gif": (encode(tissue, "GIF", **frames), "refused", "known format"),
        "frames.tif": (encode(tissue, "TIFF", **frames), "refused", "several frames"),
        "frames.png": (encode(tissue, "PNG", **frames), "refused", "several frames"),
        "frames.webp": (encode(tissue, "WEBP", **frames), "refused", "several frames"),
        "float.tif": (encode(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "refused", "mode F"),
        "float_rgb.tif": (encode_deep_tiff(np.ones((9, 9, 3)), sample_format=3), "refused", "16-bit integers"),
        "lab.tif": (encode(Image.new("LAB", (9, 9)), "TIFF"), "refused", "mode LAB"),
        "bomb_13k.png": (encode_png(13000, 13000, 1, 0, b"\0" * 9), "refused", "expected at most 25000000"),
        "bomb_30k.png": (encode_png(30000, 30000, 1, 0, b"\0" * 9), "refused", "expected at most 25000000"),
        "cmyk.jpg": (encode(tissue.convert("CMYK"), "JPEG"), "converted", "CMYK"),
        "grey16.png": (encode(Image.fromarray(deep[..., 0].astype(np.uint16)), "PNG"), "converted", "16-bit grey"),
        "grey16.tif": (encode(Image.fromarray(deep[..., 0].astype(np.uint16)), "TIFF"), "converted", "16-bit grey"),
        "rgb16.png": (encode_png(64, 64, 16, 2, deep_rows), "converted", "16-bit RGB"),
        "rgb16.tif": (encode_deep_tiff(deep), "converted", "16-bit RGB"),
        "rgba.png": (encode(clear, "PNG"), "converted", "laid on white"),
        "grey_alpha.png": (encode(clear.convert("LA"), "PNG"), "converted", "laid on white"),
        "palette.png": (encode(tissue.convert("P"), "PNG"), "converted", "palette"),
        "one_bit.png": (encode(tissue.convert("1"), "PNG"), "converted", "1-bit"),
        "grey.jpg": (encode(tissue.convert("L"), "JPEG"), "converted", "grey"),
        "turned.jpg": (encode(tissue, "JPEG", exif=exif), "converted", "upright"),
        # Just under the limit, in the mode that needs most memory.
        "large16.png": (encode_png(4990, 4990, 16, 0, bytes(4990 * (1 + 2 * 4990))), "converted", "16-bit grey"),
    }
    expected = {}
    for name, (data, verdict, word) in files.items():
        (folder / name).write_bytes(data)
        expected[str(folder / name)] = (verdict, word)
    (folder / "sub").mkdir()
    (folder / "link.png").symlink_to(folder / "rgb.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    with open(folder / "slide.tif", "wb") as file:
        file.truncate(2**30)
    with socket.socket(socket.AF_UNIX) as server:  # the path of a socket has to be short
        server.bind(os.path.relpath(folder / "s"))
    expected |= {
        f"{folder}/sub/../rgb.jpg": ("ok", ""),
        f"{folder}/link.png": ("ok", ""),
        f"{folder}/loop.png": ("refused", "symbolic links"),
        f"{folder}/dangling.png": ("refused", "No such file"),
        f"{folder}/missing.png": ("refused", "No such file"),
        f"{folder}/pipe.png": ("refused", "regular file"),
        f"{folder}/s": ("refused", "regular file"),
        f"{folder}/sub": ("refused", "regular file"),
        "/dev/zero": ("refused", "regular file"),
        f"{folder}/slide.tif": ("refused", "cut the slide"),
        f"{folder}/nul\0.png": ("refused", "NUL"),
        f"{folder}/byte\udcff.png": ("refused", "UTF-8"),
    }
    return expected


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory):
    return write_odd_files(tmp_path_factory.mktemp("odd"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_every_odd_file_gets_the_expected_verdict(odd_files):
    assert len(odd_files) >= 50
    table = check_images([{"path": path, "row": -1} for path in odd_files])
    assert table["path"].tolist() == list(odd_files)
    for found, (path, (verdict, word)) in zip(table.itertuples(), odd_files.items(), strict=True):
        said = found.reason if verdict == "refused" else found.conversions
        assert (found.verdict, word in said) == (verdict, True), f"{ascii(path)}: {found.verdict} {said}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_refused_picture_has_a_reason_and_no_stand_in(odd_files):
    table = check_images([{"path": path, "row": -1} for path in odd_files])
    refused = table[table["verdict"] == "refused"]
    assert len(refused) > 25 and (refused["reason"].str.len() > 20).all()
    assert refused[["width", "mode", "pixel_sha256", "thumbnail", "contrast"]].isna().all(axis=None)
    assert table[table["verdict"] != "refused"].drop(columns="reason").notna().all(axis=None)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_an_unreadable_file_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(make_tissue(), "PNG"))
    (tmp_path / "a.png").chmod(0)
    (row,) = check_images([{"path": str(tmp_path / "a.png"), "row": -1}]).itertuples()
    assert row.verdict == "refused" and "chmod" in row.reason


@pytest.mark.model
def test_the_odd_files_need_less_than_a_gigabyte(odd_files, tmp_path):
    listing = tmp_path / "paths.json"
    listing.write_text(json.dumps(list(odd_files)))
    # Not resource.getrusage: its peak begins with that of the process that started this one.
    code = (
        "import json, pathlib, sys\n"
        "from histolab_sft.data.pictures.inspection import check_images\n"
        "check_images([{'path': path, 'row': -1} for path in json.load(open(sys.argv[1]))])\n"
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    run = subprocess.run([sys.executable, "-c", code, listing], capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 < 1e9


def write_patches(folder: Path, count: int) -> list[dict]:
    for number in range(count):
        make_tissue(number).save(folder / f"{number}.png")
    return [{"path": str(folder / f"{number}.png"), "row": -1} for number in range(count)]


def test_the_rows_keep_the_order_of_the_references_and_repeats(tmp_path):
    references = write_patches(tmp_path, 5)
    references = [references[number] for number in (3, 0, 3, 4, 1)]
    table = check_images(references)
    assert table["path"].tolist() == [reference["path"] for reference in references]
    assert table["pixel_sha256"].nunique() == 4 and table["pixel_sha256"][0] == table["pixel_sha256"][2]


def test_equal_pixels_in_other_files_have_one_pixel_hash_and_two_file_hashes(tmp_path):
    make_tissue().save(tmp_path / "a.png")
    make_tissue().save(tmp_path / "a.bmp")
    make_tissue().resize((32, 40)).save(tmp_path / "b.png")
    table = check_images([{"path": str(tmp_path / name), "row": -1} for name in ("a.png", "a.bmp", "b.png")])
    assert table["pixel_sha256"].nunique() == 2 and table["file_sha256"].nunique() == 3
    flat = [Image.new("RGB", size) for size in ((4, 9), (9, 4), (6, 6))]  # as many bytes, all zero
    for number, image in enumerate(flat):
        image.save(tmp_path / f"{number}.png")
    table = check_images([{"path": str(tmp_path / f"{number}.png"), "row": -1} for number in range(3)])
    assert table["pixel_sha256"].nunique() == 3


def test_parquet_rows_are_hashed_picture_by_picture(tmp_path):
    images = [encode(make_tissue(seed), "PNG") for seed in (0, 1, 0)]
    path = str(tmp_path / "p.parquet")
    pq.write_table(pa.table({"patch": [{"bytes": data, "path": None} for data in images]}), path)
    table = check_images([{"path": path, "row": row, "column": "patch"} for row in range(4)])
    assert table["file_sha256"][0] == table["file_sha256"][2] != table["file_sha256"][1]
    assert table["file_bytes"].tolist()[:3] == [len(data) for data in images]
    assert table["verdict"].tolist() == ["ok", "ok", "ok", "refused"]
    assert (check_images([{"path": path, "row": 1}], image_column="patch")["verdict"] == "ok").all()


def test_a_second_check_decodes_only_what_has_changed(tmp_path, monkeypatch):
    references = [*write_patches(tmp_path, 6), {"path": str(tmp_path / "gone.png"), "row": -1}]
    first = check_images(references, cache_folder=tmp_path / "cache")
    make_tissue(77).save(tmp_path / "2.png")
    os.utime(tmp_path / "2.png", ns=(1, 1))
    seen = []
    describe = inspection.describe_patch
    monkeypatch.setattr(inspection, "describe_patch", lambda *key: seen.append(Path(key[0]).name) or describe(*key))
    second = check_images(references, cache_folder=tmp_path / "cache")
    assert sorted(seen) == ["2.png", "gone.png"]  # refusals are looked at again
    assert (first["pixel_sha256"] == second["pixel_sha256"]).tolist() == [True, True, False, True, True, True, False]
    unchanged = [0, 1, 3, 4, 5]
    assert first.loc[unchanged].equals(second.loc[unchanged])
    (tmp_path / "gone.png").write_bytes((tmp_path / "1.png").read_bytes())
    assert check_images(references, cache_folder=tmp_path / "cache")["verdict"].tolist() == ["ok"] * 7


def test_a_broken_or_outdated_cache_is_made_anew(tmp_path, monkeypatch, caplog):
    references = write_patches(tmp_path, 3)
    truth = check_images(references, cache_folder=tmp_path)
    for damage in ("bytes", "version"):
        if damage == "bytes":
            (tmp_path / inspection.CACHE_NAME).write_bytes(b"PAR1 but not really")
        else:
            monkeypatch.setattr(inspection, "INSPECTION_VERSION", inspection.INSPECTION_VERSION + 1)
        assert check_images(references, cache_folder=tmp_path).equals(truth)
        assert check_images(references, cache_folder=tmp_path).equals(truth)
    assert "can't be read" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".png")) == [
        inspection.CACHE_NAME
    ]


def test_an_interrupted_check_keeps_what_it_has_done(tmp_path, monkeypatch):
    references = write_patches(tmp_path, 10)
    monkeypatch.setattr(inspection, "CHUNK", 4)
    describe = inspection.describe_patch

    def stop_at_the_seventh(*key):
        if key[0].endswith("6.png"):
            raise KeyboardInterrupt
        return describe(*key)

    monkeypatch.setattr(inspection, "describe_patch", stop_at_the_seventh)
    with pytest.raises(KeyboardInterrupt):
        check_images(references, cache_folder=tmp_path)
    monkeypatch.setattr(inspection, "describe_patch", describe)
    assert pq.read_metadata(tmp_path / inspection.CACHE_NAME).num_rows == 4
    assert len(check_images(references, cache_folder=tmp_path)) == 10


@pytest.mark.model
def test_several_processes_find_the_same_as_one(tmp_path, monkeypatch):
    references = write_patches(tmp_path, 40)
    alone = check_images(references, workers=1)
    monkeypatch.setattr(inspection, "PATCHES_WORTH_PROCESSES", 10)
    monkeypatch.setattr(inspection, "CHUNK", 8)
    assert check_images(references, workers=2).equals(alone)


def test_an_empty_list_gives_an_empty_table(tmp_path):
    table = check_images([], cache_folder=tmp_path)
    assert len(table) == 0 and {"path", "row", "verdict", "thumbnail"} <= set(table.columns)


def test_glass_and_padding_count_as_background_and_tissue_does_not():
    pixels = np.full((10, 10, 3), (190, 110, 160), np.uint8)
    pixels[:3] = 240
    pixels[-1:] = 5
    assert compute_background_fraction(pixels) == pytest.approx(0.4)


def test_measures_of_a_known_picture(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (row,) = check_images([{"path": str(tmp_path / "a.png"), "row": -1}]).itertuples()
    assert (row.width, row.height, row.mode, row.format) == (32, 32, "RGB", "PNG")
    assert row.contrast == 127.5 and row.background_fraction == 1
    thumbnail = np.frombuffer(row.thumbnail, np.uint8).reshape(16, 16)
    assert (thumbnail[:, :8] == 0).all() and (thumbnail[:, 8:] == 255).all()
