"""A data set on the Hub, downloaded or streamed, gives the same rows and pixels; streaming keeps nothing on disk."""

import io
import time

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PCAM_CLASSES
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from hub_server import TOKEN, start_hub
from PIL import Image

from histolab_sft.config.arguments import HistoArguments
from histolab_sft.config.dataset import DatasetConfig
from histolab_sft.data.data_sets import load_source
from histolab_sft.data.pictures import containers
from histolab_sft.data.pictures.decoding import hash_pixels
from histolab_sft.data.rows import audit_recipe, load_audited_patches, load_patches
from histolab_sft.hub_access import HubAccessError
from histolab_sft.provenance import fingerprint_data

REPO = "lab/patches"
ROWS, GROUP_ROWS = {"train": 60, "validation": 20, "test": 20}, 10
FILES = {split: f"data/{split}-00000-of-00001.parquet" for split in ROWS}


def encode(rng):
    """Give a picture of 64 x 64 pixels of noise as the bytes of a PNG: about 12 kB."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files():
    """Path -> bytes of a data set as the library `datasets` writes it, in row groups of ten patches."""
    rng = np.random.default_rng(0)
    features = Features(
        {"image": ImageFeature(), "label": ClassLabel(names=["Normal", "Tumor"]), "slide_id": Value("string")}
    )
    contents = {"README.md": b"# patches"}
    for split, count in ROWS.items():
        rows = {
            "image": [{"bytes": encode(rng), "path": None} for _ in range(count)],
            "label": [row % 2 for row in range(count)],
            "slide_id": [f"{split}-{row // 4}" for row in range(count)],
        }
        buffer = io.BytesIO()
        Dataset.from_dict(rows, features=features).to_parquet(buffer, batch_size=GROUP_ROWS)
        contents[FILES[split]] = buffer.getvalue()
    return contents


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    server = start_hub()
    server.datasets[REPO] = dict(files)
    # Read by huggingface_hub when it is imported, which other tests have already done.
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    server.pauses = []
    monkeypatch.setattr(time, "sleep", server.pauses.append)
    # Kept for the life of a process, as a commit never changes; here every test has its own server.
    containers._open_parquet.cache_clear()
    containers._row_groups.clear()
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield server
    server.close()


def arguments(streaming, **keys):
    entry = {"name": "d", "source": REPO, "class_names": PCAM_CLASSES, "streaming": streaming}
    return HistoArguments(datasets=[entry | keys])


def count_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_downloaded_and_a_streamed_data_set_give_the_same_rows_and_pixels(server, tmp_path):
    rows = {streaming: load_audited_patches(arguments(streaming), tmp_path / "out") for streaming in (False, True)}
    for split, count in ROWS.items():
        assert len(rows[True][split]) == count
        assert rows[True][split]["group"] == rows[False][split]["group"]
        pictures = [
            [[hash_pixels(image)] for [image] in rows[streaming][split]["images"]] for streaming in (True, False)
        ]
        assert pictures[0] == pictures[1] == rows[True][split]["pixel_sha256"]
    assert fingerprint_data(rows[True]) == fingerprint_data(rows[False])


@pytest.mark.slow
def test_a_download_is_made_once(server):
    load_patches(arguments(False))
    served = dict(server.served)
    assert served == {name: len(server.datasets[REPO][name]) for name in FILES.values()}
    load_patches(arguments(False))
    assert server.served == served


def test_listing_a_streamed_data_set_fetches_none_of_its_pictures(server):
    load_source(DatasetConfig("d", REPO, PCAM_CLASSES, streaming=True))
    whole = {name: len(server.datasets[REPO][name]) for name in FILES.values()}
    # The end of each file (64 kB, as Arrow reads it, twice) and the columns beside the pictures.
    assert all(0 < server.served[name] < 180_000 for name in whole)
    assert server.served[FILES["train"]] < whole[FILES["train"]] / 4


def test_a_streamed_patch_brings_its_row_group_and_no_more(server):
    rows = load_patches(arguments(True))["train"]
    before = server.served[FILES["train"]]
    assert rows[25]["images"][0].size == (64, 64)
    first = server.served[FILES["train"]] - before
    group = len(server.datasets[REPO][FILES["train"]]) / (ROWS["train"] / GROUP_ROWS)
    assert 0.9 * group < first < 1.1 * group + 70_000  # the file's end is read when it is opened
    rows[range(20, 30)]["images"]
    assert server.served[FILES["train"]] - before == first
    rows[5]["images"]
    assert 0.9 * group < server.served[FILES["train"]] - before - first < 1.1 * group


@pytest.mark.slow
def test_the_audit_fetches_each_picture_once_and_the_next_run_none(server, tmp_path):
    audit_recipe(arguments(True), tmp_path / "out")
    served = sum(server.served.values())
    whole = sum(len(server.datasets[REPO][name]) for name in FILES.values())
    assert whole < served < whole + 3 * 200_000
    audit_recipe(arguments(True), tmp_path / "out")
    assert sum(server.served.values()) - served < 3 * 200_000


@pytest.mark.slow
def test_row_groups_are_kept_up_to_a_bound_and_nothing_is_on_disk(server, tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "ROW_GROUP_CACHE_BYTES", 200_000)  # one group, and not two
    patches = load_audited_patches(arguments(True), tmp_path / "out")
    for row in (0, 15, 25, 35):
        patches["train"][row]["images"]
        assert len(containers._row_groups) == 1
    assert not (tmp_path / "hub").exists() or count_bytes(tmp_path / "hub") == 0
    assert count_bytes(tmp_path) < 400_000  # hashes and thumbnails of the audit


@pytest.mark.slow
@pytest.mark.parametrize("fault", [429, 500, 503, "cut"])
def test_a_passing_fault_in_the_middle_of_streaming_is_overcome(server, fault):
    rows = load_patches(arguments(True))["train"]
    server.fail("resolve", fault, times=2)
    assert rows[25]["images"][0].size == (64, 64)
    assert len(server.pauses) == 2


@pytest.mark.parametrize(
    ("call", "fault", "said"),
    [
        ("resolve", 500, "the Hub answered 500 for lab/patches, again and again"),
        ("resolve", 429, "the Hub answered 429 for lab/patches, again and again"),
        ("resolve", "cut", "no connection to .* for lab/patches .*--repo-type dataset"),
        ("dataset", 403, "lab/patches is gated, .*open http.*/datasets/lab/patches, accept its terms"),
    ],
)
def test_a_fault_that_stays_stops_the_run_in_one_sentence_and_refuses_no_picture(server, tmp_path, call, fault, said):
    histo_args = arguments(True)
    histo_args.refused_images = "quarantine"
    server.fail(call, fault, times=99, **({"X_Error_Code": "GatedRepo"} if fault == 403 else {}))
    with pytest.raises(HubAccessError, match=said) as error:
        audit_recipe(histo_args, tmp_path / "out")
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)
    assert len(server.pauses) <= 6


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_that_is_not_there_is_told(server, streaming):
    del server.datasets[REPO]
    with pytest.raises(HubAccessError, match="/datasets/lab/patches isn't there, .* correct source"):
        load_patches(arguments(streaming))


def test_a_download_is_there_offline_and_streaming_says_that_it_needs_the_network(server, monkeypatch):
    load_patches(arguments(False))
    calls = len(server.calls)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert len(load_patches(arguments(False))["train"]) == ROWS["train"]
    with pytest.raises(HubAccessError, match="HF_HUB_OFFLINE is set"):
        load_patches(arguments(True))
    assert len(server.calls) == calls


def test_what_cannot_be_streamed_is_refused(server, tmp_path):
    (tmp_path / "lab" / "patches").mkdir(parents=True)
    with pytest.raises(ValueError, match="lies on this disk.*remove streaming"):
        load_source(DatasetConfig("d", REPO, PCAM_CLASSES, streaming=True), tmp_path)
    server.datasets[REPO] = {"data/all.parquet": b""}
    with pytest.raises(ValueError, match=r"found \['all.parquet'\].*named after their split"):
        load_patches(arguments(True))
    named = pa.table({"path": ["a.png", "b.png"], "label": ["Normal", "Tumor"]})
    buffer = io.BytesIO()
    pq.write_table(named, buffer)
    server.datasets[REPO] = {"train.parquet": buffer.getvalue()}
    with pytest.raises(ValueError, match="names its pictures by path"):
        load_patches(arguments(True))
    for wrong in ({"streaming": "yes"}, {"streaming": True, "format": "flare"}):
        with pytest.raises(ValueError, match="streaming is .*expected true or false"):
            DatasetConfig("d", REPO, PCAM_CLASSES, **wrong)
