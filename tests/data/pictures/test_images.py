"""Decoding of single pictures: modes, bit depths, containers, DICOM."""

import io
import os
import signal
import tarfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoded_pictures import encode, encode_deep_tiff, encode_png, make_dicom, make_tissue
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histolab_sft.data.pictures import containers
from histolab_sft.data.pictures.containers import ImageRefused, index_tar, read_patch
from histolab_sft.data.pictures.decoding import decode_image, open_patch
from histolab_sft.tasks.parsing.box_geometry import place_whole


def test_a_16_bit_grey_picture_is_scaled_not_clipped():
    values = np.random.default_rng(0).integers(0, 65536, (50, 60)).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        image, conversions = decode_image(encode(Image.fromarray(values), kind), "x")
        assert image.mode == "RGB" and conversions == ["16-bit grey scaled to 8-bit RGB"]
        assert abs(np.asarray(image).mean() / 255 - values.mean() / 65535) < 1 / 255
        assert abs(np.asarray(image)[..., 0] - values / 257).max() <= 0.5


def test_the_ends_of_16_bit_grey_become_black_and_white():
    image, _ = decode_image(encode(Image.fromarray(np.array([[0, 65535]], np.uint16)), "PNG"), "x")
    assert np.asarray(image)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_a_16_bit_colour_picture_keeps_its_mean():
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    for data in (encode_png(30, 20, 16, 2, rows), encode_deep_tiff(values)):
        image, conversions = decode_image(data, "x")
        assert conversions == ["16-bit RGB scaled to 8 bit"]
        assert abs(np.asarray(image).mean() / 255 - values.mean() / 65535) < 1 / 255


