"""Publishing: exactly what is on the list reaches the Hub, in one commit or not at all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import TOKEN, start_hub
from published_run import REPO, write_run

from histolab_sft.publishing import hub
from histolab_sft.publishing.hub import build_publish_folder, format_listing, list_files, push_folder
from histolab_sft.publishing.push_gate import PublishError

ALLOWED = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "figures/confusion_crc.png",
    "figures/reliability.png",
    "results.json",
]
DECOYS = [
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "adapter_model.bin",
    "model.safetensors",
    "state.pkl",
    ".env",
    ".netrc",
    "hf_token.txt",
    "trainer_state.json",
    "run.log",
    "patch.png",
    "slide_S21-12345.tif",
    "predictions.csv",
    "evaluation/predictions.parquet",
    "evaluation/report.html",
    "evaluation/figures/.hidden.png",
    "evaluation/figures/notes.txt",
    "evaluation/figures/inner/deep.png",
    "checkpoint-10/adapter_model.safetensors",
    "checkpoint-10/README.md",
    "publish/leftover.bin",
]


@pytest.fixture
def server(monkeypatch):
    server = start_hub()
    # Read by huggingface_hub when it is imported, which other tests have already done.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub waits up to 23 s between its attempts
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path):
    arguments, _ = write_run(tmp_path)
    return build_publish_folder(*arguments)


def client(server, token=TOKEN):
    return huggingface_hub.HfApi(endpoint=server.url, token=token)


@pytest.mark.slow
def test_exactly_the_listed_files_reach_the_hub_among_decoys(tmp_path, server):
    arguments, _ = write_run(tmp_path)
    output_dir = tmp_path / "out"
    for decoy in DECOYS:
        path = output_dir / decoy
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"decoy")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (output_dir / "evaluation" / "figures" / "link.png").symlink_to(tmp_path / "secret.png")
    folder = build_publish_folder(*arguments)
    push_folder(folder, REPO, api=client(server))
    assert server.repos[REPO]["commits"] == [ALLOWED]
    assert sorted(server.repos[REPO]["files"]) == ALLOWED
    adapter = (output_dir / "adapter_model.safetensors").read_bytes()
    assert server.repos[REPO]["files"]["adapter_model.safetensors"] == adapter
    assert b"decoy" not in b"".join(server.repos[REPO]["files"].values())


def test_a_repository_is_private_unless_told_otherwise(folder, server):
    url = push_folder(folder, REPO, api=client(server))
    assert url.startswith(f"{server.url}/{REPO}/commit/")
    assert server.repos[REPO]["private"]
    push_folder(folder, "pathlab/open", private=False, api=client(server))
    assert not server.repos["pathlab/open"]["private"]


def test_a_private_adapter_never_goes_into_a_public_repository(folder, server):
    server.add_repo(REPO, private=False)
    with pytest.raises(PublishError, match="is public, expected private"):
        push_folder(folder, REPO, api=client(server))
    assert server.repos[REPO]["commits"] == []
    assert "upload" not in server.calls


def test_a_second_push_of_the_same_files_makes_no_second_commit(folder, server):
    first = push_folder(folder, REPO, api=client(server))
    assert push_folder(folder, REPO, api=client(server)) == first
    assert len(server.repos[REPO]["commits"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("call", ["create", "info", "preupload", "batch", "upload", "verify", "commit"])
@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "no valid token"), (403, "no right"), (429, "too many requests"), (500, "has trouble")],
)
def test_a_refusal_at_any_call_publishes_nothing_and_the_next_push_finishes(folder, server, call, status, said):
    server.fail(call, status, "rate or right", times=20)
    with pytest.raises(PublishError, match=said) as refusal:
        push_folder(folder, REPO, api=client(server))
    assert "nothing was published" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert server.repos.get(REPO, {"commits": []})["commits"] == []
    server.faults.clear()
    push_folder(folder, REPO, api=client(server))
    assert server.repos[REPO]["commits"] == [ALLOWED]


@pytest.mark.slow
@pytest.mark.parametrize("call", ["create", "info", "validate", "preupload", "batch", "upload", "verify", "commit"])
def test_a_cut_line_at_any_call_publishes_nothing_and_the_next_push_finishes(folder, server, call):
    server.fail(call, "cut", times=20)
    with pytest.raises(PublishError, match="the connection broke"):
        push_folder(folder, REPO, api=client(server))
    assert server.repos.get(REPO, {"commits": []})["commits"] == []
    server.faults.clear()
    push_folder(folder, REPO, api=client(server))
    assert server.repos[REPO]["commits"] == [ALLOWED]


@pytest.mark.slow
@pytest.mark.parametrize("call", ["preupload", "batch", "upload", "verify"])
@pytest.mark.parametrize("status", ["cut", 429, 500, 503])
def test_a_passing_fault_is_overcome_in_the_same_push(folder, server, call, status):
    server.fail(call, status, "busy", times=2)
    push_folder(folder, REPO, api=client(server))
    assert server.repos[REPO]["commits"] == [ALLOWED]


def test_a_file_cut_in_the_middle_is_sent_again_whole(folder, server):
    server.fail("upload", "cut")
    push_folder(folder, REPO, api=client(server))
    sizes = [(folder / name).stat().st_size for name in ALLOWED]
    (call, taken) = server.cut[0]
    assert call == "upload"
    assert any(0 < taken == size // 2 for size in sizes)
    assert server.repos[REPO]["files"]["adapter_model.safetensors"] == (folder / ALLOWED[2]).read_bytes()


def test_a_gated_repository_is_named_as_one_without_right_to_write(folder, server):
    server.add_repo(REPO)
    server.fail("preupload", 403, "Access to this repository is restricted", X_Error_Code="GatedRepo")
    with pytest.raises(PublishError, match=f"answered 403 for {REPO}.*restricted.*no right to write"):
        push_folder(folder, REPO, api=client(server))
    assert server.repos[REPO]["commits"] == []


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(folder, server):
    server.add_repo(REPO)
    server.fail("commit", 412, "A commit has happened since. Please refresh and try again.")
    with pytest.raises(PublishError, match="changed meanwhile"):
        push_folder(folder, REPO, api=client(server))
    server.fail("commit", 409, "another commit is in progress")
    with pytest.raises(PublishError, match="something else is changing"):
        push_folder(folder, REPO, api=client(server))
    assert server.repos[REPO]["commits"] == []


def test_a_wrong_token_is_refused_and_never_shown(folder, server):
    wrong = "hf_" + "z" * 34
    with pytest.raises(PublishError, match="no valid token") as refusal:
        push_folder(folder, REPO, api=client(server, wrong))
    assert wrong not in str(refusal.value)


def test_what_the_hub_says_is_shown_without_secrets(folder, server):
    server.fail("create", 403, f"token {TOKEN} may not write")
    with pytest.raises(PublishError) as refusal:
        push_folder(folder, REPO, api=client(server))
    assert TOKEN not in str(refusal.value)
    assert "may not write" in str(refusal.value)


def test_signed_addresses_stand_in_no_traceback(folder, server):
    server.fail("upload", 403, "denied")
    with pytest.raises(PublishError) as refusal:
        push_folder(folder, REPO, api=client(server))
    assert refusal.value.__suppress_context__
    assert "Signature" not in str(refusal.value)


def test_without_token_or_repository_nothing_is_asked(folder, server, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(PublishError, match="found no token"):
        push_folder(folder, REPO, api=client(server, None))
    for name in (None, "no-account", "a/b/c"):
        with pytest.raises(PublishError, match="expected account/name"):
            push_folder(folder, name, api=client(server))
    assert server.calls == []


def test_the_listing_shows_every_file_with_its_size(folder):
    listing = format_listing(folder)
    for name in list_files(folder):
        assert f"{(folder / name).stat().st_size:,}  {name}" in listing


@pytest.mark.model
def test_the_command_lists_and_stops_when_dry_and_pushes_otherwise(tmp_path):
    server = start_hub()
    _, recipe = write_run(tmp_path)
    command = [sys.executable, "recipes/push_adapter.py", "--config", str(recipe)]
    root = Path(__file__).parents[2]
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_OFFLINE"] = "1"
    dry = subprocess.run([*command, "--dry_run", "true"], cwd=root, env=environment, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    assert all(name in dry.stdout for name in ALLOWED)
    assert server.calls == []
    offline = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert offline.returncode == 2
    assert "not published: HF_HUB_OFFLINE is set" in offline.stderr
    assert "Traceback" not in offline.stderr
    environment["HF_HUB_OFFLINE"] = "0"
    pushed = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert pushed.returncode == 0, pushed.stderr
    assert f"{server.url}/{REPO}/commit/" in pushed.stdout
    assert server.repos[REPO]["commits"] == [ALLOWED]
    for run in (dry, offline, pushed):
        assert TOKEN not in run.stdout + run.stderr
    server.close()