def test_32_bit_grey_beyond_16_bits_is_refused():
    with pytest.raises(ImageRefused, match="expected values from 0 to 65535"):
        decode_image(encode(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"), "x")
    image, _ = decode_image(encode(Image.fromarray(np.array([[0, 65535]], np.int32)), "TIFF"), "x")
    assert np.asarray(image).max() == 255


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_floating_point_pictures_are_refused(shape):
    values = np.ones(shape, np.float32)
    data = encode(Image.fromarray(values), "TIFF") if len(shape) == 2 else encode_deep_tiff(values, sample_format=3)
    with pytest.raises(ImageRefused, match="8 or 16-bit"):
        decode_image(data, "x")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_the_white_of_a_slide(mode):
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    data = encode(image.convert(mode), "PNG", **({"transparency": 0} if mode == "P" else {}))
    decoded, conversions = decode_image(data, "x")
    assert np.asarray(decoded).min() == 255
    assert conversions == [f"{mode} with transparency laid on white"]


def test_half_transparent_tissue_is_blended_with_white():
    decoded, _ = decode_image(encode(Image.new("RGBA", (2, 2), (100, 0, 200, 128)), "PNG"), "x")
    assert np.abs(np.asarray(decoded)[0, 0] - np.array([177, 127, 227])).max() <= 1


@pytest.mark.parametrize(
    ("mode", "kind", "conversion"),
    [("CMYK", "JPEG", "CMYK to RGB"), ("P", "PNG", "palette to RGB"), ("1", "PNG", "1-bit to RGB"),
     ("L", "JPEG", "grey to RGB"), ("1", "TIFF", "1-bit to RGB"), ("CMYK", "TIFF", "CMYK to RGB")],
)  # fmt: skip
def test_other_modes_become_rgb_and_are_named(mode, kind, conversion):
    flat = Image.new("RGB", (16, 16), (255, 255, 255))
    image, conversions = decode_image(encode(flat.convert(mode), kind), "x")
    assert image.mode == "RGB" and conversions == [conversion]
    assert np.asarray(image).min() >= 254
    assert image.info == {"source_mode": mode, "source_format": kind, "placement": place_whole((16, 16))}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_carried_out(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste("black", (0, 0, 48, 8))  # the top of what is stored is the right side of what is meant
    image, conversions = decode_image(encode(upright, kind, exif=exif), "x")
    assert image.size == (32, 48) and conversions == ["turned upright by EXIF"]
    pixels = np.asarray(image.convert("L"))
    assert pixels[:, -2].max() < 60 and pixels[:, 2].min() > 200


def test_a_picture_with_several_frames_is_refused():
    frames = {"save_all": True, "append_images": [make_tissue(1)]}
    for kind in ("TIFF", "PNG", "WEBP"):
        with pytest.raises(ImageRefused, match="several frames"):
            decode_image(encode(make_tissue(), kind, **frames), "x")


def test_the_pixel_limit_is_checked_before_decoding():
    data = encode_png(6000, 6000, 8, 2, b"")  # has no pixels at all: decoding it would say "truncated"
    with pytest.raises(ImageRefused, match="6000 x 6000 pixels, expected at most 25000000"):
        decode_image(data, "x")
    with pytest.raises(ImageRefused, match="expected at most 1279"):
        decode_image(encode(make_tissue(), "PNG"), "x", max_pixels=40 * 32 - 1)
    decode_image(encode(make_tissue(), "PNG"), "x", max_pixels=40 * 32)


SEEDS = [encode(make_tissue(), kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP")]
SEEDS.append(encode(make_tissue(), "TIFF", compression="tiff_lzw"))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
    cut=st.integers(1, 5000),
)
def test_damaged_bytes_decode_or_are_refused_and_nothing_else(data, changes, cut):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image, _ = decode_image(bytes(damaged[:cut]), "damaged")
        except ImageRefused as error:
            assert str(error).startswith("damaged: ")
        else:
            assert image.mode == "RGB"


def write_parquet(path, images, column="image", group=4, plain=False):
    cells = [data if plain else {"bytes": data, "path": None} for data in images]
    pq.write_table(pa.table({column: cells, "label": ["a"] * len(cells)}), path, row_group_size=group)


@pytest.mark.parametrize("plain", [False, True])
def test_a_row_of_a_parquet_file_is_opened(tmp_path, plain):
    images = [encode(make_tissue(seed), "PNG") for seed in range(10)]
    path = str(tmp_path / "p.parquet")
    write_parquet(path, images, column="patch", plain=plain)
    for row in (9, 0, 4, 3, 7):
        assert open_patch(path, row, "patch").tobytes() == make_tissue(row).tobytes()
    with pytest.raises(ImageRefused, match="set image_column"):
        open_patch(path, 0, "picture")
    with pytest.raises(ImageRefused, match="p.parquet#10: the file has 10 rows"):
        open_patch(path, 10, "patch")


def test_a_parquet_row_without_bytes_is_refused(tmp_path):
    path = str(tmp_path / "p.parquet")
    write_parquet(path, [encode(make_tissue(), "PNG"), None])
    with pytest.raises(ImageRefused, match="no bytes in this row"):
        open_patch(path, 1)


def test_row_groups_in_memory_stay_under_the_limit(tmp_path, monkeypatch):
    path = str(tmp_path / "p.parquet")
    write_parquet(path, [os.urandom(1000) for _ in range(40)], group=4)
    monkeypatch.setattr(containers, "ROW_GROUP_CACHE_BYTES", 10_000)
    containers._row_groups.clear()
    for row in range(40):
        read_patch(path, row)
    assert [key[1] for key in containers._row_groups] == [8, 9]
    containers._row_groups.clear()


@pytest.mark.slow
def test_threads_that_read_row_groups_in_any_order_each_get_their_own_row(tmp_path, monkeypatch):
    path = str(tmp_path / "p.parquet")
    stored = [os.urandom(1000) for _ in range(180)]
    write_parquet(path, stored, group=10)
    monkeypatch.setattr(containers, "ROW_GROUP_CACHE_BYTES", 30_000)  # groups come and go all the time
    containers._row_groups.clear()
    rows = np.random.default_rng(0).integers(0, 180, 4000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda row: read_patch(path, row), rows)) == [stored[row] for row in rows]
    containers._row_groups.clear()


@pytest.mark.slow
def test_a_process_forked_while_a_thread_reads_can_read_itself(tmp_path):
    path = str(tmp_path / "p.parquet")
    write_parquet(path, [bytes([1 + row]) * 1000 for row in range(40)], group=4)
    stop = threading.Event()

    def read_on():
        while not stop.is_set():
            read_patch(path, int.from_bytes(os.urandom(1)) % 40)

    readers = [threading.Thread(target=read_on) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                os._exit(0 if read_patch(path, 7)[0] == 8 else 1)
            end = time.monotonic() + 20
            while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
                time.sleep(0.001)
            if status[0] == 0:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            assert status == (child, 0)
    finally:
        stop.set()
        for reader in readers:
            reader.join()


def test_a_row_of_an_hdf5_file_is_opened(tmp_path):
    path = str(tmp_path / "camelyonpatch_x.h5")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)
    with h5py.File(path, "w") as file:
        file["image"] = pixels
    assert (np.asarray(open_patch(path, 3)) == pixels[3]).all()
    with pytest.raises(ImageRefused, match="has 5 rows"):
        open_patch(path, 5)


def test_rows_of_an_npz_file_are_counted_over_its_splits(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, rng = str(tmp_path / "d.npz"), np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8) for n in (5, 3))
    grey = rng.integers(0, 256, (2, 28, 28), dtype=np.uint8)
    np.savez_compressed(path, train_images=train, train_labels=np.zeros(5), test_images=test, grey_images=grey)
    assert (np.asarray(open_patch(path, 4)) == train[4]).all()
    assert (np.asarray(open_patch(path, 5)) == test[0]).all()
    assert (np.asarray(open_patch(path, 9)) == grey[1][..., None]).all()
    assert len(list((tmp_path / "cache/histolab_sft/unpacked").glob("*.npy"))) == 3
    with pytest.raises(ImageRefused, match="has 10 pictures"):
        open_patch(path, 10)


def test_the_nth_picture_of_a_tar_shard_is_opened(tmp_path):
    path = str(tmp_path / "shard.tar")
    with tarfile.open(path, "w") as archive:
        for number in range(4):
            for suffix, data in (("cls", b"1"), ("png", encode(make_tissue(number), "PNG"))):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    assert [name for name, _, _ in index_tar(path)] == ["0.png", "1.png", "2.png", "3.png"]
    for row in (2, 0, 3):
        assert open_patch(path, row).tobytes() == make_tissue(row).tobytes()
    with pytest.raises(ImageRefused, match="4 pictures"):
        open_patch(path, 4)


@pytest.mark.parametrize("name", ["x.parquet", "x.h5", "x.tar"])
def test_a_broken_container_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(ImageRefused, match=f"{name}#0: .*download it again"):
        open_patch(str(tmp_path / name), 0)


def test_a_row_of_a_plain_picture_is_refused(tmp_path):
    make_tissue().save(tmp_path / "a.png")
    with pytest.raises(ImageRefused, match="use row -1"):
        open_patch(str(tmp_path / "a.png"), 0)


def _sum_patches(path: str, rows: list[int]) -> int:
    return sum(int(np.asarray(open_patch(path, row)).sum()) for row in rows)


@pytest.mark.model
@pytest.mark.parametrize("kind", ["h5", "parquet"])
def test_forked_workers_read_a_container_that_the_parent_has_open(tmp_path, kind):
    path = str(tmp_path / f"p.{kind}")
    images = [make_tissue(seed, 96, 96) for seed in range(24)]
    if kind == "h5":
        with h5py.File(path, "w") as file:
            file["image"] = np.stack([np.asarray(image) for image in images])
    else:
        write_parquet(path, [encode(image, "PNG") for image in images])
    rows = list(range(24)) * 4
    truth = _sum_patches(path, rows)
    with get_context("fork").Pool(3) as pool:
        assert pool.starmap(_sum_patches, [(path, rows)] * 6) == [truth] * 6


def test_a_colour_dicom_keeps_its_pixels():
    pixels = np.asarray(make_tissue())
    image, conversions = decode_image(make_dicom(pixels, "RGB"), "x")
    assert (np.asarray(image) == pixels).all() and conversions == ["DICOM: 8-bit RGB"]
    assert (image.info["source_mode"], image.info["source_format"]) == ("RGB", "DICOM")


def test_a_grey_dicom_is_rescaled_and_windowed():
    pixels = np.arange(0, 2000, 10, dtype=np.uint16).reshape(10, 20)
    data = make_dicom(
        pixels, "MONOCHROME2", RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=0.5, WindowWidth=1001
    )
    image, conversions = decode_image(data, "x")
    expected = np.clip((pixels * 2.0 - 1000) / 1000 + 0.5, 0, 1) * 255
    assert np.abs(np.asarray(image)[..., 0] - expected).max() <= 1
    assert conversions == ["DICOM: first window applied"]


def test_a_grey_dicom_without_window_fills_8_bits_and_monochrome1_is_inverted():
    pixels = np.arange(100, 300, dtype=np.uint16).reshape(10, 20)
    plain, _ = decode_image(make_dicom(pixels, "MONOCHROME2"), "x")
    inverted, conversions = decode_image(make_dicom(pixels, "MONOCHROME1"), "x")
    assert np.asarray(plain)[0, 0, 0] == 0 and np.asarray(plain)[-1, -1, 0] == 255
    assert (np.asarray(plain).astype(int) + np.asarray(inverted) == 255).all()
    assert conversions[-1] == "DICOM: MONOCHROME1 inverted"


def test_a_refused_dicom_never_tells_the_patient(recwarn, caplog):
    pixels = np.asarray(make_tissue())
    broken = [
        make_dicom(pixels, "RGB", NumberOfFrames=3),
        make_dicom(pixels, "RGB", Rows=9000, Columns=9000),
        make_dicom(pixels, "HSV"),
        make_dicom(pixels, "RGB", PixelData=b"\0" * 10),
        make_dicom(pixels, "RGB")[:900],
        make_dicom(pixels, "RGB").replace(b"Secret^Person", b"Secret^P\xff\xff\xff\xff\xff"),
    ]
    refusals = []
    for data in broken:
        try:
            decode_image(data, "x.dcm")
        except ImageRefused as error:
            refusals.append(error.reason)
            assert error.__cause__ is None
    assert len(refusals) >= 5
    heard = " ".join([*refusals, caplog.text, *(str(warning.message) for warning in recwarn)])
    assert "Secret" not in heard and "4711" not in heard
    assert "3 frames" in refusals[0] and "9000 x 9000" in refusals[1]
